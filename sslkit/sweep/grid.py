"""Runs the cells of a grid, shared with all processes that have its folder in common."""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from sslkit.errors import counted
from sslkit.sweep.cell import Cell
from sslkit.sweep.home import Home
from sslkit.sweep.runner import Failed, Interrupted, Runner
from sslkit.sweep.slot import Slot, work_at

WAIT = 2.0
"""Time between two looks at cells that other processes have, s."""


@dataclass
class Pace:
    """Estimates the remaining time from the cells that this process finished."""

    steps: int = 0
    seconds: float = 0.0

    def left(self, steps: int, slots: int) -> str:
        """Describe the time for so many steps; "" before the first cell."""
        if not self.steps or not steps:
            return ""
        return f"about {duration(steps * self.seconds / self.steps / slots)} left"


def duration(seconds: float) -> str:
    """Format a time in seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


@dataclass
class Grid:
    """The state of a grid in this process.

    `say` shows a line, `headline` describes the results of a finished cell, `steps` is the number
    of steps of each cell by name.
    """

    home: Home
    cells: Sequence[Cell]
    slots: Sequence[Slot]
    steps: dict[str, int]
    say: Callable[[str], None]
    headline: Callable[[Cell], str]
    failed: dict[str, str] = field(default_factory=dict)
    """Cells that failed in this process, with the reason."""

    def __post_init__(self) -> None:
        self.runner = Runner(self.home)
        self.pace = Pace()
        self._done: set[str] = set()
        self._mine: set[str] = set()
        self._choosing = threading.Lock()
        self._waits = False

    def run(self, stopped: Callable[[], bool]) -> None:
        """Run all cells, until every cell is finished or failed, or `stopped()`.

        Also waits for the cells of other processes, and takes over those that they leave.
        """
        for cell in self.cells:
            if self.home.is_finished(cell):
                self._done.add(cell.name)
        if self._done:
            self.say(f"{len(self._done)} of {counted(len(self.cells), 'cell')} finished already")
        work_at(self.slots, self._work, stopped, self.runner.stop)

    def unfinished(self) -> list[Cell]:
        """Return the cells that are neither finished nor failed."""
        over = self._done | set(self.failed)
        return [cell for cell in self.cells if cell.name not in over]

    def _work(self, slot: Slot) -> None:
        """Run cells at a slot until none is left."""
        while not self.runner.stop.is_set():
            with ExitStack() as stack:
                cell = self._take(stack)
                if cell is not None:
                    self._run(cell, slot)
                    continue
                waiting = [one for one in self.unfinished() if one.name not in self._mine]
            if not waiting:
                return
            if not self._waits:
                self._waits = True
                self.say(f"waiting for {counted(len(waiting), 'cell')} of other processes")
            self.runner.stop.wait(WAIT)

    def _take(self, stack: ExitStack) -> Cell | None:
        """Claim the next cell until `stack` closes; None if there is none."""
        with self._choosing:
            for cell in self.unfinished():
                if cell.name in self._mine:
                    continue
                with ExitStack() as claim:
                    if not self.home.claim(cell.name, claim):
                        continue
                    if self.home.is_finished(cell):
                        self._done.add(cell.name)
                        continue
                    self._mine.add(cell.name)
                    stack.callback(self._mine.discard, cell.name)
                    stack.enter_context(claim.pop_all())
                    return cell
        return None

    def _run(self, cell: Cell, slot: Slot) -> None:
        place = f"[{self.cells.index(cell) + 1}/{len(self.cells)}] {cell.label}"
        before, began = self.home.progress(cell)[0], time.monotonic()
        going = f"goes on at step {before:,}" if before else "starts"
        where = f" on {slot.name}" if len(self.slots) > 1 else ""
        self.say(f"{place}: {going}{where}")
        try:
            self.runner.run(cell, slot)
        except Interrupted:
            self.say(f"{place}: stopped at step {self.home.progress(cell)[0]:,}")
            return
        except Failed as error:
            self.failed[cell.name] = str(error)
            self.say(f"{place}: failed: {error}")
            return
        took = time.monotonic() - began
        self.pace.steps += self.steps[cell.name] - before
        self.pace.seconds += took
        self._done.add(cell.name)
        left = self.pace.left(self._steps_left(), len(self.slots))
        words = [self.headline(cell), duration(took), left]
        self.say(f"{place}: {'; '.join(filter(None, words))}")

    def _steps_left(self) -> int:
        """Return the steps of all cells that are neither finished nor failed."""
        left = 0
        for cell in self.unfinished():
            left += self.steps[cell.name] - self.home.progress(cell)[0]
        return left
