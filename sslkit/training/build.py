"""Builds a training run from a recipe."""

from dataclasses import replace
from typing import Literal

import torch

from sslkit import distributed, faults
from sslkit.data import shared
from sslkit.data.loader import Loader, auto_workers, batch_bytes, fingerprint
from sslkit.device import pick_device, pick_precision
from sslkit.errors import Fault, RecipeError
from sslkit.interfaces import Encoder, ImageSource, Method
from sslkit.parts import (
    DataFormat,
    encoder_faults,
    make_method,
    make_source,
    make_transform,
    sharded_rows,
)
from sslkit.recipe import Recipe
from sslkit.runs.run import Run
from sslkit.training.optim import make_optimizer, make_schedule


@faults.telling()
def loader_workers(chosen: int | Literal["auto"], device_type: str, size: int) -> int:
    """Return the number of loader workers of a rank, for batches of `size` bytes.

    "auto" is limited by the rank's cores and by the shared memory for one batch per worker.
    """
    if chosen == "auto":
        return shared.fitting(auto_workers(device_type), size)
    return chosen


def build(
    recipe: Recipe,
    source: ImageSource | None = None,
    *,
    images: int | None = None,
    loader_class: type[Loader] = Loader,
    restored: bool = False,
) -> Run:
    """Build a run on the recipe's data set, or on another `source`. Writes nothing.

    `images` replaces the size of the data set for the method. `restored` skips the encoder's
    initial weights, because a checkpoint will be loaded. Raises RecipeError, DataError or
    PluginError.
    """
    chosen, world = recipe.train, distributed.world()
    device = pick_device(chosen.device)
    batch_size = chosen.per_rank_batch(world)
    if chosen.sync_batchnorm and world > 1 and device.type != "cuda":
        message = f"PyTorch supports it on GPUs only, not on '{device.type}'; set it to false"
        raise RecipeError(Fault("train.sync_batchnorm", message))
    if chosen.deterministic:
        torch.use_deterministic_algorithms(True)
    if source is None:
        source = make_source(recipe, "pretrain")
    data = DataFormat.of(source)
    if images is not None:
        data = replace(data, images=images)
    try:
        transform = make_transform(recipe, data)
    except RecipeError as error:
        raise RecipeError(*error.faults, *encoder_faults(recipe, data)) from error
    method = make_method(recipe, transform, data, restored=restored).to(device)
    size = batch_bytes(transform, source, batch_size)
    loader = loader_class(
        source,
        transform,
        batch_size=batch_size,
        seed=chosen.seed,
        workers=loader_workers(chosen.workers, device.type, size),
        rank=distributed.rank(),
        world=world,
        micro_batches=chosen.accumulate,
        pin=device.type == "cuda",
        labels=source.labels if "label" in type(method).predicts.values() else None,
    )
    if chosen.channels_last:
        method.to(memory_format=torch.channels_last)
    sharded = sharded_rows(method)
    tensors = [*method.named_parameters(), *method.named_buffers()]
    distributed.broadcast([value for name, value in tensors if name not in sharded])
    constant = [method.heads[name] for name in recipe.schedule.constant]
    optimizer = make_optimizer(method, recipe.optimizer, constant)
    set_rate = make_schedule(optimizer, recipe.schedule, chosen.epochs, loader.steps_per_epoch)
    if chosen.compile:
        _compile(method)
    model = distributed.parallel(
        method,
        sync_batchnorm=chosen.sync_batchnorm,
        uses_every_parameter=type(method).uses_every_parameter,
        device=device,
    )
    return Run(
        recipe=recipe,
        source=source,
        data=data,
        fingerprint=fingerprint(source),
        transform=transform,
        method=method,
        model=model,
        loader=loader,
        optimizer=optimizer,
        set_rate=set_rate,
        device=device,
        precision=pick_precision(chosen.precision, device),
    )


def _compile(method: Method) -> None:
    """Compile every encoder of a method, with one graph per view size."""
    for module in method.modules():
        if isinstance(module, Encoder):
            module.compile(dynamic=False)
