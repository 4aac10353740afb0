#!/usr/bin/env bash
# benchmarks/gpu.py on a machine that has Python and PyTorch and perhaps nothing else:  benchmarks/gpu.sh [--data DIR] [--tiny --device cpu]
# PYTHON names the interpreter, ENVIRONMENT a folder for what is missing (made by pip, beside the PyTorch that is there).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
environment=${ENVIRONMENT:-${TMPDIR:-/tmp}/sslkit-gpu-$(id -u)}

if ! site=$("$python" -c 'import os, torch, torchvision; print(os.path.dirname(os.path.dirname(torch.__file__)))' 2>/dev/null); then
  echo "$python has no PyTorch with torchvision; name one that has: PYTHON=/path/to/python benchmarks/gpu.sh" >&2
  exit 2
fi

missing() {
  "$1" - <<'END'
from importlib.util import find_spec
needed = {"timm": "timm", "pydantic": "pydantic", "typer": "typer", "rich": "rich", "safetensors": "safetensors", "entrypoints": "entrypoints",
          "numpy": "numpy", "PIL": "pillow", "yaml": "pyyaml", "matplotlib": "matplotlib"}
print(*(package for module, package in needed.items() if find_spec(module) is None))
END
}

lacking=$(missing "$python")
if [ -n "$lacking" ]; then
  "$python" -m venv "$environment"
  echo "$site" > "$("$environment/bin/python" -c 'import site; print(site.getsitepackages()[0])')/pytorch-of-this-machine.pth"
  python=$environment/bin/python
  lacking=$(missing "$python")
  # shellcheck disable=SC2086
  if [ -n "$lacking" ] && ! "$python" -m pip install --quiet --disable-pip-version-check --retries 1 --timeout 15 $lacking >&2; then
    echo "this Python lacks $lacking, and pip cannot fetch them here; install them into it, then run this again" >&2
    exit 2
  fi
fi

# Entry points without an installation: the build backend may be missing too.
known=$(mktemp -d)
trap 'rm -rf "$known"' EXIT
"$python" - "$root" "$known" <<'END'
import sys, tomllib
from pathlib import Path
root, known = map(Path, sys.argv[1:])
points = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]["entry-points"]
folder = known / "sslkit-0.dist-info"
folder.mkdir()
lines = [line for group, parts in points.items() for line in (f"[{group}]", *(f"{name} = {part}" for name, part in parts.items()))]
(folder / "entry_points.txt").write_text("\n".join(lines) + "\n", "utf-8")
(folder / "METADATA").write_text("Metadata-Version: 2.1\nName: sslkit\nVersion: 0\n", "utf-8")
END
export PYTHONPATH=$root:$root/plugins:$known${PYTHONPATH:+:$PYTHONPATH}
"$python" "$root/benchmarks/gpu.py" --minutes "$(awk "BEGIN { print 8.5 - $SECONDS / 60 }")" "$@"
