"""The folder of a sweep: its plan, its cells' folders, claims, logs and results."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sslkit.errors import CheckpointError
from sslkit.recipe.words import written
from sslkit.runs import checkpoint, files, folders, lock
from sslkit.sweep import plan as plans
from sslkit.sweep.cell import Cell
from sslkit.sweep.plan import Plan

CLAIMS = ".claims"
LOGS = "logs"
RECIPES = "recipes"
OPTION = "--out DIR"


@dataclass(frozen=True)
class Home:
    """The folder of a sweep. Everything about a cell is read from its run folder."""

    folder: Path
    evaluations: tuple[str, ...]

    def begin(self, plan: Plan) -> None:
        """Create the folder and write the plan, unless it is there.

        Raises RecipeError if the folder has another plan, CheckpointError if it cannot be written.
        """
        folders.check_place(self.folder, "the folder of the sweep", "--out")
        parts = [self.folder / name for name in (CLAIMS, LOGS, RECIPES)]
        folders_needed = (*parts, self.folder, *self.folder.parents)
        made = [folder for folder in folders_needed if not os.path.lexists(folder)]
        try:
            with files.writing(self.folder, OPTION):
                for folder in parts:
                    folder.mkdir(parents=True, exist_ok=True)
            with self.locked():
                self._write_plan(plan)
        except files.WriteError:
            if parts[0] in made:
                with suppress(OSError):
                    (parts[0] / lock.FILE).unlink(missing_ok=True)
            for folder in made:
                with suppress(OSError):
                    folder.rmdir()
            raise

    def _write_plan(self, plan: Plan) -> None:
        plans.check_same(self.folder, plan)
        if plans.stored(self.folder) is None:
            text = json.dumps(plan.as_dict(), indent=1, ensure_ascii=False)
            files.write_text(self.folder / plans.FILE, text, OPTION)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder for a moment; waits for other processes."""
        while True:
            with ExitStack() as stack:
                if self._take(self.folder / CLAIMS, stack):
                    yield
                    return
            time.sleep(0.05)

    def claim(self, name: str, stack: ExitStack) -> bool:
        """Claim a cell or trial until `stack` closes; False if another process has it.

        A training that outlives its sweep for some seconds keeps its run folder locked.
        """
        place = self.folder / CLAIMS / name
        with files.writing(place, OPTION):
            place.mkdir(exist_ok=True)
        if not self._take(place, stack):
            return False
        for run in [self.folder / name, *self.folder.glob(f"{name},seed=*")]:
            with ExitStack() as moment:
                if run.is_dir() and not self._take(run, moment):
                    return False
        return True

    @staticmethod
    def _take(folder: Path, stack: ExitStack) -> bool:
        try:
            stack.enter_context(lock.held(folder))
        except files.WriteError:
            raise
        except CheckpointError:
            return False
        return True

    def run(self, cell: Cell) -> Path:
        """Return the run folder of a cell."""
        return self.folder / cell.name

    def log(self, cell: Cell) -> Path:
        """Return the file with the output of a cell's commands."""
        return self.folder / LOGS / f"{cell.name}.log"

    def write_recipe(self, cell: Cell) -> Path:
        """Write the complete recipe of a cell and return its path."""
        path, text = self.folder / RECIPES / f"{cell.name}.yaml", cell.recipe.as_yaml()
        if not path.exists() or path.read_bytes() != text.encode():
            files.write_text(path, text, OPTION)
        return path

    def progress(self, cell: Cell) -> tuple[int, int]:
        """Return the completed steps of a cell, and the steps of an epoch (0 if unknown)."""
        return checkpoint.progress(self.run(cell), cell.recipe)

    def is_trained(self, cell: Cell) -> bool:
        """Tell whether the newest checkpoint of a cell is that of its last step."""
        step, per_epoch = self.progress(cell)
        return step > 0 and step >= cell.recipe.train.epochs * per_epoch

    def result(self, cell: Cell, evaluation: str) -> dict[str, Any] | None:
        """Return the result of an evaluation of the trained cell; None without one."""
        path = self.run(cell) / "eval" / f"{evaluation}.json"
        with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["protocol"]["step"] == self.progress(cell)[0]:
                return dict(found)
        return None

    def is_finished(self, cell: Cell) -> bool:
        """Tell whether a cell is trained, and has the results of all evaluations."""
        if not self.is_trained(cell):
            return False
        return all(self.result(cell, name) is not None for name in self.evaluations)

    def last_words(self, cell: Cell, since: int) -> str:
        """Return the last line of a cell's log after byte `since`."""
        try:
            with self.log(cell).open("rb") as file:
                file.seek(max(since, file.seek(0, 2) - 4000))
                lines = file.read().decode(errors="replace").split("\n")
        except OSError:
            lines = []
        spoken = [line.strip() for line in lines if line.strip()]
        return written(spoken[-1], 300)[1:-1] if spoken else "no output"
