"""`sslkit recipes`: list, show and copy shipped recipes."""

import shlex
from typing import Annotated

import typer

from sslkit import console
from sslkit.cli.app import app
from sslkit.cli.options import filled
from sslkit.recipe import shipped

HELP = "List the shipped recipes, or copy one to edit it."
Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="Name of a shipped recipe, such as pirl_jigsaw (`sslkit recipes` lists them).",
        parser=filled("NAME"),
    ),
]
recipes = typer.Typer(rich_markup_mode=None, subcommand_metavar="[COMMAND] [ARGUMENTS]", help=HELP)
app.add_typer(recipes, name="recipes")


@recipes.callback(invoke_without_command=True, help=HELP)
def _list(context: typer.Context) -> None:
    """Print a paragraph for each shipped recipe."""
    if context.invoked_subcommand is not None:
        return
    for name in shipped.names():
        header, method = shipped.header(name), shipped.method(name)
        console.print_text(name)
        rows = [
            ("what", header.title),
            ("method", method),
            ("data", header.data),
            ("budget", header.budget),
            ("expected", header.expected),
            ("paper", header.citation),
        ]
        console.print_fields(rows)
        console.print_text("")
    console.print_text(
        "train one: sslkit train NAME\nedit one:  sslkit recipes copy NAME mine.yaml"
    )


@recipes.command()
def show(name: Name) -> None:
    """Print a shipped recipe."""
    console.print_text(shipped.text(name).rstrip())


@recipes.command()
def copy(
    name: Name,
    to: Annotated[
        str | None,
        typer.Argument(
            metavar="DEST",
            help="File to write, by default NAME's own file name in this folder.",
            show_default=False,
            parser=filled("DEST"),
        ),
    ] = None,
) -> None:
    """Write a shipped recipe into a new file, to edit it. Never overwrites a file."""
    path = shipped.copy(name, to)
    console.print_text(f"written: {path}\nnext: sslkit check {shlex.quote(str(path))}")
