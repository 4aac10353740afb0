"""`sslkit embed`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from sslkit import console
from sslkit.cli.app import app
from sslkit.cli.options import (
    DataOptions,
    Device,
    Encoder,
    Size,
    SkipUnreadable,
    Weights,
    Workers,
    filled,
)
from sslkit.errors import counted

Run = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="Run folder. Left out with --encoder: sslkit embed DIR OUT --encoder PART:MODEL.",
        show_default=False,
        parser=filled("RUN"),
    ),
]
Images = Annotated[
    str,
    typer.Argument(
        metavar="DIR",
        help="Images: a folder, a packed set or a .npz file.",
        show_default=False,
        parser=filled("DIR"),
    ),
]
Out = Annotated[
    str | None,
    typer.Argument(
        metavar="OUT",
        help="File to write: .npz (names, labels, vectors), .npy (vectors) or .parquet.",
        show_default=False,
        parser=filled("OUT"),
    ),
]


@app.command()
def embed(
    run: Run,
    data: Images,
    out: Out = None,
    encoder: Encoder = None,
    weights: Weights = None,
    size: Size = None,
    split: Annotated[
        Literal["all", "train", "val"],
        typer.Option(help="Images to embed if DIR has training and validation images."),
    ] = "all",
    overrides: DataOptions = None,
    skip_unreadable: SkipUnreadable = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace OUT if it exists.")
    ] = False,
    device: Device = "auto",
    workers: Workers = None,
) -> None:
    """Write names, labels and vectors of images.

    The encoder of a run computes the vectors, or the one that --encoder names:
    `sslkit embed runs/pirl_jigsaw/latest photos photos.npz`
    """
    if encoder is None and out is None:
        raise typer.BadParameter("name three: RUN DIR OUT; or DIR OUT with --encoder PART:MODEL")
    if encoder is not None and out is not None:
        raise typer.BadParameter("name two beside --encoder: DIR OUT")
    places = [run, data] if out is None else [run, data, out]
    *runs, images, written = places
    path = Path(written)
    from sslkit.evaluation import embedding, vector_file
    from sslkit.evaluation.build import Request
    from sslkit.runs import folders

    vector_file.check(path, overwrite=overwrite)
    request = Request(
        run=folders.find_folder(Path(runs[0])) if runs else None,
        data=images,
        encoder=encoder,
        weights=weights,
        size=size,
        device=device,
        overrides=tuple(overrides or ()),
        skip_unreadable=skip_unreadable,
        workers=workers,
    )
    found = embedding.embed(request, split, progress=console.progress, show=console.show_splits)
    vector_file.write(path, found)
    count, length = found.vectors.shape
    console.print_text(f"written: {path} ({counted(count, 'vector')} of {length:,} numbers)")
    if path.suffix == ".npy":
        console.print_text("rows are in the order of `names`, which an OUT.npz would hold")
