"""One training session in a run folder: reads what the trainer yields, logs it, saves, minds signals, and yields plain numbers."""

import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Protocol

import torch

from sslkit import distributed
from sslkit.device import pick_device
from sslkit.errors import TrainingError, printable
from sslkit.recipe import Recipe
from sslkit.runs import checkpoint, files, folders
from sslkit.runs.metrics import Metrics, Row
from sslkit.runs.run import Run
from sslkit.training import trainer
from sslkit.training.build import build
from sslkit.training.health import Health


class Stopped(Exception):  # noqa: N818  (not an error: the run is saved)
    """A signal ended the session; everything up to here is saved."""

    def __init__(self, signum: int) -> None:
        self.exit_code = 128 + signum
        super().__init__(signal.Signals(signum).name)


def read(steps: list[trainer.Step]) -> list[Row]:
    """The numbers of several steps, in one transfer from the device."""
    values = distributed.mean(
        torch.stack(
            [
                torch.stack([step.loss.float(), *(v.float() for v in step.metrics.values())])
                for step in steps
            ]
        )
    )
    return [
        Row(step.number, step.epoch, step.lr, loss, dict(zip(step.metrics, metrics, strict=True)))
        for step, (loss, *metrics) in zip(steps, values.tolist(), strict=True)
    ]


REMEDY = (
    "Nothing was saved after it; lower the rate (--set optimizer.lr=…), warm up (--set schedule.warmup_epochs=…), clip "
    "(--set train.clip_grad=1.0) or pass over such steps (--set train.on_nan=skip), then start anew, or write it into {0}/recipe.yaml "
    "and go on: sslkit train --resume {0}"
)


NOT_FINITE = "not_finite.json"
"""Beside the metrics: all that is known of a step whose numbers were not finite."""


def not_finite(row: Row) -> list[str]:
    return [
        name
        for name, value in {"loss": row.loss, **row.metrics}.items()
        if not math.isfinite(value)
    ]


def describe(row: Row, step: trainer.Step, run: Run, folder: Path) -> str:
    """What was not finite, at which rate, in which images; all images of the batch are written down. Every rank calls it."""
    index = distributed.gather(step.index).tolist()
    names = [str(run.source.names[i]) for i in index]
    if distributed.rank() == 0:
        values = {name: repr(value) for name, value in {"loss": row.loss, **row.metrics}.items()}
        known = {"step": row.step, "lr": row.lr, "values": values, "images": names}
        files.write_text(folder / NOT_FINITE, json.dumps(known, indent=1))
    shown = ", ".join(map(printable, names[:8])) + (
        f" and {len(names) - 8} more" if len(names) > 8 else ""
    )
    return f"step {row.step}: {', '.join(not_finite(row))} not finite (learning rate {row.lr:.3g}; images {shown}, see {NOT_FINITE})"


def check_finite(rows: list[Row], steps: list[trainer.Step], run: Run, folder: Path) -> list[str]:
    """What is to be told of the steps that were skipped; TrainingError at one that was not."""
    skipped = []
    for row, step in zip(rows, steps, strict=True):
        if step.skipped:
            skipped.append(f"skipped {describe(row, step, run, folder)}")
        elif not_finite(row):
            raise TrainingError(f"{describe(row, step, run, folder)}. {REMEDY.format(folder)}")
    return skipped


def check_weights(run: Run, folder: Path) -> None:
    """The loss of a step is that of the weights before it: what is about to be saved may already be spoilt."""
    values = {
        name: value for name, value in run.method.state_dict().items() if value.is_floating_point()
    }
    finite = torch.stack([value.isfinite().all() for value in values.values()]).tolist()
    wrong = [name for name, fine in zip(values, finite, strict=True) if not fine]
    if wrong:
        raise TrainingError(
            f"step {run.step} left {len(wrong)} weights not finite, {wrong[0]} the first. {REMEDY.format(folder)}"
        )


AGAIN = 1.0
"""Seconds after which a second signal is meant: a terminal and a launcher may both pass on the first."""


