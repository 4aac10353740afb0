"""`sslkit pack`."""

import os
import shlex
from typing import Annotated, Any

import typer

from sslkit import console
from sslkit.cli.app import app
from sslkit.cli.options import DataOptions, SkipUnreadable, Workers, filled
from sslkit.errors import PluginError, counted
from sslkit.recipe import registry

ANNOTATIONS = ("tags", "boxes", "groups")
"""Attributes of a data set that packed sets do not store."""


def _writer() -> Any:
    """Return the data set class that writes packed sets."""
    for part in registry.parts("datasets"):
        if part.signature().attributes.get("packs"):
            return part.load()
    raise PluginError("no installed data set writes packed sets; install sslkit's own again")


@app.command()
def pack(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="Data set to pack: a folder of images, a .npz file or a packed set.",
            parser=filled("SRC"),
        ),
    ],
    to: Annotated[
        str, typer.Argument(metavar="DEST", help="Folder to make.", parser=filled("DEST"))
    ],
    short_side: Annotated[
        int, typer.Option(min=1, help="Largest short side, px. Larger images are reduced to it.")
    ] = 256,
    quality: Annotated[
        int, typer.Option(min=1, max=100, help="JPEG quality of images that are re-encoded.")
    ] = 95,
    overrides: DataOptions = None,
    skip_unreadable: SkipUnreadable = False,
    workers: Workers = None,
) -> None:
    """Pack the images and labels of a data set into a few large files.

    `--data DEST` trains on them. Training then opens no file per image.
    """
    from sslkit import recipe

    choice = recipe.read_data(source, overrides or (), place="SRC")

    from sslkit.data import summary
    from sslkit.parts import make

    splits = {"train": make(choice, split="train")}
    if splits["train"].has_val:
        splits["val"] = make(choice, split="val")
    place = summary.place_of(choice)
    told = [summary.split(split, place) for split in splits.values()]
    console.print_text(f"data: {' and '.join(told)}")
    for split in splits.values():
        for note in split.notes:
            console.print_text(note, stderr=True)
    dropped = [name for name in ANNOTATIONS if getattr(splits["train"], name) is not None]
    if dropped:
        console.print_text(
            f"not packed: {' and '.join(dropped)}; evaluations that need them read {source}",
            stderr=True,
        )
    writer = _writer()
    with console.progress("packing") as advance:
        index = writer.write(
            splits,
            to,
            short_side=short_side,
            quality=quality,
            skip_unreadable=skip_unreadable,
            workers=os.cpu_count() or 1 if workers is None else workers,
            advance=advance,
        )
    for name in index.skipped:
        console.print_text(f"left out, it cannot be read: {name}", stderr=True)
    counts = [f"{counted(split.images, 'image')} ({name})" for name, split in index.splits.items()]
    console.print_text(
        f"{' and '.join(counts)}: {index.kept:,} kept their bytes, {index.coded:,} were "
        f"re-encoded, {len(index.skipped):,} left out"
    )
    console.print_text(f"written: {to}\nnext: sslkit train RECIPE --data {shlex.quote(to)}")
