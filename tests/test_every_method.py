"""What every method promises, asked of every recipe: ours at small sizes, and those of tests."""

from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from conftest import assert_same, everything
from PIL import Image
from safetensors.torch import load_file, save_file
from strangers import install, present

from sslkit import distributed, recipe
from sslkit.errors import RecipeError
from sslkit.interfaces import Loss, Output
from sslkit.runs import checkpoint
from sslkit.runs.run import Run
from sslkit.training.build import build
from sslkit.training.trainer import Step, train

TESTS = Path(__file__).parent
OURS = sorted((TESTS.parent / "recipes").glob("*.yaml"))
WIRINGS = sorted((TESTS / "wirings" / "recipes").glob("*.yaml"))
EVERY = [*OURS, TESTS / "bootstrap" / "recipe.yaml", *WIRINGS]
EPOCH = 3
"""Steps of an epoch: twelve images, four a step."""

SMALL = {
    "size": 32,
    "crops": 12,
    "resize": 32,
    "grid": 2,
    "patch": 12,
    "stride": 6,
    "permutations": 5,
    "model": "test_resnet",
    "width": 1.0,  # Half of test_resnet has groups of one number, which rounding upsets.
    "hidden_dim": 16,
    "base_width": 8,
    "depth": 1,
    "out_dim": 16,
    "batch_norm": False,
}

ROUNDING = {"barlow_twins": 2e-3}
"""Absolute tolerance of two ranks, by recipe. Barlow Twins divides by the deviation of four similar
rows, which magnifies rounding; tests/test_barlow_twins.py compares in float64.
"""

SGD = ["optimizer.use=sgd", "optimizer.lr=0.005", "optimizer.momentum=0.9"]
"""Settings of two ranks in place of AdamW, which scales up gradients that are only rounding."""


@pytest.fixture(scope="module", autouse=True)
def strangers(tmp_path_factory):
    """The package `bootstrap` and the wirings are installed."""
    folder = tmp_path_factory.mktemp("site")
    install(TESTS / "bootstrap", folder)
    install(TESTS / "wirings", folder)
    with present(folder, "bootstrap", "wirings"):
        yield


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Twelve images of two classes."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(12):
        place = folder / "ab"[number % 2]
        place.mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (40, 44, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number:02}.png")
    return folder


def small(path, photos, *more):
    """Read a recipe at small sizes."""
    settings = ["train.epochs=2", "train.batch_size=4", "train.workers=0", "train.device=cpu"]
    settings.append("train.precision=fp32")
    if path not in WIRINGS:
        settings += shrunk(recipe.read(path, data=str(photos)))
    return recipe.read(path, overrides=[*settings, *more], data=str(photos))


def shrunk(made):
    """Settings that make the parts of a recipe small, among the options that they have."""
    places = {"data": made.data, "transform": made.transform, "encoder": made.encoder}
    places |= {f"heads.{name}": head for name, head in made.heads.items()}
    settings = []
    for place, choice in places.items():
        known = SMALL.keys() & choice.part.signature().options.keys()
        if "tokens" in made.method.part.load().needs.values():
            known -= {"model"}
        settings += [f"{place}.{name}={str(SMALL[name]).lower()}" for name in sorted(known)]
    for name in made.method.part.load().predicts:
        settings.append(f"heads.{name}.out_dim=auto")
    return settings


def name(path):
    return path.parent.name if path.stem == "recipe" else path.stem


def cases(paths):
    return [pytest.param(path, id=name(path)) for path in paths]


def every(paths=EVERY):
    return pytest.mark.parametrize("path", cases(paths))


def steps(run, count):
    return list(islice(train(run), count))


def copies(tensors):
    return {name: value.clone() for name, value in tensors}


class Unbroken(NamedTuple):
    """A run of two epochs, with checkpoints below `folder`."""

    made: recipe.Recipe
    folder: Path
    untrained: dict[str, torch.Tensor]
    steps: list[Step]
    run: Run
    losses: int
    """Calls of the recipe's losses."""


@pytest.fixture(scope="module", params=cases(EVERY))
def unbroken(request, photos, tmp_path_factory):
    """Train a recipe. Checkpoints: before the last step of an epoch, and after it."""
    made, folder = small(request.param, photos), tmp_path_factory.mktemp("unbroken")
    run, found = build(made), []
    untrained = copies(run.method.encoder.named_parameters())
    losses = []
    for module in run.method.modules():
        if isinstance(module, Loss):
            module.register_forward_hook(lambda *_: losses.append(True))
    for step in islice(train(run), 2 * EPOCH):
        found.append(step)
        if step.number in (EPOCH - 1, EPOCH):
            (folder / str(step.number)).mkdir()
            checkpoint.save(run, folder / str(step.number))
    return Unbroken(made, folder, untrained, found, run, len(losses))


