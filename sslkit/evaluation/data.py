"""Opens, splits and checks the images of an evaluation."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sslkit.data.summary import NAMED, evaluation, place_of
from sslkit.errors import DataError, Fault, RecipeError
from sslkit.evaluation.boxes import unseen_objects
from sslkit.evaluation.rows import relabelled, split
from sslkit.interfaces import ImageSource
from sslkit.parts import make
from sslkit.recipe import Choice

VOC = (
    "name a folder in VOC layout, which has JPEGImages, Annotations and ImageSets/Main: --data DIR"
)
"""Remedy for images without tags or boxes."""


class Splits(NamedTuple):
    """Training and validation images, and how they were split.

    `where` is the place of the data set. `summary` describes the splits in one line. `notes` are
    sentences for the user. `unseen` are the classes without validation images, `unseen_note` is
    their sentence among the notes. `labels` describes the file of labels for the protocol.
    """

    train: ImageSource
    val: ImageSource
    how: str
    where: str = ""
    summary: str = ""
    notes: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    unseen_note: str = ""
    labels: dict[str, Any] | None = None


def open_splits(data: Choice, needs: str, seed: int | None) -> Splits:
    """Open both splits of a data set. Raises DataError if the evaluation needs more.

    A data set without validation images is split at random with `seed`, by default 0.
    """
    train = make(data, split="train")
    where = train.place or place_of(data)
    if not len(train):
        raise DataError(f"{where} has no training images")
    _check_needs(train, needs, where)
    if not train.has_val:
        labels = train.labels if needs == "labels" else None
        if labels is not None and np.bincount(labels).max() < 2:
            raise DataError(
                f"every class of {where} has a single image, so none is left for validation; add "
                "images, or name a folder with more: --data DIR"
            )
        splits = Splits(*split(train, seed or 0), where=where, notes=tuple(train.notes))
    elif seed is not None:
        raise RecipeError(
            Fault("--split-seed", f"{where} has separate validation images; remove the option")
        )
    else:
        val = make(data, split="val")
        if needs == "labels":
            val = _with_classes_of(train, val, where)
        how = "the data set's own validation images"
        splits = Splits(train, val, how, where=where, notes=(*train.notes, *val.notes))
    return check(splits, needs)


def check(splits: Splits, needs: str) -> Splits:
    """Return splits with summary and unseen classes. Raises DataError for unsuitable splits."""
    _check_sizes(splits, splits.where)
    _check_needs(splits.train, needs, splits.where)
    summary = evaluation(splits.train, splits.val, splits.where, splits.how)
    notes = tuple(note for note in splits.notes if note != splits.unseen_note)
    splits = splits._replace(summary=summary, unseen=(), unseen_note="", notes=notes)
    if needs == "boxes":
        names = class_names(splits.train)
        missing = unseen_objects(splits.train, splits.val, names, splits.where)
        return _noted(splits, missing, len(names)) if missing else splits
    train, val = splits.train.labels, splits.val.labels
    if needs != "labels" or train is None or val is None:
        return splits
    names = class_names(splits.train)
    learnt = set(np.unique(train).tolist())
    shown = set(np.unique(val).tolist())
    if strange := sorted(shown - learnt):
        raise DataError(
            f"{splits.where} has validation images of {_named([names[one] for one in strange])}, "
            "but no training images; add some, remove these validation images, or, if the split "
            "is random, choose another: --split-seed N"
        )
    unseen = [names[label] for label in sorted(learnt - shown)]
    return _noted(splits, unseen, len(learnt)) if unseen else splits


def _noted(splits: Splits, unseen: Sequence[str], classes: int) -> Splits:
    """Record the classes without validation images, with a note."""
    note = (
        f"no validation image shows {_named(unseen)}: measured on the other "
        f"{classes - len(unseen)} of {classes} classes"
    )
    notes = (*splits.notes, note)
    return splits._replace(unseen=tuple(unseen), unseen_note=note, notes=notes)


def _named(names: Sequence[str]) -> str:
    """Return the first names and the number of the others."""
    more = f" and {len(names) - NAMED} more classes" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED])}{more}"


def _with_classes_of(train: ImageSource, val: ImageSource, where: str) -> ImageSource:
    """Return `val` with labels numbered as in `train`; `val` may lack classes.

    Raises DataError if `val` has no labels, or classes that `train` lacks.
    """
    place = val.place or "the validation split"
    if val.labels is None:
        raise DataError(
            f"{place} has no labels{_because(val)}; create the class folders of {where} in it, or "
            f"name {where} instead, of which a fifth is then used for validation"
        )
    classes = list(train.classes)
    if list(val.classes) == classes:
        return val
    shown = [val.classes[label] for label in np.unique(val.labels).tolist()]
    strange = [name for name in shown if name not in classes]
    if strange:
        raise DataError(
            f"{place} has classes that {where} does not have: {_named(strange)}; use the same "
            f"class folders in both, or name {where} instead, of which a fifth is then used for "
            "validation"
        )
    return relabelled(val, classes)


def _because(source: ImageSource) -> str:
    return f" ({source.unlabelled})" if source.unlabelled else ""


def _check_needs(train: ImageSource, needs: str, where: str) -> None:
    if needs == "labels":
        if train.labels is None:
            raise DataError(
                f"the images of {where} have no labels{_because(train)}, but this evaluation needs "
                "them: name a folder with one folder per class, at least two, and no images next "
                "to them: --data DIR"
            )
        if len(np.unique(train.labels)) < 2:
            raise DataError(
                f"all images of {where} are of one class, but this evaluation needs at least two: "
                "add images of another class, or name another data set: --data PATH"
            )
    if needs == "tags" and train.tags is None:
        raise DataError(
            f"the images of {where} have no tags{_because(train)}, but this evaluation needs "
            f"several classes per image; {VOC}, or a file of labels: --labels CSV"
        )
    if needs == "boxes" and train.boxes is None:
        raise DataError(
            f"the images of {where} have no boxes{_because(train)}, but this evaluation needs "
            f"them; {VOC}"
        )


def _check_sizes(splits: Splits, where: str) -> None:
    if not len(splits.val):
        raise DataError(f"{where} has no validation images")
    if not len(splits.train):
        raise DataError(f"{where} has no training images")


def full_names(sources: dict[str, ImageSource], data: Choice) -> dict[str, np.ndarray]:
    """Return the names of all images by split, relative to the root if it is a folder.

    For other data sets with several splits, names start with the split's name.
    """
    root = Path(os.path.expanduser(str(data.options.get("root", ""))))
    found = {}
    for kind, source in sources.items():
        names = [str(name) for name in source.names]
        prefix = ""
        if source.place and os.path.isdir(source.place):
            below = os.path.relpath(source.place, root)
            prefix = "" if below == "." else f"{Path(below).as_posix()}/"
        elif kind == "val" or source.has_val:
            has_prefix = all(name.startswith(f"{kind}/") for name in names)
            prefix = "" if has_prefix else f"{kind}/"
        found[kind] = np.array([prefix + name for name in names], dtype=np.str_)
    return found


def class_names(train: ImageSource) -> list[str]:
    """Return the names of the classes, or their numbers if they have no names."""
    if train.classes or train.labels is None:
        return list(train.classes)
    return [str(label) for label in range(int(train.labels.max()) + 1)]
