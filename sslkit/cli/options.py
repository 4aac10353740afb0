"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated, Literal

import typer

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
DataOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="data.KEY=VALUE",
        help="Set one option of the data set; may be given again.",
        show_default=False,
    ),
]
RunFolder = Annotated[
    Path | None,
    typer.Argument(
        metavar="RUN", help="A run folder; the newest below runs/ if left out.", show_default=False
    ),
]
Device = Annotated[
    Literal["auto", "cpu", "cuda", "mps"], typer.Option(help="Where the encoder runs.")
]
