"""The command line. Thin: what a command does lies in the modules that it imports when it runs."""

import json
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from sslkit import __version__, console, registry
from sslkit.errors import PluginError, SslkitError


class _Commands(TyperGroup):
    """Whatever the user can mend is printed in one piece, without a traceback, and ends with exit code 2."""

    def invoke(self, context: Any) -> Any:
        try:
            return super().invoke(context)
        except SslkitError as error:
            console.print_error(error)
            raise typer.Exit(2) from error


app = typer.Typer(cls=_Commands, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)

RecipePath = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="SECTION.KEY=VALUE", help="Replace one value of the recipe; may be given again.", show_default=False
    ),
]
Data = Annotated[
    str | None,
    typer.Option("--data", metavar="PATH", help="A folder of images or a .npz file to use instead.", show_default=False),
]


def _version(wanted: bool) -> None:
    if wanted:
        console.print_text(f"sslkit {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Self-supervised learning on images: a recipe is a method."""


@app.command()
def check(path: RecipePath, overrides: Overrides = None, data: Data = None) -> None:
    """Say whether a recipe is valid, or name every fault of it: file and line, key, remedy."""
    from sslkit import recipe

    read = recipe.read(path, overrides=overrides or (), data=data)
    choices = [read.method, read.data, read.transform, read.encoder, read.sampler, read.loss]
    names = [choice.use for choice in choices if choice is not None]
    length = f"{read.train.epochs} epochs in batches of {read.train.batch_size}"
    console.print_text(f"{path} is valid: {', '.join(names)}, {read.optimizer.use}, {length}")


@app.command()
def plugins(
    what: Annotated[
        str | None, typer.Argument(metavar="KIND | show", help=f"One of {', '.join(registry.KINDS)}; or `show`.")
    ] = None,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="The part to show.")] = None,
    kind: Annotated[str | None, typer.Option(metavar="KIND", help="Show only the part of this kind.", show_default=False)] = None,
) -> None:
    """List the parts that are installed, or show the options of one: `sslkit plugins show memory_bank`."""
    if what == "show":
        if name is None:
            raise typer.BadParameter("name the part to show, such as `sslkit plugins show memory_bank`")
        _show(name, kind)
        return
    if name is not None or kind is not None:
        raise typer.BadParameter("say `sslkit plugins KIND` or `sslkit plugins show NAME [--kind KIND]`")
    rows = [(part.kind, part.name, f"{part.distribution} {part.version}", _summary(part)) for part in registry.parts(what)]
    console.print_table(("kind", "name", "from", "what it is"), rows)


def _summary(part: registry.Part) -> str:
    try:
        return part.signature().summary
    except PluginError as error:
        return f"broken: {error}"


def _show(name: str, kind: str | None) -> None:
    installed = registry.parts(kind)
    found = [part for part in installed if part.name == name]
    if not found:
        of_kind = "part" if kind is None else registry.KINDS[kind]
        raise PluginError(f"no {of_kind} named '{name}' is installed; {registry.advice(name, [part.name for part in installed])}")
    for part in found:
        signature = part.signature()
        console.print_text(f"{part}  ({part.module}:{part.object})\n\n{signature.doc}\n")
        if signature.facts:
            console.print_text(f"Given by the toolkit: {', '.join(signature.facts)}")
        rows = [
            (
                option.name,
                option.description,
                "required" if option.default is registry.REQUIRED else registry.written(option.default),
            )
            for option in signature.options.values()
        ]
        if rows:
            console.print_table(("option", "type", "default"), rows)
        else:
            console.print_text("It has no options.\n")


@app.command()
def schema() -> None:
    """Print the JSON schema of recipes with the parts that are installed, for completion in editors."""
    from sslkit import recipe

    typer.echo(json.dumps(recipe.json_schema(), indent=2, ensure_ascii=False))
