"""Checks the arguments of the Python API."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sslkit.errors import CheckpointError, Fault, RecipeError
from sslkit.recipe.words import written

if TYPE_CHECKING:
    from sslkit.evaluation.build import Request
    from sslkit.runs.trained import TrainedRun

PathLike = str | os.PathLike[str]
Device = Literal["auto", "cpu", "cuda", "mps"]


def check_paths(**given: object) -> None:
    """Raise RecipeError for an argument that is no path."""
    for name, value in given.items():
        if value is not None and not isinstance(value, str | os.PathLike):
            raise RecipeError(Fault(name, f"{written(value)} is not a path"))


def check_overrides(overrides: object) -> None:
    """Raise RecipeError if `overrides` is not a list of texts."""
    if isinstance(overrides, list | tuple) and all(isinstance(one, str) for one in overrides):
        return
    raise RecipeError(
        Fault("overrides", f'{written(overrides)} is not a list such as ["train.epochs=20"]')
    )


def request_of(
    run: "TrainedRun | PathLike",
    *,
    data: PathLike | None,
    labels: PathLike | None = None,
    encoder: str | None = None,
    against: "Sequence[TrainedRun | PathLike]" = (),
    overrides: Sequence[str],
    device: str,
    **given: Any,
) -> "Request":
    """Check the common arguments. Raises RecipeError with every fault."""
    from sslkit.evaluation.build import Request

    wrong = []
    if device not in ("auto", "cpu", "cuda", "mps"):
        message = f"expected auto, cpu, cuda or mps, got {written(device)}"
        wrong.append(Fault("device", message))
    for name, fewest in {"size": 1, "workers": 0, "split_seed": 0}.items():
        value = given.get(name)
        is_int = isinstance(value, int) and not isinstance(value, bool)
        if value is not None and not (is_int and value >= fewest):
            wrong.append(Fault(name, f"expected int ≥ {fewest}, got {written(value)}"))
    if wrong:
        raise RecipeError(*wrong)
    check_overrides(overrides)
    check_paths(data=data, labels=labels, encoder=encoder)
    folder, other = subject(run)
    if other is not None and encoder is not None:
        raise RecipeError(Fault("encoder", f"{other} is measured already; name a run beside it"))
    return Request(
        run=folder,
        data=None if data is None else os.fspath(data),
        labels=None if labels is None else Path(labels),
        encoder=other if encoder is None else encoder,
        against=tuple(folder_of(one) for one in against),
        overrides=tuple(overrides),
        device=device,
        **given,
    )


def folder_of(run: "TrainedRun | PathLike") -> Path:
    """Return the folder of a run. Raises CheckpointError if it is not a run."""
    from sslkit.runs import folders
    from sslkit.runs.trained import TrainedRun

    return folders.find_folder(run.folder if isinstance(run, TrainedRun) else Path(run))


def subject(run: "TrainedRun | PathLike") -> tuple[Path | None, str | None]:
    """Return the folder of a run, or the name of another encoder."""
    from sslkit.evaluation.foreign import read_encoder
    from sslkit.runs.trained import TrainedRun

    if isinstance(run, TrainedRun):
        return folder_of(run), None
    if not isinstance(run, str | os.PathLike):
        raise RecipeError(Fault("run", f"{written(run)} is neither a run nor a path"))
    text = os.fspath(run)
    place = Path(os.path.expanduser(text))
    if os.path.isfile(place / "recipe.yaml"):
        return folder_of(place), None
    if not os.path.lexists(place):
        is_name = isinstance(run, str) and ":" in text
        return (None, text) if is_name else (folder_of(place), None)
    try:
        read_encoder(str(place), None)
    except RecipeError as error:
        message = f"{text} is no run folder (it holds no recipe.yaml); {error.faults[0].message}"
        raise CheckpointError(message) from error
    return None, str(place)
