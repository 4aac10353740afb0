"""One training session in a run folder: reads what the trainer yields, logs it, saves, minds signals, and yields plain numbers."""

import json
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from sslkit import checkpoint, console, distributed, plot, trainer
from sslkit.build import Run, build, pick_device
from sslkit.errors import TrainingError
from sslkit.health import Health, expected_loss
from sslkit.metrics import Metrics, Row
from sslkit.recipe import Recipe


class Stopped(Exception):  # noqa: N818  (not an error: the run is saved)
    """A signal ended the session; everything up to here is saved."""

    def __init__(self, signum: int) -> None:
        self.exit_code = 128 + signum
        super().__init__(signal.Signals(signum).name)


def read(steps: list[trainer.Step]) -> list[Row]:
    """The numbers of several steps, in one transfer from the device."""
    values = distributed.mean(
        torch.stack([torch.stack([step.loss.float(), *(v.float() for v in step.metrics.values())]) for step in steps])
    )
    return [
        Row(step.number, step.epoch, step.lr, loss, dict(zip(step.metrics, metrics, strict=True)))
        for step, (loss, *metrics) in zip(steps, values.tolist(), strict=True)
    ]


REMEDY = (
    "Nothing was saved after it; lower the rate (--set optimizer.lr=…), warm up (--set schedule.warmup_epochs=…) or clip "
    "(--set train.clip_grad=1.0), then start anew or resume {} from its last checkpoint"
)


def check_finite(rows: list[Row], steps: list[trainer.Step], run: Run, folder: Path) -> None:
    for row, step in zip(rows, steps, strict=True):
        wrong = [name for name, value in {"loss": row.loss, **row.metrics}.items() if not math.isfinite(value)]
        if wrong:
            names = [str(run.source.names[i]) for i in step.index[:8].tolist()]
            raise TrainingError(
                f"step {row.step}: {', '.join(wrong)} is not finite (learning rate {row.lr:.3g}; images {', '.join(names)}, …). "
                + REMEDY.format(folder)
            )


def check_weights(run: Run, folder: Path) -> None:
    """The loss of a step is that of the weights before it: what is about to be saved may already be spoilt."""
    values = {name: value for name, value in run.method.state_dict().items() if value.is_floating_point()}
    finite = torch.stack([value.isfinite().all() for value in values.values()]).tolist()
    wrong = [name for name, fine in zip(values, finite, strict=True) if not fine]
    if wrong:
        raise TrainingError(f"step {run.step} left {len(wrong)} weights not finite, {wrong[0]} the first. {REMEDY.format(folder)}")


AGAIN = 1.0
"""Seconds after which a second signal is meant: a terminal and a launcher may both pass on the first."""


@contextmanager
def signals() -> Iterator[list[int]]:
    """Collects the first SIGINT or SIGTERM; one more, later than AGAIN, ends the process at once, as the system would."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    first = 0.0

    def catch(signum: int, frame: object) -> None:
        nonlocal first
        if not caught:
            caught.append(signum)
            first = time.monotonic()
        elif time.monotonic() - first > AGAIN:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)

    before = {number: signal.signal(number, catch) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def follow(run: Run, folder: Path, health: Health) -> Iterator[list[Row]]:
    """Train to the end, yielding rows as they are read: every step on a CPU, every `train.log_every` steps elsewhere.

    Raises Stopped after a signal, TrainingError where a number is not finite, DataError and CheckpointError as they come.
    """
    chosen, leader = run.recipe.train, distributed.rank() == 0
    metrics = Metrics(folder / "metrics.jsonl", run.step) if leader else None
    board = _tensorboard(folder) if leader else None
    every = 1 if run.device.type == "cpu" else chosen.log_every
    pending: list[trainer.Step] = []
    saved = time.monotonic()

    def flush() -> list[Row]:
        rows = read(pending)
        check_finite(rows, pending, run, folder)
        pending.clear()
        if metrics is not None:
            metrics.add(rows)
        if board is not None:
            for row in rows:
                for name, value in {"loss": row.loss, "lr": row.lr, **row.metrics}.items():
                    board.add_scalar(name, value, row.step)
        for row in rows:
            health.add(row)
        return rows

    with signals() as caught:
        for step in trainer.train(run):
            pending.append(step)
            if len(pending) < every and run.step < run.steps:
                continue
            yield flush()
            stop = distributed.any_rank(bool(caught), run.device)
            due = distributed.any_rank(time.monotonic() - saved >= 60 * chosen.save_minutes, run.device)
            if stop or due or run.step == run.steps:
                check_weights(run, folder)
                if leader:
                    save(run, folder)
                saved = time.monotonic()
            if stop:
                raise Stopped(caught[0] if caught else signal.SIGTERM)


def save(run: Run, folder: Path) -> None:
    """The checkpoint, the encoder alone, and the curves so far."""
    checkpoint.save(run, folder)
    checkpoint.save_encoder(run, folder)
    with checkpoint.writing(folder / "curves.png"):
        plot.curves(folder)


def _tensorboard(folder: Path):
    """A TensorBoard writer where the optional extra is installed (`pip install 'sslkit[tensorboard]'`)."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(folder / "tensorboard")


def run(recipe: Recipe, folder: Path | None, runs: Path) -> int:
    """Train `recipe` in a new folder below `runs`, or go on in `folder`; show it, and return the exit code."""
    with distributed.joined(pick_device(recipe.train.device)):
        made = build(recipe)
        leader = distributed.rank() == 0
        resumed = folder is not None
        if folder is None:
            folder = Path(distributed.share_text(str(checkpoint.new_folder(runs, recipe)) if leader else ""))
            notes: list[str] = []
        else:
            notes = checkpoint.resume(made, folder)
        screen = console.Training(made, folder) if leader else None
        if screen is not None:
            screen.begin(notes, resumed)
            if not resumed:
                checkpoint.write_text(folder / "environment.json", json.dumps(checkpoint.environment(made), indent=1))
                with checkpoint.writing(folder / "views.png"):
                    plot.views(made.source, made.transform, folder / "views.png", seed=recipe.train.seed)
        health = Health(
            expected_loss(made.method), made.steps, filled=made.method.sampler is not None and made.method.sampler.needs_fill
        )
        try:
            for rows in follow(made, folder, health):
                if screen is not None:
                    screen.show(rows, health)
        except Stopped as stopped:
            if screen is not None:
                screen.stopped(str(stopped))
            return stopped.exit_code
        finally:
            if screen is not None:
                screen.close()
        if screen is not None:
            screen.done(health)
        return 0
