"""What the tests of sweeps share: a recipe, and a stand-in for training."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sslkit.sweep import worker

FAKE = Path(__file__).with_name("fake_runs.py")
TINY = """\
method:    {use: pirl}
data:      {use: shapes, images: 64}
transform: {use: jigsaw, size: 32, grid: 2, resize: 32, patch: 12}
encoder:   {use: timm, model: test_resnet}
heads:
  image:   {use: linear, out_dim: 16}
  patches: {use: concat_patches, patch_dim: 16, out_dim: 16}
sampler:   {use: memory_bank, negatives: 12}
loss:      {use: lambda_nce}
optimizer: {use: sgd, lr: 0.03, momentum: 0.9, weight_decay: 1.0e-4}
train:     {epochs: 2, batch_size: 32, workers: 0, device: cpu}
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The working directory, with tiny.yaml."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(TINY)
    return tmp_path


@pytest.fixture
def calls(place, monkeypatch):
    """Replace training by a stand-in; a function that returns the commands since its last call."""
    log = place / "calls.txt"

    def start(words, output, environment):
        with output.open("ab") as file:
            return subprocess.Popen(
                [sys.executable, FAKE, str(log), *words],
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
            )

    monkeypatch.setattr(worker, "start", start)

    def seen():
        lines = log.read_text().splitlines() if log.exists() else []
        log.write_text("")
        return lines

    return seen
