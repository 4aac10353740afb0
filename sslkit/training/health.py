"""Is it broken, or just not learning? Judgements in plain words, from the numbers of a run alone."""

from collections import deque
from statistics import fmean

from sslkit.runs.metrics import Row

WINDOW = 50
COLLAPSED = 0.1


class Health:
    """Watches rows and says what they mean. `expected` is the loss of random vectors, None where there is no such number.

    Memory that is `filled` by a first pass holds no random vectors, so that the first loss is not judged.
    """

    def __init__(self, expected: float | None, steps: int, *, filled: bool = False) -> None:
        self.expected, self.steps, self.filled = expected, steps, filled
        self.first: float | None = None
        self.first_step = 0
        self.last: deque[Row] = deque(maxlen=WINDOW)

    def add(self, row: Row) -> None:
        if self.first is None:
            self.first, self.first_step = row.loss, row.step
        self.last.append(row)

    def start(self) -> str:
        """The first loss against what random outputs would give."""
        if self.first is None:
            return "no step yet"
        if self.expected is None or self.first_step > 1:
            return f"loss {self.first:.2f} at step {self.first_step}"
        if self.filled:
            return f"loss {self.first:.2f} at the first step, {self.expected:.2f} at chance; memory holds a first pass, so no judgement yet"
        text = f"loss {self.first:.2f} at the first step, {self.expected:.2f} expected of random outputs"
        if self.first > 1.5 * self.expected:
            return f"{text}: far too high; look at the learning rate, the temperature and the reduction of the loss"
        if self.first < 0.5 * self.expected:
            return f"{text}: far too low; the positive may stand among the negatives, or the views may be the same picture"
        return f"{text}: as it should be"

    def now(self) -> str:
        """How the last steps look: collapse first, then a loss that does not move, else what has been gained."""
        if not self.last:
            return "no step yet"
        for name in self.last[-1].metrics:
            if name.startswith("feature_std/"):
                spread = fmean(row.metrics[name] for row in self.last)
                if spread < COLLAPSED:
                    return f"collapsed: {name} is {spread:.2f} (0 = all images the same, 1 = spread evenly); the outputs say nothing about the image"
        loss = fmean(row.loss for row in self.last)
        if len(self.last) < WINDOW:
            return f"too early to judge: loss {loss:.2f} over {len(self.last)} steps"
        if (
            self.expected is not None
            and self.last[-1].step > self.steps / 2
            and loss > 0.98 * self.expected
        ):
            return f"not learning: after {self.last[-1].step} of {self.steps} steps the loss is {loss:.2f}, at chance ({self.expected:.2f})"
        return f"healthy: loss {loss:.2f}" + (
            f", {self.expected:.2f} at chance" if self.expected is not None else ""
        )
