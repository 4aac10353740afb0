"""Finds the folders of a data set that are its splits."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from sslkit.errors import DataError, counted, printable
from sslkit_plugins.datasets.decoding import ENDINGS
from sslkit_plugins.datasets.ours import is_our_folder, is_our_picture, may_be_ours
from sslkit_plugins.datasets.walk import ending_of, is_hidden, json_stems

TRAIN = ("train", "training")
VAL = ("val", "valid", "validation", "dev", "test", "testing")
"""Names of split folders in lower case. The first of VAL with images is the validation split.

Without any images there, training ignores the first, and evaluations refuse it.
"""

NAMED = 5
"""Largest number of folders that one sentence names."""


@dataclass(frozen=True)
class Layout:
    """The splits of a data set."""

    train: str = ""
    """Folder of the training images; "" for the root itself."""
    val: str | None = None
    """Folder of the validation images; one without images if no other is named so."""
    unused: tuple[str, ...] = ()
    """Folders and images next to the splits, which are not read."""


def read_layout(root: Path) -> Layout:
    """Return the splits among the folders directly in `root`, by their names in any case.

    A single split folder is the training split, whatever its name. Raises DataError for a mixture
    of split folders and other folders, for several training folders, and for broken links. Raises
    OSError if `root` cannot be read.
    """
    folders, loose = _contents(root)
    train = [name for name in folders if name.lower() in TRAIN]
    val = [name for name in folders if name.lower() in VAL]
    if not train and not val:
        return Layout()
    rest = set(folders) - {*train, *val}
    links = [name for name in sorted(rest) if os.path.islink(root / name)]
    others = _filled(root, rest - set(links))
    named = sorted(val, key=lambda name: VAL.index(name.lower()))
    val = [name for name in named if holds_images(root / name)]
    filled = _filled(root, train)
    if not filled and not val:
        return Layout()
    train = filled or train
    if not train and not others and not loose and len(val) == 1:
        return Layout(val[0])
    if len(train) > 1:
        _refuse_several(root, train, "train on")
    if not train and not others and not loose and val:
        _refuse_several(root, val, "choose from, none of them named train")
    if (others and not (train and val)) or not train:
        _refuse_mixture(root, [*train, *val], others, loose)
    val = val or named[:1]
    unused = _shown(sorted([*val[1:], *others, *links]))
    unused += [f"{name}/ (without images)" for name in sorted(set(named) - set(val))]
    if loose:
        unused.append(counted(loose, "image"))
    return Layout(train[0], val[0] if val else None, tuple(unused))


def has_training_folder(root: Path) -> bool:
    """Tell whether `root` contains a folder named train or training."""
    return any(name.lower() in TRAIN for name in os.listdir(root))


def _contents(root: Path) -> tuple[list[str], int]:
    """Return the folders directly in `root`, and the number of images next to them."""
    folders, files = [], []
    with os.scandir(root) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                continue
            is_link = entry.is_symlink()  # entry.is_dir() raises for a circular link.
            if os.path.isdir(entry.path) if is_link else entry.is_dir():
                folders.append(entry.name)
            elif entry.name.lower() in (*TRAIN, *VAL) and not os.path.exists(entry.path):
                raise DataError(f"{entry.path} is a broken link; repair or remove it")
            else:
                files.append(entry.name)
    beside = json_stems(files)
    images = [name for name in files if ending_of(name) in ENDINGS]
    loose = len(images)
    for name in images:
        if may_be_ours(os.path.splitext(name)[0].lower(), beside):
            loose -= is_our_picture(str(root / name))
    return sorted(folders), loose


def _filled(root: Path, names: Iterable[str]) -> list[str]:
    """Return the folders with images."""
    return [name for name in sorted(names) if holds_images(root / name)]


def holds_images(folder: Path) -> bool:
    """Tell whether a folder contains an image, a link or an unreadable folder at any depth."""
    unreadable: list[OSError] = []
    for base, folders, files in os.walk(folder, onerror=unreadable.append):
        folders[:] = [name for name in folders if not is_hidden(name)]
        if is_our_folder(base):
            folders.clear()
            continue
        links = [name for name in folders if os.path.islink(os.path.join(base, name))]
        images = [name for name in files if not is_hidden(name) and ending_of(name) in ENDINGS]
        if images or links:
            return True
    return bool(unreadable)


def _shown(folders: list[str]) -> list[str]:
    """Return the first folders as a sentence names them."""
    shown = [f"{printable(name)}/" for name in folders[:NAMED]]
    if len(folders) > NAMED:
        shown.append(f"{len(folders) - NAMED} more folders")
    return shown


def _refuse_several(root: Path, names: list[str], purpose: str) -> NoReturn:
    raise DataError(
        f"{root} has several folders to {purpose}: {', '.join(_shown(names))}; name one of them "
        f"instead, such as {root / names[0]}, or use all images as one set: "
        "--set data.splits=false"
    )


def _refuse_mixture(root: Path, splits: list[str], others: list[str], loose: int) -> NoReturn:
    beside = _shown(others)
    if loose:
        beside.append(counted(loose, "image"))
    raise DataError(
        f"{root} mixes {', '.join(_shown(splits))}, named like a split, with {', '.join(beside)}; "
        f"name {root / splits[0]} instead to use only that folder, or use every folder as a class: "
        "--set data.splits=false"
    )
