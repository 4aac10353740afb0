"""Embeds the images of a data set, for `sslkit embed`."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sslkit.data.loader import auto_workers
from sslkit.data.summary import place_of
from sslkit.data.summary import split as described
from sslkit.device import pick_device
from sslkit.errors import DataError
from sslkit.evaluation import unreadable
from sslkit.evaluation.build import Request, choices, foreign_of, network
from sslkit.evaluation.candidates import Network
from sslkit.evaluation.data import full_names
from sslkit.evaluation.images import (
    Order,
    Progress,
    Resized,
    UnreadableImage,
    in_order,
    in_random_order,
    read_images,
)
from sslkit.evaluation.probe import silent
from sslkit.interfaces import ImageSource
from sslkit.parts import make
from sslkit.recipe import Choice
from sslkit.runs.trained import TrainedRun

Split = Literal["all", "train", "val"]


class Embeddings(NamedTuple):
    """Feature vectors of images, one row per image, in the order of the data set.

    Training images come first. `names` str [N] are paths relative to the folder. `labels` are class
    names, str [N], or class numbers, int64 [N], if classes have no names; None without classes.
    `vectors` are float32 [N,D].
    """

    names: NDArray[np.str_]
    labels: NDArray[Any] | None
    vectors: NDArray[np.float32]


@dataclass(frozen=True)
class Opened:
    """The images to embed by split, a summary in one line, and notes for the user."""

    sources: dict[str, ImageSource]
    summary: str
    notes: tuple[str, ...] = ()


def embed(
    request: Request,
    split: Split = "all",
    *,
    progress: Progress = silent,
    show: Callable[[Opened], None] = lambda opened: None,
) -> Embeddings:
    """Embed the un-augmented images of a data set with the encoder of a run or of `--encoder`.

    Opens the images and passes them to `show`, before it loads weights. The vectors do not depend
    on the number of workers. Raises RecipeError, DataError or CheckpointError.
    """
    foreign = foreign_of(request)
    device = pick_device(request.device)
    data, recipes = choices(request)
    opened = _open(data, split)
    workers = auto_workers(device.type) if request.workers is None else request.workers
    sources = opened.sources
    names = full_names(sources, data)
    if request.skip_unreadable:
        opened, kept = _without_unreadable(opened, workers, progress)
        sources = opened.sources
        names = {key: names[key][rows] for key, rows in kept.items()}
    show(opened)
    first = next(iter(sources.values()))
    if foreign is not None:
        encoder = foreign.candidates(first, request.size, device, alone=False)[0]
        assert isinstance(encoder, Network)
    else:
        run = TrainedRun.read(*recipes[0])
        encoder = network(run, "trained", first, request.size, device)
    try:
        vectors = _vectors(encoder, sources, workers, progress)
    except UnreadableImage:
        found = unreadable.find(sources, workers, progress)
        if not found:
            raise
        raise unreadable.refusal(found, "each needs its vector") from None
    return Embeddings(np.concatenate([*names.values()]), _labels(sources), vectors)


def _open(data: Choice, split: Split) -> Opened:
    """Open the splits. Raises DataError if there are no images."""
    train = make(data, split="train")
    place = train.place or place_of(data)
    sources = {"train": train}
    if train.has_val:
        sources["val"] = make(data, split="val")
    if split != "all":
        if split not in sources:
            raise DataError(f"{place} has no separate validation images; embed all images")
        sources = {split: sources[split]}
    summary = " and ".join([described(source, place) for source in sources.values()])
    notes: list[str] = []
    for source in sources.values():
        notes += source.notes
    if not sum(map(len, sources.values())):
        raise DataError(f"{place} has no images")
    if _labels(sources) is None and any(one.labels is not None for one in sources.values()):
        notes.append(
            "only one split has classes, so the vectors have no labels; embed only that split"
        )
    return Opened(sources, f"embedding {summary}", tuple(notes))


def _labels(sources: dict[str, ImageSource]) -> np.ndarray | None:
    """Return class names, or class numbers without names; None if a split has no labels."""
    found = []
    for source in sources.values():
        if source.labels is None:
            return None
        labels = source.labels.astype(np.int64)
        found.append(np.array(source.classes, np.str_)[labels] if source.classes else labels)
    return np.concatenate(found)


def _without_unreadable(
    opened: Opened, workers: int, progress: Progress
) -> tuple[Opened, dict[str, np.ndarray]]:
    """Remove unreadable images; return the remaining rows by split."""
    found = unreadable.find(opened.sources, workers, progress)
    sources, kept = {}, {}
    for split, source in opened.sources.items():
        wrong = [one.row for one in found if one.split == split]
        sources[split] = unreadable.without(source, wrong)
        kept[split] = np.setdiff1d(np.arange(len(source)), wrong)
    if not found:
        return opened, kept
    if not sum(map(len, sources.values())):
        raise DataError(f"no image is left to embed: {unreadable.left_out_note(found)}")
    notes = (*opened.notes, unreadable.left_out_note(found))
    return Opened(sources, opened.summary, notes), kept


def _vectors(
    encoder: Network, sources: dict[str, ImageSource], workers: int, progress: Progress
) -> np.ndarray:
    """Return the features of all images, float32 [N,D].

    Untrained batch norms get the statistics of the first split.
    """
    filled = [source for source in sources.values() if len(source)]
    if encoder.fits and encoder.unfitted():
        orders = in_random_order(len(filled[0]))
        encoder.fit_statistics(_batches(encoder, filled[0], orders, workers))
    total, done = sum(map(len, filled)), 0
    vectors = np.empty((0, 0), np.float32)
    with progress("embedding") as advance:
        for source in filled:
            for images in _batches(encoder, source, in_order(len(source)), workers):
                rows = encoder.embed(images)["features"].cpu().numpy()
                if not done:
                    vectors = np.empty((total, rows.shape[1]), np.float32)
                vectors[done : done + len(rows)] = rows
                done += len(rows)
                advance(len(rows), total)
    return vectors


def _batches(
    encoder: Network, source: ImageSource, orders: Sequence[Order], workers: int
) -> Iterator[Tensor]:
    """Yield the images of each order at the encoder's size, integer [N,C,S,S]."""
    cut = Resized((encoder.size,), "crop", source.reduced_to)
    for (images,), _ in read_images(source, cut, orders, workers=workers):
        yield images
