"""Runs training in a run folder: logging, checkpoints, signals."""

import gc
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sslkit import distributed, faults
from sslkit.device import pick_device
from sslkit.errors import CheckpointError, counted
from sslkit.parts import DataFormat, make_source
from sslkit.recipe import Recipe
from sslkit.runs import changes, checkpoint, files, folders
from sslkit.runs.metrics import Row
from sslkit.runs.run import Run
from sslkit.training import trainer
from sslkit.training.build import build
from sslkit.training.finite import check_finite, check_weights, thinned
from sslkit.training.health import Health
from sslkit.training.notes import change_of_rate, part_notes
from sslkit.training.record import Record
from sslkit.training.rehearsal import rehearse_recipe
from sslkit.training.signals import Stopped, signals
from sslkit.training.viewer import SILENT, Screen, Viewer

if TYPE_CHECKING:
    from sslkit.training.evaluations import Evaluations


@dataclass(frozen=True)
class Ended:
    """The outcome of a session."""

    folder: Path | None
    """The run folder; None if a signal stopped a new run before its first step was completed."""
    stopped: str | None = None
    """The signal that stopped the session, such as SIGINT; None at the end of the training."""
    mostly_skipped: bool = False
    """True if `train.on_nan: skip` discarded more than half of the steps."""

    @property
    def exit_code(self) -> int:
        """The exit code of a command: that of the signal, 1 if most steps were skipped, or 0."""
        if self.stopped is not None:
            return 128 + signal.Signals[self.stopped]
        return int(self.mostly_skipped)


FORGETS = "a restart by the launcher would begin a new run; name the folder: --run-dir DIR"
"""Note for ranks of a launcher that does not know the run folder."""


def train(
    recipe: Recipe, *, run: Path | None = None, runs: Path = Path("runs"), viewer: Viewer = SILENT
) -> Ended:
    """Train `recipe` in the folder `run`: start there, or resume from the newest checkpoint.

    Without `run`, starts in a new folder runs/<recipe>/<time>. A new run is rehearsed first, and
    its folder is created after the first step. Does nothing for a complete run.

    Raises SslkitError, also for any exception of a part: RecipeError if `run` has another recipe,
    CheckpointError if it is not a run folder or another process trains in it.
    """
    with distributed.joined(pick_device(recipe.train.device)), faults.telling():
        path = distributed.launched_folder() if run is None else run.expanduser()
        if path is not None and (folder := _begun(path, recipe)) is not None:
            return _go_on(recipe, folder, viewer)
        new = folders.NewFolder(recipe, runs, path, latest=run is None)
        notes = []
        if path is None and distributed.launched():
            notes.append(FORGETS)
        if distributed.rank() == 0:
            new.check()
        return _session(_prepare(recipe, viewer, rehearsed=True), new, viewer, notes)


def resume(
    recipe: Recipe, folder: Path, *, epochs: int | None = None, viewer: Viewer = SILENT
) -> Ended:
    """Resume the run in `folder`, whose recipe is `recipe`, from its newest checkpoint.

    With `epochs`, trains until that number, with the schedule of a run of that length. Raises the
    errors of `train`.
    """
    with distributed.joined(pick_device(recipe.train.device)), faults.telling():
        if epochs is None:
            return _go_on(recipe, folder, viewer)
        if distributed.rank() == 0:
            _check_epochs(recipe, folder, epochs)
        longer = replace(recipe, train=replace(recipe.train, epochs=epochs))
        before = recipe.train.epochs if recipe.train.epochs != epochs else None
        return _go_on(longer, folder, viewer, before)


def _begun(path: Path, recipe: Recipe) -> Path | None:
    """Return the folder of the run in `path`, as rank 0 sees it; None if there is no run.

    Raises CheckpointError if `path` is not a run folder, RecipeError if the recipe differs.
    """
    name = ""
    if distributed.rank() == 0 and folders.begun(path):
        folder = path.resolve()
        changes.check_same(folder, folders.read_recipe(folder, opened=False), recipe)
        name = str(folder)
    name = distributed.broadcast_text(name)
    return Path(name) if name else None


