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
            help="Library of the encoder (timm, torchvision), onnx, or hub:USER/NAME; the "
            "encoder's first library by default.",
            show_default=False,
        ),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Make a new repository on the hub public.")
    ] = False,
) -> None:
    """Write the encoder for its own library, with the lines that load it, checked."""
    from sslkit.runs import folders
    from sslkit.runs.export import export as write

    done = write(folders.find_folder(run), to, public=public)
    console.print_text(
        f"{done.lines}\n\nchecked: run by itself, largest relative difference of features "
        f"{done.difference:.1e}\nwritten: {done.place}"
    )
