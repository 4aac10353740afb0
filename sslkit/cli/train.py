"""`sslkit train`."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from sslkit import console
from sslkit.cli.app import app
from sslkit.cli.options import Data, Overrides, filled

RunFolder = Annotated[
    Path | None,
    typer.Option(
        "--run",
        "--run-dir",
        metavar="DIR",
        help="The run folder: start in it, or resume the run of this recipe in it. With "
        "torchrun write --run-dir, because torchrun has an option --run.",
        show_default=False,
        parser=filled("--run", Path),
    ),
]
Resume = Annotated[
    Path | None,
    typer.Option(
        metavar="RUN",
        help="Resume this run exactly. --data names the new place of its images if they moved.",
        show_default=False,
        parser=filled("--resume", Path),
    ),
]
Epochs = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=1_000_000,
        help="With --resume: train until this many epochs in total, with the schedule of a run of "
        "that length.",
        show_default=False,
    ),
]
Runs = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Where run folders are made: DIR/<recipe>/<time>, without --run.  [default: runs]",
        show_default=False,
        parser=filled("--runs", Path),
    ),
]
Devices = Annotated[
    int | None,
    typer.Option(min=1, help="Ranks on this machine, one per GPU.", show_default=False),
]
Profile = Annotated[
    bool,
    typer.Option("--profile", help="Only measure where the time of a step goes; train nothing."),
]


@app.command()
def train(
    path: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE",
            help="Recipe file, or the name of a shipped recipe (`sslkit recipes`); omitted with "
            "--resume.",
            show_default=False,
            parser=filled("RECIPE"),
        ),
    ] = None,
    overrides: Overrides = None,
    data: Data = None,
    run: RunFolder = None,
    resume: Resume = None,
    epochs: Epochs = None,
    runs: Runs = None,
    devices: Devices = None,
    profile: Profile = False,
) -> None:
    """Train a recipe, or resume a run.

    The run folder contains metrics, pictures, checkpoints and the encoder. A new run is rehearsed
    first: a recipe that cannot train is refused before anything is written.

    sslkit train pirl_jigsaw --data ~/photos
    """
    _check_usage(path, run, resume, epochs, runs, profile)
    from sslkit import recipe

    folder = None
    if resume is not None:
        from sslkit.runs import changes, folders

        folder = folders.find_folder(resume)
        changes.check_settings(folder, overrides or ())
        made = folders.read_recipe(folder, overrides=overrides or (), data=data)
    else:
        assert path is not None
        made = recipe.read(path, overrides=overrides or (), data=data)
    runs = runs or Path("runs")

    from sslkit import distributed

    if devices is not None and devices > 1 and not distributed.launched():
        made.train.per_rank_batch(devices)
        chosen = None
        if run is None and folder is None and not profile:
            from sslkit.runs.folders import unused

            chosen = unused(runs, made)
        raise typer.Exit(distributed.launch(devices, sys.argv[1:], chosen))
    if profile:
        _profile(made, runs)
        return
    from sslkit.screen import TrainingScreen
    from sslkit.training import session

    viewer = session.Viewer(look=console.show_data, say=console.print_text, screen=TrainingScreen)
    if folder is not None:
        ended = session.resume(made, folder, epochs=epochs, viewer=viewer)
    else:
        ended = session.train(made, run=run, runs=runs, viewer=viewer)
    raise typer.Exit(ended.exit_code)


def _check_usage(
    path: str | None,
    run: Path | None,
    resume: Path | None,
    epochs: int | None,
    runs: Path | None,
    profile: bool,
) -> None:
    """Raise BadParameter for options that contradict each other."""
    if path is None and resume is None:
        raise typer.BadParameter("name a RECIPE to start, or --resume RUN to go on")
    if path is not None and resume is not None:
        raise typer.BadParameter("leave out RECIPE: --resume goes on with the recipe of RUN")
    if resume is not None and profile:
        raise typer.BadParameter("--profile measures a recipe; it resumes no run")
    if run is not None and resume is not None:
        raise typer.BadParameter(
            "--run goes on by itself where its folder holds a checkpoint; leave out one of --run "
            "and --resume"
        )
    if run is not None and runs is not None:
        raise typer.BadParameter(
            "--run names the run folder itself, --runs the folder of folders; leave out one of them"
        )
    if run is not None and profile:
        raise typer.BadParameter("--profile trains nothing; name no --run")
    if epochs is not None and resume is None:
        raise typer.BadParameter(
            "--epochs trains a run on, with --resume RUN; for a new run: --set "
            f"train.epochs={epochs}"
        )


def _profile(made: Any, runs: Path) -> None:
    """Profile a recipe and show the table."""
    from sslkit import distributed
    from sslkit.device import pick_device
    from sslkit.training.profile import profile

    with distributed.joined(pick_device(made.train.device)):
        found, folder = profile(made, runs, look=console.show_data)
        if distributed.rank() > 0:
            return
        rate, step = found.images / found.step, 1000 * found.step
        title = f"{made.name}: {rate:.1f} images/s, {step:.1f} ms a step of {found.images} images"
        columns = ("section", "ms a step", "share", "what it is")
        console.print_table(columns, found.rows(), title=title)
        written = f"written: {folder / 'profile.json'}, {folder / 'trace.json'}"
        console.print_text(f"{found.verdict()}\n{written}")
