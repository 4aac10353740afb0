"""Lists of the training images that fine-tuning uses: a share of every class, or a file."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sslkit.errors import Fault, RecipeError, counted
from sslkit.interfaces import ImageSource

NAMED = 3
"""Names in a message."""


def read_share(value: str | float) -> float:
    """Return a share as a fraction: 0.01 for "1%" and for 0.01.

    Raises RecipeError outside of 0 … 100 %, and for the number 1, which has two meanings.
    """
    text = value.strip() if isinstance(value, str) else f"{value:g}"
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise _fault("share", f"'{text}' is no share; write 1%, 10%, 100% or 0.1") from None
    if text.endswith("%") and 0 < share <= 1:
        return share
    if not 0 < share < 1:
        raise _fault("share", f"{text} is not above 0 and below 1; write 1%, 10%, 100% or 0.1")
    return share


def draw(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Return the rows int64 [n] of a share of every class, at least one image of each.

    With the same seed, a smaller share is inside a larger one.
    """
    rng = np.random.default_rng(seed)
    drawn = []
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        drawn.append(rows[: max(1, round(share * len(rows)))])
    return np.sort(np.concatenate(drawn))


def names(file: Path) -> set[str]:
    """Return the names in a file, one per line. Raises RecipeError if it cannot be read."""
    try:
        lines = file.expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise _fault("list", f"{file} cannot be read: {error}; name a file of names") from error
    return {line.strip() for line in lines if line.strip()}


def read(file: Path, images: ImageSource, classes: Sequence[str]) -> np.ndarray:
    """Return the rows int64 [n] of the images that a file names, one per line.

    A name is that of the data set, such as `cat/1.jpg`. SimCLR's lists of ImageNet have its last
    part, which is enough if no other image has it. Raises RecipeError for other names and for
    missing classes.
    """
    assert images.labels is not None
    wanted = names(file)
    places = _places(images)
    strange = sorted(name for name in wanted if name not in places)
    if strange:
        raise _fault(
            "list",
            f"{file} names {counted(len(strange), 'image')} that the training images do not have: "
            f"{_some(strange)}; remove these lines, or name the folder that the list is of: "
            "--data DIR",
        )
    rows = np.sort(np.array([places[name] for name in wanted], np.int64))
    missing = np.setdiff1d(np.unique(images.labels), images.labels[rows])
    if len(missing):
        absent = _some([classes[label] for label in missing])
        raise _fault("list", f"{file} names no image of {absent}; add one of every class")
    return rows


def _places(images: ImageSource) -> dict[str, int]:
    """Return the row of every name, and of its last part if no other image has it."""
    short: dict[str, list[int]] = {}
    for row, name in enumerate(images.names):
        short.setdefault(str(name).rpartition("/")[2], []).append(row)
    places = {name: rows[0] for name, rows in short.items() if len(rows) == 1}
    return places | {str(name): row for row, name in enumerate(images.names)}


def written(images: ImageSource, rows: np.ndarray) -> tuple[str, str]:
    """Return the text of a list, sorted names one per line, and its SHA-256."""
    chosen = sorted(str(images.names[row]) for row in rows)
    text = "".join(f"{name}\n" for name in chosen)
    return text, hashlib.sha256(text.encode()).hexdigest()


def _some(found: list[str]) -> str:
    more = f" and {len(found) - NAMED:,} more" if len(found) > NAMED else ""
    return f"{', '.join(found[:NAMED])}{more}"


def _fault(option: str, message: str) -> RecipeError:
    return RecipeError(Fault(f"--{option}", message))
