"""Defines the application, its error handling and its version option."""

import os
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from sslkit import console, faults
from sslkit.errors import SslkitError
from sslkit.version import __version__

ORDER = (
    "train",
    "eval",
    "sweep",
    "embed",
    "export",
    "recipes",
    "check",
    "plan",
    "views",
    "pack",
    "plugins",
    "schema",
)
"""Commands in the order of `sslkit --help`."""


class _Commands(TyperGroup):
    """Prints user errors without a traceback and exits with code 2.

    Exceptions of parts are user errors too. SSLKIT_DEBUG=1 shows their tracebacks.
    """

    def list_commands(self, context: Any) -> list[str]:
        """Return the commands in the usual order of use; commands of other packages come last."""
        names = super().list_commands(context)
        return sorted(names, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))

    def invoke(self, context: Any) -> Any:
        try:
            with faults.telling():
                return super().invoke(context)
        except SslkitError as error:
            if os.environ.get(faults.DEBUG):
                console.print_text(error.traceback or traceback.format_exc(), stderr=True)
            console.print_error(error)
            raise typer.Exit(2) from error


app = typer.Typer(
    cls=_Commands, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None
)


def _version(wanted: bool) -> None:
    if wanted:
        console.print_text(f"sslkit {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Self-supervised learning on images: a recipe is a method."""
