"""`--set encoder.weights=RUN` starts training from the encoder of a run."""

import contextlib
from pathlib import Path

import pytest
from conftest import sslkit
from safetensors.numpy import load_file

from sslkit.errors import RecipeError
from sslkit_plugins.encoders import initial

SMALL = (
    "data.images=16",
    "encoder.model=test_resnet",
    "transform.size=32",
    "train.epochs=1",
    "train.batch_size=8",
    "train.workers=0",
    "train.device=cpu",
    "schedule.warmup_epochs=0",
)


def train(folder, name, *settings):
    """Train a shipped recipe at small sizes below `folder`; returns exit code and stderr."""
    options = []
    for setting in (*SMALL, *settings):
        options += ["--set", setting]
    with contextlib.chdir(folder):
        code, _, err = sslkit("train", name, *options)
    return code, err


def encoder(folder, name):
    return load_file(folder / "runs" / name / "latest" / "encoder.safetensors")


@pytest.mark.slow
def test_training_starts_from_the_encoder_of_a_run(tmp_path):
    assert train(tmp_path, "npid") == (0, "")
    first = "encoder.weights=runs/npid/latest"
    assert train(tmp_path, "pirl_jigsaw", first, "optimizer.lr=1e-20") == (0, "")
    before, after = encoder(tmp_path, "npid"), encoder(tmp_path, "pirl_jigsaw")
    assert before.keys() == after.keys()
    trained = [name for name in before if name.endswith(("weight", "bias"))]
    assert all((before[name] == after[name]).all() for name in trained)
    written = (tmp_path / "runs" / "pirl_jigsaw" / "latest" / "recipe.yaml").read_text()
    assert f"weights: {Path(tmp_path, 'runs', 'npid', 'latest')}" in written


def test_a_folder_of_runs_is_refused_with_a_run_in_it(tmp_path):
    (tmp_path / "latest").mkdir()
    with pytest.raises(RecipeError, match=r"name a run in it: .*latest$"):
        initial.find(str(tmp_path))
