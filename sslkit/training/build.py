"""Recipe → Run: parts made, facts filled in, parts checked against each other."""

import torch

from sslkit import distributed
from sslkit.data.loader import Loader, auto_workers, fingerprint
from sslkit.device import pick_device, pick_precision
from sslkit.errors import Fault, RecipeError
from sslkit.parts import make_method, make_source, make_transform
from sslkit.recipe import Recipe
from sslkit.runs.run import Run
from sslkit.training.optim import make_optimizer, make_schedule


def build(recipe: Recipe) -> Run:
    """Make everything. Raises RecipeError or DataError with the sentence for the user; writes nothing."""
    chosen, world = recipe.train, distributed.world()
    device = pick_device(chosen.device)
    at_once = chosen.share(world)
    if chosen.sync_batchnorm and world > 1 and device.type != "cuda":
        raise RecipeError(
            Fault(
                "train.sync_batchnorm",
                f"PyTorch has it on GPUs alone, not on '{device.type}'; set it to false",
            )
        )
    if chosen.deterministic:
        torch.use_deterministic_algorithms(True)
    source = make_source(recipe, "pretrain")
    transform = make_transform(recipe)
    loader = Loader(
        source,
        transform,
        batch_size=at_once,
        seed=chosen.seed,
        workers=auto_workers(device.type) if chosen.workers == "auto" else chosen.workers,
        rank=distributed.rank(),
        world=world,
        parts=chosen.accumulate,
        pin=device.type == "cuda",
    )
    method = make_method(recipe, transform, len(source)).to(device)
    if chosen.channels_last:
        method.to(memory_format=torch.channels_last)
    spread = (
        set() if method.sampler is None else {f"sampler.{name}" for name in method.sampler.spread()}
    )
    distributed.share(
        [
            value
            for name, value in [*method.named_parameters(), *method.named_buffers()]
            if name not in spread
        ]
    )
    optimizer = make_optimizer(method, recipe.optimizer)
    set_rate = make_schedule(optimizer, recipe.schedule, chosen.epochs, loader.steps_per_epoch)
    if chosen.compile:
        # One graph for each size of view: the shape of a batch never changes.
        method.encoder.compile(dynamic=False)
    model = distributed.parallel(method, sync_batchnorm=chosen.sync_batchnorm, device=device)
    return Run(
        recipe,
        source,
        fingerprint(source),
        transform,
        method,
        model,
        loader,
        optimizer,
        set_rate,
        device,
        pick_precision(chosen.precision, device),
    )