@pytest.mark.parametrize("step", [EPOCH - 1, EPOCH], ids=["within an epoch", "at its border"])
def test_a_resumed_run_is_the_same_run(unbroken, step):
    after = build(unbroken.made)
    checkpoint.resume(after, unbroken.folder / str(step))
    found = steps(after, 2 * EPOCH)
    assert [row.number for row in found] == list(range(step + 1, 2 * EPOCH + 1))
    assert_same(everything(after), everything(unbroken.run))
    for row, other in zip(found, unbroken.steps[step:], strict=True):
        assert_same(row.metrics | {"loss": row.loss}, other.metrics | {"loss": other.loss})


def test_metrics_are_finite_scalars_of_the_same_names_at_every_step(unbroken):
    assert unbroken.losses >= len(unbroken.steps), "every number goes through the recipe's loss"
    for step in unbroken.steps:
        assert step.metrics.keys() == unbroken.steps[0].metrics.keys()
        for value in (step.loss, *step.metrics.values()):
            assert value.shape == () and value.isfinite() and not value.requires_grad
    moved = dict(unbroken.run.method.encoder.named_parameters())
    assert any(not torch.equal(moved[name], value) for name, value in unbroken.untrained.items())


def without_batch_norm(made):
    """Settings without batch norm, which sees half of the batch on each of two ranks."""
    settings = []
    if made.encoder.use == "alexnet":
        settings.append("encoder.batch_norm=false")
    elif "norm" in made.encoder.options and "tokens" not in made.method.part.load().needs.values():
        settings.append("encoder.norm=group")
    for head, choice in made.heads.items():
        if "hidden_norm" in choice.options:
            settings.append(f"heads.{head}.hidden_norm=false")
    return settings


@every()
def test_two_ranks_train_as_one(path, photos, ranks, tmp_path):
    """Four steps, over the border of an epoch."""
    made = small(path, photos)
    settings = without_batch_norm(made)
    if made.optimizer.use == "adamw" and not made.optimizer.options:
        settings += SGD
    made = small(path, photos, *settings)

    def work(folder):
        run = build(made)
        steps(run, EPOCH + 1)
        tensors = {name: value.contiguous() for name, value in everything(run).items()}
        save_file(tensors, folder / f"{distributed.world()}-{distributed.rank()}.safetensors")

    work(tmp_path)
    assert ranks(work) == [0, 0]
    names = ("1-0", "2-0", "2-1")
    one, first, second = (load_file(tmp_path / f"{name}.safetensors") for name in names)
    assert one.keys() == first.keys()
    assert_same(first, second)
    atol = ROUNDING.get(path.stem, 2e-5)
    for name, value in one.items():
        torch.testing.assert_close(first[name], value, rtol=1e-3, atol=atol, msg=name)


JOINING = [path for path in OURS if recipe.read(path).method.part.load().joins]
"""Recipes whose loss looks across the batch."""
MICRO = [path for path in OURS if path not in JOINING]
QUICK = ("dino", "moco")
"""Recipes with a centre, and with a queue; the others are slow tests."""


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=() if path.stem in QUICK else pytest.mark.slow)
        for path in MICRO
    ],
)
def test_micro_batches_train_as_one_batch(path, photos):
    """Four steps, over the border of an epoch; so `accumulate` needs no refusal."""
    made = small(path, photos)
    settings = without_batch_norm(made)
    if made.optimizer.use == "adamw" and not made.optimizer.options:
        settings += SGD
    found = []
    for count in (1, 2):
        run = build(small(path, photos, *settings, f"train.accumulate={count}"))
        steps(run, EPOCH + 1)
        found.append(everything(run))
    one, other = found
    for key, value in one.items():
        torch.testing.assert_close(other[key], value, rtol=1e-3, atol=2e-5, msg=key)


@every(JOINING)
def test_micro_batches_of_a_loss_across_the_batch_are_refused(path):
    with pytest.raises(RecipeError, match="looks across the batch"):
        recipe.read(path, overrides=["train.accumulate=2"])


@every()
def test_a_skipped_step_changes_nothing(path, photos, monkeypatch):
    run = build(small(path, photos, "train.on_nan=skip"))
    forward = run.method.forward

    def poisoned(batch, progress):
        output = forward(batch, progress)
        loss = output.loss * (float("nan") if progress.step == 1 else 1.0)
        return Output(loss, output.metrics, output.feature_std, output.keep)

    monkeypatch.setattr(run.method, "forward", poisoned)
    trained = train(run)
    assert not next(trained).skipped
    before = copies(everything(run).items())
    assert next(trained).skipped
    assert_same(everything(run), before)
    assert not next(trained).skipped
    assert any(not torch.equal(value, before[name]) for name, value in everything(run).items())


@every()
def test_the_first_loss_is_about_what_the_method_expects(path, photos):
    """Mean over the micro-batches of one step of all twelve images, untrained."""
    run = build(small(path, photos, "train.batch_size=12"))
    expected = run.method.at_start(12)
    if expected is None or any(sampler.needs_fill for sampler in run.method.samplers.values()):
        pytest.skip("nothing is expected")
    (step,) = steps(run, 1)
    assert abs(step.loss.item() - expected) < max(abs(expected) / 2, 0.5)
