"""Arguments and options that several commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from sslkit.errors import Fault, RecipeError


def filled(name: str, kind: type = str) -> Callable[[Any], Any]:
    """Return a parser of `kind` that refuses an empty text.

    An unset shell variable gives an empty path, which would mean the working directory. All options
    and arguments with paths use this parser.
    """

    def parse(given: Any) -> Any:
        if str(given).strip():
            return kind(given)
        message = "the path is empty; name one (is a shell variable unset?)"
        raise RecipeError(Fault(name, message))

    return parse


RecipePath = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="Recipe file, or the name of a shipped recipe (`sslkit recipes`).",
        show_default=False,
        parser=filled("RECIPE"),
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Set one value of the recipe; repeatable.",
        show_default=False,
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="PATH",
        help="Images to use in place of the recipe's: a folder of images, a folder in VOC layout, "
        "a packed set, or a .npz file.",
        show_default=False,
        parser=filled("--data"),
    ),
]
DataOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="data.KEY=VALUE",
        help="Set one option of the data set, which `sslkit plugins show` lists; repeatable.",
        show_default=False,
    ),
]
RunFolder = Annotated[
    Path | None,
    typer.Argument(
        metavar="RUN",
        help="Run folder, by default the newest below runs/.",
        show_default=False,
        parser=filled("RUN", Path),
    ),
]
Device = Annotated[
    Literal["auto", "cpu", "cuda", "mps"], typer.Option(help="Device that runs the encoder.")
]
Encoder = Annotated[
    str | None,
    typer.Option(
        metavar="PART[:MODEL] | FOLDER",
        help="Encoder to use, such as timm:resnet18, alexnet or a folder of `sslkit export`. "
        "`eval` measures it beside RUN, if both are given.",
        show_default=False,
        parser=filled("--encoder"),
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="none | FILE | RUN",
        help="Initial weights of PART[:MODEL], by default its pretrained ones.",
        show_default=False,
        parser=filled("--weights"),
    ),
]
Size = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Side of the images, px, by default the recipe's, or the model's own.",
        show_default=False,
    ),
]
SkipUnreadable = Annotated[
    bool,
    typer.Option(
        "--skip-unreadable", help="Leave out images that cannot be read, and report their names."
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Processes that decode images, by default chosen for the machine.",
        show_default=False,
    ),
]
