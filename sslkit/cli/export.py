"""`sslkit export`."""

from typing import Annotated

import typer

from sslkit import console
from sslkit.cli.app import app
from sslkit.cli.options import RunFolder


@app.command()
def export(
    run: RunFolder = None,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="LIBRARY",
            help="Target: a library of the encoder (timm, torchvision), onnx, or hub:USER/NAME. "
            "By default the encoder's first library.",
            show_default=False,
        ),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Make a new hub repository public.")
    ] = False,
) -> None:
    """Export the encoder for another library.

    The library loads it in another process, and features are compared.
    """
    from sslkit.runs import folders
    from sslkit.runs.export import export as write

    done = write(folders.find_folder(run), to, public=public)
    console.print_text(
        f"{done.lines}\n\nchecked: run by itself, largest relative difference of features "
        f"{done.difference:.1e}\nwritten: {done.place}"
    )
