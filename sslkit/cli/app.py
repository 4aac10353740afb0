"""The application: its errors, its version."""

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
"""The commands as `sslkit --help` lists them."""


class _Commands(TyperGroup):
    """Prints an error that the user can mend, without a traceback, and exits with code 2.

    An exception of a part is such an error. SSLKIT_DEBUG=1 shows its traceback as well.
    """

    def list_commands(self, context: Any) -> list[str]:
        """Return the commands in the order of use; those of other packages last."""
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
