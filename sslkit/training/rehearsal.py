"""Runs the first steps of a recipe on generated images before anything is written."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import islice

import torch
from safetensors.torch import save
from torch import Tensor, nn

from sslkit import distributed, faults, memory
from sslkit.data.loader import Loader, check_fills
from sslkit.data.made_up import MadeUp
from sslkit.device import pick_device
from sslkit.errors import PluginError
from sslkit.interfaces import Batch, Encoder, ImageSource
from sslkit.parts import DataFormat
from sslkit.recipe import Recipe
from sslkit.runs import checkpoint
from sslkit.runs.run import Run
from sslkit.training import trainer
from sslkit.training.build import build
from sslkit.training.promises import Promises

FEW = 2
"""Images of a rehearsal on a CPU."""

MORE = 32
"""Images of a second rehearsal on a CPU, if one with FEW fails.

A loss or a split batch norm may need more rows.
"""

STEPS = 8
"""Largest number of steps of a rehearsal."""

LARGEST_BANK = 2**16
"""Largest size of the data set of a rehearsed method."""


@dataclass(frozen=True)
class Rehearsal:
    """The measurements of a rehearsal.

    `run` is the temporary run, `images` the size of a rank's micro-batch. `seconds` are the
    durations of steps without loading; the first is left out if there are several. `activations` is
    the memory for the backward pass, bytes.
    """

    run: Run
    images: int
    seconds: list[float]
    activations: int


def rehearse_recipe(
    recipe: Recipe,
    data: DataFormat,
    source: ImageSource | None = None,
    *,
    devices: int | None = None,
    few: int = FEW,
    repeats: int = 1,
) -> Rehearsal:
    """Build a temporary run on generated images in the format of `data`, and take its first steps.

    The batch is the full micro-batch of a rank on a GPU, and `few` images on a CPU. The images get
    boxes and other attributes of `source`. `devices` is the number of ranks, by default that of
    this run. Does not change torch's random state. Raises RecipeError, DataError or PluginError.
    """
    ranks = devices or distributed.world()
    full = recipe.train.per_rank_batch(ranks)
    check_fills(data.images, recipe.train.batch_size, ranks * recipe.train.accumulate)
    device = pick_device(recipe.train.device)
    images = full if device.type != "cpu" else min(full, few)
    more = full if device.type != "cpu" else min(full, MORE)
    if distributed.world() > 1:
        images = more  # No second attempt, because other ranks may not have failed.
    generators = [torch.cuda.current_device()] if device.type == "cuda" else []
    limit = memory.limited() if device.type == "cpu" else nullcontext()
    with torch.random.fork_rng(generators), limit:
        try:
            return rehearse(_small_run(recipe, data, source, images), repeats, ranks=ranks)
        except PluginError:
            if images == more:
                raise
        return rehearse(_small_run(recipe, data, source, more), repeats, ranks=ranks)


def _small_run(recipe: Recipe, data: DataFormat, source: ImageSource | None, images: int) -> Run:
    """Build the temporary run, whose data set is one micro-batch."""
    batch_size = images * distributed.world()
    train = replace(
        recipe.train,
        batch_size=batch_size,
        accumulate=1,
        workers=0,
        compile=False,
        on_nan="stop",
        epochs=max(recipe.train.epochs, STEPS),
    )
    rows = max(batch_size, min(data.images, LARGEST_BANK))
    made_up = MadeUp(data.channels, data.bits, data.classes, batch_size, source)
    small = replace(recipe, train=train)
    return build(small, made_up, images=rows, loader_class=_ShortLoader)


class _ShortLoader(Loader):
    """A loader that records whether a pass over the images was completed."""

    passed = False

    def full_pass(self, epoch: int) -> Iterator[Batch]:
        """Yield every image once, with augmented views."""
        yield from super().full_pass(epoch)
        self.passed = True

    def plain_pass(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every image once, un-augmented."""
        yield from super().plain_pass(size)
        self.passed = True


def rehearse(run: Run, repeats: int = 1, *, ranks: int = 1) -> Rehearsal:
    """Take the first `repeats` steps of `run`, then check checkpoint and export.

    `ranks` is the number of ranks of the real run.
    """
    images = run.loader.batch_size
    spoilt: list[str] = []
    with faults.telling(about=f"rehearsed with a batch of {images}"):
        with _watched_parts(run, spoilt), memory.activations(run.method) as sizes:
            clock, step = _first_step(run)
        _check_finite(run, step, spoilt)
        _check_gradients(run, ranks)
        seconds = [clock.seconds]
        for _ in islice(trainer.train(run, clock), repeats - 1):
            seconds.append(clock.seconds)
        _check_tensors(run.method, checkpoint.tensors(run))
        _check_exported(run, images)
        _check_start(run)
    return Rehearsal(run, images, seconds[1:] or seconds, sum(sizes.values()))


