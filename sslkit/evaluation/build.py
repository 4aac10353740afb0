"""Builds the probe of `sslkit eval` for a run, for `--encoder`, or for both."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sslkit import recipe
from sslkit.data.loader import auto_workers, fingerprint
from sslkit.device import pick_device
from sslkit.errors import DataError, Fault, RecipeError
from sslkit.evaluation.candidates import Network, RawPixels
from sslkit.evaluation.data import Splits, class_names, open_splits
from sslkit.evaluation.foreign import Foreign, read_encoder
from sslkit.evaluation.images import Progress
from sslkit.evaluation.labelled import open_labelled
from sslkit.evaluation.probe import ImageProbe, silent
from sslkit.evaluation.unreadable import Unreadable, left_out
from sslkit.interfaces import Candidate, ImageSource
from sslkit.recipe import Choice, Recipe
from sslkit.runs import folders
from sslkit.runs.trained import TrainedRun


@dataclass(frozen=True, kw_only=True)
class Request:
    """The common options of `sslkit eval`."""

    run: Path | None = None
    data: str | None = None
    labels: Path | None = None
    encoder: str | None = None
    weights: str | None = None
    size: int | None = None
    against: tuple[Path, ...] = ()
    split_seed: int | None = None
    device: str = "auto"
    out: Path | None = None
    overrides: tuple[str, ...] = ()
    """Values of `--set`: options of the data set, such as data.max_pixels=10."""
    skip_unreadable: bool = False
    workers: int | None = None


class Built(NamedTuple):
    """A probe, a sentence for each damaged checkpoint, and the folder of results."""

    probe: ImageProbe
    notes: list[str]
    home: Path


def build(
    request: Request,
    needs: str = "labels",
    *,
    progress: Progress = silent,
    show: Callable[[Splits], None] = lambda splits: None,
    statistics: bool = True,
) -> Built:
    """Build the probe of a request.

    Opens the data, checks them against `needs` and passes them to `show`, before it loads weights.
    `statistics` fits the batch norms of untrained candidates, which takes a pass over the images.
    """
    foreign = foreign_of(request)
    device = pick_device(request.device)
    data, recipes = choices(request)
    if request.labels is None:
        splits = open_splits(data, needs, request.split_seed)
    else:
        splits = open_labelled(data, request.labels, needs, request.split_seed)
    skipped: list[Unreadable] = []
    workers = auto_workers(device.type) if request.workers is None else request.workers
    if request.skip_unreadable:
        splits, skipped = left_out(splits, needs, workers, progress)
    show(splits)
    runs = [TrainedRun.read(folder, read) for folder, read in recipes]
    notes: list[str] = []
    for run in runs:
        notes += run.notes
    candidates = _candidates(request, runs, foreign, splits, device)
    home = _home(request, foreign)
    probe = ImageProbe(
        splits.train,
        splits.val,
        class_names(splits.train),
        candidates,
        candidates[0].size,
        device,
        _conditions(request, runs, foreign, data, splits, skipped),
        workers,
        progress,
        home,
    )
    if statistics:
        probe.fit_statistics()
    return Built(probe, notes, home)


def _home(request: Request, foreign: Foreign | None) -> Path:
    """Return the folder of results: `--out`, else one in the run or named after the encoder."""
    if request.out is not None:
        return request.out
    if request.run is not None:
        return request.run / "eval"
    assert foreign is not None
    return Path("eval", re.sub(r"[^A-Za-z0-9._-]+", "_", foreign.name))


def foreign_of(request: Request) -> Foreign | None:
    """Read `--encoder` and `--weights`. Raises RecipeError if they do not fit together."""
    if request.encoder is not None:
        if request.run is None and request.data is None:
            raise RecipeError(Fault("--data", "--encoder without a run needs images: --data DIR"))
        return read_encoder(request.encoder, request.weights)
    if request.weights is not None:
        raise RecipeError(
            Fault("--weights", "requires an encoder; name it: --encoder timm:resnet18")
        )
    return None


def choices(request: Request) -> tuple[Choice, list[tuple[Path, Recipe]]]:
    """Return the data set, and the recipes of the run and of all runs in `--against`."""
    for override in request.overrides:
        if not override.strip().startswith("data."):
            message = f"'{override}' is not an option of the data set; use --set data.KEY=VALUE"
            raise RecipeError(Fault("--set", message))
    recipes = []
    data = None
    if request.run is not None:
        read = folders.read_recipe(request.run, data=request.data, overrides=request.overrides)
        recipes.append((request.run, read))
        data = read.data
    elif request.data is not None:
        data = recipe.read_data(request.data, request.overrides)
    for folder in request.against:
        recipes.append((folder, folders.read_recipe(folder, opened=False)))
    assert data is not None
    measured = [folder for folder, _ in recipes]
    for folder in request.against:
        if measured.count(folder) > 1:
            raise RecipeError(Fault("--against", f"{folder} is already measured; name another run"))
    return data, recipes


def _candidates(
    request: Request,
    runs: list[TrainedRun],
    foreign: Foreign | None,
    splits: Splits,
    device: torch.device,
) -> list[Candidate]:
    """Return the candidates; the others are compared with the first."""
    pixels = RawPixels(splits.train.bits)
    outside = []
    if foreign is not None:
        alone = request.run is None
        outside = foreign.candidates(splits.train, request.size, device, alone=alone)
    found: list[Candidate] = []
    others = runs
    if request.run is not None:
        own, *others = runs
        found = [
            network(own, "trained", splits.train, request.size, device),
            network(own, "untrained", splits.train, request.size, device, trained=False),
        ]
        found += [pixels, *outside]
    else:
        found = [*outside, pixels]
    for run, name in zip(others, _names([run.folder for run in others]), strict=True):
        found.append(network(run, name, splits.train, request.size, device))
    return found


def _names(folders: list[Path]) -> list[str]:
    """Return the folder names of runs, with the parent's name if two are equal."""
    names = [folder.name for folder in folders]
    return [
        folder.name if names.count(folder.name) == 1 else f"{folder.parent.name}/{folder.name}"
        for folder in folders
    ]


