"""What a recipe would cost, from a short probe with made-up pixels: no data set is needed and nothing is written."""

import time
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from sslkit.device import pick_device, pick_precision
from sslkit.errors import DataError, Fault, RecipeError
from sslkit.interfaces import Batch, Draws, Method, PretextTransform, Progress
from sslkit.parts import DataFormat, make, make_method, make_source, make_transform
from sslkit.recipe import Recipe
from sslkit.training.optim import make_optimizer, make_schedule

MADE_UP = (500, 375)
"""Pixels of the image that the probe cuts views from: ImageNet's usual size."""

LARGEST_BANK = 2**20
"""Images that the probe's sampler is made for at most."""


@dataclass
class Plan:
    """Lines of (what, how much), by section."""

    sections: dict[str, list[tuple[str, str]]] = field(default_factory=dict)

    def add(self, section: str, what: str, value: str) -> None:
        self.sections.setdefault(section, []).append((what, value))


def megabytes(count: float) -> str:
    return f"{count / 2**20:,.1f} MiB"


def duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.1f} seconds"


def find_data(recipe: Recipe, images: int | None) -> tuple[DataFormat, str]:
    """Return the format of the images to train on, and how their number is known.

    `images` stands for a data set that is not at hand.
    """
    try:
        data, how = DataFormat.of(make_source(recipe, "pretrain")), "counted"
    except DataError as error:
        published = getattr(recipe.data.part.load(), "nominal", {}).get("pretrain")
        if images is None and published is None:
            message = f"{error} (or give the number of images: --images N)"
            raise RecipeError(Fault("data", message)) from error
        data, how = DataFormat(published or 0), "as published; the data set is not on this machine"
    return (data, how) if images is None else (replace(data, images=images), "given")


def _parameters(module: nn.Module | None) -> int:
    return 0 if module is None else sum(value.numel() for value in module.parameters())


def _probe(
    method: Method,
    transform: PretextTransform,
    optimizer: torch.optim.Optimizer,
    precision: torch.dtype,
    images: int,
) -> tuple[float, int]:
    """Seconds of one step of `images` images, and the bytes that its forward pass keeps for the backward pass."""
    device = next(method.parameters()).device
    sample = transform(Image.effect_noise(MADE_UP, 64).convert("RGB"), np.random.default_rng(0))
    views = {
        name: view.unsqueeze(0).repeat(images, *[1] * view.dim())
        for name, view in sample.views.items()
    }
    targets = {
        name: target.unsqueeze(0).repeat(images, *[1] * target.dim())
        for name, target in sample.targets.items()
    }
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    own = {
        value.untyped_storage().data_ptr() for value in [*method.parameters(), *method.buffers()]
    }
    seconds = float("inf")
    for attempt in range(3):
        kept.clear()
        started = time.perf_counter()
        batch = Batch(views, targets, torch.arange(images)).to(device)
        batch = transform.on_device(batch, Draws(0, attempt))
        with (
            torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == torch.bfloat16),
            torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t),
        ):
            output = method(batch, Progress(attempt, 3, 0, 1, Draws(1, attempt)))
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        kept_rows = {name: rows.detach() for name, rows in output.keep.items()}
        with torch.no_grad():
            method.after_step(batch.index, kept_rows, Progress(attempt, 3, 0, 1, Draws(1, attempt)))
        if device.type == "cuda":
            torch.cuda.synchronize()
        if attempt:
            seconds = min(seconds, time.perf_counter() - started)
    return seconds, sum(size for where, size in kept.items() if where not in own)


