"""Some images of a data set, and the training and validation split of an evaluation."""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from sslkit.data.splits import split_by_class
from sslkit.interfaces import ImageSource, Pixels

HELD_OUT = 0.2
"""Share of the images that a set without validation images gives up for validation."""


class Rows(ImageSource):
    """Some images of a source, with their labels, tags, boxes and groups.

    `rows` int64 are their numbers there.
    """

    def __init__(self, source: ImageSource, rows: np.ndarray) -> None:
        self.source, self.rows = source, rows
        self.names = [source.names[row] for row in rows]
        self.labels = None if source.labels is None else source.labels[rows]
        self.tags = None if source.tags is None else source.tags[rows]
        self.boxes = None if source.boxes is None else [source.boxes[row] for row in rows]
        self.groups = None if source.groups is None else [source.groups[row] for row in rows]
        self.classes = source.classes
        self.channels, self.bits = source.channels, source.bits
        self.reduced_to = source.reduced_to

    def image(self, index: int) -> Image.Image:
        return self.source.image(int(self.rows[index]))

    def pixels(self, index: int, reduction: Callable[[int, int], float]) -> Pixels:
        return self.source.pixels(int(self.rows[index]), reduction)


def relabelled(source: ImageSource, classes: Sequence[str]) -> ImageSource:
    """Return a labelled source whose labels count `classes`, which hold every class of its images."""
    assert source.labels is not None
    if list(source.classes) == list(classes):
        return source
    found = Rows(source, np.arange(len(source)))
    numbers = {label: list(classes).index(source.classes[label]) for label in set(source.labels)}
    found.labels = np.array([numbers[label] for label in source.labels], np.int64)
    found.classes, found.place = list(classes), source.place
    return found


def split(source: ImageSource, seed: int) -> tuple[ImageSource, ImageSource, str]:
    """Return training images, validation images, and how they were split.

    By group where the set has groups, by class where it has labels, else at random.
    """
    if source.groups is not None:
        train, val = _split_groups(np.asarray(source.groups), seed)
        how = "a fifth of the groups"
    elif source.labels is not None:
        train, val = split_by_class(source.labels, HELD_OUT, seed)
        how = "a fifth of every class"
    else:
        order = np.random.default_rng(seed).permutation(len(source))
        count = round(HELD_OUT * len(source))
        train, val = np.sort(order[count:]), np.sort(order[:count])
        how = "a fifth of the images"
    return Rows(source, train), Rows(source, val), f"{how}, split with seed {seed}"


def _split_groups(groups: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of four fifths of the groups, and those of the others."""
    names = np.unique(groups)
    count = min(len(names) - 1, max(1, round(HELD_OUT * len(names))))
    held = np.random.default_rng(seed).permutation(names)[:count]
    inside = np.isin(groups, held)
    return np.flatnonzero(~inside), np.flatnonzero(inside)
