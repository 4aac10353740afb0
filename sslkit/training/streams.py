"""Random streams of a training run, pure functions of seed and step."""

import torch

from sslkit import distributed
from sslkit.draws import Draws
from sslkit.runs.run import Run

VIEWS, METHOD, FULL_PASS, MODEL, EPOCH, AFTER = range(6)
"""Random streams: views on the device, the method's forward, passes over all images, dropout,
`begin_epoch`, `after_step`."""


def draws(run: Run, stream: int, step: int, micro_batch: int = 0) -> Draws:
    """Return the draws of one micro-batch of this rank."""
    count = run.loader.micro_batches
    return Draws(
        run.recipe.train.seed,
        stream,
        step,
        rank=distributed.rank() * count + micro_batch,
        world=distributed.world() * count,
    )


def shared(run: Run, stream: int, step: int) -> Draws:
    """Return draws that are the same on every rank."""
    return Draws(run.recipe.train.seed, stream, step)


def seed_model(run: Run, step: int, micro_batch: int) -> None:
    """Seed torch's generator, which dropout uses, for one micro-batch of this rank."""
    place = distributed.rank() * run.loader.micro_batches + micro_batch
    torch.manual_seed(draws(run, MODEL, step).seed + place)
