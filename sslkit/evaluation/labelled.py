"""Labels the images of a data set from a file, and splits them."""

import itertools
import os
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import Image

from sslkit.data.summary import NAMED, place_of
from sslkit.errors import DataError, Fault, RecipeError, counted, printable
from sslkit.evaluation.data import Splits, check, full_names
from sslkit.evaluation.labels import SEVERAL, VAL, LabelFile, read_labels
from sslkit.evaluation.rows import Rows, split
from sslkit.interfaces import ImageSource, Pixels
from sslkit.parts import make
from sslkit.recipe import Choice
from sslkit.recipe.words import written


class Joined(ImageSource):
    """The images of all splits of a data set, by their names below its folder."""

    def __init__(self, sources: Sequence[ImageSource], names: Sequence[str]) -> None:
        first = sources[0]
        self.sources, self.names = sources, names
        self.starts = np.cumsum([0, *map(len, sources)])
        self.channels, self.bits, self.reduced_to = first.channels, first.bits, first.reduced_to
        groups = [source.groups for source in sources if source.groups is not None]
        if len(groups) == len(sources):
            self.groups = [*itertools.chain.from_iterable(groups)]

    def _at(self, index: int) -> tuple[ImageSource, int]:
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.sources[number], index - int(self.starts[number])

    def image(self, index: int) -> Image.Image:
        source, row = self._at(index)
        return source.image(row)

    def pixels(self, index: int, reduction: Callable[[int, int], float]) -> Pixels:
        source, row = self._at(index)
        return source.pixels(row, reduction)


class Marked(NamedTuple):
    """The entries of one image: labels without repetition, group and split."""

    labels: tuple[str, ...]
    group: str | None
    split: str | None


def open_labelled(data: Choice, path: Path, needs: str, seed: int | None) -> Splits:
    """Open a data set with the labels, groups and splits of a CSV file.

    A row names an image by its path below the data set's folder, with or without the folder of its
    split. The file name is enough if no other image has it. The extension may be left out. Images
    without a row are left out. Several labels of an image become tags.

    Without a column split, the data set's own splits apply, else a random split with `seed`.
    Raises DataError if file, images and evaluation do not fit together.
    """
    if needs == "boxes":
        raise RecipeError(
            Fault("--labels", "this evaluation reads the boxes of the data set; remove the option")
        )
    file = read_labels(path)
    sources = {"train": make(data, split="train")}
    if sources["train"].has_val:
        sources["val"] = make(data, split="val")
    where = place_of(data)
    names = np.concatenate([*full_names(sources, data).values()]).tolist()
    marked = _marked(file, find_images(file, names, list(sources.values()), where), names)
    source = Joined(list(sources.values()), names)
    kept = np.array(sorted(marked), np.int64)
    found = Rows(source, kept)
    _label(found, [marked[row] for row in kept.tolist()], file, needs)
    notes = _notes(file, len(source) - len(kept), where)
    for one in sources.values():
        notes += one.notes
    given = [marked[row].split for row in kept.tolist()]
    if given[0] is None and "val" in sources:
        given = ["train" if row < len(sources["train"]) else "val" for row in kept.tolist()]
    train, val, how = _split(found, given, file, seed, notes)
    facts = {"file": str(path), "sha256": file.sha256, "left_out": len(source) - len(kept)}
    return check(Splits(train, val, how, where, notes=tuple(notes), labels=facts), needs)


# -------------------------------------------------------------------------- rows to images


def find_images(
    file: LabelFile, names: Sequence[str], sources: Sequence[ImageSource], where: str
) -> list[int]:
    """Return the number of the image that each row names.

    Raises DataError for rows that name no image, or several.
    """
    own: list[str] = []
    for source in sources:
        own += map(str, source.names)
    forms: list[tuple[Sequence[str], Callable[[str], str]]] = [
        (names, str),
        (own, str),
        (names, _base),
        (names, _stem),
        (own, _stem),
        (names, lambda name: _stem(_base(name))),
    ]
    wanted = [_plain(row.name, where) for row in file.rows]
    numbers = [-1] * len(wanted)
    for given, form in forms:
        waiting = [place for place, number in enumerate(numbers) if number < 0]
        if not waiting:
            break
        images: dict[str, list[int]] = {}
        for number, name in enumerate(given):
            images.setdefault(form(_plain(name)), []).append(number)
        for place in waiting:
            found = images.get(wanted[place], [-1])
            if len(found) > 1:
                one, other = (printable(names[number]) for number in found[:2])
                raise DataError(
                    f"{file.at(file.rows[place])}: {written(file.rows[place].name)} may be {one} "
                    f"or {other}; write the path below {where}"
                )
            numbers[place] = found[0]
    _check_found(file, numbers, where)
    return numbers


def _plain(name: str, where: str = "") -> str:
    """Return a name in the form in which names are compared."""
    if where and os.path.isabs(name):
        name = os.path.relpath(name, os.path.abspath(os.path.expanduser(where)))
    name = unicodedata.normalize("NFC", name.replace("\\", "/"))
    return name.removeprefix("./")


def _base(name: str) -> str:
    return name.rpartition("/")[2]


def _stem(name: str) -> str:
    """Return a path without its extension."""
    return name.removesuffix(PurePosixPath(name).suffix)


