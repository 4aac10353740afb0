"""What real runs are told of themselves: learning ones, short ones, broken ones."""

import re

import pytest
from typer.testing import CliRunner

from sslkit.cli import app
from sslkit_plugins.encoders.timm_encoder import Timm

INFO_NCE = ("loss.form=info_nce", "sampler.negatives=all")
"""Of the 24 images: chance is log 24 = 3.18."""


ROTNET = """\
name: tiny
method:    {{use: rotnet}}
data:      {{use: image_folder, root: '{root}'}}
transform: {{use: rotate, size: 16}}
encoder:   {{use: timm, model: test_resnet}}
heads:
  rotation: {{use: linear, out_dim: 4}}
loss:      {{use: cross_entropy}}
optimizer: {{use: sgd, lr: 1.0e-12}}
train:     {{epochs: 2, batch_size: 8, precision: fp32, device: cpu, workers: 0}}
"""


def verdict(recipe, runs, *settings: str, epochs: int = 70) -> str:
    """Train 3 steps an epoch; return the last judgement."""
    words = ["train", str(recipe), "--runs", str(runs)]
    for setting in (*settings, f"train.epochs={epochs}", "transform.size=16"):
        words += ["--set", setting]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    return re.findall(r"^health: (.*)$", result.output, re.MULTILINE)[-1]


def test_a_short_run_is_too_short_to_tell(tiny, tmp_path):
    said = verdict(tiny, tmp_path, *INFO_NCE, epochs=3)
    assert said.startswith("too short to tell: loss ") and said.endswith("over 9 steps")


@pytest.mark.slow
def test_a_run_that_tells_its_images_apart_is_healthy(tiny, tmp_path):
    said = verdict(tiny, tmp_path, *INFO_NCE, "loss.temperature=0.2")
    assert said.startswith("healthy: loss ") and "(3.18 at chance" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ("optimizer.lr=1e-12",),
        ("loss.temperature=100",),
        ("optimizer.lr=1000", "loss.temperature=0.2"),
    ],
    ids=["no rate", "absurd temperature", "far too high a rate"],
)
def test_a_broken_run_is_not_learning(tiny, tmp_path, settings):
    said = verdict(tiny, tmp_path, *INFO_NCE, *settings)
    assert said.startswith(("not learning", "at chance", "collapsed")), said


@pytest.mark.slow
def test_a_constant_encoder_is_collapsed(tiny, tmp_path, monkeypatch):
    forward = Timm.forward
    monkeypatch.setattr(Timm, "forward", lambda self, images: 0 * forward(self, images) + 1)
    said = verdict(tiny, tmp_path, *INFO_NCE)
    assert said.startswith("collapsed: feature_std/"), said


@pytest.mark.slow
def test_a_task_at_chance_is_not_healthy(tiny, images, tmp_path):
    """Rotations of noise cannot be told; the loss falls to chance all the same."""
    tiny.write_text(ROTNET.format(root=images))
    said = verdict(tiny, tmp_path)
    assert said.startswith("not learning") and "accuracy 0.2" in said, said
