"""A dependency that is missing or broken is one sentence with the command that mends it."""

import os
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "recipes" / "pirl_jigsaw.yaml"

BROKEN = {
    "missing": ("torch", "raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')"),
    "library": ("torch", "raise OSError('libcudart.so.13: cannot open shared object file')"),
    "extension": ("numpy", "raise ImportError('numpy.core.multiarray failed to import')"),
    "half": ("safetensors", "import safetensors._gone"),
    "yaml": ("yaml", "raise ModuleNotFoundError(\"No module named 'yaml'\", name='yaml')"),
}
"""A case → the module, what its body does."""

COMMANDS = {
    "missing": "pip install torch torchvision",
    "library": "pip install --force-reinstall torch torchvision",
    "extension": "pip install --force-reinstall numpy",
    "half": "pip install safetensors",
    "yaml": "pip install pyyaml",
}


def sslkit(folder, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "sslkit", *map(str, arguments)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder / "site")} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def write(folder, module, body):
    package = folder / "site" / module
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(body)


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_dependency_is_one_sentence(tmp_path, case):
    module, body = BROKEN[case]
    write(tmp_path, module, body)
    done = sslkit(tmp_path, "train", RECIPE)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"cannot import {module}: ")
    assert done.stderr.strip().endswith(COMMANDS[case])
    assert not (tmp_path / "runs").exists()


def test_releases_that_do_not_fit_together(tmp_path):
    """As PyPI's torchvision fails beside a CPU build of torch."""
    write(tmp_path, "torchvision", "raise RuntimeError('operator torchvision::nms does not exist')")
    done = sslkit(tmp_path, "train", RECIPE)
    assert done.returncode == 2
    assert "operator torchvision::nms does not exist" in done.stderr
    assert "install --force-reinstall torch torchvision" in done.stderr


def test_the_traceback_is_there_for_who_asks(tmp_path):
    write(tmp_path, *BROKEN["library"])
    done = sslkit(tmp_path, "train", RECIPE, SSLKIT_DEBUG="1")
    assert "Traceback" in done.stderr


def test_every_dependency_has_a_lower_bound():
    """What `.ci/lowest` installs."""
    printed = subprocess.run(
        [sys.executable, ROOT / "scripts" / "lowest.py"], capture_output=True, text=True, check=True
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    light = [r.replace(">=", "==") for r in project["dependencies"] if not r.startswith("t")]
    assert "typer==0.19" in printed.stdout.split()
    assert set(light) < set(printed.stdout.split())


def test_the_source_distribution_holds_what_is_tracked(tmp_path):
    """So its own tests find what they read: scripts, benchmarks, recipes, documents."""
    if not (ROOT / ".git").exists():
        pytest.skip("no checkout of git: nothing says what is tracked")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    command = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", tmp_path]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names - {"PKG-INFO"} == set(listed.stdout.split())