class _Clock:
    """Times the sections of a step, and records the section that raised an exception."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = 0.0
        """Seconds of the last step, without loading."""
        self.failed = ""

    @contextmanager
    def __call__(self, section: str) -> Iterator[None]:
        began = self._now()
        try:
            yield
        except Exception:
            self.failed = section
            raise
        self.seconds += self._now() - began
        if section == trainer.WAITING:
            self.seconds = 0.0

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def _first_step(run: Run) -> tuple[_Clock, trainer.Step]:
    """Begin an epoch and take a step.

    A pass over a few images is shorter than a real one. A method may fail after it, for example
    because there are more clusters than images. Then the step is repeated without the pass.
    """
    clock = _Clock(run.device)
    try:
        return clock, next(trainer.train(run, clock))
    except Exception:
        short = isinstance(run.loader, _ShortLoader) and run.loader.passed
        # With several ranks no collective may follow, because other ranks may not have failed.
        if clock.failed != trainer.EPOCH or not short or distributed.world() > 1:
            raise
    setattr(run.method, "begin_epoch", lambda epoch: None)  # noqa: B010
    return clock, next(trainer.train(run, clock))


@contextmanager
def _watched_parts(run: Run, spoilt: list[str]) -> Iterator[None]:
    """Check the method's views, and collect the parts with non-finite outputs in order."""

    def views(method: nn.Module, given: tuple[Batch, ...]) -> None:
        _check_views(run, given[0])

    def finite(part: nn.Module, given: object, output: object) -> None:
        if isinstance(output, Tensor) and not output.isfinite().all():
            spoilt.append(faults.called(part))

    hooks = [run.method.register_forward_pre_hook(views)]
    parts = [run.method.loss, *run.method.heads.values()]
    parts += [module for module in run.method.modules() if isinstance(module, Encoder)]
    hooks += [part.register_forward_hook(finite) for part in parts]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _check_views(run: Run, batch: Batch) -> None:
    called, images = faults.called(run.transform), run.loader.batch_size
    if not isinstance(batch, Batch):
        kind = type(batch).__name__
        raise PluginError(f"{called} returned {kind} from on_device; it must return a Batch")
    for name, shape in run.transform.shapes.items():
        view = batch.views.get(name)
        if view is None:
            raise PluginError(f"{called} has no view '{name}' after on_device")
        if view.dtype != torch.float32 or list(view.shape) != [images, *shape]:
            raise PluginError(
                f"{called} returned a view '{name}' of {view.dtype} {list(view.shape)} from "
                f"on_device; it must be torch.float32 of {[images, *shape]}"
            )
        if not view.isfinite().all():
            raise PluginError(f"{called} returned a non-finite view '{name}' from on_device")


def _check_finite(run: Run, step: trainer.Step, spoilt: list[str]) -> None:
    numbers = {"loss": step.loss, **step.metrics}
    wrong = [name for name, value in numbers.items() if not value.isfinite()]
    if not wrong:
        return
    method = faults.called(run.method)
    first = spoilt[0] if spoilt else method
    raise PluginError(
        f"{first} returns non-finite numbers for generated images: {', '.join(wrong)} of "
        f"{method} is {numbers[wrong[0]].item()}; check for divisions by zero, logarithms of zero "
        "and a small temperature, or try train.precision=fp32"
    )


def _check_gradients(run: Run, ranks: int) -> None:
    trained = [value for value in run.method.encoder.parameters() if value.requires_grad]
    alone = type(run.method).uses_every_parameter and bool(trained)
    if alone and all(value.grad is None for value in trained):
        raise PluginError(
            f"{faults.called(run.method)} has no gradient for the encoder; its loss must depend on "
            "self.encode(view), without detach and no_grad"
        )
    Promises(run, ranks=ranks).check_gradients()


def _check_tensors(part: object, tensors: dict[str, Tensor]) -> None:
    """Raise PluginError if a tensor cannot be saved."""
    for name, value in tensors.items():
        try:
            save({name: value.detach().reshape(-1)[:1].cpu().clone()})
        except Exception as error:
            raise PluginError(
                f"{faults.called(part)} has a tensor '{name}' that cannot be saved "
                f"({faults.describe(error)}); use plain dense tensors as parameters and buffers"
            ) from error


@torch.no_grad()
def _check_exported(run: Run, images: int) -> None:
    exported, transform = run.method.exported, run.transform
    called = faults.called(exported)
    if not isinstance(exported, Encoder):
        raise PluginError(
            f"{faults.called(run.method)} exports {type(exported).__name__}, not an Encoder"
        )
    _check_tensors(exported, exported.weights())
    shape = (images, run.data.channels, transform.size, transform.size)
    dtype = torch.uint8 if run.data.bits == 8 else torch.uint16
    pixels = torch.randint(2**run.data.bits, shape, dtype=torch.int32).to(dtype)
    features = exported.eval()(transform.plain(pixels.to(run.device)))
    if list(features.shape) != [images, exported.dim]:
        raise PluginError(
            f"{called} returns features {list(features.shape)} for {images} images; according to "
            f"its `dim` they must be {[images, exported.dim]}"
        )


def _check_start(run: Run) -> None:
    value = run.method.at_start(run.recipe.train.batch_size)
    if value is not None and not (isinstance(value, int | float) and math.isfinite(value)):
        raise PluginError(
            f"{faults.called(run.method)} returns {value!r} from at_start; it must return a finite "
            "number or None"
        )
    chances = run.method.at_chance(run.recipe.train.batch_size)
    numbers = chances.values() if isinstance(chances, dict) else [None]
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in numbers):
        raise PluginError(
            f"{faults.called(run.method)} returns {chances!r} from at_chance; it must return "
            "finite numbers by name"
        )
