"""`sslkit export`."""

from typing import Annotated

import typer

from sslkit import console
from sslkit.cli.app import app
from sslkit.cli.options import RunFolder


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
