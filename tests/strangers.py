"""Distributions of strangers: installed into a folder, and found in this process."""

import importlib
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import copytree, ignore_patterns

from sslkit.recipe import registry, source

HERE = Path(__file__).parent
CACHES = (registry.discover, registry._signature, source.find)


def install(distribution: Path, folder: Path) -> Path:
    """Put a distribution's packages and entry points into `folder`, as pip does."""
    project = tomllib.loads((distribution / "pyproject.toml").read_text())["project"]
    name = project["name"]
    copytree(distribution / name, folder / name, ignore=ignore_patterns("__pycache__"))
    information = folder / f"{name}-{project['version']}.dist-info"
    information.mkdir()
    lines = []
    for group, parts in project["entry-points"].items():
        lines.append(f"[{group}]")
        lines += [f"{part} = {target}" for part, target in parts.items()]
    (information / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return folder


@contextmanager
def present(folder: Path, *packages: str) -> Iterator[None]:
    """Find the parts that are installed in `folder`, and forget them afterwards."""
    sys.path.insert(0, str(folder))
    forget()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        forget(*packages)


def forget(*packages: str) -> None:
    """Look for parts anew, and import these packages anew."""
    importlib.invalidate_caches()
    for cached in CACHES:
        cached.cache_clear()
    for name in list(sys.modules):
        if name.partition(".")[0] in packages:
            del sys.modules[name]