def plan(recipe: Recipe, *, images: int | None = None, devices: int = 1) -> Plan:
    """Shapes, parameters, memory, steps, rates and time. `devices` shares the batch; `images` stands for a data set not at hand."""
    result, chosen = Plan(), recipe.train
    data, how = find_data(recipe, images)
    count = data.images
    at_once = chosen.per_rank_batch(devices)
    if count < chosen.batch_size:
        raise RecipeError(
            Fault(
                "train.batch_size", f"{chosen.batch_size} is more than the {count} images there are"
            )
        )
    per_device, steps_per_epoch = chosen.batch_size // devices, count // chosen.batch_size
    device = pick_device(chosen.device)
    precision = pick_precision(chosen.precision, device)
    transform = make_transform(recipe, data)
    probed = min(at_once, 64 if device.type == "cuda" else 8)
    method = make_method(recipe, transform, data, images=min(count, LARGEST_BANK)).to(device)
    if chosen.channels_last:
        method.to(memory_format=torch.channels_last)
    optimizer = make_optimizer(method, recipe.optimizer)
    set_rate = make_schedule(optimizer, recipe.schedule, chosen.epochs, steps_per_epoch)
    steps = chosen.epochs * steps_per_epoch
    rates = {
        step: set_rate(step)
        for step in sorted(
            {
                0,
                min(steps - 1, round(recipe.schedule.warmup_epochs * steps_per_epoch)),
                steps // 2,
                steps - 1,
            }
        )
    }
    seconds, activations = _probe(method, transform, optimizer, precision, probed)

    for name, shape in transform.shapes.items():
        result.add(
            "parts",
            f"view {name}",
            f"uint8 [{per_device}, {', '.join(map(str, shape))}] per device and step",
        )
    result.add(
        "parts",
        f"encoder {recipe.encoder.use}",
        f"{_parameters(method.encoder):,} parameters → {method.encoder.dim} features",
    )
    for name, head in method.heads.items():
        result.add(
            "parts",
            f"head {name} ({recipe.heads[name].use})",
            f"{_parameters(head):,} parameters → {head.out_dim}",
        )
    bank = 0
    for name in method.samplers:
        assert recipe.sampler is not None
        with torch.device("meta"):
            sampler = make(recipe.sampler, dim=method.heads[name].out_dim, num_images=count)
        ranks = dict.fromkeys(sampler.shard(), devices)
        buffers = dict(sampler.named_buffers())
        size = sum(-(-value.nbytes // ranks.get(key, 1)) for key, value in buffers.items())
        kept = ", ".join(f"{key} {list(value.shape)}" for key, value in buffers.items())
        bank += size
        result.add(
            "parts",
            f"sampler {recipe.sampler.use}",
            f"{kept}: {size:,} bytes ({megabytes(size)}) on every device",
        )
    result.add("parts", f"loss {recipe.loss.use}", f"method {recipe.method.use}")

    result.add("schedule", "images", f"{count:,} ({how})")
    result.add(
        "schedule",
        "batch",
        f"{chosen.batch_size} in all, {per_device} on each of {devices} {device.type} device{'s' if devices > 1 else ''}"
        + (f", {at_once} at once" if chosen.accumulate > 1 else ""),
    )
    result.add(
        "schedule", "steps", f"{steps_per_epoch:,} an epoch × {chosen.epochs} epochs = {steps:,}"
    )
    result.add(
        "schedule",
        "learning rate",
        ", ".join(f"{rate:.3g} at step {step:,}" for step, rate in rates.items()),
    )
    result.add(
        "schedule",
        "per 256 images",
        f"{recipe.optimizer.lr * 256 / chosen.batch_size:.3g} (rate × 256 / batch), {recipe.optimizer.use}",
    )

    state = [
        value
        for values in optimizer.state.values()
        for value in values.values()
        if isinstance(value, Tensor)
    ]
    weights = 8 * _parameters(method) + sum(value.numel() * value.element_size() for value in state)
    held = {
        "weights, gradients and optimizer": weights,
        "activations": activations / probed * at_once,
        "memory bank": bank,
    }
    for what, size in held.items():
        result.add("memory per device, estimated", what, megabytes(size))
    result.add("memory per device, estimated", "together", megabytes(sum(held.values())))

    started = time.perf_counter()
    for number in range(8):
        transform(Image.effect_noise(MADE_UP, 64).convert("RGB"), np.random.default_rng(number))
    cutting = (time.perf_counter() - started) / 8
    rate = probed / seconds
    result.add(
        "time, estimated",
        "probe",
        f"{probed} made-up images a step on {device.type}, {str(precision).removeprefix('torch.')}: {rate:,.1f} images/s",
    )
    result.add(
        "time, estimated",
        "views in a worker",
        f"{1000 * cutting:.1f} ms an image of {MADE_UP[0]}×{MADE_UP[1]}, without decoding",
    )
    result.add("time, estimated", "an epoch", duration(steps_per_epoch * per_device / rate))
    result.add("time, estimated", "the whole run", duration(steps * per_device / rate))
    return result