def _check_epochs(recipe: Recipe, folder: Path, epochs: int) -> None:
    """Raise CheckpointError if a run has already completed that many epochs."""
    step, per_epoch = checkpoint.progress(folder, recipe)
    if step and epochs * per_epoch <= step:
        least = step // per_epoch + 1
        raise CheckpointError(
            f"{folder} has completed {counted(step, 'step')}, and --epochs {epochs} ends at step "
            f"{epochs * per_epoch:,}; train for more: --epochs {least}"
        )


def _go_on(recipe: Recipe, folder: Path, viewer: Viewer, before: int | None = None) -> Ended:
    """Resume the run in `folder`; `before` is its former number of epochs, if it changes."""
    leader = distributed.rank() == 0
    complete = leader and checkpoint.complete(folder, recipe)
    if distributed.broadcast_text("complete" if complete else ""):
        if leader:
            step, _ = checkpoint.progress(folder, recipe)
            viewer.say(f"{folder} is complete: {counted(step, 'step')} done; nothing to do")
        return Ended(folder)
    made = _prepare(recipe, viewer, restored=checkpoint.exists(folder))
    return _session(made, folder, viewer, [], before)


def _prepare(
    recipe: Recipe, viewer: Viewer, *, rehearsed: bool = False, restored: bool = False
) -> Run:
    """Build the run, after a rehearsal if it is new."""
    source = make_source(recipe, "pretrain")
    if distributed.rank() == 0:
        viewer.look(source, recipe)
    if rehearsed:
        rehearse_recipe(recipe, DataFormat.of(source), source)
        if torch.cuda.is_initialized():
            gc.collect()  # Frees the memory of the rehearsal, which has reference cycles.
            torch.cuda.empty_cache()
    return build(recipe, source, restored=restored)


def _session(
    made: Run,
    place: Path | folders.NewFolder,
    viewer: Viewer,
    notes: list[str],
    before: int | None = None,
) -> Ended:
    """Train to the end, or until a signal."""
    evaluations = _evaluations(made, viewer)
    record = Record(made, place)
    try:
        if record.folder is not None:
            record.lock()
            notes = notes + record.resume()
        screen = viewer.screen(made) if distributed.rank() == 0 else None
        if distributed.rank() == 0 and before is not None and made.step > 0:
            viewer.say(change_of_rate(made, before))
        return _train(made, record, notes, screen, evaluations)
    except files.WriteError as error:
        raise record.refused(error) from error
    finally:
        record.close()


def _evaluations(made: Run, viewer: Viewer) -> "Evaluations | None":
    """Open the images of `train.evaluate`, if there is any, and describe them."""
    if not made.recipe.train.evaluate:
        return None
    from sslkit.training.evaluations import Evaluations

    found = Evaluations(made)
    if distributed.rank() == 0:
        for one in found.opened:
            viewer.say("\n".join([one.line, *one.splits.notes]))
    return found


def _train(
    made: Run,
    record: Record,
    notes: list[str],
    screen: Screen | None,
    evaluations: "Evaluations | None",
) -> Ended:
    if screen is not None:
        screen.begin([*notes, *part_notes(made.method)], record.folder)
    filled = any(sampler.needs_fill for sampler in made.method.samplers.values())
    expected = made.method.at_start(made.recipe.train.batch_size)
    chances = made.method.at_chance(made.recipe.train.batch_size)
    epoch = made.loader.steps_per_epoch
    health = Health(expected, made.steps, chances=chances, filled=filled, epoch=epoch)
    draws_views = distributed.rank() == 0 and made.step == 0
    try:
        for rows, skipped in follow(made, record, health, screen, evaluations):
            if screen is not None:
                screen.show(rows, skipped, health)
            if draws_views:
                record.draw_views()
                draws_views = False
    except Stopped as stopped:
        if screen is not None:
            screen.stopped(str(stopped), saved=made.step == record.saved)
        if made.step == record.began and distributed.world() > 1:
            # Other ranks may wait in a collective that this rank does not join.
            raise SystemExit(stopped.exit_code) from stopped
        return Ended(record.folder, str(stopped))
    finally:
        if screen is not None:
            screen.close()
    if screen is not None:
        screen.done(health)
    return Ended(record.folder, mostly_skipped=made.mostly_skipped)


