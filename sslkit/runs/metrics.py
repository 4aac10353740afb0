"""Metrics of a run: rows of steps, metrics.jsonl, and bins for curves."""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sslkit.runs import files

BINS = 2000
"""Largest number of bins of a curve."""


UNTRAINED = ", untrained"
"""End of the name of a metric of the untrained encoder, in the first row only."""


@dataclass(frozen=True)
class Row:
    """The metrics of one step, averaged over ranks, as in metrics.jsonl.

    Steps and epochs are counted from 1.
    """

    step: int
    epoch: int
    lr: float
    loss: float
    metrics: dict[str, float]

    def numbers(self) -> dict[str, float]:
        """Return all numbers by name, as in a line of metrics.jsonl."""
        fixed = {"step": self.step, "epoch": self.epoch, "lr": self.lr, "loss": self.loss}
        return fixed | self.metrics

    def line(self) -> str:
        """Return the line of metrics.jsonl without line end."""
        return json.dumps(self.numbers())

    @classmethod
    def of(cls, line: str) -> "Row | None":
        """Parse a line of metrics.jsonl; None if it is malformed."""
        try:
            numbers = {name: value + 0.0 for name, value in json.loads(line).items()}
            step, epoch = int(numbers.pop("step")), int(numbers.pop("epoch", 1))
            return cls(step, epoch, numbers.pop("lr", math.nan), numbers.pop("loss"), numbers)
        except (
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            RecursionError,
            OverflowError,
        ):
            return None


def last_step(path: Path) -> int:
    """Return the last step in metrics.jsonl, or 0."""
    last = 0
    if path.exists():
        with path.open(encoding="utf-8", errors="replace") as lines:
            for row in filter(None, map(Row.of, lines)):
                last = max(last, row.step)
    return last


def columns(path: Path) -> dict[str, np.ndarray]:
    """Return the columns of metrics.jsonl: `step` and `epoch` int64, the others float64, [steps].

    Missing numbers are NaN. Returns {} if there is no file.
    """
    rows: list[Row] = []
    if path.exists():
        with path.open(encoding="utf-8", errors="replace") as lines:
            rows = [row for row in map(Row.of, lines) if row is not None]
    numbers = [row.numbers() for row in rows]
    names: dict[str, None] = {}
    for step in numbers:
        names |= dict.fromkeys(step)
    columns = {}
    for name in names:
        columns[name] = np.array([step.get(name, math.nan) for step in numbers])
    return columns


class Bins:
    """Means of every number over bins of equal numbers of steps, in constant memory.

    A bin has one step until there are BINS steps; then pairs of bins are merged.
    """

    def __init__(self) -> None:
        self.width = 1
        self.totals: dict[str, np.ndarray] = {}
        self.counts: dict[str, np.ndarray] = {}

    def add(self, row: Row) -> None:
        """Add a step, without non-finite numbers."""
        while (row.step - 1) // self.width >= BINS:
            self._join()
        place = (row.step - 1) // self.width
        for name, value in row.numbers().items():
            if name not in self.totals:
                self.totals[name] = np.zeros(BINS)
                self.counts[name] = np.zeros(BINS, np.int64)
            if math.isfinite(value):
                self.totals[name][place] += value
                self.counts[name][place] += 1

    def _join(self) -> None:
        self.width *= 2
        for bins in (self.totals, self.counts):
            for name, values in bins.items():
                joined = values.reshape(-1, 2).sum(1)
                bins[name] = np.concatenate([joined, np.zeros_like(joined)])

    def mean(self, name: str) -> np.ndarray:
        """Return the means of non-empty bins, float64 [bins]; NaN without finite numbers."""
        filled = self.counts["step"] > 0
        with np.errstate(invalid="ignore"):
            return (self.totals[name] / self.counts[name])[filled]


class Metrics:
    """Writes metrics.jsonl, one line per step.

    On resume, drops later steps and malformed lines, and calls `seen` with each remaining row.
    `bins` includes all rows.
    """

    def __init__(
        self, path: Path, step: int, seen: Callable[[Row], None] = lambda row: None
    ) -> None:
        self.path, self.bins, self.seen = path, Bins(), seen
        with files.replacing(path) as beside, beside.open("w", encoding="utf-8") as kept:
            if path.exists():
                with path.open(encoding="utf-8", errors="replace") as before:
                    kept.writelines(self._kept(before, step))

    def _kept(self, lines: Iterable[str], step: int) -> Iterator[str]:
        """Yield the lines of steps up to `step`; old files counted epochs from 0."""
        shift = 0
        for line in lines:
            row = Row.of(line)
            if row is None or row.step > step:
                continue
            if not self.bins.counts:
                shift = int(row.epoch == 0)
            if shift:
                row = replace(row, epoch=row.epoch + 1)
                line = row.line()
            self.bins.add(row)
            self.seen(row)
            yield line.rstrip("\n") + "\n"

    def add(self, rows: list[Row]) -> None:
        """Append the next steps."""
        with files.writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.writelines(row.line() + "\n" for row in rows)
        for row in rows:
            self.bins.add(row)
