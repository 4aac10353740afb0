"""Reads the JSON of an evaluation: rows, candidates, scores, and number formats."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

CHANCE = "chance"
ARROWS = {"higher": "↑", "lower": "↓", "neither": ""}


@dataclass(frozen=True)
class Metric:
    """A metric in the JSON. Values with the unit "%" are fractions."""

    name: str
    unit: str
    better: str
    low: float | None
    high: float | None

    @property
    def factor(self) -> float:
        """Scale of displayed values."""
        return 100.0 if self.unit == "%" else 1.0

    @property
    def title(self) -> str:
        """Name, unit and direction."""
        return " ".join(filter(None, (self.name, self.unit, ARROWS[self.better])))

    def text(self, value: float | None) -> str:
        """Format a value with 1 decimal for %, else 3; None becomes "-"."""
        if value is None:
            return "-"
        return f"{value * self.factor:.1f}" if self.unit == "%" else f"{value:.3f}"

    def range(self, interval: dict[str, Any]) -> str:
        """Format an interval."""
        return f"[{self.text(interval['low'])}, {self.text(interval['high'])}]"

    def ends(self) -> tuple[float | None, float | None]:
        """Return the displayed ends of the axis."""
        low, high = self.low, self.high
        if self.unit == "%":
            low, high = 0.0 if low is None else low, 1.0 if high is None else high
        return self._shown(low), self._shown(high)

    def _shown(self, value: float | None) -> float | None:
        return None if value is None else value * self.factor


class Pivot:
    """The scores of a result by row and candidate."""

    def __init__(self, result: dict[str, Any]) -> None:
        self.result = result
        self.metrics = [Metric(**metric) for metric in result["metrics"]]
        self.entries = {(one["row"], one["candidate"]): one for one in result["entries"]}
        self.rows = _unique(row for row, _ in self.entries if row is not None)
        stated = result["protocol"].get("candidates", [])
        self.baselines = {one["name"] for one in stated if one["baseline"]} | {CHANCE}
        order = [one["name"] for one in stated]
        present = _unique(name for _, name in self.entries)
        self.candidates = [name for name in order if name in present]
        self.candidates += [name for name in present if name not in order]

    def score(self, row: str | None, candidate: str, metric: Metric) -> dict[str, Any] | None:
        """Return the score of a candidate in a row, or None."""
        entry = self.entries.get((row, candidate))
        return None if entry is None else entry["scores"].get(metric.name)

    def everywhere(self) -> list[str]:
        """Return the candidates whose single score applies to all rows."""
        return [name for name in self.candidates if (None, name) in self.entries]

    def compared(self, row: str | None) -> tuple[str, dict[str, Any]] | None:
        """Return the reference candidate of a row and its differences to the others, or None."""
        for (other, name), entry in self.entries.items():
            if other == row and entry["differences"]:
                return name, entry["differences"]
        return None


def interval(score: dict[str, Any]) -> dict[str, Any] | None:
    """Return the widest interval of a score, or None."""
    finite = [one for one in score["intervals"] if None not in (one["low"], one["high"])]
    return max(finite, key=lambda one: one["high"] - one["low"], default=None)


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
