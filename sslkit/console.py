"""Output of the command line: text and tables on stdout, errors on stderr.

Piped output is neither wrapped nor truncated. Functions import rich themselves, because help and
errors do not need it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import typer

from sslkit.errors import RecipeError, printable

if TYPE_CHECKING:
    from rich.console import Console

    from sslkit.evaluation.data import Splits
    from sslkit.evaluation.embedding import Opened
    from sslkit.interfaces import ImageSource
    from sslkit.recipe import Recipe


def print_error(error: Exception) -> None:
    """Print an error on stderr; the faults of a recipe become aligned columns."""
    message = str(error)
    if isinstance(error, RecipeError):
        message = _columns(error)
    print_text(message, stderr=True)


def _columns(error: RecipeError) -> str:
    """Return the faults of a recipe as lines of place, key and message."""
    places = [str(replace(fault, key="", message="")) for fault in error.faults]
    width = max(map(len, places))
    key_width = max(len(fault.key) for fault in error.faults)
    lines = []
    for place, fault in zip(places, error.faults, strict=True):
        cells = (place.ljust(width), fault.key.ljust(key_width), fault.message)
        lines.append("  ".join(filter(str.strip, cells)))
    return "\n".join(lines)


def escaped(text: str) -> str:
    """Return text with control characters escaped, except line ends."""
    return "\n".join(map(printable, text.split("\n")))


def print_text(text: str, *, stderr: bool = False) -> None:
    """Print text without wrapping."""
    typer.echo(escaped(text), err=stderr)


def print_table(
    columns: Iterable[str], rows: Iterable[Iterable[str]], *, title: str | None = None
) -> None:
    """Print a table at the width of the terminal, or without wrapping if the output is piped."""
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
        grid.add_row(name, Text(escaped(value)))
    _print(Padding(grid, (0, 0, 0, 2), expand=False))


def terminal(*, stderr: bool = False, **options: Any) -> Console:
    """Return the console; a notebook does not count as a terminal, so it gets no moving bar."""
    from rich.console import Console

    in_notebook = Console().is_jupyter
    return Console(
        stderr=stderr,
        force_jupyter=False,
        force_terminal=False if in_notebook else None,
        **options,
    )


def _print(shown: Any) -> None:
    """Print an object of rich, without wrapping if the output is piped."""
    screen = terminal()
    if not screen.is_terminal:
        screen = terminal(width=10_000)
    with screen.capture() as captured:
        screen.print(shown)
    lines = [line.rstrip() for line in captured.get().split("\n")]
    typer.echo("\n".join(lines), nl=False)


def print_result(result: dict[str, Any]) -> None:
    """Print the tables of an evaluation from its JSON."""
    from sslkit.report.tables import tables

    for table in tables(result):
        print_table(table.columns, table.rows, title=table.title or None)
        for line in table.below:
            print_text(line)
        if table.below:
            print_text("")


@contextmanager
def progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on a terminal, and nothing otherwise.

    Yields a function of the newly completed number and the total.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    screen = terminal(stderr=True)
    columns = (
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=screen, disable=not screen.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, advance=done, total=total)


def show_data(source: ImageSource, recipe: Recipe) -> None:
    """Print the training images of a recipe, and on stderr which files are skipped."""
    from sslkit.data import summary

    for note in source.notes:
        print_text(note, stderr=True)
    predicts: dict[str, str] = getattr(recipe.method.part.load(), "predicts", {})
    labels_used = "label" in predicts.values()
    print_text(summary.training(source, recipe.data, labels_used=labels_used))


def show_splits(opened: Splits | Opened) -> None:
    """Print the splits of a data set, and on stderr which files are skipped."""
    print_text(opened.summary)
    for note in opened.notes:
        print_text(note, stderr=True)
