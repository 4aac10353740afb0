"""Judges a run by its numbers: collapsed, not learning, healthy."""

from collections import deque
from statistics import fmean

from sslkit.runs.metrics import Row

WINDOW = 50
"""Steps that a judgement is based on."""

COLLAPSED = 0.1
"""Standard deviation of features (`feature_std/NAME`) below which they say nothing."""

EARLY = 0.1
"""Part of a run in which features that are alike may be those of an untrained network."""


class Health:
    """Collects the steps of a run and judges them.

    `expected` is the loss of random vectors, or None. `filled` says that a bank was initialised by
    a forward pass: it holds no random vectors, so the first loss is not judged.
    """

    def __init__(self, expected: float | None, steps: int, *, filled: bool = False) -> None:
        self.expected, self.steps, self.filled = expected, steps, filled
        self.first: Row | None = None
        self.last: deque[Row] = deque(maxlen=WINDOW)

    def add(self, row: Row) -> None:
        """Add the next step."""
        if self.first is None:
            self.first = row
        self.last.append(row)

    def start(self) -> str:
        """Compare the first loss with that of random vectors."""
        if self.first is None:
            return "no step yet"
        loss = self.first.loss
        if self.expected is None or self.first.step > 1:
            return f"loss {loss:.2f} at step {self.first.step}"
        if self.filled:
            return (
                f"loss {loss:.2f} at the first step, {self.expected:.2f} at chance; bank "
                "initialised by a forward pass; nothing to compare with"
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
        """Judge the last steps: collapse first, then a loss that stays at chance."""
        if not self.last:
            return "no step yet"
        for name in self.last[-1].metrics:
            if name.startswith("feature_std/") and self._collapsed(name):
                return (
                    f"collapsed: {name} is {self._mean(name):.2f} (0 = all images alike, 1 = "
                    "spread over all directions); the features say nothing about the image"
                )
        loss = fmean(row.loss for row in self.last)
        if len(self.last) < WINDOW:
            return f"too early to judge: loss {loss:.2f} over {len(self.last)} steps"
        if self.expected is None:
            return f"healthy: loss {loss:.2f}"
        step = self.last[-1].step
        if step > self.steps / 2 and loss > 0.98 * self.expected:
            return (
                f"not learning: after {step} of {self.steps} steps the loss is {loss:.2f}, at "
                f"chance ({self.expected:.2f})"
            )
        return f"healthy: loss {loss:.2f}, {self.expected:.2f} at chance"

    def _mean(self, name: str) -> float:
        return fmean(row.metrics[name] for row in self.last)

    def _collapsed(self, name: str) -> bool:
        """Return whether features are alike, and no longer those of an untrained network.

        These may be alike as well, so early in a run features must have become more alike.
        """
        assert self.first is not None
        value = self._mean(name)
        late = self.last[-1].step > EARLY * self.steps
        return value < COLLAPSED and (late or value < self.first.metrics[name] / 2)
