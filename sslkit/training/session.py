"""One training session: trains a run, checks and records its steps, stops at signals."""

import gc
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch

from sslkit import distributed, faults
from sslkit.device import pick_device
from sslkit.interfaces import ImageSource
from sslkit.parts import DataFormat, make_source
from sslkit.recipe import Recipe
from sslkit.runs import checkpoint, files, folders
from sslkit.runs.metrics import Row
from sslkit.runs.run import Run
from sslkit.training import trainer
from sslkit.training.build import build
from sslkit.training.finite import check_finite, check_weights, seldom
from sslkit.training.health import Health
from sslkit.training.record import Record
from sslkit.training.rehearsal import rehearse_recipe
from sslkit.training.signals import Stopped, signals


class Screen(Protocol):
    """What shows a session. The command line passes one; a session without shows nothing."""

    def begin(self, notes: list[str], folder: Path | None) -> None: ...
    def made(self, folder: Path) -> None: ...
    def passing(self, done: int) -> None: ...
    def show(self, rows: list[Row], told: list[str], health: Health) -> None: ...
    def stopped(self, signal: str, saved: bool) -> None: ...
    def done(self, health: Health) -> None: ...
    def close(self) -> None: ...


def run(
    recipe: Recipe,
    folder: Path | None,
    runs: Path,
    show: Callable[[Run], Screen],
    look: Callable[[ImageSource, Recipe], None] = lambda source, recipe: None,
) -> int:
    """Train `recipe` in a new folder below `runs`, or go on in `folder`. Returns the exit code.

    A new run is rehearsed first, and its folder is made when its first step is done. `look` gets
    the data set before, and `show` makes the screen, both on rank 0 alone. After a restart by the
    launcher, the folder is that of the earlier ranks. Raises SslkitError, also for any exception
    of a part.
    """
    with distributed.joined(pick_device(recipe.train.device)), faults.telling():
        if folder is None and (before := distributed.remembered()) is not None:
            folder = Path(before)
        made = _prepare(recipe, folder, runs, look)
        record, notes = Record(made, folder, runs), []
        try:
            if folder is not None:
                record.lock()
                notes = record.resume()
                record.began = made.step
            screen = show(made) if distributed.rank() == 0 else None
            return _train(made, record, notes, screen)
        except files.WriteError as error:
            raise record.refused(error, new=folder is None) from error
        finally:
            record.close()


def _prepare(
    recipe: Recipe,
    folder: Path | None,
    runs: Path,
    look: Callable[[ImageSource, Recipe], None],
) -> Run:
    """Make the run; rehearse it where it is new."""
    source = make_source(recipe, "pretrain")
    if distributed.rank() == 0:
        look(source, recipe)
    if folder is None:
        if distributed.rank() == 0:
            folders.check_place(runs)
        rehearse_recipe(recipe, DataFormat.of(source), source)
        if torch.cuda.is_initialized():
            gc.collect()  # The rehearsed run has reference cycles, and its memory is needed.
            torch.cuda.empty_cache()
    restored = folder is not None and checkpoint.exists(folder)
    return build(recipe, source, restored=restored)


def _train(made: Run, record: Record, notes: list[str], screen: Screen | None) -> int:
    if screen is not None:
        screen.begin(notes, record.folder)
    filled = any(sampler.needs_fill for sampler in made.method.samplers.values())
    expected = made.method.at_start(made.recipe.train.batch_size)
    chances = made.method.at_chance(made.recipe.train.batch_size)
    epoch = made.loader.steps_per_epoch
    health = Health(expected, made.steps, chances=chances, filled=filled, epoch=epoch)
    undrawn = screen is not None and made.step == 0
    try:
        for rows, told in follow(made, record, health, screen):
            if screen is not None:
                screen.show(rows, told, health)
            if undrawn:
                record.draw_views()
                undrawn = False
    except Stopped as stopped:
        if screen is not None:
            screen.stopped(str(stopped), saved=made.step == record.saved)
        if made.step == record.began:
            # Other ranks may wait in a collective that this one would not meet.
            raise SystemExit(stopped.exit_code) from stopped
        return stopped.exit_code
    finally:
        if screen is not None:
            screen.close()
    if screen is not None:
        screen.done(health)
    return int(made.mostly_skipped)


