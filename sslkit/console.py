"""What the command line shows: tables, and errors on stderr. Nothing is wrapped or cut when the output is piped."""

from collections.abc import Iterable
from dataclasses import replace

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sslkit.errors import RecipeError


def print_error(error: Exception) -> None:
    """The message in one piece; the faults of a recipe in columns: place, key, sentence."""
    message = str(error)
    if isinstance(error, RecipeError):
        rows = [(str(replace(fault, key="", message="")), fault.key, fault.message) for fault in error.faults]
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        message = "\n".join(
            "  ".join(filter(str.strip, (place.ljust(widths[0]), key.ljust(widths[1]), text))) for place, key, text in rows
        )
    print_text(message, stderr=True)


def print_text(text: str, *, stderr: bool = False) -> None:
    """Text as it is: neither wrapped nor taken for markup."""
    Console(stderr=stderr).print(Text(text), soft_wrap=True)


def print_table(columns: Iterable[str], rows: Iterable[Iterable[str]], *, title: str | None = None) -> None:
    """As wide as the terminal; as wide as its longest row where there is none."""
    table = Table(*columns, title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*map(Text, row))
    terminal = Console()
    (terminal if terminal.is_terminal else Console(width=10_000)).print(table)
