"""The application: its errors, its version."""

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from sslkit import __version__, console
from sslkit.errors import SslkitError


class _Commands(TyperGroup):
    """Whatever the user can mend is printed in one piece, without a traceback, and ends with exit code 2."""

    def invoke(self, context: Any) -> Any:
        try:
            return super().invoke(context)
        except SslkitError as error:
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
