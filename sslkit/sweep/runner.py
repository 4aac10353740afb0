"""Trains and evaluates cells in processes, each at its slot."""

import subprocess
import threading
import time
from contextlib import suppress

from sslkit.sweep import worker
from sslkit.sweep.cell import Cell
from sslkit.sweep.home import Home
from sslkit.sweep.slot import Slot

PAUSE = 0.1
"""Time between two looks at a running process, s."""


class Failed(Exception):  # noqa: N818  (it names what happened)
    """A command of a cell failed. The message is its last line."""


class Interrupted(Exception):  # noqa: N818  (it names what happened)
    """The sweep was stopped while a cell ran."""


class Runner:
    """Runs the commands of cells. Set `stop` to end them; training saves a checkpoint first."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.stop = threading.Event()

    def run(self, cell: Cell, slot: Slot) -> None:
        """Train a cell, or go on with it, and evaluate it.

        A killed process is started once more. Raises Failed, and Interrupted after `stop`.
        """
        recipe, folder = self.home.write_recipe(cell), self.home.run(cell)
        words = ["train", str(recipe), "--run", str(folder)]
        if slot.workers is not None and cell.recipe.train.workers == "auto":
            words += ["--set", f"train.workers={slot.workers}"]
        if not self.home.is_trained(cell):
            said = self._command(cell, slot, words)
            if not self.home.is_trained(cell):
                raise Failed(said)
        for name in self.home.evaluations:
            if self.home.result(cell, name) is not None:
                continue
            said = self._command(cell, slot, ["eval", name, str(folder)])
            if self.home.result(cell, name) is None:
                raise Failed(said)

    def _command(self, cell: Cell, slot: Slot, words: list[str]) -> str:
        """Run a command and return its last line. A killed one is run once more."""
        log = self.home.log(cell)
        since = log.stat().st_size if log.exists() else 0
        for _ in range(2):
            code = self._wait(worker.start(words, log, slot.environment))
            if self.stop.is_set():
                raise Interrupted
            if code >= 0:
                break
        said = self.home.last_words(cell, since)
        return said if code >= 0 else f"killed by signal {-code}; the log ends: {said}"

    def _wait(self, process: subprocess.Popen) -> int:
        """Wait for a process, and stop it after `stop`. Returns its exit code."""
        assert process.stdin is not None
        with process:
            while process.poll() is None:
                if self.stop.is_set() and not process.stdin.closed:
                    with suppress(OSError):
                        process.stdin.close()
                time.sleep(PAUSE)
        return process.returncode
