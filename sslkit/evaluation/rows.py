"""Subsets of a data set, and the split of an evaluation."""

import warnings
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from sslkit.data.splits import split_by_class
from sslkit.interfaces import ImageSource, Pixels

HELD_OUT = 0.2
"""Fraction of the images for validation, for data sets without validation images."""
FOLDS = 5
"""Parts of a data set with groups, of which one validates."""


class Rows(ImageSource):
    """The images `rows`, int64 [n], of a source, with labels, tags, boxes and groups."""

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
    """Return a source with labels numbered by `classes`, which include all of its classes."""
    assert source.labels is not None
    if list(source.classes) == list(classes):
        return source
    found = Rows(source, np.arange(len(source)))
    numbers = {label: list(classes).index(source.classes[label]) for label in set(source.labels)}
    found.labels = np.array([numbers[label] for label in source.labels], np.int64)
    found.classes, found.place = list(classes), source.place
    return found


def split(source: ImageSource, seed: int) -> tuple[Rows, Rows, str]:
    """Return training images, validation images, and how they were split.

    Splits by group if there are groups, else by class if a class has several images, else at
    random.
    """
    if source.groups is not None:
        train, val = _split_groups(source.groups, source.labels, seed)
        how = "a fifth of the groups"
    elif source.labels is not None and np.bincount(source.labels).max() > 1:
        train, val = split_labelled(source.labels, None, seed)
        how = "a fifth of every class"
    else:
        order = np.random.default_rng(seed).permutation(len(source))
        count = round(HELD_OUT * len(source))
        train, val = np.sort(order[count:]), np.sort(order[:count])
        how = "a fifth of the images"
    return Rows(source, train), Rows(source, val), f"{how}, split with seed {seed}"


def split_labelled(
    labels: np.ndarray, groups: Sequence[object] | None, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return training and validation rows, int64: a fifth of the groups, or of every class.

    There is no validation row if every class has one image, or all images are of one group.
    """
    if groups is not None:
        return _split_groups(groups, labels, seed)
    return split_by_class(labels, HELD_OUT, seed)


def _split_groups(
    names: Sequence[object], labels: np.ndarray | None, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of about four fifths of the groups, and the other rows.

    With labels, the fraction of every class is about the same in both.
    """
    groups = np.unique(np.asarray(names), return_inverse=True)[1].ravel()
    folds = min(FOLDS, int(groups.max()) + 1)
    if folds < 2:
        return np.arange(len(groups)), np.arange(0)
    from sklearn.model_selection import StratifiedGroupKFold

    if labels is None or np.bincount(labels).max() < folds:
        labels = np.zeros(len(groups), np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # A class may have fewer images than folds.
        splits = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        train, val = next(splits.split(labels, labels, groups))
    return train, val
