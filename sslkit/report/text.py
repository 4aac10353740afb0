"""Formats tables as text."""

import io
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from sslkit.errors import printable
from sslkit.report.tables import tables

if TYPE_CHECKING:
    from rich.table import Table

WIDE = 10_000
"""Page width at which no table is wrapped, columns."""


def rich_table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> "Table":
    """Return a `rich` table with control characters escaped."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*(Text("\n".join(map(printable, cell.split("\n")))) for cell in row))
    return table


def result_text(result: dict[str, Any]) -> str:
    """Return the tables of an evaluation from its JSON, as in the output of `sslkit eval`."""
    from rich.console import Console

    page = Console(
        file=io.StringIO(),
        width=WIDE,
        force_jupyter=False,
        force_terminal=False,
        color_system=None,
    )
    parts = []
    for table in tables(result):
        with page.capture() as drawn:
            page.print(rich_table(table.columns, table.rows))
        lines = [table.title, *drawn.get().rstrip().split("\n"), "", *table.below]
        parts.append("\n".join(line.rstrip() for line in lines).strip("\n"))
    return "\n\n".join(parts)
