"""The labelled images of an evaluation: opened, split, checked against what it needs."""

from typing import NamedTuple

import numpy as np

from sslkit.errors import DataError, Fault, RecipeError
from sslkit.evaluation.rows import split
from sslkit.interfaces import ImageSource
from sslkit.parts import make
from sslkit.recipe import Choice


class Splits(NamedTuple):
    """Training and validation images, and how they were split."""

    train: ImageSource
    val: ImageSource
    how: str


def place(data: Choice) -> str:
    """Return the folder or file of a data set, or its name."""
    return str(data.options.get("root") or data.options.get("file") or f"'{data.use}'")


def open_splits(data: Choice, needs: str, seed: int | None) -> Splits:
    """Open both splits of a data set. DataError where it lacks what the evaluation needs.

    A set with validation images is used as it is; another is split with `seed`, 0 for None.
    """
    train = make(data, split="train")
    where = place(data)
    if not len(train):
        raise DataError(f"{where} has no training images")
    _check_needs(train, needs, where)
    if not train.has_val:
        return _check_sizes(Splits(*split(train, seed or 0)), where)
    if seed is not None:
        raise RecipeError(
            Fault("--split-seed", f"{where} has validation images of its own; leave the option out")
        )
    val = make(data, split="val")
    if needs == "labels" and (val.labels is None or list(val.classes) != list(train.classes)):
        raise DataError(
            f"train and val of {where} have different classes: "
            f"{list(train.classes)} and {list(val.classes)}"
        )
    return _check_sizes(Splits(train, val, "the data set's own validation images"), where)


def _check_needs(train: ImageSource, needs: str, where: str) -> None:
    if needs == "labels":
        if train.labels is None:
            raise DataError(
                f"the images of {where} have no labels, and this evaluation needs them: name a "
                "folder that holds nothing but one subfolder per class, two at least (or train/ "
                "and val/ with these): --data DIR"
            )
        if len(np.unique(train.labels)) < 2:
            raise DataError(
                f"all images of {where} are of one class, and this evaluation needs two at least; "
                "name another folder: --data DIR"
            )
    if needs == "tags" and train.tags is None:
        raise DataError(
            f"the images of {where} have no tags (several classes an image), and this evaluation "
            "needs them; take a data set that has tags"
        )
    if needs == "boxes" and train.boxes is None:
        raise DataError(
            f"the images of {where} have no boxes, and this evaluation needs them; take a data "
            "set that has boxes"
        )


def _check_sizes(splits: Splits, where: str) -> Splits:
    if not len(splits.val):
        if splits.train.labels is not None and not splits.train.has_val:
            raise DataError(
                "every class has a single image, so none is left to validate on; name a folder "
                "with more, --data DIR"
            )
        raise DataError(f"{where} has no validation images")
    if not len(splits.train):
        raise DataError(f"{where} has no training images")
    return splits


def class_names(train: ImageSource) -> list[str]:
    """Return the names of the classes, or their numbers where the set names none."""
    if train.classes or train.labels is None:
        return list(train.classes)
    return [str(label) for label in range(int(train.labels.max()) + 1)]
