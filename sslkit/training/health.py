"""Judges a run by its numbers: collapsed, not learning, at chance, healthy, too short to tell."""

from collections import deque
from collections.abc import Iterable, Mapping
from statistics import fmean, stdev

from sslkit.errors import counted
from sslkit.runs.metrics import Row

WINDOW = 50
"""Steps that a judgement is based on."""

EARLY = 20
"""Steps that the last ones are compared with."""

SETTLED = 4
"""Epochs before those: a memory settles in this time, and the loss with it, also if nothing is
learnt."""

ENOUGH = 200
"""Steps before which a run that is no better than chance is too short to tell."""

COLLAPSED = 0.1
"""Standard deviation of features (`feature_std/NAME`) below which they say little."""

ALIKE = 0.01
"""The same, below which all features are the same."""

MARGIN, ERRORS = 0.02, 3.0
"""Two means differ if they do by this part of the second, and by so many standard errors."""


class Health:
    """Collects the steps of a run and judges them.

    `expected` is the first loss of random vectors, or None; `chances` are those of
    `Method.at_chance`. `filled` says that a bank was initialised by a forward pass: it holds no
    random vectors, so the first loss is not judged. `epoch` counts the steps of one.
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
        """The last of the early steps."""
        self.reached = 0
        """The step that the run has come to; a skipped one has no numbers to add."""
        self.first: Row | None = None
        self.early: list[Row] = []
        self.last: deque[Row] = deque(maxlen=WINDOW)

    def remember(self, row: Row) -> None:
        """Add a step of an earlier session, to compare with."""
        if row.step == 1:
            self.first = row
        if self.settled - EARLY < row.step <= self.settled:
            self.early.append(row)

    def add(self, row: Row) -> None:
        """Add the next step."""
        self.remember(row)
        if self.first is None:
            self.first = row
        self.last.append(row)
        self.reached = max(self.reached, row.step)

    def start(self) -> str:
        """Compare the first loss with that of random vectors."""
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
        if loss > 1.5 * self.expected:
            return (
                f"{text}: far too high; check the learning rate, the temperature and the reduction "
                "of the loss"
            )
        if loss < 0.5 * self.expected:
            return (
                f"{text}: far too low; the positive may be among the negatives, or the views may "
                "be the same picture"
            )
        return f"{text}: as it should be"

    def now(self) -> str:
        """Judge the last steps: collapse, then every number that has a chance, then the loss."""
        if not self.last:
            return "no step was taken"
        for name in self.last[-1].metrics:
            if name.startswith("feature_std/") and (text := self._collapsed(name)):
                return text
        if len(self.last) < WINDOW:
            return (
                f"{self._undecided()}: {self._shown('loss')} over {counted(len(self.last), 'step')}"
            )
        judged = [name for name in self.chances if _has(self.last, name)]
        if not judged:
            return self._against_early()
        failing = [name for name in judged if not self._beats(name)]
        if not failing:
            return f"healthy: {self._listed(judged)}"
        if self._too_short():
            return f"{self._undecided()}: {self._listed(failing)}"
        text = self._listed(failing, with_margin=True)
        step = self.reached
        if all(self._improved(name) for name in failing):
            if any(self._at_chance(name) for name in failing):
                return f"at chance: after {step} of {self.steps} steps {text}"
            return f"slow: after {step} of {self.steps} steps better than before, but {text}"
        part = "" if len(failing) == len(judged) else f" by {', '.join(failing)}"
        verdict = "no progress so far" if step < self.steps else "not learning"
        return f"{verdict}{part}: after {step} of {self.steps} steps {text}"

    def _too_short(self) -> bool:
        """Return whether steps are too few to find fault with."""
        return self.last[-1].step <= max(ENOUGH, self.steps / 2)

    def _undecided(self) -> str:
        return "too early to judge" if self.reached < self.steps else "too short to tell"

    def _against_early(self) -> str:
        """Compare a loss without a known chance with the early steps."""
        text = self._shown("loss")
        if self._improved("loss"):
            return f"healthy: {text}"
        if self._too_short() or not self.early:
            return f"{self._undecided()}: {text}"
        return f"no progress in the loss, whose chance is not known: {text}"

    def _shown(self, name: str, with_margin: bool = False) -> str:
        """Return a number with its chance and its early value, where these are known.

        `with_margin` adds by how much it must differ from its chance.
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
        """Return whether a number is better than its chance."""
        values = _values(self.last, name)
        return _better(name, fmean(values), self.chances[name], _error(values))

    def _at_chance(self, name: str) -> bool:
        """Return whether a number that does not beat its chance is not worse either."""
        values, chance = _values(self.last, name), self.chances[name]
        return abs(fmean(values) - chance) <= _margin(chance, _error(values))

    def _improved(self, name: str) -> bool:
        """Return whether a number is better than in the early steps."""
        if not _has(self.early, name) or self.last[0].step <= self.settled:
            return False
        now, then = _values(self.last, name), _values(self.early, name)
        return _better(name, fmean(now), fmean(then), _error(now) + _error(then))

    def _collapsed(self, name: str) -> str | None:
        """Say that features became alike, or are all the same; None where they are not.

        Those of an untrained network may be nearly alike, and learn nevertheless.
        """
        if self.first is None or self.first.step > 1 or len(self.last) < WINDOW:
            return None
        now, then = _mean(self.last, name), self.first.metrics.get(name, 1.0)
        if now >= COLLAPSED or (now >= then / 2 and now >= ALIKE):
            return None
        if now >= then / 2 and self._too_short():
            return None
        return (
            f"collapsed: {name} is {now:.3f}, {then:.3f} at the first step (0 = all images alike, "
            "1 = spread over all directions); the features say nothing about the image"
        )


def _has(rows: Iterable[Row], name: str) -> bool:
    """Return whether rows have a number of this name."""
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
    """Return whether a mean is clearly better: lower for names in `loss…`, higher for others."""
    ahead = other - value if name.startswith("loss") else value - other
    return ahead > _margin(other, error)


def _margin(other: float, error: float) -> float:
    """Return by how much a mean must differ from `other`."""
    return max(MARGIN * abs(other), ERRORS * error)
