"""`sslkit eval`: one command for each installed evaluation, made from its signature."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from sslkit import console
from sslkit.cli.app import app
from sslkit.cli.options import (
    Data,
    DataOptions,
    Device,
    Encoder,
    RunFolder,
    Size,
    SkipUnreadable,
    Weights,
    Workers,
    filled,
)
from sslkit.errors import Fault, PluginError, RecipeError
from sslkit.recipe import registry
from sslkit.recipe.registry import Part
from sslkit.recipe.signature import REQUIRED, Option, advice, plain


def _common(
    run: RunFolder = None,
    data: Data = None,
    set: DataOptions = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV",
            help="File with the columns name and label, and optionally group and split, which "
            "replaces the labels of the images.",
            show_default=False,
            parser=filled("--labels", Path),
        ),
    ] = None,
    encoder: Encoder = None,
    weights: Weights = None,
    size: Size = None,
    against: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="RUN",
            help="Another run to compare with; repeatable.",
            show_default=False,
            parser=filled("--against", Path),
        ),
    ] = None,
    split_seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Seed that splits a data set without validation images, by default 0.",
            show_default=False,
        ),
    ] = None,
    skip_unreadable: SkipUnreadable = False,
    plan: Annotated[
        bool,
        typer.Option("--plan", help="Show sizes, memory and time, and measure nothing."),
    ] = False,
    device: Device = "auto",
    workers: Workers = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of the result, by default RUN/eval, or eval/NAME for --encoder alone.",
            show_default=False,
            parser=filled("--out", Path),
        ),
    ] = None,
) -> None:
    """Declare the options that all evaluations share."""


COMMON = dict(inspect.signature(_common).parameters)

VOC = "a folder in VOC layout (JPEGImages, Annotations, ImageSets/Main), or a VOCdevkit"
IMAGES = {
    "labels": "Labelled images: a folder with one folder per class, a packed set, or a .npz file.",
    "tags": f"Images with several classes: {VOC}. Other images need --labels.",
    "boxes": f"Images with boxes: {VOC}.",
    "": "Images, with or without labels: a folder, a packed set, or a .npz file.",
}
"""Description of --data by what an evaluation needs."""


class _Evaluations(TyperGroup):
    """Finds evaluations by entry point, without importing them."""

    def list_commands(self, context: Any) -> list[str]:
        return sorted({part.name for part in registry.parts("evaluations")})

    def get_command(self, context: Any, name: str) -> Any:
        try:
            return command(registry.find("evaluations", name))
        except PluginError as error:
            if name not in self.list_commands(context):
                raise
            return _broken(name, error)


class _Command(TyperCommand):
    """Suggests a similar option for an unknown one."""

    def parse_args(self, context: Any, words: list[str]) -> list[str]:
        known: list[str] = []
        for parameter in self.params:
            known += (*parameter.opts, *parameter.secondary_opts)
        faults = []
        for word in words:
            option = word.partition("=")[0]
            if option.startswith("--") and option not in (*known, "--", "--help"):
                names = [name for name in known if name.startswith("--")]
                faults.append(Fault(option, f"no such option; {advice(option, names)}"))
        if faults:
            raise RecipeError(*faults)
        return super().parse_args(context, words)


HELP = (
    "Measure an encoder beside its baselines.\n\nThe baselines are the untrained encoder, raw "
    "pixels and chance."
)
evaluations = typer.Typer(
    cls=_Evaluations,
    rich_markup_mode=None,
    subcommand_metavar="EVALUATION [RUN] [OPTIONS]",
    help=HELP,
)


@evaluations.callback(invoke_without_command=True, help=HELP)
def _group(context: typer.Context) -> None:
    """List the installed evaluations where none is named."""
    if context.invoked_subcommand is None:
        console.print_text(context.get_help())


app.add_typer(evaluations, name="eval")


def command(part: Part) -> Any:
    """Make the command of an evaluation.

    Raises PluginError if an option has the name of a common option."""
    signature = part.signature()
    taken = [name for name in signature.options if name in COMMON]
    if taken:
        raise PluginError(
            f"{part} has an option '{taken[0]}', which is an option of every `sslkit eval`; "
            "its author must give it another name"
        )
    needs = signature.attributes.get("needs", "labels")
    run_folder, *others = (COMMON | {"data": _data(needs)}).values()
    own = [_parameter(option) for option in signature.options.values()]
    parameters = [run_folder, *own, *others]

    def run(**given: Any) -> None:
        evaluate(part, given)

    parameters = [one.replace(kind=one.KEYWORD_ONLY) for one in parameters]
    return _made(run, part.name, parameters, signature.doc, signature.summary)


def _data(needs: str) -> inspect.Parameter:
    """Make --data, with the description that fits the needs of an evaluation."""
    declared = typer.Option(
        "--data",
        metavar="PATH",
        help=f"{IMAGES.get(needs, IMAGES[''])} By default those of the run.",
        show_default=False,
        parser=filled("--data"),
    )
    return COMMON["data"].replace(annotation=Annotated[str | None, declared])


def _broken(name: str, error: PluginError) -> Any:
    """Make a command that reports why an evaluation cannot be read, whatever its words are."""

    def run() -> None:
        raise error

    text = f"broken: {error}"
    made = _made(run, name, [], text, text, TyperCommand)
    made.ignore_unknown_options = made.allow_extra_args = True
    return made


def _made(
    run: Callable[..., None],
    name: str,
    parameters: list[inspect.Parameter],
    text: str,
    summary: str,
    cls: type[TyperCommand] = _Command,
) -> Any:
    """Make a command from a function whose signature is `parameters`."""
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    alone = typer.Typer(add_completion=False, rich_markup_mode=None)
    alone.command(name, cls=cls, help=text, short_help=summary)(run)
    return typer.main.get_command(alone)


def _parameter(option: Option) -> inspect.Parameter:
    """Make the parameter of an option: a flag for a bool, otherwise text."""
    flag = f"--{option.name.replace('_', '-')}"
    if option.words == "true or false":
        shown = {True: "  [default: yes]", False: "  [default: no]"}.get(option.default, "")
        text = f"{option.description}{shown}"
        declared = typer.Option(f"{flag}/--no-{flag[2:]}", help=text, show_default=False)
        return _keyword(option.parameter, bool | None, declared)
    words = option.words
    if option.default is None:
        words = words.removesuffix(" or null")
    metavar, text = "VALUE", f"{option.description} ({words})".strip()
    if words.startswith("one of ") and " or " not in words:
        names = words.removeprefix("one of ").replace("'", "")
        metavar, text = names.replace(", ", "|"), option.description
    if option.default is not REQUIRED and option.default is not None:
        text = f"{text}  [default: {plain(option.default)}]"
    declared = typer.Option(flag, help=text, metavar=metavar, show_default=False)
    return _keyword(option.parameter, str | None, declared)


def _keyword(name: str, kind: Any, declared: Any) -> inspect.Parameter:
    """Make a keyword parameter that defaults to None."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, keyword, default=None, annotation=Annotated[kind, declared])


