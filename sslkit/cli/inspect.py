"""`sslkit check`, `plugins`, `schema`, `plan`, `views`: commands that do not train."""

import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sslkit import console
from sslkit.cli.app import app
from sslkit.cli.options import Data, Overrides, RecipePath, filled
from sslkit.errors import PluginError, RecipeError
from sslkit.recipe import registry, sections
from sslkit.recipe.signature import Signature
from sslkit.recipe.tables import group_tables, option_rows
from sslkit.recipe.words import advice, written

if TYPE_CHECKING:
    from sslkit.recipe import Recipe

CHOICES = {"optimizers": "optimizer", "schedules": "schedule"}
"""Kinds with options that are not parts, and their section of a recipe."""


@app.command()
def check(
    path: RecipePath,
    overrides: Overrides = None,
    data: Data = None,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Only read the recipe: make no part, open no data set."),
    ] = False,
) -> None:
    """Validate a recipe.

    Reports every fault with file, line, key and remedy. A recipe without faults is tried: every
    part is made, without initial weights, and takes a step on a few generated images.
    """
    from sslkit import recipe
    from sslkit.recipe import paths

    read = recipe.read(path, overrides=overrides or (), data=data)
    tried = not quick and _tried(read, path, overrides or (), data)
    choices = [read.method, read.data, read.transform, read.encoder, read.sampler, read.loss]
    names = [choice.use for choice in choices if choice is not None]
    length = f"{read.train.epochs} epochs in batches of {read.train.batch_size}"
    console.print_text(f"{path} is valid: {', '.join(names)}, {read.optimizer.use}, {length}")
    for key, value in paths.missing(read):
        console.print_text(f"{key}  {value} is not on this machine", stderr=True)
    words = ["sslkit", "train" if tried else "plan", str(path)]
    for override in overrides or ():
        words += ["--set", override]
    words += [] if data is None else ["--data", data]
    done = "every part takes a step on generated images" if tried else "the parts are not tried"
    console.print_text(f"{done}; next: {shlex.join(words)}")


def _tried(read: "Recipe", path: str, overrides: Sequence[str], data: str | None) -> bool:
    """Try the parts; return False if the images are not on this machine and have no known format.

    Raises RecipeError with file and line, DataError or PluginError.
    """
    from sslkit import recipe
    from sslkit.training.trial import try_recipe

    try:
        return try_recipe(read)
    except RecipeError as error:
        raise recipe.placed(error, path, overrides=overrides, data=data) from error


@app.command()
def plugins(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="KIND | show",
            help=f"One of {', '.join([*registry.KINDS, *CHOICES])}; or `show`.",
        ),
    ] = None,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Part to show.")] = None,
    kind: Annotated[
        str | None,
        typer.Option(metavar="KIND", help="Show only the part of this kind.", show_default=False),
    ] = None,
) -> None:
    """List installed parts and their options.

    `sslkit plugins show memory_bank` shows one; optimizers and schedules are shown too.
    """
    if what == "show":
        if name is None:
            raise typer.BadParameter(
                "name the part to show, such as `sslkit plugins show memory_bank`"
            )
        _show(name, kind)
        return
    if name is not None or kind is not None:
        raise typer.BadParameter(
            "say `sslkit plugins KIND` or `sslkit plugins show NAME [--kind KIND]`"
        )
    if what in CHOICES:
        choices = sections.names(CHOICES[what])
        described = [(choice, _doc(what, choice)) for choice in choices]
        console.print_table((CHOICES[what], "what it is"), described)
        return
    rows = [
        (part.kind, part.name, f"{part.distribution} {part.version}", _summary(part))
        for part in registry.parts(what)
    ]
    console.print_table(("kind", "name", "from", "what it is"), rows)


def _doc(kind: str, name: str) -> str:
    signature = sections.signature(CHOICES[kind], name)
    return "" if signature is None else signature.summary


def _summary(part: registry.Part) -> str:
    try:
        return part.signature().summary
    except PluginError as error:
        return f"broken: {error}"