def network(
    run: TrainedRun,
    name: str,
    images: ImageSource,
    size: int | None,
    device: torch.device,
    *,
    trained: bool = True,
) -> Network:
    """Build the exported encoder of a run, with trained or with initial weights."""
    data = run.data
    if (data.channels, data.bits) != (images.channels, images.bits):
        raise DataError(
            f"{run.folder} was trained on images of {data.channels} channels and {data.bits} bits, "
            f"but these have {images.channels} and {images.bits}; name other images: --data DIR"
        )
    method, transform = run.parts(trained=trained)
    return Network(
        name,
        method.exported,
        transform.plain,
        size=transform.size if size is None else size,
        device=device,
        baseline=not trained,
        fits=not trained,
        parts=partial(run.parts, trained=trained),
    )


def _conditions(
    request: Request,
    runs: list[TrainedRun],
    foreign: Foreign | None,
    data: Choice,
    splits: Splits,
    skipped: list[Unreadable],
) -> dict[str, Any]:
    """Return the recorded conditions: data, splits, checkpoints, skipped images."""
    own = runs[:1] if request.run is not None else []
    found: dict[str, Any] = own[0].facts() if own else {}
    if foreign is not None:
        found["encoder"] = foreign.choice.as_dict()
    if request.skip_unreadable:
        found["skipped"] = [
            {"split": one.split, "name": one.name, "reason": one.reason} for one in skipped
        ]
    if splits.labels is not None:
        found["labels"] = splits.labels
    if splits.unseen:
        found["unseen_classes"] = list(splits.unseen)
    if request.against:
        found["against"] = [run.facts() for run in runs[len(own) :]]
    return found | {
        "data": data.as_dict(),
        "train_images": len(splits.train),
        "val_images": len(splits.val),
        "train_fingerprint": fingerprint(splits.train),
        "val_fingerprint": fingerprint(splits.val),
        "classes": len(class_names(splits.train)),
        "split": splits.how,
        "statistics": "batch norms never trained: one pass over the training split",
        "precision": "float32, encoder in evaluation mode",
    }
