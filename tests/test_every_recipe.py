"""Every recipe of a method, run as a user runs it, on a few images of two classes."""

import signal
from importlib.util import find_spec

import numpy as np
import pytest
from conftest import assert_as, finish, start, steps, wait_for
from PIL import Image
from typer.testing import CliRunner

from sslkit import recipe
from sslkit.cli import app
from sslkit.recipe import shipped

SMALL = [name for name in shipped.names() if "/" not in name]
KILLED = ("moco", "swav", "deepcluster_v2")
"""Recipes with a queue, with prototypes, and with work at the start of an epoch."""
ALONE = ("simclr", "cmc", "single_image")
"""Recipes whose export is loaded in a process of its own: one for each kind of encoder."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """24 images of two classes: rising and falling gradients with noise."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(24):
        place = folder / "ab"[number % 2]
        place.mkdir(exist_ok=True)
        ramp = np.linspace(0, 200, 70)[:: 1 if number % 2 else -1]
        pixels = ramp[None, :, None] * rng.random(3) + rng.integers(0, 55, (64, 70, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(place / f"{number:02}.jpg")
    return folder


def sslkit(*words):
    """Run the command line in this process; return what it printed."""
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 0, done.output
    return done.output


def small(name):
    """Settings that replace a ResNet-18, which most recipes share, by the smallest ResNet."""
    if recipe.read(name).encoder.options.get("model") == "resnet18":
        return ("--set", "encoder.model=test_resnet")
    return ()


def exports(run):
    """Export a run to the encoder's own library, or to ONNX where it has none and ONNX is there."""
    done = CliRunner().invoke(app, ["export", str(run)])
    without = "sslkit[onnx]" in done.output and find_spec("onnx") is None
    assert done.exit_code == (2 if without else 0), done.output


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_it_trains_on_a_small_folder(name, photos, tmp_path, request):
    run = tmp_path / "run"
    few = ("--set", "train.epochs=1", "--set", "train.workers=0", "--set", "train.device=cpu")
    few += small(name)
    if name not in ALONE:
        request.getfixturevalue("loaded_here")
    sslkit("train", name, "--data", photos, "--run", run, *few, "--set", "train.batch_size=8")
    assert "knn" in sslkit("eval", "knn", run).lower()
    exports(run)
    every = tmp_path / "every"
    sslkit("train", name, "--data", photos, "--run", every, *few, "--set", "train.batch_size=24")


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_it_is_inspected(name, photos, tmp_path):
    words = (name, "--data", photos, "--set", "train.batch_size=8", *small(name))
    sslkit("check", *words)
    sslkit("views", *words, "--out", tmp_path / "views.png")
    assert (tmp_path / "views.png").stat().st_size > 0
    assert "memory" in sslkit("plan", *words).lower()


@pytest.mark.slow
@pytest.mark.parametrize("name", KILLED)
def test_a_killed_run_ends_as_if_never_killed(name, photos, tmp_path):
    settings = [
        "train.epochs=4",
        "train.batch_size=8",
        "train.workers=0",
        "train.save_minutes=0",
        "train.device=cpu",
    ]
    words = ["train", name, "--data", photos, *small(name)]
    for setting in settings:
        words += ["--set", setting]
    sslkit(*words, "--run", tmp_path / "whole")
    for done in (1, 7):
        process = start(*words, "--run", tmp_path / "killed")
        wait_for(lambda done=done: steps(tmp_path / "killed") >= done, process)
        process.kill()
        assert finish(process)[0] == -signal.SIGKILL
    assert "resumed at step" in sslkit(*words, "--run", tmp_path / "killed")
    assert_as(tmp_path / "killed", tmp_path / "whole")
