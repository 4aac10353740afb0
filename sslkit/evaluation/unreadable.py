"""Images of an evaluation that cannot be read: all of them found at once, named, left out."""

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
"""Unreadable images that are named on the screen."""


class Unreadable(NamedTuple):
    """One image: its split, its place there, its name, and why it cannot be read."""

    split: str
    row: int
    name: str
    reason: str


class _Reader(Dataset):
    """Rows → those that cannot be read, with the reasons."""

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
    """Read every image of all splits once."""
    total = sum(map(len, splits.values()))
    found = []
    with progress("checking images") as advance:
        for split, source in splits.items():
            orders = np.split(np.arange(len(source)), range(BATCH, len(source), BATCH))
            answers = deliver(_Reader(source), orders, workers, remedy=ALONE)
            for order, wrong in zip(orders, answers, strict=True):
                for row, reason in wrong:
                    name = printable(str(source.names[row]))
                    found.append(Unreadable(split, row, name, reason))
                advance(len(order), total)
    return found


def left_out(
    splits: Splits, needs: str, workers: int, progress: Progress
) -> tuple[Splits, list[Unreadable]]:
    """Return the splits without what cannot be read. DataError where too little is left."""
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
    """Return the sentence that names what was left out."""
    return f"{counted(len(found), 'image')} left out, which cannot be read:{_lines(found)}"


def refusal(found: Sequence[Unreadable], because: str) -> DataError:
    """Return the error that names what cannot be read. `because` says why it is refused."""
    return DataError(
        f"{counted(len(found), 'image')} cannot be read, and {because}; "
        f"repair or remove them, or go on without them: --skip-unreadable{_lines(found)}"
    )


def _lines(found: Sequence[Unreadable]) -> str:
    """Return a line for each of the first images."""
    lines = [f"\n  {one.name} ({one.split}): {one.reason}" for one in found[:SHOWN]]
    if len(found) > SHOWN:
        lines.append(f"\n  and {len(found) - SHOWN:,} more")
    return "".join(lines)
