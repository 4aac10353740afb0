"""Assesses a run from its metrics: collapsed, not learning, at chance, healthy, undecided."""

from collections import deque
from collections.abc import Iterable, Mapping
from statistics import fmean, stdev

from sslkit.errors import counted
from sslkit.runs.metrics import Row

WINDOW = 50
"""Number of last steps that an assessment uses."""

EARLY = 20
"""Number of early steps for comparison."""

SETTLED = 4
"""Epochs until the early steps. A memory bank changes the loss during them without learning."""

ENOUGH = 200
"""Smallest number of steps before a run without progress is reported."""

COLLAPSED = 0.1
"""Standard deviation of features (`feature_std/NAME`) below which they may have collapsed."""

ALIKE = 0.01
"""Standard deviation of features below which they are the same for all images."""

NEAR = 0.5
"""Smallest difference of the first loss from the expected one that is reported."""

MARGIN, ERRORS = 0.02, 3.0
"""Smallest difference of two means, relative to the second and in standard errors."""


class Health:
    """Collects the metrics of a run and assesses them.

    `expected` is the expected first loss of random vectors, or None. `chances` are the values of
    `Method.at_chance`. `filled` means that a forward pass initialised a bank, so the first loss is
    not compared with `expected`. `epoch` is the number of steps per epoch.
    """

    def __init__(
        self,
        expected: float | None,
        steps: int,
        *,
        chances: Mapping[str, float] | None = None,
        filled: bool = False,
        epoch: int = 1,
    ) -> None:
        self.expected, self.steps, self.filled = expected, steps, filled
        self.chances = dict(chances or {})
        self.settled = max(EARLY, min(SETTLED * epoch, steps // 3))
        """Last early step."""
        self.reached = 0
        """Current step of the run, including skipped steps, which add no metrics."""
        self.first: Row | None = None
        self.early: list[Row] = []
        self.last: deque[Row] = deque(maxlen=WINDOW)

    def remember(self, row: Row) -> None:
        """Add a step of an earlier session."""
        if row.step == 1:
            self.first = row
        if self.settled - EARLY < row.step <= self.settled:
            self.early.append(row)
        self.last.append(row)

    def add(self, row: Row) -> None:
        """Add the next step."""
        self.remember(row)
        if self.first is None:
            self.first = row
        self.reached = max(self.reached, row.step)

    def start(self) -> str:
        """Compare the first loss with the expected loss of random vectors."""
        if self.first is None:
            return "no step yet"
        loss = self.first.loss
        if self.expected is None or self.first.step > 1:
            return f"loss {loss:.2f} at step {self.first.step}"
        if self.filled:
            return (
                f"loss {loss:.2f} at the first step, {self.expected:.2f} expected of random "
                "vectors; bank initialised by a forward pass; nothing to compare with"
            )
        text = f"loss {loss:.2f} at the first step, {self.expected:.2f} expected of random vectors"
        far = max(abs(self.expected) / 2, NEAR)
        if loss > self.expected + far:
            return (
                f"{text}: far too high; check the learning rate, the temperature and the reduction "
                "of the loss"
            )
        if loss < self.expected - far:
            return (
                f"{text}: far too low; the positive may be among the negatives, or the views may "
                "be the same picture"
            )
        return f"{text}: as expected"

    def now(self) -> str:
        """Assess the last steps: collapse, metrics with a chance level, else the loss."""
        if not self.last:
            return "no step was taken"
        for name in self.last[-1].metrics:
            if name.startswith("feature_std/") and (text := self._collapsed(name)):
                return text
        if len(self.last) < WINDOW:
            return (
                f"{self._undecided()}: {self._shown('loss')} over {counted(len(self.last), 'step')}"
            )
        metrics = [name for name in self.chances if _has(self.last, name)]
        if not metrics:
            return self._against_early()
        failing = [name for name in metrics if not self._beats(name)]
        if not failing:
            return f"healthy: {self._listed(metrics)}"
        if self._too_short():
            return f"{self._undecided()}: {self._listed(failing)}"
        text = self._listed(failing, with_margin=True)
        step = self.reached
        if all(self._improved(name) for name in failing):
            if any(self._at_chance(name) for name in failing):
                return f"at chance: after {step} of {self.steps} steps {text}"
            return f"slow: after {step} of {self.steps} steps better than before, but {text}"
        names = "" if len(failing) == len(metrics) else f" by {', '.join(failing)}"
        verdict = "no progress so far" if step < self.steps else "not learning"
        return f"{verdict}{names}: after {step} of {self.steps} steps {text}"

    def _too_short(self) -> bool:
        """Tell whether there are too few steps for a negative verdict."""
        return self.last[-1].step <= max(ENOUGH, self.steps / 2)

    def _undecided(self) -> str:
        return "too early to judge" if self.reached < self.steps else "too short to tell"

    def _against_early(self) -> str:
        """Compare a loss without known chance level with the early steps."""
        text = self._shown("loss")
        if self._improved("loss"):
            return f"healthy: {text}"
        if self._too_short() or not self.early:
            return f"{self._undecided()}: {text}"
        return f"no progress in the loss, whose chance level is unknown: {text}"

    def _shown(self, name: str, with_margin: bool = False) -> str:
        """Return a metric with its chance level and its early value, if known.

        `with_margin` adds the required difference from chance level.
        """
        beside = []
        if name in self.chances:
            beside.append(f"{self.chances[name]:.2f} at chance")
        if _has(self.early, name) and self.last[0].step > self.settled:
            beside.append(f"{_mean(self.early, name):.2f} by step {self.settled}")
        shown = f" ({', '.join(beside)})" if beside else ""
        values = _values(self.last, name)
        margin = f" ± {_margin(self.chances[name], _error(values)):.2f}" if with_margin else ""
        return f"{name} {fmean(values):.2f}{margin}{shown}"

    def _listed(self, names: list[str], with_margin: bool = False) -> str:
        return ", ".join(self._shown(name, with_margin) for name in names)

    def _beats(self, name: str) -> bool:
        """Tell whether a metric is better than chance level."""
        values = _values(self.last, name)
        return _better(name, fmean(values), self.chances[name], _error(values))

    def _at_chance(self, name: str) -> bool:
        """Tell whether a metric is at chance level, within the margin."""
        values, chance = _values(self.last, name), self.chances[name]
        return abs(fmean(values) - chance) <= _margin(chance, _error(values))

    def _improved(self, name: str) -> bool:
        """Tell whether a metric is better than in the early steps."""
        if not _has(self.early, name) or self.last[0].step <= self.settled:
            return False
        now, then = _values(self.last, name), _values(self.early, name)
        return _better(name, fmean(now), fmean(then), _error(now) + _error(then))

    def _collapsed(self, name: str) -> str | None:
        """Return a message if features have collapsed, else None.

        Features of an untrained network may be nearly equal without collapse.
        """
        if self.first is None or self.first.step > 1 or len(self.last) < WINDOW:
            return None
        now, then = _mean(self.last, name), self.first.metrics.get(name, 1.0)
        if now >= COLLAPSED or (now >= then / 2 and now >= ALIKE):
            return None
        if now >= then / 2 and self._too_short():
            return None
        return (
            f"collapsed: {name} is {now:.3f}, {then:.3f} at the first step (0 = all images equal, "
            "1 = all directions used); the features hardly depend on the image"
        )


def _has(rows: Iterable[Row], name: str) -> bool:
    """Tell whether rows have a metric of this name."""
    return any(name == "loss" or name in row.metrics for row in rows)


def _values(rows: Iterable[Row], name: str) -> list[float]:
    if name == "loss":
        return [row.loss for row in rows]
    return [row.metrics[name] for row in rows]


def _mean(rows: Iterable[Row], name: str) -> float:
    return fmean(_values(rows, name))


def _error(values: list[float]) -> float:
    """Return the standard error of the mean."""
    return stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


def _better(name: str, value: float, other: float, error: float) -> bool:
    """Tell whether a mean is clearly better: lower for names in `loss…`, higher for others."""
    ahead = other - value if name.startswith("loss") else value - other
    return ahead > _margin(other, error)


def _margin(other: float, error: float) -> float:
    """Return the required difference of a mean from `other`."""
    return max(MARGIN * abs(other), ERRORS * error)
