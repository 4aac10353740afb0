"""The wheel alone, in an empty folder: recipes by name, training, evaluation."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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


@pytest.fixture
def run(scripts, tmp_path):
    """Run a script of the environment in an empty folder; return what it prints."""
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

    return run


@pytest.mark.slow
def test_the_wheel_trains_in_an_empty_folder(run, scripts, tmp_path):
    where = run("python", "-P", "-c", "import sslkit; print(sslkit.__file__)")
    assert Path(where.strip()).is_relative_to(scripts.parent)
    assert "\npirl_jigsaw\n" in run("sslkit", "recipes")
    assert not list(tmp_path.iterdir())
    run("sslkit", "train", "pirl_jigsaw", "--set", "train.epochs=1")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["pirl_jigsaw"]
    assert "trained" in run("sslkit", "eval", "knn")
    run("sslkit", "recipes", "copy", "pirl_jigsaw", "mine.yaml")
    assert run("sslkit", "check", "mine.yaml").startswith("mine.yaml is valid")


SAME = """
import safetensors.torch, sslkit, timm, torch
run = sslkit.load("runs/pirl_jigsaw/latest")
model = timm.create_model("local-dir:runs/pirl_jigsaw/latest/export/timm", pretrained=True).eval()
images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
with torch.inference_mode():
    torch.testing.assert_close(model(images), run.encoder()(images), rtol=1e-5, atol=1e-6)
"""


@pytest.mark.slow
def test_the_readme_runs_from_the_wheel(run, tmp_path):
    """The Python block as printed, `sslkit eval linear`, an export to timm, an embedding."""
    for place, names in (("photos", ("",)), ("labelled", ("cat", "dog"))):
        for number in range(40):
            folder = tmp_path / place / names[number % len(names)]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(number).integers(0, 256, (72, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = text.partition("```python\n")[2].partition("```")[0]
    assert "raw pixels" in run("python", "-P", "-c", block)
    assert "raw pixels" in run("sslkit", "eval", "linear", "--data", "labelled")
    run("sslkit", "export", "runs/pirl_jigsaw/latest", "--to", "timm")
    run("python", "-P", "-c", SAME)
    run("sslkit", "embed", "runs/pirl_jigsaw/latest", "labelled", "features.npz")
    with np.load(tmp_path / "features.npz", allow_pickle=False) as file:
        assert file["vectors"].shape == (40, 512) and set(file["labels"]) == {"cat", "dog"}
