"""`sslkit train`."""

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from sslkit import console
from sslkit.cli.app import app
from sslkit.cli.options import Data, Overrides, filled
from sslkit.errors import Fault, RecipeError
from sslkit.recipe.words import advice

Resume = Annotated[
    Path | None,
    typer.Option(
        metavar="RUN",
        help="Go on with this run, exactly where it stopped; --data where its images lie now.",
        show_default=False,
        parser=filled("--resume", Path),
    ),
]
Runs = Annotated[
    Path,
    typer.Option(metavar="DIR", help="Where run folders are made.", parser=filled("--runs", Path)),
]
Devices = Annotated[
    int | None,
    typer.Option(min=1, help="Ranks on this machine, one per GPU.", show_default=False),
]
FREE = tuple(
    f"train.{name}"
    for name in ("workers", "device", "save_minutes", "keep", "log_every", "unreadable", "on_nan")
)
"""Settings that a resumed run may change: where and how it runs, not what it learns."""
Profile = Annotated[
    bool,
    typer.Option("--profile", help="Only measure where the time of a step goes; train nothing."),
]


@app.command()
def train(
    path: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE", help="A recipe file.", show_default=False, parser=filled("RECIPE")
        ),
    ] = None,
    overrides: Overrides = None,
    data: Data = None,
    resume: Resume = None,
    runs: Runs = Path("runs"),
    devices: Devices = None,
    profile: Profile = False,
) -> None:
    """Train a recipe: a run folder with metrics, pictures, checkpoints and the encoder.

    A new run is rehearsed first: a recipe that cannot train is refused before anything is written.
    """
    if (path is None) == (resume is None):
        raise typer.BadParameter("name a recipe to start, or --resume RUN to go on; not both")
    if resume is not None and profile:
        raise typer.BadParameter("--profile measures a recipe; it resumes no run")
    from sslkit import recipe

    folder = None
    if resume is not None:
        from sslkit.runs import folders

        folder = folders.find_folder(resume)
        _check_settings(folder, overrides or ())
        made = folders.read_recipe(folder, overrides=overrides or (), data=data)
    else:
        assert path is not None
        made = recipe.read(path, overrides=overrides or (), data=data)

    from sslkit import distributed

    if devices is not None and devices > 1 and not distributed.launched():
        made.train.per_rank_batch(devices)
        raise typer.Exit(distributed.launch(devices, sys.argv[1:]))
    if profile:
        _profile(made, runs)
        return
    from sslkit.training import session

    raise typer.Exit(session.run(made, folder, runs, console.Training, console.show_data))


def _check_settings(folder: Path, overrides: Sequence[str]) -> None:
    """Raise RecipeError for a `--set` that would make a resumed run another one."""
    keys = [setting.partition("=")[0].strip() for setting in overrides]
    fixed = [key for key in keys if not key.startswith("data.") and key not in FREE]
    faults = []
    for key in fixed:
        message = (
            f"a resumed run goes on with its own recipe; --set may change data.* and "
            f"{', '.join(FREE)}; start a new run instead: sslkit train "
            f"{shlex.quote(str(folder / 'recipe.yaml'))} --set {shlex.quote(key)}=…"
        )
        faults.append(Fault(key, _misspelt(key) or message, "--set"))
    if faults:
        raise RecipeError(*faults)


def _misspelt(key: str) -> str:
    """Return the advice for a key whose section or setting does not exist; "" for others."""
    from sslkit import recipe

    section, _, name = key.partition(".")
    sections = [field.name for field in dataclasses.fields(recipe.Recipe)]
    if section not in sections:
        return f"no such section; {advice(section, sections)}"
    settings = [field.name for field in dataclasses.fields(recipe.Train)]
    if section == "train" and name not in settings:
        return f"no such setting; {advice(name, settings)}"
    return ""


def _profile(made: Any, runs: Path) -> None:
    """Measure a recipe and show the table."""
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
