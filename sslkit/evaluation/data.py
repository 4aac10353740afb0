"""The labelled images of an evaluation: opened, split, checked against what it needs."""

from typing import NamedTuple

import numpy as np

from sslkit.data.summary import evaluation, place_of
from sslkit.errors import DataError, Fault, RecipeError
from sslkit.evaluation.rows import split
from sslkit.interfaces import ImageSource
from sslkit.parts import make
from sslkit.recipe import Choice


class Splits(NamedTuple):
    """Training and validation images, and how they were split.

    `summary` says in one line what serves as what, `notes` what the user should know besides.
    """

    train: ImageSource
    val: ImageSource
    how: str
    summary: str = ""
    notes: tuple[str, ...] = ()


def open_splits(data: Choice, needs: str, seed: int | None) -> Splits:
    """Open both splits of a data set. DataError where it lacks what the evaluation needs.

    A set with validation images is used as it is; another is split with `seed`, 0 for None.
    """
    train = make(data, split="train")
    where = train.place or place_of(data)
    if not len(train):
        raise DataError(f"{where} has no training images")
    _check_needs(train, needs, where)
    if not train.has_val:
        splits = Splits(*split(train, seed or 0), notes=tuple(train.notes))
    elif seed is not None:
        raise RecipeError(
            Fault("--split-seed", f"{where} has validation images of its own; leave the option out")
        )
    else:
        val = make(data, split="val")
        if needs == "labels":
            _check_classes(train, val, where)
        how = "the data set's own validation images"
        splits = Splits(train, val, how, notes=(*train.notes, *val.notes))
    _check_sizes(splits, where)
    summary = evaluation(splits.train, splits.val, where, splits.how)
    return splits._replace(summary=summary)


def _check_classes(train: ImageSource, val: ImageSource, where: str) -> None:
    """DataError where the classes of the splits differ."""
    if val.labels is not None and list(val.classes) == list(train.classes):
        return
    place = val.place or "the validation split"
    if val.labels is None:
        raise DataError(
            f"{place} has no labels{_because(val)}; give it the class folders of {where}, or name "
            f"{where} instead, of which a fifth then validates"
        )
    only = {where: set(train.classes) - set(val.classes)}
    only[place] = set(val.classes) - set(train.classes)
    told = [f"{', '.join(sorted(names)[:5])} only in {one}" for one, names in only.items() if names]
    raise DataError(
        f"{where} and {place} have different classes: {'; '.join(told)}; give both the same class "
        f"folders, or name {where} instead, of which a fifth then validates"
    )


def _because(source: ImageSource) -> str:
    return f" ({source.unlabelled})" if source.unlabelled else ""


def _check_needs(train: ImageSource, needs: str, where: str) -> None:
    if needs == "labels":
        if train.labels is None:
            raise DataError(
                f"the images of {where} have no labels{_because(train)}, and this evaluation needs "
                "them: name a folder that holds one folder per class, two at least, and no images "
                "beside these: --data DIR"
            )
        if len(np.unique(train.labels)) < 2:
            raise DataError(
                f"all images of {where} are of one class, and this evaluation needs two at least: "
                "add images of another one, or name another data set: --data PATH"
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


def _check_sizes(splits: Splits, where: str) -> None:
    if not len(splits.val):
        if splits.train.labels is not None and not splits.train.has_val:
            raise DataError(
                f"every class of {where} has a single image, so none is left to validate on; add "
                "images, or name a folder with more: --data DIR"
            )
        raise DataError(f"{where} has no validation images")
    if not len(splits.train):
        raise DataError(f"{where} has no training images")


def class_names(train: ImageSource) -> list[str]:
    """Return the names of the classes, or their numbers where the set names none."""
    if train.classes or train.labels is None:
        return list(train.classes)
    return [str(label) for label in range(int(train.labels.max()) + 1)]
