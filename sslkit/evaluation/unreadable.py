"""Finds, lists and removes unreadable images of an evaluation."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset

from sslkit.data.plain import decoded, unlike
from sslkit.data.workers import ALONE, deliver, read
from sslkit.errors import DataError, counted, printable
from sslkit.evaluation.data import Splits, check
from sslkit.evaluation.images import BATCH, Progress
from sslkit.evaluation.rows import Rows
from sslkit.interfaces import ImageSource

SHOWN = 10
"""Largest number of unreadable images that a message lists."""


class Unreadable(NamedTuple):
    """An unreadable image: its split, its row in the split, its name and the reason."""

    split: str
    row: int
    name: str
    reason: str


class _Reader(Dataset):
    """Reads images: rows → unreadable rows with reasons."""

    def __init__(self, source: ImageSource) -> None:
        self.source = source

    def __getitem__(self, rows: np.ndarray) -> list[tuple[int, str]]:
        found = []
        for row in rows.tolist():
            image = read(decoded, self.source, row)
            reason = unlike(image, self.source) or image
            if isinstance(reason, str):
                found.append((row, reason))
        return found


def find(splits: Mapping[str, ImageSource], workers: int, progress: Progress) -> list[Unreadable]:
    """Read every image of all splits once, and return the unreadable ones."""
    total = sum(map(len, splits.values()))
    found = []
    with progress("checking images") as advance:
        for split, source in splits.items():
            orders = np.split(np.arange(len(source)), range(BATCH, len(source), BATCH))
            results = deliver(_Reader(source), orders, workers, remedy=ALONE)
            for order, wrong in zip(orders, results, strict=True):
                for row, reason in wrong:
                    name = printable(str(source.names[row]))
                    found.append(Unreadable(split, row, name, reason))
                advance(len(order), total)
    return found


def left_out(
    splits: Splits, needs: str, workers: int, progress: Progress
) -> tuple[Splits, list[Unreadable]]:
    """Return the splits without unreadable images. Raises DataError if too few are left."""
    found = find({"train": splits.train, "val": splits.val}, workers, progress)
    if not found:
        return splits, []
    some = splits._replace(
        train=without(splits.train, [one.row for one in found if one.split == "train"]),
        val=without(splits.val, [one.row for one in found if one.split == "val"]),
        notes=(*splits.notes, left_out_note(found)),
    )
    try:
        return check(some, needs), found
    except DataError as error:
        message = f"{error} ({counted(len(found), 'image')} left out, which cannot be read)"
        raise DataError(message) from error


def without(source: ImageSource, rows: Sequence[int]) -> ImageSource:
    """Return a source without some rows."""
    if not rows:
        return source
    left = Rows(source, np.setdiff1d(np.arange(len(source)), rows))
    left.place, left.has_val = source.place, source.has_val
    return left


def left_out_note(found: Sequence[Unreadable]) -> str:
    """Return a message with the images that were left out."""
    return f"{counted(len(found), 'image')} left out, which cannot be read:{_lines(found)}"


def refusal(found: Sequence[Unreadable], because: str, *, skippable: bool = True) -> DataError:
    """Return an error with the unreadable images. `because` is the reason for the refusal.

    `skippable`: the command has the option --skip-unreadable.
    """
    skip = ", or skip them: --skip-unreadable" if skippable else ""
    return DataError(
        f"{counted(len(found), 'image')} cannot be read, and {because}; "
        f"repair or remove them{skip}{_lines(found)}"
    )


def _lines(found: Sequence[Unreadable]) -> str:
    """Return a line for each of the first images."""
    lines = [f"\n  {one.name} ({one.split}): {one.reason}" for one in found[:SHOWN]]
    if len(found) > SHOWN:
        lines.append(f"\n  and {len(found) - SHOWN:,} more")
    return "".join(lines)
