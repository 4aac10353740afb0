"""What the command line shows: tables, and errors on stderr.

Nothing is wrapped or cut when the output is piped.
rich is imported where it is used, for neither help nor errors need it.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sslkit.errors import RecipeError, counted, printable

if TYPE_CHECKING:
    from rich.console import Console

    from sslkit.evaluation.data import Splits
    from sslkit.evaluation.embedding import Opened
    from sslkit.interfaces import ImageSource
    from sslkit.recipe import Recipe
    from sslkit.runs.metrics import Row
    from sslkit.runs.run import Run
    from sslkit.training.health import Health

UNREADABLE = 10
"""Most images that are named as unreadable at the end of a session."""


PASS = 5.0
"""Seconds of a pass over the images before it is told of."""


def print_error(error: Exception) -> None:
    """The message in one piece; the faults of a recipe in columns: place, key, sentence."""
    message = str(error)
    if isinstance(error, RecipeError):
        rows = [
            (str(replace(fault, key="", message="")), fault.key, fault.message)
            for fault in error.faults
        ]
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        message = "\n".join(
            "  ".join(filter(str.strip, (place.ljust(widths[0]), key.ljust(widths[1]), text)))
            for place, key, text in rows
        )
    print_text(message, stderr=True)


def as_it_is(text: str) -> str:
    """Text that is no command to the terminal."""
    return "\n".join(map(printable, text.split("\n")))


def print_text(text: str, *, stderr: bool = False) -> None:
    """Text as it is, not wrapped."""
    typer.echo(as_it_is(text), err=stderr)


def print_table(
    columns: Iterable[str], rows: Iterable[Iterable[str]], *, title: str | None = None
) -> None:
    """As wide as the terminal; as wide as its longest row where there is none."""
    from sslkit.report.text import rich_table

    if title is not None:
        print_text(title)
    _print(rich_table(columns, rows))


def print_fields(rows: Iterable[tuple[str, str]]) -> None:
    """Print names and values below a heading, values wrapped at the terminal's width."""
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2, 0, 0))
    for name, value in rows:
        grid.add_row(name, Text(as_it_is(value)))
    _print(Padding(grid, (0, 0, 0, 2), expand=False))


def _terminal(*, stderr: bool = False, **options: Any) -> Console:
    """Return the terminal. A notebook counts as none: it keeps lines, and no moving bar."""
    from rich.console import Console

    in_notebook = Console().is_jupyter
    return Console(
        stderr=stderr,
        force_jupyter=False,
        force_terminal=False if in_notebook else None,
        **options,
    )


def _print(shown: Any) -> None:
    """Print what rich draws, without wrapping where the output is piped."""
    terminal = _terminal()
    if not terminal.is_terminal:
        terminal = _terminal(width=10_000)
    with terminal.capture() as captured:
        terminal.print(shown)
    lines = [line.rstrip() for line in captured.get().split("\n")]
    typer.echo("\n".join(lines), nl=False)


def print_result(result: dict[str, Any]) -> None:
    """Print the tables of an evaluation, from its JSON."""
    from sslkit.report.tables import tables

    for table in tables(result):
        print_table(table.columns, table.rows, title=table.title or None)
        for line in table.below:
            print_text(line)
        if table.below:
            print_text("")


@contextmanager
def progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on a terminal, nothing elsewhere.

    Yields a function to call with how many more are done, and of how many.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    terminal = _terminal(stderr=True)
    columns = (
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=terminal, disable=not terminal.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, advance=done, total=total)


def show_data(source: ImageSource, recipe: Recipe) -> None:
    """Say which images a recipe trains on, and on stderr what is passed over."""
    from sslkit.data import summary

    for note in source.notes:
        print_text(note, stderr=True)
    predicts: dict[str, str] = getattr(recipe.method.part.load(), "predicts", {})
    labels_used = "label" in predicts.values()
    print_text(summary.training(source, recipe.data, labels_used=labels_used))


def show_splits(opened: Splits | Opened) -> None:
    """Say which images serve as what, and on stderr what is passed over."""
    print_text(opened.summary)
    for note in opened.notes:
        print_text(note, stderr=True)


