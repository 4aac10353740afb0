"""Estimates memory and time of a recipe from a rehearsal, without data set or output files."""

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from sslkit import faults
from sslkit.data import shared
from sslkit.data.loader import batch_bytes
from sslkit.data.made_up import HEIGHT, WIDTH, MadeUp
from sslkit.errors import DataError, Fault, RecipeError, counted
from sslkit.interfaces import ImageSource
from sslkit.parts import DataFormat, make, make_source
from sslkit.recipe import Recipe
from sslkit.training.build import loader_workers
from sslkit.training.optim import make_optimizer, make_schedule
from sslkit.training.rehearsal import Rehearsal, rehearse_recipe

TIMED = 8
"""Images of the rehearsal on a CPU, enough to outweigh the optimizer's time."""

TIMES = 5
"""Timed steps of the rehearsal, after one for warm-up."""

Rows = list[tuple[str, str]]
"""Names and values."""


@faults.telling()
def plan(
    recipe: Recipe,
    *,
    images: int | None = None,
    devices: int = 1,
    look: Callable[[ImageSource, Recipe], None] = lambda source, recipe: None,
) -> dict[str, Rows]:
    """Return shapes, parameters, schedule, memory and time, by section.

    The batch is divided over `devices`. `images` is the size of a data set that is not available;
    an available one is passed to `look`. Raises the errors that `sslkit train` raises before its
    first step: RecipeError, DataError or PluginError.
    """
    data, source, how = find_data(recipe, images)
    if source is not None:
        look(source, recipe)
    evaluated = _evaluations(recipe, data) if recipe.train.evaluate else []
    rehearsal = rehearse_recipe(recipe, data, source, devices=devices, few=TIMED, repeats=1 + TIMES)
    sampled, sampler_rows = _samplers(recipe, rehearsal, data, devices)
    return {
        "parts": _parts(recipe, rehearsal, devices) + sampler_rows,
        "schedule": _schedule(recipe, rehearsal, data, how, devices) + evaluated,
        "memory per device, estimated": _memory(recipe, rehearsal, data, sampled, devices),
        "time, estimated": _time(recipe, rehearsal, data, devices),
    }


def find_data(
    recipe: Recipe, images: int | None = None
) -> tuple[DataFormat, ImageSource | None, str]:
    """Return the format of the training images, their source, and the origin of their number.

    `images` replaces their number. The source is None if the data set is not available.
    """
    source: ImageSource | None = None
    try:
        source = make_source(recipe, "pretrain")
        data, how = DataFormat.of(source), "counted"
    except DataError as error:
        published = DataFormat.published(recipe.data)
        if images is None and published is None:
            message = f"{error} (or set the number of images: --images N)"
            raise RecipeError(Fault("data", message)) from error
        data, how = published or DataFormat(0), "as published; the data set is not on this machine"
    if images is not None:
        data, how = replace(data, images=images), "given"
    return data, source, how


def megabytes(count: float) -> str:
    """Format bytes in MiB."""
    return f"{count / 2**20:,.1f} MiB"