@contextmanager
def signals(nothing_done: Callable[[], bool]) -> Iterator[list[int]]:
    """Collects the first SIGINT or SIGTERM, which raises Stopped at once where there is nothing to save; one more, later than AGAIN,
    ends the process, as the system would."""
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
            if nothing_done():
                raise Stopped(signum)
        elif time.monotonic() - first > AGAIN:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)

    before = {number: signal.signal(number, catch) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def follow(run: Run, folder: Path, health: Health) -> Iterator[tuple[list[Row], list[str]]]:
    """Train to the end, yielding rows as they are read, and what is to be told: every step on a CPU, every `train.log_every` elsewhere.

    Raises Stopped after a signal, TrainingError where a number is not finite, DataError and CheckpointError as they come.
    """
    chosen, leader = run.recipe.train, distributed.rank() == 0
    metrics = Metrics(folder / "metrics.jsonl", run.step) if leader else None
    board = _tensorboard(folder) if leader else None
    every = 1 if run.device.type == "cpu" else chosen.log_every
    pending: list[trainer.Step] = []
    saved, began = time.monotonic(), run.step

    def flush() -> tuple[list[Row], list[str]]:
        rows = read(pending)
        told = check_finite(rows, pending, run, folder)
        rows = [row for row, step in zip(rows, pending, strict=True) if not step.skipped]
        run.skipped += len(told)
        pending.clear()
        if metrics is not None:
            metrics.add(rows)
        if board is not None:
            for row in rows:
                for name, value in {"loss": row.loss, "lr": row.lr, **row.metrics}.items():
                    board.add_scalar(name, value, row.step)
        for row in rows:
            health.add(row)
        return rows, told

    with signals(lambda: run.step == began) as caught:
        for step in trainer.train(run):
            pending.append(step)
            if len(pending) < every and run.step < run.steps:
                continue
            yield flush()
            stop = distributed.any_rank(bool(caught) or distributed.abandoned(), run.device)
            due = distributed.any_rank(
                time.monotonic() - saved >= 60 * chosen.save_minutes, run.device
            )
            if stop or due or run.step == run.steps:
                check_weights(run, folder)
                save(run, folder)
                saved = time.monotonic()
            if stop:
                raise Stopped(caught[0] if caught else signal.SIGTERM)


def save(run: Run, folder: Path) -> None:
    """The checkpoint, the encoder alone, and the curves so far. Every rank calls it."""
    checkpoint.save(run, folder)
    if distributed.rank() == 0:
        from sslkit.report import figures

        checkpoint.save_encoder(run, folder)
        with files.writing(folder / "curves.png"):
            figures.curves(folder)


def draw_views(run: Run, folder: Path) -> None:
    """views.png. Drawn after the first step, for the import of matplotlib would delay that by a second."""
    from sslkit.report.views_figure import draw_views as draw

    with files.writing(folder / "views.png"):
        draw(run.source, run.transform, folder / "views.png", seed=run.recipe.train.seed)


def _tensorboard(folder: Path):
    """A TensorBoard writer where the optional extra is installed (`pip install 'sslkit[tensorboard]'`)."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(folder / "tensorboard")


class Screen(Protocol):
    """What shows a session. The command line passes one; a session without shows nothing."""

    def begin(self, notes: list[str], resumed: bool) -> None: ...
    def show(self, rows: list[Row], told: list[str], health: Health) -> None: ...
    def stopped(self, signal: str) -> None: ...
    def done(self, health: Health) -> None: ...
    def close(self) -> None: ...


def run(
    recipe: Recipe, folder: Path | None, runs: Path, show: Callable[[Run, Path], Screen]
) -> int:
    """Train `recipe` in a new folder below `runs`, or go on in `folder`. Returns the exit code.

    `show` makes the screen, on rank 0 alone. After a restart by the launcher the folder is that of
    the ranks before.
    """
    with distributed.joined(pick_device(recipe.train.device)):
        made = build(recipe)
        leader = distributed.rank() == 0
        if folder is None and (before := distributed.remembered()) is not None:
            folder = Path(before)
        resumed = folder is not None
        if folder is None:
            name = str(folders.new_folder(runs, recipe)) if leader else ""
            folder = Path(distributed.broadcast_text(name))
        distributed.remember(str(folder))
        with folders.held(folder) if leader else nullcontext():
            notes = checkpoint.resume(made, folder) if resumed else []
            screen = show(made, folder) if leader else None
            return _train(made, folder, notes, resumed, screen)


def _train(made: Run, folder: Path, notes: list[str], resumed: bool, screen: Screen | None) -> int:
    began = made.step
    if screen is not None:
        screen.begin(notes, resumed)
        if made.step == 0:
            files.write_text(
                folder / "environment.json", json.dumps(checkpoint.environment(made), indent=1)
            )
    undrawn = screen is not None and made.step == 0
    samplers = made.method.samplers.values()
    health = Health(
        made.method.at_start(made.recipe.train.batch_size),
        made.steps,
        filled=any(sampler.needs_fill for sampler in samplers),
    )
    try:
        for rows, told in follow(made, folder, health):
            if screen is not None:
                screen.show(rows, told, health)
            if undrawn:
                draw_views(made, folder)
                undrawn = False
    except Stopped as stopped:
        if screen is not None:
            screen.stopped(str(stopped))
        if made.step == began:
            # Other processes may wait for this one in a collective, where it would not meet them: it leaves without another one.
            raise SystemExit(stopped.exit_code) from stopped
        return stopped.exit_code
    finally:
        if screen is not None:
            screen.close()
    if screen is not None:
        screen.done(health)
    return 0