def _check_found(file: LabelFile, numbers: Sequence[int], where: str) -> None:
    """Raise DataError with the first rows whose image does not exist."""
    missing = [row.name for row, number in zip(file.rows, numbers, strict=True) if number < 0]
    missing = list(dict.fromkeys(missing))
    if not missing:
        return
    shown = ", ".join(map(printable, missing[:NAMED]))
    more = f" and {len(missing) - NAMED:,} more" if len(missing) > NAMED else ""
    raise DataError(
        f"{file.path} names {counted(len(missing), 'image')} that {where} does not have: {shown}"
        f"{more}; write paths below {where}, or remove these rows"
    )


# ---------------------------------------------------------------- labels, groups and splits


def _marked(file: LabelFile, numbers: Sequence[int], names: Sequence[str]) -> dict[int, Marked]:
    """Return the entries by image. Raises DataError if rows of one image contradict each other."""
    marked: dict[int, Marked] = {}
    for row, number in zip(file.rows, numbers, strict=True):
        before = marked.get(number, Marked((), row.group, row.split))
        for column in ("group", "split"):
            one, other = getattr(before, column), getattr(row, column)
            if one != other:
                raise DataError(
                    f"{file.at(row)}: {printable(names[number])} has the {column}s "
                    f"{written(one)} and {written(other)}; keep one of them"
                )
        labels = tuple(dict.fromkeys([*before.labels, *row.labels]))
        marked[number] = before._replace(labels=labels)
    return marked


def _label(found: Rows, marked: Sequence[Marked], file: LabelFile, needs: str) -> None:
    """Set labels or tags, classes and groups of the images."""
    several = [place for place, one in enumerate(marked) if len(one.labels) > 1]
    if several and needs == "labels":
        first = several[0]
        raise DataError(
            f"{file.path} gives {printable(found.names[first])} several labels "
            f"({', '.join(marked[first].labels)}), but this evaluation needs one per image; keep "
            f"one, and write no '{SEVERAL}' in labels"
        )
    classes: set[str] = set()
    for one in marked:
        classes.update(one.labels)
    found.classes = sorted(classes)
    numbers = {name: number for number, name in enumerate(found.classes)}
    found.labels = found.tags = None
    if several or needs == "tags":
        found.tags = np.zeros((len(marked), len(classes)), np.int8)
        for place, one in enumerate(marked):
            found.tags[place, [numbers[label] for label in one.labels]] = 1
    else:
        found.labels = np.array([numbers[one.labels[0]] for one in marked], np.int64)
    if marked[0].group is not None:
        found.groups = [str(one.group) for one in marked]


def _split(
    found: Rows, given: Sequence[str | None], file: LabelFile, seed: int | None, notes: list[str]
) -> tuple[ImageSource, ImageSource, str]:
    """Return training and validation images, and how they were split.

    `given` are the splits of all images, if there are any.
    """
    kinds = set(given)
    held_out = [kind for kind in VAL if kind in kinds]
    training = kinds - set(VAL) - {None}
    if not training and len(held_out) > 1:
        raise DataError(
            f"{file.path} has no training images, only the splits {', '.join(held_out)}; write "
            "train for some of them"
        )
    if training and not held_out and None not in kinds:
        raise DataError(
            f"{file.path} has no validation images, only the split train; write val for some of "
            "them, or remove the column split"
        )
    if not training or not held_out:
        _check_groups(found, file)
        return split(found, seed or 0)
    if seed is not None:
        message = f"the images of {file.path} have fixed splits; remove the option"
        raise RecipeError(Fault("--split-seed", message))
    unused = [kind for kind in given if kind in held_out[1:]]
    if unused:
        notes.append(
            f"{counted(len(unused), 'image')} of the split {held_out[1]} left out; "
            f"{held_out[0]} validates"
        )
    kind = np.array(given)
    train = Rows(found, np.flatnonzero(np.isin(kind, sorted(map(str, training)))))
    val = Rows(found, np.flatnonzero(kind == held_out[0]))
    _check_apart(train, val, file)
    return train, val, f"the images with split {held_out[0]}"


def _check_groups(found: Rows, file: LabelFile) -> None:
    """Raise DataError if the images have one group, so that none is left to validate."""
    if found.groups is not None and len(set(found.groups)) < 2:
        raise DataError(
            f"all images of {file.path} are of the group {written(found.groups[0])}, so none is "
            "left for validation; add images of other groups, or remove the column group"
        )


def _check_apart(train: ImageSource, val: ImageSource, file: LabelFile) -> None:
    """Raise DataError if a group is in both splits."""
    if train.groups is None or val.groups is None:
        return
    both = sorted(set(train.groups) & set(val.groups))
    if both:
        more = f" and {len(both) - NAMED:,} more" if len(both) > NAMED else ""
        raise DataError(
            f"both splits have {counted(len(both), 'group')} of {file.path}: "
            f"{', '.join(map(printable, both[:NAMED]))}{more}; all images of a group must be in "
            "one split"
        )


def _notes(file: LabelFile, left_out: int, where: str) -> list[str]:
    """Return sentences about images without a row, and about columns that are not read."""
    notes = []
    if left_out:
        notes.append(
            f"{counted(left_out, 'image')} of {where} left out, without a row in {file.path}"
        )
    if file.unread:
        notes.append(f"columns of {file.path} that are not read: {', '.join(file.unread)}")
    return notes
