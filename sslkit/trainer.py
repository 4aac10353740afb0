"""The loop: a generator that yields what happened. It never prints and never saves."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sslkit import distributed
from sslkit.build import Run
from sslkit.errors import DataError
from sslkit.interfaces import Batch, Draws, Progress

VIEWS, NEGATIVES, FILL, MODEL = range(4)
"""Streams of random numbers: the device phase of views, the method's draws, the first pass, dropout inside a model."""


@dataclass(frozen=True)
class Step:
    """One step done. `loss` and `metrics` are still tensors of this rank, so that nobody waits for the device before he must."""

    number: int
    """Counts from 1."""
    epoch: int
    lr: float
    loss: Tensor
    metrics: dict[str, Tensor]
    index: Tensor
    """int64 [B]: the images of this rank."""


def draws(run: Run, stream: int, step: int) -> Draws:
    return Draws(run.recipe.train.seed, stream, step, rank=distributed.rank(), world=distributed.world())


def autocast(run: Run) -> torch.autocast:
    return torch.autocast(run.device.type, dtype=torch.bfloat16, enabled=run.precision == torch.bfloat16)


def finish(run: Run, batch: Batch, numbers: Draws) -> Batch:
    """The device phase of the views."""
    return run.transform.on_device(batch.to(run.device), numbers)


def note_unreadable(run: Run, batch: Batch) -> None:
    run.unreadable.update(batch.unreadable)
    if len(run.unreadable) > run.recipe.train.unreadable:
        names = "\n".join(f"  {name}: {reason}" for name, reason in sorted(run.unreadable.items()))
        raise DataError(
            f"{len(run.unreadable)} images cannot be read, more than train.unreadable = {run.recipe.train.unreadable} allows; "
            f"mend or remove them, or raise the limit:\n{names}"
        )


@torch.no_grad()
def fill_memory(run: Run) -> None:
    """Before the first step: every image once through the untrained network, into the sampler's memory."""
    sampler = run.method.sampler
    if sampler is None or not sampler.needs_fill:
        return
    run.method.train()
    for number, batch in enumerate(run.loader.first_pass()):
        note_unreadable(run, batch)
        batch = finish(run, batch, draws(run, FILL, number))
        with autocast(run):
            keys = run.method.keys(batch)
        sampler.fill(distributed.gather(batch.index), distributed.gather(keys.float()))


def train(run: Run) -> Iterator[Step]:
    """From `run.step` to the end. The same seed on the same kind of machine gives the same weights, bit for bit."""
    chosen = run.recipe.train
    if run.step == 0:
        fill_memory(run)
    resumed = True
    for batch in run.loader.batches(run.step, run.steps):
        note_unreadable(run, batch)
        run.model.train()
        torch.manual_seed(draws(run, MODEL, run.step).seed + distributed.rank())
        progress = Progress(
            run.step, run.steps, run.step // run.loader.steps_per_epoch, chosen.epochs, draws(run, NEGATIVES, run.step)
        )
        if resumed or run.step % run.loader.steps_per_epoch == 0:
            run.method.begin_epoch(progress)
            resumed = False
        lr = run.set_rate(run.step)

        batch = finish(run, batch, draws(run, VIEWS, run.step))
        with autocast(run):
            output = run.model(batch, progress)
        run.optimizer.zero_grad(set_to_none=True)
        output.loss.backward()
        metrics = output.metrics
        if chosen.clip_grad is not None:
            metrics = metrics | {"gradient_norm": torch.nn.utils.clip_grad_norm_(run.method.parameters(), chosen.clip_grad)}
        run.optimizer.step()
        if output.keys is not None:
            run.method.after_step(distributed.gather(batch.index), distributed.gather(output.keys.detach().float()), progress)

        run.step += 1
        yield Step(run.step, progress.epoch, lr, output.loss.detach(), metrics, batch.index)