class Training:
    """The screen of a training session: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, run: Run) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self.run = run
        self.folder: Path | None = None
        self.console = _terminal(markup=False, highlight=False, emoji=False)
        self.first_step, self.every = run.step, max(1, run.steps // 20)
        self.clock: tuple[float, int] | None = None
        self.passed = (0.0, 0.0)
        """When the present pass over the images began, and when it was last told of."""
        self.verdict = "healthy"
        self.bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(
                "loss {task.fields[loss]}  lr {task.fields[lr]}  {task.fields[rate]} images/s"
            ),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task(
            "", total=run.steps, completed=run.step, epoch="-", loss="-", lr="-", rate="-"
        )

    def begin(self, notes: list[str], folder: Path | None) -> None:
        """Say what is about to run; `folder` is that of a run which is resumed."""
        run, chosen = self.run, self.run.recipe.train
        self.folder = folder
        world = run.loader.world
        for note in notes:
            print_text(note, stderr=True)
        self._say(
            f"{run.recipe.name}: {counted(len(run.source), 'image')}, "
            f"{counted(chosen.epochs, 'epoch')} × {counted(run.loader.steps_per_epoch, 'step')}; "
            f"batch {chosen.batch_size} over {counted(world, f'{run.device.type} device')}, "
            f"{str(run.precision).removeprefix('torch.')}, "
            f"{counted(run.loader.workers, 'loader worker')}"
        )
        if run.recipe.schedule.warmup_epochs >= chosen.epochs:
            self._say(
                "the learning rate only warms up and never comes to "
                f"{run.recipe.optimizer.lr:g}: schedule.warmup_epochs = "
                f"{run.recipe.schedule.warmup_epochs:g} of train.epochs = {chosen.epochs}"
            )
        if folder is not None:
            self._say(f"resumed at step {run.step}: {folder}")
        self.bar.start()

    def made(self, folder: Path) -> None:
        """Say where the run is written, once its folder is made."""
        self.folder = folder
        self._say(str(folder))

    def passing(self, done: int) -> None:
        """Say how far a pass over the images is: after a while, then ever more seldom."""
        total, now = len(self.run.source), time.monotonic()
        began, last = self.passed
        if done <= self.run.loader.step_size:
            self.passed = (now, now)
            return
        if done < total and now - last < max(PASS, (now - began) / 10):
            return
        if done >= total and last == began:
            return
        rate = (done - self.run.loader.step_size) / (now - began)
        left = f"{(total - done) / rate:.0f} s left" if done < total else "done"
        self._say(f"pass over the images: {done:,} of {total:,}, {rate:.0f} images/s, {left}")
        self.passed = (began, now)

    def show(self, rows: list[Row], told: list[str], health: Health) -> None:
        """Show what is said of skipped steps, and the newest numbers.

        The first step is judged at once, later ones where the verdict is another. The clock starts
        after the first, when everything has been set up.
        """
        for text in told:
            self._say(text)
        if not rows:
            return
        row = rows[-1]
        rate = left = "-"
        if self.clock is None:
            self.clock = time.monotonic(), row.step
            self._say(f"health: {health.start()}")
        else:
            pace = (row.step - self.clock[1]) / (time.monotonic() - self.clock[0])
            rate, left = (
                f"{pace * self.run.recipe.train.batch_size:.0f}",
                f"{(self.run.steps - row.step) / pace:.0f}",
            )
        due = row.step // self.every > (row.step - len(rows)) // self.every
        if (
            due
            and row.step < self.run.steps
            and (verdict := health.now().partition(":")[0])
            not in ("too early to judge", self.verdict)
        ):
            self.verdict = verdict
            self._say(f"health: {health.now()}")
        shown: dict[str, Any] = {
            "epoch": str(row.epoch),
            "loss": f"{row.loss:.3f}",
            "lr": f"{row.lr:.2g}",
            "rate": rate,
        }
        self.bar.update(self.task, completed=row.step, **shown)
        if self.bar.disable and due:
            self._say(
                f"step {row.step}/{self.run.steps}  epoch {shown['epoch']}  loss {shown['loss']}  "
                f"lr {shown['lr']}  {rate} images/s  {left} s left"
            )

    def stopped(self, signal: str, saved: bool) -> None:
        """Say where a signal stopped training, and how to go on."""
        self.close()
        self._say_unreadable()
        if self.folder is None:
            self._say(f"stopped by {signal} before a step was done; nothing was written")
            return
        done = "before a step was done"
        if saved:
            done = f"after step {self.run.step}, saved"
        elif self.run.step > self.first_step:
            done = f"after step {self.run.step}, before the next epoch began, not saved"
        self._say(
            f"stopped by {signal} {done}; go on with: sslkit train --resume "
            f"{shlex.quote(str(self.folder))}"
        )

    def done(self, health: Health) -> None:
        """What there is now, and what to do with it."""
        self._say(f"health: {health.now()}")
        if self.run.skipped:
            text = (
                f"{self.run.skipped:,} of {counted(self.run.step, 'step')} skipped, for numbers "
                "that were not finite"
            )
            if self.run.mostly_skipped:
                text += (
                    ": more than half, so little was trained, and the exit code is 1; lower the "
                    "rate (--set optimizer.lr=…) or clip (--set train.clip_grad=1.0), and train "
                    "anew"
                )
            self._say(text)
        self._say_unreadable()
        assert self.folder is not None
        encoder = self.folder / "encoder.safetensors"
        self._say(f"encoder: {encoder}\nnext: sslkit eval linear {shlex.quote(str(self.folder))}")

    def _say_unreadable(self) -> None:
        found = sorted(self.run.unreadable.items())
        if not found:
            return
        named = [f"{name} ({reason})" for name, reason in found[:UNREADABLE]]
        if len(found) > UNREADABLE:
            named.append(f"and {len(found) - UNREADABLE} more")
        held = "1 image could not be read and was"
        if len(found) > 1:
            held = f"{len(found)} images could not be read and were"
        self._say(f"{held} replaced: {', '.join(named)}")

    def close(self) -> None:
        self.bar.stop()

    def _say(self, text: str) -> None:
        self.console.print(as_it_is(text), soft_wrap=True)