def follow(
    run: Run, record: Record, health: Health, screen: Screen | None = None
) -> Iterator[tuple[list[Row], list[str]]]:
    """Train to the end; yield rows as they are read, and sentences about skipped steps.

    Reads every step on a CPU, every `train.log_every` elsewhere. Raises Stopped after a signal,
    TrainingError where a number is not finite, DataError and CheckpointError as they come.

    A signal is heard after the step. One process hears it at once while it waits for data; several
    ranks must stop together. A pass over the images before a later epoch is left without saving,
    for the method may have changed.
    """
    chosen = run.recipe.train
    every = 1 if run.device.type == "cpu" else chosen.log_every
    pending: list[trainer.Step] = []
    saved = time.monotonic()
    section = _Section()

    def at_once() -> bool:
        interruptible = section.name in (trainer.WAITING, trainer.EPOCH)
        return run.step == record.began or (interruptible and distributed.world() == 1)

    with signals(at_once) as caught:
        try:
            passing = screen.passing if screen is not None else lambda images: None
            for step in trainer.train(run, section, passing):
                if step.number == record.began + 1:
                    _open(record, health, screen)
                pending.append(step)
                if len(pending) < every and run.step < run.steps:
                    continue
                yield _flush(run, record, health, pending)
                stop = distributed.any_rank(bool(caught) or distributed.abandoned(), run.device)
                waited = time.monotonic() - saved >= 60 * chosen.save_minutes
                due = distributed.any_rank(waited, run.device)
                if stop or due or run.step == run.steps:
                    _save(run, record)
                    saved = time.monotonic()
                if stop:
                    raise Stopped(caught[0] if caught else signal.SIGTERM)
        except Stopped:
            if section.name == trainer.WAITING and run.step > record.began:
                if pending:
                    yield _flush(run, record, health, pending)
                _save(run, record)
            raise


def _open(record: Record, health: Health, screen: Screen | None) -> None:
    """Open the folder, once the first step is done; a resumed run has its early steps there."""
    if record.open(health.remember) and screen is not None:
        assert record.folder is not None
        screen.made(record.folder)


class _Section:
    """Knows the section of a step that training is in, or was in when an exception was raised."""

    name = ""

    @contextmanager
    def __call__(self, section: str) -> Iterator[None]:
        self.name = section
        yield
        self.name = ""


def _save(run: Run, record: Record) -> None:
    """Save a checkpoint, unless the weights are not finite."""
    assert record.folder is not None
    check_weights(run, record.folder)
    record.save()


def _flush(
    run: Run, record: Record, health: Health, pending: list[trainer.Step]
) -> tuple[list[Row], list[str]]:
    """Read, check and record the pending steps."""
    assert record.folder is not None
    rows = read(pending)
    skipped = check_finite(rows, pending, run, record.folder)
    told = seldom(skipped, run.skipped)
    taken = [row for row, step in zip(rows, pending, strict=True) if not step.skipped]
    run.skipped += len(skipped)
    pending.clear()
    record.add(taken)
    for row in taken:
        health.add(row)
    health.reached = run.step
    return taken, told


def read(steps: list[trainer.Step]) -> list[Row]:
    """Return the numbers of several steps, in one transfer from the device."""
    numbers = []
    for step in steps:
        values = [step.loss.float(), *(value.float() for value in step.metrics.values())]
        numbers.append(torch.stack(values))
    rows = []
    means = distributed.mean(torch.stack(numbers)).tolist()
    for step, (loss, *metrics) in zip(steps, means, strict=True):
        known = dict(zip(step.metrics, metrics, strict=True))
        rows.append(Row(step.number, step.epoch + 1, step.lr, loss, known))
    return rows