def _show(name: str, kind: str | None) -> None:
    """Print the docstring, runtime arguments and options of all parts with a name."""
    installed = [] if kind in CHOICES else registry.parts(kind)
    parts = [part for part in installed if part.name == name]
    others = []
    for other, section in CHOICES.items():
        if kind in (None, other) and name in sections.names(section):
            others.append(other)
    if not parts and not others:
        known = [part.name for part in installed]
        for other, section in CHOICES.items():
            known += sections.names(section) if kind in (None, other) else ()
        of_kind = "part" if kind is None else {**registry.KINDS, **CHOICES}[kind]
        raise PluginError(f"no {of_kind} named {written(name)} is installed; {advice(name, known)}")
    for part in parts:
        signature = part.signature()
        console.print_text(f"{part}  ({part.module}:{part.object})\n\n{signature.doc}\n")
        if signature.runtime:
            console.print_text(f"Given by the toolkit: {', '.join(signature.runtime)}")
        _show_options(signature)
    for other in others:
        read = sections.signature(CHOICES[other], name)
        doc = "" if read is None else read.doc
        console.print_text(f"{CHOICES[other]} '{name}'\n\n{doc}\n")
        if read is None:
            console.print_text("Its options are known when it is made; it is not installed here.\n")
        else:
            _show_options(read)


def _show_options(signature: Signature) -> None:
    columns, rows = option_rows(signature)
    if not rows:
        console.print_text("It has no options.\n")
        return
    console.print_table(columns, rows)
    for table in group_tables(signature):
        columns, rows = option_rows(table.signature)
        console.print_table(columns, rows, title=table.title)
        if table.presets:
            title = f"Presets of {table.group.__name__}; others of its options keep their default"
            console.print_table(("preset", "values"), table.presets, title=title)


@app.command()
def schema() -> None:
    """Print the JSON schema of recipes.

    It lists the installed parts with their options, for completion in editors.
    """
    from sslkit import recipe

    typer.echo(json.dumps(recipe.json_schema(), indent=2, ensure_ascii=False))


@app.command()
def plan(
    path: RecipePath,
    overrides: Overrides = None,
    data: Data = None,
    images: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Number of images, for a data set that is not on this machine.",
            show_default=False,
        ),
    ] = None,
    devices: Annotated[
        int, typer.Option(min=1, help="Number of devices that share the batch.")
    ] = 1,
) -> None:
    """Estimate the cost of a recipe.

    Makes every part and rehearses the first steps on made-up images; needs no data.
    """
    from sslkit import recipe

    made = recipe.read(path, overrides=overrides or (), data=data)
    from sslkit.training.plan import plan as make_plan

    told = make_plan(made, images=images, devices=devices, look=console.show_data)
    for title, rows in told.items():
        console.print_table(("what", "how much"), rows, title=title)


@app.command()
def views(
    path: RecipePath,
    overrides: Overrides = None,
    data: Data = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="PNG",
            help="Picture to write; replaces an existing file. By default views.png, "
            "or views-2.png and so on.",
            show_default=False,
            parser=filled("--out", Path),
        ),
    ] = None,
    images: Annotated[int, typer.Option(min=1, max=50, help="Number of images.")] = 3,
    draws: Annotated[int, typer.Option(min=1, max=50, help="Number of draws per image.")] = 3,
) -> None:
    """Draw the views that the model sees.

    Shows several images, with several draws of each. Also draws a transform whose views the
    recipe's method does not read.
    """
    from sslkit import recipe

    made = recipe.read(path, overrides=overrides or (), data=data, wired=False)
    from sslkit import parts
    from sslkit.report.views_figure import draw_views

    source = parts.make_source(made, "pretrain")
    console.show_data(source, made)
    out = _free("views", ".png") if out is None else out
    draw_views(
        source,
        parts.make_transform(made, parts.DataFormat.of(source)),
        out,
        images=images,
        draws=draws,
        seed=made.train.seed,
        title=f"{made.name}   method {made.method.use}, transform",
        option="--out FILE",
    )
    console.print_text(f"written: {out}")


def _free(stem: str, ending: str) -> Path:
    """Return an unused file name in the working directory, numbered if necessary."""
    path, number = Path(f"{stem}{ending}"), 1
    while os.path.lexists(path):
        number += 1
        path = Path(f"{stem}-{number}{ending}")
    return path
