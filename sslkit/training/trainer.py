"""The training loop, a generator that yields every step and neither prints nor saves."""

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from sslkit import distributed, faults
from sslkit.interfaces import Batch, Output, Progress
from sslkit.runs.run import Run
from sslkit.training import streams
from sslkit.training.epoch import TrainingEpoch
from sslkit.training.promises import Promises

EPOCH, WAITING = "start of an epoch", "waiting for data"
"""Sections of a step that load images."""

Watch = Callable[[str], AbstractContextManager]
"""Context manager of a section of a step, given its name; `nullcontext` measures nothing."""


@dataclass(frozen=True)
class Step:
    """The result of one step on this rank.

    `loss` and `metrics` are kept as tensors so that the loop does not synchronise with the device.
    """

    number: int
    """Number of the step, from 1."""
    epoch: int
    """Number of the epoch, from 0 as in `Progress`."""
    lr: float
    loss: Tensor
    metrics: dict[str, Tensor]
    index: Tensor
    """Images of this rank, int64 [B]."""
    skipped: bool = False
    """True if `train.on_nan: skip` discarded the step."""


class Ahead:
    """The micro-batches of each step; loading starts with the first call."""

    def __init__(self, run: Run) -> None:
        self.run, self.batches = run, run.loader.batches(run.step, run.steps)
        self.waiting: list[Batch] = []

    def look(self) -> list[Batch]:
        """Return the micro-batches of the next step without consuming them."""
        if not self.waiting:
            self.waiting = list(islice(self.batches, self.run.loader.micro_batches))
            for batch in self.waiting:
                self.run.note_unreadable(batch)
        return self.waiting

    def take(self) -> list[Batch]:
        """Return and consume the micro-batches of the next step."""
        taken, self.waiting = self.look(), []
        return taken


def train(
    run: Run, watch: Watch = nullcontext, passing: Callable[[int], None] = lambda images: None
) -> Generator[Step, None, None]:
    """Train from `run.step` to the end, and yield every step.

    `passing` is called with the number of completed images of a pass before an epoch. Equal seeds
    on the same type of machine yield bit-identical weights.
    """
    ahead = Ahead(run)
    promises = Promises(run)
    while run.step < run.steps:
        run.model.train()
        if run.step % run.loader.steps_per_epoch == 0:
            with watch(EPOCH):
                _begin_epoch(run, ahead, passing)
            run.model.train()
        with watch(WAITING):
            taken = ahead.take()
        yield _step(run, promises, taken, watch)


def _progress(run: Run, stream: int) -> Progress:
    """Return the progress with draws that are the same on every rank."""
    epoch = run.step // run.loader.steps_per_epoch
    draws = streams.shared(run, stream, run.step)
    return Progress(run.step, run.steps, epoch, run.recipe.train.epochs, draws)


@torch.no_grad()
def _begin_epoch(run: Run, ahead: Ahead, passing: Callable[[int], None]) -> None:
    progress = _progress(run, streams.EPOCH)
    torch.manual_seed(progress.draws.seed)
    with run.autocast():
        run.method.begin_epoch(TrainingEpoch(run, progress, ahead.look, passing))


def _step(run: Run, promises: Promises, taken: list[Batch], watch: Watch) -> Step:
    """Train for one step."""
    progress = _progress(run, streams.AFTER)
    lr = run.set_rate(run.step)
    before = None
    if run.recipe.train.on_nan == "skip":
        before = [value.clone() for value in run.statistics()]
    run.optimizer.zero_grad(set_to_none=True)
    outputs = []
    for micro_batch, batch in enumerate(taken):
        outputs.append(_accumulate(run, promises, progress, batch, micro_batch, watch))
    promises.check_names(outputs)
    promises.check_gradients()
    with watch("optimizer"):
        norm, skipped = _update(run, may_skip=before is not None)
    with watch("memory"):
        index = torch.cat([batch.index for batch in taken]).to(run.device, non_blocking=True)
        if not skipped:
            _remember(run, progress, index, outputs)
    if skipped and before is not None:
        run.restore_statistics(before)
    run.step += 1
    loss = torch.stack([output.loss for output in outputs]).mean()
    metrics = _metrics(outputs) | {"gradient_norm": norm}
    return Step(run.step, progress.epoch, lr, loss, metrics, index, skipped)


def _accumulate(
    run: Run,
    promises: Promises,
    progress: Progress,
    batch: Batch,
    micro_batch: int,
    watch: Watch,
) -> Output:
    """Run one micro-batch forward and backward, accumulating gradients."""
    count = run.loader.micro_batches
    with watch("transfer"):
        batch = batch.to(run.device)
    with watch("views"):
        draws = streams.draws(run, streams.VIEWS, run.step, micro_batch)
        batch = run.transform.on_device(batch, draws)
    streams.seed_model(run, run.step, micro_batch)
    progress = replace(progress, draws=streams.draws(run, streams.METHOD, run.step, micro_batch))
    called = f"{faults.called(run.method)} with {faults.called(run.method.loss)}"
    with distributed.summing(run.model, micro_batch + 1 == count):
        with watch("forward"), run.autocast():
            output = promises.check_output(run.model(batch, progress))
        with watch("backward"), faults.telling(f"{called} fails in backward"):
            (output.loss / count).backward()
    return replace(output, loss=output.loss.detach())


def _update(run: Run, *, may_skip: bool) -> tuple[Tensor, bool]:
    """Take the optimizer step; return the gradient norm, and whether the step was skipped."""
    gradients = [value.grad for value in run.weights if value.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if may_skip and distributed.any_rank(not bool(norm.isfinite()), run.device):
        return norm, True
    clip = run.recipe.train.clip_grad
    if clip is not None:
        torch.nn.utils.clip_grads_with_norm_(run.weights, clip, norm)
    with faults.telling(f"optimizer '{run.recipe.optimizer.use}' fails in step"):
        run.optimizer.step()
    return norm, False


@torch.no_grad()
def _remember(run: Run, progress: Progress, index: Tensor, outputs: list[Output]) -> None:
    """Call `after_step` with the kept rows of all ranks."""
    kept = {}
    for name in outputs[0].keep:
        rows = torch.cat([output.keep[name].detach() for output in outputs])
        kept[name] = distributed.gather(rows.float() if rows.is_floating_point() else rows)
    run.method.after_step(distributed.gather(index), kept, progress)


def _metrics(outputs: list[Output]) -> dict[str, Tensor]:
    """Return the means of metrics and feature standard deviations over micro-batches."""
    found = {}
    for name in outputs[0].feature_std:
        values = [output.feature_std[name] for output in outputs]
        found[f"feature_std/{name}"] = torch.stack(values).mean()
    for name in outputs[0].metrics:
        found[name] = torch.stack([output.metrics[name] for output in outputs]).mean(0)
    return found
