"""The wheel alone, in an empty folder: recipes by name, training, evaluation."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = "Scripts" if os.name == "nt" else "bin"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from the repository."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def scripts(wheel, tmp_path_factory):
    """The scripts of an environment with the wheel, which borrows what sslkit depends on.

    A .pth file names the folders of packages. Their own .pth files are not read, so an editable
    installation of sslkit is not found.
    """
    home = tmp_path_factory.mktemp("environment")
    venv.create(home)
    folder = home / SCRIPTS
    pip = [sys.executable, "-m", "pip", "--python", folder / "python", "install", "--no-deps"]
    quiet = ["--no-index", "--disable-pip-version-check"]
    subprocess.run([*pip, *quiet, wheel], capture_output=True, check=True)
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    found = subprocess.run(
        [folder / "python", "-c", ask], capture_output=True, text=True, check=True
    )
    packages = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    Path(found.stdout.strip(), "borrowed.pth").write_text("\n".join(packages))
    return folder


def test_the_wheel_holds_packages_and_recipes_alone(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    held = {name.removeprefix("sslkit/shipped_recipes/") for name in names if ".yaml" in name}
    recipes = ROOT / "recipes"
    assert held == {path.relative_to(recipes).as_posix() for path in recipes.rglob("*.yaml")}
    tops = {name.partition("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"sslkit", "sslkit_plugins"}


@pytest.mark.slow
def test_the_wheel_trains_in_an_empty_folder(scripts, tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def run(*command):
        done = subprocess.run(
            [scripts / command[0], *command[1:]],
            cwd=tmp_path,
            env=environment | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = run("python", "-P", "-c", "import sslkit; print(sslkit.__file__)")
    assert Path(where.strip()).is_relative_to(scripts.parent)
    assert run("sslkit", "recipes").startswith("jigsaw\n")
    assert not list(tmp_path.iterdir())
    run("sslkit", "train", "pirl_jigsaw", "--set", "train.epochs=1")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["pirl_jigsaw"]
    assert "trained" in run("sslkit", "eval", "knn")
    run("sslkit", "recipes", "copy", "pirl_jigsaw", "mine.yaml")
    assert run("sslkit", "check", "mine.yaml").startswith("mine.yaml is valid")