def follow(
    run: Run,
    record: Record,
    health: Health,
    screen: Screen | None = None,
    evaluations: "Evaluations | None" = None,
) -> Iterator[tuple[list[Row], list[str]]]:
    """Train to the end; yield the rows of new steps, and sentences about skipped steps.

    Reads metrics after every step on a CPU, else after every `train.log_every` steps. Raises
    Stopped after a signal, TrainingError for non-finite numbers, DataError and CheckpointError.

    Signals take effect after the step, so that all ranks stop together. A single process also stops
    while it waits for data. It does not save during a pass over the images before a later epoch,
    because the method may have changed.
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
            if evaluations is not None:
                evaluations.begin()
            passing = screen.passing if screen is not None else lambda images: None
            for step in trainer.train(run, section, passing):
                if step.number == record.began + 1:
                    _open(record, health, screen)
                pending.append(step)
                evaluated = evaluations is not None and evaluations.due()
                if len(pending) < every and run.step < run.steps and not evaluated:
                    continue
                yield _flush(run, record, health, pending, evaluations)
                stop = distributed.any_rank(bool(caught) or distributed.abandoned(), run.device)
                waited = time.monotonic() - saved >= 60 * chosen.save_minutes
                due = distributed.any_rank(waited, run.device)
                if stop or due or run.step == run.steps:
                    _save(run, record, last=stop or run.step == run.steps)
                    saved = time.monotonic()
                if stop:
                    raise Stopped(caught[0] if caught else signal.SIGTERM)
        except Stopped:
            if section.name == trainer.WAITING and run.step > record.began:
                if pending:
                    yield _flush(run, record, health, pending, evaluations)
                _save(run, record, last=True)
            raise


def _open(record: Record, health: Health, screen: Screen | None) -> None:
    """Open the folder after the first step; `health` gets the early steps of a resumed run."""
    if record.open(health.remember) and screen is not None:
        assert record.folder is not None
        screen.made(record.folder)


class _Section:
    """Tracks the current section of a step; keeps the section that raised an exception."""

    name = ""

    @contextmanager
    def __call__(self, section: str) -> Iterator[None]:
        self.name = section
        yield
        self.name = ""


def _save(run: Run, record: Record, *, last: bool) -> None:
    """Save a checkpoint, unless the weights are not finite."""
    assert record.folder is not None
    check_weights(run, record.folder)
    record.save(last=last)


def _flush(
    run: Run,
    record: Record,
    health: Health,
    pending: list[trainer.Step],
    evaluations: "Evaluations | None",
) -> tuple[list[Row], list[str]]:
    """Read, check, evaluate and record the pending steps."""
    assert record.folder is not None
    rows = read(pending)
    skipped = check_finite(rows, pending, run, record.folder)
    sentences = thinned(skipped, run.skipped)
    taken = [row for row, step in zip(rows, pending, strict=True) if not step.skipped]
    run.skipped += len(skipped)
    pending.clear()
    if evaluations is not None:
        evaluations.add(taken)
    record.add(taken)
    for row in taken:
        health.add(row)
    health.reached = run.step
    return taken, sentences


def read(steps: list[trainer.Step]) -> list[Row]:
    """Return the metrics of several steps with one transfer from the device."""
    numbers = []
    for step in steps:
        values = [step.loss.float(), *(value.float() for value in step.metrics.values())]
        numbers.append(torch.stack(values))
    rows = []
    means = distributed.mean(torch.stack(numbers)).tolist()
    for step, (loss, *metrics) in zip(steps, means, strict=True):
        named = dict(zip(step.metrics, metrics, strict=True))
        rows.append(Row(step.number, step.epoch + 1, step.lr, loss, named))
    return rows
