"""The loop: a generator that yields what happened. It never prints and never saves."""

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from sslkit import distributed
from sslkit.errors import DataError
from sslkit.interfaces import Batch, Draws, Output, Progress
from sslkit.runs.run import Run

VIEWS, NEGATIVES, FILL, MODEL = range(4)
"""Streams of random numbers: the device phase of views, the method's draws, the first pass, dropout inside a model."""

Watch = Callable[[str], AbstractContextManager]
"""Told which section of a step begins; `nullcontext` where nobody measures."""


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
    skipped: bool = False
    """True where a number was not finite and `train.on_nan: skip` left everything as it was before the step."""


def draws(run: Run, stream: int, step: int, part: int = 0) -> Draws:
    """The random numbers of this rank's images; of those of one `part` of its batch where gradients are accumulated."""
    parts = run.loader.parts
    return Draws(
        run.recipe.train.seed,
        stream,
        step,
        rank=distributed.rank() * parts + part,
        world=distributed.world() * parts,
    )


def autocast(run: Run) -> torch.autocast:
    return torch.autocast(
        run.device.type, dtype=torch.bfloat16, enabled=run.precision == torch.bfloat16
    )


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
        step, part = divmod(number, run.loader.parts)
        batch = run.transform.on_device(batch.to(run.device), draws(run, FILL, step, part))
        with autocast(run):
            keys = run.method.keys(batch)
        sampler.fill(distributed.gather(batch.index), distributed.gather(keys.float()))


def train(run: Run, watch: Watch = nullcontext) -> Generator[Step, None, None]:
    """From `run.step` to the end. The same seed on the same kind of machine gives the same weights, bit for bit."""
    chosen, method, parts = run.recipe.train, run.method, run.loader.parts
    weights = [value for value in method.parameters() if value.requires_grad]
    if run.step == 0:
        fill_memory(run)
    batches = run.loader.batches(run.step, run.steps)
    resumed = True
    while run.step < run.steps:
        with watch("waiting for data"):
            taken = list(islice(batches, parts))
        for batch in taken:
            note_unreadable(run, batch)
        run.model.train()
        progress = Progress(
            run.step,
            run.steps,
            run.step // run.loader.steps_per_epoch,
            chosen.epochs,
            draws(run, NEGATIVES, run.step),
        )
        if resumed or run.step % run.loader.steps_per_epoch == 0:
            method.begin_epoch(progress)
            resumed = False
        lr = run.set_rate(run.step)
        before = [value.clone() for value in _statistics(run)] if chosen.on_nan == "skip" else None
        if run.step == 0 and parts > 1:
            _show_whole(run, taken, progress)

        run.optimizer.zero_grad(set_to_none=True)
        outputs: list[Output] = []
        for part, batch in enumerate(taken):
            with watch("transfer"):
                batch = batch.to(run.device)
            with watch("views"):
                batch = run.transform.on_device(batch, draws(run, VIEWS, run.step, part))
            torch.manual_seed(draws(run, MODEL, run.step).seed + distributed.rank() * parts + part)
            with distributed.summing(run.model, part + 1 == parts):
                with watch("forward"), autocast(run):
                    output = run.model(
                        batch, replace(progress, draws=draws(run, NEGATIVES, run.step, part))
                    )
                with watch("backward"):
                    (output.loss / parts).backward()
            outputs.append(replace(output, loss=output.loss.detach()))
        with watch("optimizer"):
            norm = torch.nn.utils.get_total_norm(
                [value.grad for value in weights if value.grad is not None]
            )
            skipped = before is not None and distributed.any_rank(
                not bool(norm.isfinite()), run.device
            )
            if not skipped:
                if chosen.clip_grad is not None:
                    torch.nn.utils.clip_grads_with_norm_(weights, chosen.clip_grad, norm)
                run.optimizer.step()
        with watch("memory"):
            index = torch.cat([batch.index for batch in taken]).to(run.device, non_blocking=True)
            keys = [output.keys.detach().float() for output in outputs if output.keys is not None]
            if keys and not skipped:
                method.after_step(
                    distributed.gather(index), distributed.gather(torch.cat(keys)), progress
                )
        if skipped and before is not None:
            _put_back(run, before)

        run.step += 1
        metrics = {
            name: torch.stack([output.metrics[name] for output in outputs]).mean(0)
            for name in outputs[0].metrics
        }
        loss = torch.stack([output.loss for output in outputs]).mean()
        yield Step(
            run.step, progress.epoch, lr, loss, metrics | {"gradient_norm": norm}, index, skipped
        )


def _statistics(run: Run) -> list[Tensor]:
    """What a forward pass changes: running means of batch norm and the like, not the memory."""
    modules = [run.method.encoder, *run.method.heads.values(), run.method.loss]
    return [value for module in modules for value in module.buffers()]


def _put_back(run: Run, before: list[Tensor]) -> None:
    for value, earlier in zip(_statistics(run), before, strict=True):
        value.copy_(earlier)


@torch.no_grad()
def _show_whole(run: Run, taken: list[Batch], progress: Progress) -> None:
    """Where a loss freezes a number at the first batch, it must be that of the whole batch, not of its first part."""
    before = [value.clone() for value in _statistics(run)]
    with run.method.loss.observe():
        for part, batch in enumerate(taken):
            batch = run.transform.on_device(batch.to(run.device), draws(run, VIEWS, 0, part))
            with autocast(run):
                run.method(batch, replace(progress, draws=draws(run, NEGATIVES, 0, part)))
        _put_back(run, before)
