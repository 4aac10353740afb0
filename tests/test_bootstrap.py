"""BYOL as a stranger's package: a slow copy that follows every step, and the command line."""

import json
import math
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import finish, sslkit, start
from PIL import Image
from safetensors.torch import load_file
from strangers import install, present
from torch.nn import functional as F

from sslkit import parts, recipe
from sslkit.errors import RecipeError
from sslkit.interfaces import Output
from sslkit.training.build import build
from sslkit.training.trainer import train

BOOTSTRAP = Path(__file__).parent / "bootstrap"
RECIPE = BOOTSTRAP / "recipe.yaml"
TINY = [
    "encoder.model=test_resnet",
    "heads.projector.hidden_dim=16",
    "heads.predictor.hidden_dim=16",
]
TINY += ["train.batch_size=8", "train.workers=0", "train.device=cpu", "train.precision=fp32"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return install(BOOTSTRAP, tmp_path_factory.mktemp("site"))


@pytest.fixture
def here(site):
    """The package is found in this process."""
    with present(site, "bootstrap"):
        yield


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Sixteen images of two classes, dark and bright."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(16):
        place = folder / ("dark", "bright")[number % 2]
        place.mkdir(exist_ok=True)
        pixels = rng.integers(0, 128, (40, 44, 3)) + 127 * (number % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(place / f"{number:02}.png")
    return folder


def made(photos, *more):
    return build(recipe.read(RECIPE, overrides=[*TINY, "train.epochs=2", *more], data=str(photos)))


def test_the_loss_is_the_squared_distance_of_unit_vectors(here):
    """By hand: parallel 0, orthogonal 2, opposite 4. The gradient is orthogonal to the
    prediction.
    """
    loss = parts.make(recipe.read(RECIPE).loss)
    target = torch.tensor([[2.0, 0.0]])
    for prediction, expected in (([5.0, 0.0], 0), ([0.0, 3.0], 2), ([-1.0, 0.0], 4)):
        assert loss(torch.tensor([prediction]), target).item() == pytest.approx(expected)
    rows, others = torch.randn(6, 8, requires_grad=True), torch.randn(6, 8)
    value = loss(rows, others)
    distance = (F.normalize(rows, dim=1) - F.normalize(others, dim=1)).square().sum(1)
    torch.testing.assert_close(value, distance.mean())
    value.backward()
    torch.testing.assert_close((rows.grad * rows).sum(1), torch.zeros(6), atol=1e-6, rtol=0)
    assert loss.at_start(dim=8, negatives=0) == 2


def test_the_predictor_reads_the_projector(here, photos):
    heads = made(photos, "heads.projector.out_dim=12", "heads.predictor.out_dim=12").method.heads
    assert heads["projector"].hidden.in_features == 96
    assert heads["predictor"].hidden.in_features == 12
    with pytest.raises(RecipeError, match="have the same out_dim: projector 128, predictor 12"):
        made(photos, "heads.predictor.out_dim=12")


def copy_of(run):
    return {name: value.clone() for name, value in run.method.target.named_parameters()}


def originals(run):
    """The weights that the copy follows, by the copy's names."""
    followed = {"encoder": run.method.encoder, "projector": run.method.heads["projector"]}
    found = {}
    for place, module in followed.items():
        found |= {f"{place}.{name}": value for name, value in module.named_parameters()}
    return found


def test_the_copy_follows_every_step_that_was_taken(here, photos, monkeypatch):
    """τ = 1 - 0.01·(cos(πk/K) + 1)/2 of K = 4 steps; the second step is skipped."""
    run = made(photos, "train.on_nan=skip")
    forward, before = run.method.forward, copy_of(run)
    assert all(torch.equal(value, before[name]) for name, value in originals(run).items())

    def poisoned(batch, progress):
        output = forward(batch, progress)
        loss = output.loss * (float("nan") if progress.step == 1 else 1.0)
        return Output(loss, output.metrics, output.feature_std)

    monkeypatch.setattr(run.method, "forward", poisoned)
    for step in train(run):
        found = copy_of(run)
        momentum = 1 - 0.01 * (math.cos(math.pi * (step.number - 1) / 4) + 1) / 2
        for name, value in originals(run).items():
            expected = momentum * before[name] + (1 - momentum) * value
            torch.testing.assert_close(found[name], before[name] if step.skipped else expected)
        before = found
    assert run.step == 4


def test_the_copy_gets_no_gradient_and_is_not_decayed(here, photos):
    run = made(photos)
    trained = {id(value) for group in run.optimizer.param_groups for value in group["params"]}
    assert not trained & {id(value) for value in run.method.target.parameters()}
    next(train(run))
    assert all(value.grad is None for value in run.method.target.parameters())
    assert all(value.grad is not None for value in run.weights)


def test_momentum_of_the_recipe_reaches_the_method(here, photos):
    run = made(photos, "method.momentum=1.0")
    before = copy_of(run)
    list(islice(train(run), 2))
    assert all(torch.equal(value, before[name]) for name, value in copy_of(run).items())
    with pytest.raises(RecipeError, match=r"method\.momentum"):
        made(photos, "method.momentum=1.5")


def test_collapse_is_measured_on_the_projector(here, photos):
    """Untrained projections point into all directions; equal ones into one."""
    run = made(photos)
    assert 0.3 < next(train(run)).metrics["feature_std/projector"] < 1.1
    with torch.no_grad():
        for value in run.method.heads["projector"].project.parameters():
            value.fill_(0.1)
    assert next(train(run)).metrics["feature_std/projector"] < 0.05


def words(photos, *settings):
    given = ["--data", photos]
    for setting in (*TINY, *settings):
        given += ["--set", setting]
    return given


@pytest.mark.slow
def test_it_trains_evaluates_and_exports(here, photos, tmp_path, monkeypatch, loaded_here):
    monkeypatch.chdir(tmp_path)
    code, out, err = sslkit("check", RECIPE, *words(photos))
    assert (code, err) == (0, ""), err
    code, out, err = sslkit("plan", RECIPE, *words(photos))
    assert (code, err) == (0, ""), err
    assert "head predictor (bootstrap_mlp)" in out

    code, out, err = sslkit("train", RECIPE, *words(photos, "train.epochs=3"))
    assert code == 0, err
    run = tmp_path / "runs" / "bootstrap" / "latest"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 6 and all("feature_std/projector" in row for row in rows)
    method = load_file(next((run / "checkpoints").glob("*/method.safetensors")))
    assert "method.target.encoder.model.conv1.0.weight" in method

    code, out, err = sslkit("eval", "knn", run)
    assert code == 0, err
    assert (run / "eval" / "knn.json").is_file()
    code, out, err = sslkit("export", run, "--to", "timm")
    assert code == 0, err
    weights = load_file(run / "encoder.safetensors")
    assert weights.keys() and not any("target" in name for name in weights)


@pytest.mark.slow
def test_killed_and_resumed_it_ends_as_if_unbroken(site, here, photos, tmp_path, monkeypatch):
    """SIGKILL after the third of eight steps."""
    monkeypatch.setenv("PYTHONPATH", str(site))
    given = words(photos, "train.epochs=4", "train.save_minutes=0")
    process = start("train", RECIPE, *given, "--runs", tmp_path / "broken")
    metrics = tmp_path / "broken" / "bootstrap" / "latest" / "metrics.jsonl"
    while process.poll() is None and not three_lines(metrics):
        time.sleep(0.001)
    process.kill()
    finish(process)
    run = metrics.parent.resolve()
    assert sslkit("train", "--resume", run)[0] == 0
    assert sslkit("train", RECIPE, *given, "--runs", tmp_path / "unbroken")[0] == 0
    other = tmp_path / "unbroken" / "bootstrap" / "latest"
    for file in ("encoder.safetensors", "metrics.jsonl", "checkpoints/step-00000008/SHA256SUMS"):
        one, two = (run / file).read_text("latin-1"), (other / file).read_text("latin-1")
        if file.endswith("SHA256SUMS"):
            one, two = (text.splitlines()[:2] for text in (one, two))
        assert one == two, file


def three_lines(path):
    return path.exists() and len(path.read_text().splitlines()) >= 3