def duration(seconds: float) -> str:
    """Format seconds in the largest unit with a value of at least 2."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.1f} seconds"


def between(low: str, high: str) -> str:
    """Format a range, or one value if both are equal."""
    return low if low == high else f"{low} to {high}"


def _parameters(module: nn.Module) -> int:
    return sum(value.numel() for value in module.parameters())


def _parts(recipe: Recipe, rehearsal: Rehearsal, devices: int) -> Rows:
    """Return the rows of views, encoder, heads and loss."""
    run, rows = rehearsal.run, []
    bits, per_device = run.data.bits, recipe.train.batch_size // devices
    for name, shape in run.transform.shapes.items():
        sides = ", ".join(map(str, (per_device, *shape)))
        rows.append((f"view {name}", f"uint{bits} [{sides}] per device and step"))
    encoder = run.method.encoder
    features = f"{_parameters(encoder):,} parameters → {encoder.dim} features"
    rows.append((f"encoder {recipe.encoder.use}", features))
    for name, head in run.method.heads.items():
        outputs = f"{_parameters(head):,} parameters → {head.out_dim}"
        rows.append((f"head {name} ({recipe.heads[name].use})", outputs))
    rows.append((f"loss {recipe.loss.use}", f"method {recipe.method.use}"))
    return rows


def _samplers(
    recipe: Recipe, rehearsal: Rehearsal, data: DataFormat, devices: int
) -> tuple[int, Rows]:
    """Return the size of all samplers on a device, bytes, and their rows."""
    total, rows = 0, []
    method = rehearsal.run.method
    for name in method.samplers:
        assert recipe.sampler is not None
        with torch.device("meta"):
            dim = method.heads[name].out_dim
            sampler = make(recipe.sampler, dim=dim, num_images=data.images)
        ranks = dict.fromkeys(sampler.shard(), devices)
        buffers = dict(sampler.named_buffers())
        size = sum(-(-value.nbytes // ranks.get(key, 1)) for key, value in buffers.items())
        kept = ", ".join(f"{key} {list(value.shape)}" for key, value in buffers.items())
        value = f"{kept}: {size:,} bytes ({megabytes(size)}) on every device"
        rows.append((f"sampler {recipe.sampler.use}", value))
        total += size
    return total, rows


def _schedule(
    recipe: Recipe, rehearsal: Rehearsal, data: DataFormat, how: str, devices: int
) -> Rows:
    """Return the rows of images, batch, steps and learning rate."""
    chosen, kind = recipe.train, rehearsal.run.device.type
    steps_per_epoch = data.images // chosen.batch_size
    steps = steps_per_epoch * chosen.epochs
    per_device = chosen.batch_size // devices
    batch = f"{chosen.batch_size} in total, {per_device} on each of "
    batch += counted(devices, f"{kind} device")
    if chosen.accumulate > 1:
        batch += f", in {chosen.accumulate} micro-batches of {chosen.per_rank_batch(devices)}"
    rates = [f"{rate:.3g} at step {step:,}" for step, rate in _rates(recipe, steps_per_epoch)]
    per_256 = recipe.optimizer.lr * 256 / chosen.batch_size
    return [
        ("images", f"{data.images:,} ({how})"),
        ("batch", batch),
        ("steps", f"{steps_per_epoch:,} per epoch × {counted(chosen.epochs, 'epoch')} = {steps:,}"),
        ("learning rate", ", ".join(rates)),
        ("per 256 images", f"{per_256:.3g} (rate × 256 / batch), {recipe.optimizer.use}"),
    ]


def _evaluations(recipe: Recipe, data: DataFormat) -> Rows:
    """Return a row for each evaluation while training."""
    from sslkit.training.evaluations import opened

    return [("evaluation", f"{one.line}; {one.times}") for one in opened(recipe, data)]


def _rates(recipe: Recipe, steps_per_epoch: int) -> list[tuple[int, float]]:
    """Return (step, learning rate) at the start, after the warm-up, halfway and at the end."""
    steps = recipe.train.epochs * steps_per_epoch
    warm = min(steps - 1, round(recipe.schedule.warmup_epochs * steps_per_epoch))
    optimizer = make_optimizer(nn.Linear(1, 1), recipe.optimizer)
    rate: Callable[[int], float] = make_schedule(
        optimizer, recipe.schedule, recipe.train.epochs, steps_per_epoch
    )
    return [(step, rate(step)) for step in sorted({0, warm, steps // 2, steps - 1})]


def _memory(
    recipe: Recipe, rehearsal: Rehearsal, data: DataFormat, sampled: int, devices: int
) -> Rows:
    """Return the rows of weights, activations, buffers and loader.

    `sampled` is the size of the samplers, bytes.
    """
    run, trained = rehearsal.run, 0
    for values in run.optimizer.state.values():
        tensors = [value for value in values.values() if isinstance(value, Tensor)]
        trained += sum(value.nbytes for value in tensors)
    for weights in run.method.parameters():
        trained += weights.nbytes * (2 if weights.requires_grad else 1)
    per_image = rehearsal.activations / rehearsal.images
    sizes = {
        "weights, gradients and optimizer": trained,
        "activations": per_image * recipe.train.per_rank_batch(devices),
        "buffers, such as memory banks": _buffers(rehearsal, data.images) + sampled,
    }
    sizes["total"] = sum(sizes.values())
    rows = [(name, megabytes(size)) for name, size in sizes.items()]
    return [*rows, ("loader, in shared memory of the host", _loader(recipe, rehearsal, devices))]


def _buffers(rehearsal: Rehearsal, images: int) -> int:
    """Return the size of a method's buffers for `images` images, without samplers, bytes.

    A dimension of as many rows as the rehearsal's data set has images grows with their number.
    """
    rows, total = rehearsal.run.data.images, 0
    for name, buffer in rehearsal.run.method.named_buffers():
        if not name.startswith("samplers."):
            total += buffer.nbytes * (images if rows in buffer.shape else rows) // rows
    return total


def _loader(recipe: Recipe, rehearsal: Rehearsal, devices: int) -> str:
    """Return the memory of prefetched batches."""
    run = rehearsal.run
    size = batch_bytes(run.transform, run.source, recipe.train.per_rank_batch(devices))
    workers = loader_workers(recipe.train.workers, run.device.type, size)
    if workers == 0:
        return "none, without loader workers"
    ready = shared.prefetch(workers, size)
    return (
        f"{megabytes(workers * ready * size)}: {counted(workers, 'worker')}, each with "
        f"{counted(ready, 'prefetched batch', 'prefetched batches')} of {megabytes(size)}"
    )


def _time(recipe: Recipe, rehearsal: Rehearsal, data: DataFormat, devices: int) -> Rows:
    """Return the rows of throughput, time per image in a worker, and duration."""
    run, count = rehearsal.run, rehearsal.images
    fastest, slowest = min(rehearsal.seconds), max(rehearsal.seconds)
    precision = str(run.precision).removeprefix("torch.")
    per_device = recipe.train.batch_size // devices
    images = data.images // recipe.train.batch_size * per_device
    epoch = (images / count * fastest, images / count * slowest)
    rates = between(f"{count / slowest:,.1f}", f"{count / fastest:,.1f}")
    steps = counted(len(rehearsal.seconds), "step")
    speed = (
        f"{rates} images/s on {run.device.type}, {precision}; the slowest and fastest of {steps}"
    )
    cut = f"{1000 * _cutting(rehearsal):.1f} ms per image of {WIDTH}×{HEIGHT}, without decoding"
    return [
        (f"rehearsed: {counted(count, 'image')}", speed),
        ("views in a worker", cut),
        ("an epoch", between(*map(duration, epoch))),
        ("the full run", between(*[duration(each * recipe.train.epochs) for each in epoch])),
    ]


def _cutting(rehearsal: Rehearsal, count: int = 8) -> float:
    """Return the time that a loader worker needs to cut the views of one image, s."""
    run = rehearsal.run
    assert isinstance(run.source, MadeUp)
    images = [run.transform.fetch(run.source, n, np.random.default_rng(n)) for n in range(count)]
    started = time.perf_counter()
    for number, image in enumerate(images):
        run.transform(image, np.random.default_rng(number))
    return (time.perf_counter() - started) / count
