"""The command line. Thin: what a command does lies in the modules that it imports when it runs."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from sslkit import __version__, console
from sslkit.errors import PluginError, SslkitError
from sslkit.recipe import registry
from sslkit.recipe.signature import REQUIRED, advice, written


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

RecipePath = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe file.", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Replace one value of the recipe; may be given again.",
        show_default=False,
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="PATH",
        help="A folder of images or a .npz file to use instead.",
        show_default=False,
    ),
]


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
        str | None,
        typer.Argument(
            metavar="KIND | show", help=f"One of {', '.join(registry.KINDS)}; or `show`."
        ),
    ] = None,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="The part to show.")] = None,
    kind: Annotated[
        str | None,
        typer.Option(metavar="KIND", help="Show only the part of this kind.", show_default=False),
    ] = None,
) -> None:
    """List the parts that are installed, or show the options of one: `sslkit plugins show memory_bank`."""
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
    rows = [
        (part.kind, part.name, f"{part.distribution} {part.version}", _summary(part))
        for part in registry.parts(what)
    ]
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
        raise PluginError(
            f"no {of_kind} named {written(name)} is installed; {advice(name, [part.name for part in installed])}"
        )
    for part in found:
        signature = part.signature()
        console.print_text(f"{part}  ({part.module}:{part.object})\n\n{signature.doc}\n")
        if signature.facts:
            console.print_text(f"Given by the toolkit: {', '.join(signature.facts)}")
        rows = [
            (
                option.name,
                option.description,
                "required" if option.default is REQUIRED else written(option.default),
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


RunFolder = Annotated[
    Path | None,
    typer.Argument(
        metavar="RUN", help="A run folder; the newest below runs/ if left out.", show_default=False
    ),
]
Device = Annotated[
    Literal["auto", "cpu", "cuda", "mps"], typer.Option(help="Where the encoder runs.")
]


@app.command()
def train(
    path: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="A recipe file.", show_default=False)
    ] = None,
    overrides: Overrides = None,
    data: Data = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN", help="Go on with this run, exactly where it stopped.", show_default=False
        ),
    ] = None,
    runs: Annotated[Path, typer.Option(metavar="DIR", help="Where run folders are made.")] = Path(
        "runs"
    ),
    devices: Annotated[
        int | None,
        typer.Option(min=1, help="Processes on this machine, one per GPU.", show_default=False),
    ] = None,
    profile: Annotated[
        bool,
        typer.Option(
            "--profile", help="Only measure where the time of a step goes; train nothing."
        ),
    ] = False,
) -> None:
    """Train a recipe: a run folder with metrics, pictures, checkpoints and the encoder."""
    if (path is None) == (resume is None):
        raise typer.BadParameter("name a recipe to start, or --resume RUN to go on; not both")
    if resume is not None and profile:
        raise typer.BadParameter("--profile measures a recipe; it resumes no run")
    if resume is not None and (overrides or data):
        raise typer.BadParameter(
            "a resumed run goes on with its own recipe; --set and --data would make it another run"
        )
    from sslkit import recipe
    from sslkit.runs import folders

    folder = folders.find_folder(resume) if resume is not None else None
    source = folder / "recipe.yaml" if folder is not None else path
    assert source is not None
    made = recipe.read(source, overrides=overrides or (), data=data)

    from sslkit import distributed

    if devices is not None and devices > 1 and not distributed.launched():
        made.train.share(devices)
        raise typer.Exit(distributed.launch(devices, sys.argv[1:]))
    if profile:
        _profile(made, runs)
        return
    from sslkit.training import session

    raise typer.Exit(session.run(made, folder, runs))


def _profile(made: Any, runs: Path) -> None:
    from sslkit import distributed
    from sslkit.device import pick_device
    from sslkit.training.profile import profile

    with distributed.joined(pick_device(made.train.device)):
        found, folder = profile(made, runs)
        if distributed.rank() == 0:
            title = f"{made.name}: {found.images / found.step:.1f} images/s, {1000 * found.step:.1f} ms a step of {found.images} images"
            console.print_table(
                ("section", "ms a step", "share", "what it is"), found.rows(), title=title
            )
            console.print_text(
                f"{found.verdict()}\nwritten: {folder / 'profile.json'}, {folder / 'trace.json'}"
            )


def _split(words: list[str]) -> tuple[Path | None, list[str]]:
    """The run folder among the words, and the options: `--option=value`, or `--option value`."""
    folder, options = None, []
    rest = iter(words)
    for word in rest:
        if word.startswith("--"):
            options += (
                [word]
                if "=" in word
                else [word, *([value] if (value := next(rest, None)) is not None else [])]
            )
        elif folder is None:
            folder = Path(word)
        else:
            options.append(word)
    return folder, options


@app.command("eval", context_settings={"ignore_unknown_options": True})
def evaluate(
    name: Annotated[
        str,
        typer.Argument(metavar="EVALUATION", help="linear, knn, or another one that is installed."),
    ],
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN --OPTION VALUE",
            help="A run folder, the newest below runs/ if left out; and options of the evaluation.",
            show_default=False,
        ),
    ] = None,
    data: Data = None,
    split_seed: Annotated[
        int, typer.Option(help="Splits a set without validation images of its own.")
    ] = 0,
    device: Device = "auto",
) -> None:
    """Measure a run beside its floors. `sslkit plugins show EVALUATION` lists its options, such as `--k 20` or `--layers all`."""
    from sslkit import recipe

    run, options = _split(words or [])
    choice = recipe.read_evaluation(name, options)

    from sslkit import parts
    from sslkit.evaluation import probe as features
    from sslkit.runs import folders

    folder = folders.find_folder(run)
    console.print_text(f"{name} on {folder}")
    probe = features.Probe(folder, data=data, seed=split_seed, device=device)
    for note in probe.notes:
        console.print_text(note, stderr=True)
    result = parts.make(choice).measure(probe)
    written = features.write(folder, result)
    console.print_scores(result)
    console.print_text(f"written: {written}")


@app.command()
def pack(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="A folder of images, a .npz file or a packed set.")
    ],
    to: Annotated[str, typer.Argument(metavar="DEST", help="The folder to make.")],
    short_side: Annotated[
        int, typer.Option(min=1, help="Larger images are reduced to so many pixels.")
    ] = 256,
    quality: Annotated[
        int, typer.Option(min=1, max=100, help="Of what has to be coded anew, as JPEG.")
    ] = 95,
    follow_links: Annotated[
        bool, typer.Option("--follow-links", help="Also links that lead out of the folder.")
    ] = False,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Leave out images that cannot be read.")
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Processes; one a core if left out.", show_default=False),
    ] = None,
) -> None:
    """Write an image folder into few large files that are read without opening one per image: `--data DEST` trains on them."""
    writer: Any = registry.find("datasets", "packed").load()
    with console.progress("packing") as advance:
        index = writer.write(
            source,
            to,
            short_side=short_side,
            quality=quality,
            follow_links=follow_links,
            skip_unreadable=skip_unreadable,
            workers=os.cpu_count() or 1 if workers is None else workers,
            advance=advance,
        )
    halves = " and ".join(f"{half.images:,} images ({name})" for name, half in index.halves.items())
    console.print_text(
        f"{halves}: {index.kept:,} kept their bytes, {index.coded:,} were coded anew, {len(index.skipped):,} left out"
    )
    for name in index.skipped:
        console.print_text(f"left out, it cannot be read: {name}", stderr=True)
    console.print_text(f"written: {to}\nnext: sslkit train RECIPE --data {to}")


@app.command()
def plan(
    path: RecipePath,
    overrides: Overrides = None,
    data: Data = None,
    images: Annotated[
        int | None,
        typer.Option(min=2, help="Size of a data set that is not at hand.", show_default=False),
    ] = None,
    devices: Annotated[int, typer.Option(min=1, help="Devices that share the batch.")] = 1,
) -> None:
    """What a recipe would cost, without data or training: shapes, parameters, memory, steps, rates, time."""
    from sslkit import recipe

    made = recipe.read(path, overrides=overrides or (), data=data)
    from sslkit.training.plan import plan as make_plan

    for title, rows in make_plan(made, images=images, devices=devices).sections.items():
        console.print_table(("what", "how much"), rows, title=title)


@app.command()
def views(
    path: RecipePath,
    overrides: Overrides = None,
    data: Data = None,
    out: Annotated[Path, typer.Option(metavar="PNG", help="Where the picture goes.")] = Path(
        "views.png"
    ),
    images: Annotated[int, typer.Option(min=1, max=50, help="How many images.")] = 3,
    draws: Annotated[int, typer.Option(min=1, max=50, help="How many draws of each.")] = 3,
) -> None:
    """Draw what the model is shown: an image, its views in the drawn order, several draws."""
    from sslkit import recipe

    made = recipe.read(path, overrides=overrides or (), data=data)
    from sslkit import parts
    from sslkit.report import figures

    figures.views(
        parts.make_source(made, "pretrain"),
        parts.make_transform(made),
        out,
        images=images,
        draws=draws,
        seed=made.train.seed,
    )
    console.print_text(f"written: {out}")


@app.command()
def export(
    run: RunFolder = None,
    to: Annotated[str, typer.Option(metavar="LIBRARY", help="timm or torchvision.")] = "timm",
) -> None:
    """Write the encoder for its own library, with the lines that load it, checked."""
    from sslkit.runs import folders
    from sslkit.runs.export import export as write

    file, lines, difference = write(folders.find_folder(run), to)
    console.print_text(
        f"{lines}\n\nchecked: run by itself, largest relative difference of features {difference:.1e}\nwritten: {file}"
    )
