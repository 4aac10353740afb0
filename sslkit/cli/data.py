"""`sslkit pack`."""

import os
from typing import Annotated, Any

import typer

from sslkit import console
from sslkit.cli.app import app
from sslkit.recipe import registry


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
