"""`sslkit embed`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from sslkit import console
from sslkit.cli.app import app
from sslkit.cli.options import DataOptions, Device, filled
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
    encoder: Annotated[
        str | None,
        typer.Option(
            metavar="PART:MODEL | FOLDER",
            help="Embed with this encoder instead of a run's, such as timm:resnet18 or a folder of "
            "`sslkit export`.",
            show_default=False,
            parser=filled("--encoder"),
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="none | FILE | RUN",
            help="Initial weights of PART:MODEL, by default its pretrained ones.",
            show_default=False,
            parser=filled("--weights"),
        ),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Side of the images, px, by default the recipe's, or the model's own.",
            show_default=False,
        ),
    ] = None,
    split: Annotated[
        Literal["all", "train", "val"],
        typer.Option(help="Images to embed where DIR has training and validation images."),
    ] = "all",
    overrides: DataOptions = None,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Leave out images that cannot be read.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace OUT where it exists.")
    ] = False,
    device: Device = "auto",
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Processes that decode images, by default chosen for the machine.",
            show_default=False,
        ),
    ] = None,
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
