"""Output of the command line: text and tables on stdout, errors on stderr.

Text is never wrapped. Tables fit the terminal, or a page if the output is piped. Functions import
rich themselves, because help and errors do not need it.
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
    from rich.table import Table

    from sslkit.evaluation.data import Splits
    from sslkit.evaluation.embedding import Opened
    from sslkit.interfaces import ImageSource
    from sslkit.recipe import Recipe

PAGE = 100
"""Width to which long cells of tables are wrapped if the output is piped, columns."""

NARROWEST = 32
"""Cells up to this width are never wrapped if the output is piped, columns."""


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
    """Print a table at the width of the terminal, or of a page if the output is piped."""
    from sslkit.report.text import rich_table

    if title is not None:
        print_text(title)
    _print(rich_table(columns, rows))


def print_fields(rows: Iterable[tuple[str, str]]) -> None:
    """Print names and values below a heading, values wrapped as in a table."""
    from rich import table as tables
    from rich.text import Text

    grid = tables.Table.grid(padding=(0, 2, 0, 0))
    for name, value in rows:
        grid.add_row(name, Text(escaped(value)))
    _print(grid, indent=2)


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


def _print(table: Table, *, indent: int = 0) -> None:
    """Print a table; piped tables may be wider than PAGE."""
    for column in table.columns:
        column.overflow = "fold"  # Not "ellipsis", which cuts words.
    screen = terminal()
    if not screen.is_terminal:
        screen = terminal(width=PAGE)
        _keep_words(table)
    with screen.capture() as captured:
        screen.print(table, width=screen.width - indent, crop=False)
    for line in captured.get().splitlines():
        typer.echo((" " * indent + line).rstrip())


def _keep_words(table: Table) -> None:
    """Set the smallest width of each column, so that no word and no narrow cell is broken."""
    from rich.cells import cell_len

    for column in table.columns:
        text = "\n".join(map(str, (column.header, *column.cells)))
        longest_line = max(map(cell_len, text.split("\n")))
        longest_word = max(map(cell_len, text.split()), default=0)
        column.min_width = max(longest_word, min(longest_line, NARROWEST))


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