def evaluate(part: Part, given: dict[str, Any]) -> None:
    """Measure, write the result, and print it."""
    from sslkit import recipe

    names = {option.parameter: option.name for option in part.signature().options.values()}
    options = {names[key]: value for key, value in given.items() if key in names}
    chosen = {name: value for name, value in options.items() if value is not None}
    choice = recipe.read_evaluation(part.name, chosen)

    from sslkit.evaluation import build, state, store
    from sslkit.evaluation.plan import plan
    from sslkit.parts import make
    from sslkit.runs import folders

    make(choice)  # Options are checked before images are opened.

    run = given["run"]
    if run is not None or given["encoder"] is None:
        run = folders.find_folder(run)
    request = build.Request(
        run=run,
        data=given["data"],
        labels=given["labels"],
        encoder=given["encoder"],
        weights=given["weights"],
        size=given["size"],
        against=tuple(folders.find_folder(folder) for folder in given["against"] or ()),
        split_seed=given["split_seed"],
        device=given["device"],
        out=given["out"],
        overrides=tuple(given["set"] or ()),
        skip_unreadable=given["skip_unreadable"] and not given["plan"],
        workers=given["workers"],
    )
    console.print_text(f"{part.name} on {given['encoder'] if run is None else run}")
    needs = part.signature().attributes.get("needs", "labels")
    probe, notes, home = build.build(
        request,
        needs,
        progress=console.progress,
        show=console.show_splits,
        statistics=not given["plan"],
    )
    for note in notes:
        console.print_text(note, stderr=True)
    store.check_place(home)
    if given["plan"]:
        console.print_fields(plan(choice, probe).lines)
        return
    probe.home = home
    try:
        measured = store.measure(choice, probe)
    except KeyboardInterrupt:
        if any(folder.exists() for folder in probe.unfinished_folders):
            console.print_text("stopped; run the same command again to go on", stderr=True)
        raise
    result = measured.as_dict()
    path = store.write(home, result, measured.files)
    probe.discard()
    console.print_result(result)
    console.print_text(f"written: {path}")
    left = state.left(home)
    if left is not None:
        console.print_text(left, stderr=True)
