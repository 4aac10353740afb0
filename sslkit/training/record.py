"""Writes the files of a session to its run folder, which exists from the first step on."""

import json
import math
import shlex
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sslkit import distributed
from sslkit.runs import checkpoint, files, folders, metrics, versions
from sslkit.runs.folders import NewFolder
from sslkit.runs.lock import Lock, held
from sslkit.runs.metrics import Metrics, Row
from sslkit.runs.run import Run

REDRAW = 30
"""Shortest time between drawings of the curves during training, s."""


class Record:
    """Metrics, checkpoints and figures of one session.

    `place` is the folder of a resumed run, or a new one, which `open` creates. So a run that fails
    before its first step leaves no files. All ranks call the same methods; rank 0 writes, and each
    rank writes its rows of a sharded bank.
    """

    def __init__(self, run: Run, place: Path | NewFolder) -> None:
        self.run = run
        self.new = place if isinstance(place, NewFolder) else None
        self.folder = None if isinstance(place, NewFolder) else place
        self.leader = distributed.rank() == 0
        self.began = run.step
        """First step of the session."""
        self.saved: int | None = None
        """Step of the newest checkpoint of this session."""
        self.metrics: Metrics | None = None
        self.board: Any = None
        self._drawn = -math.inf
        """Time of the last drawing of the curves."""
        self._held = ExitStack()
        self._lock: Lock | None = None

    def lock(self) -> None:
        """Lock the folder. Raises CheckpointError if another process trains in it."""
        assert self.folder is not None
        if self.leader:
            self._lock = self._held.enter_context(held(self.folder))

    def resume(self) -> list[str]:
        """Restore the newest checkpoint. Returns sentences for the user."""
        assert self.folder is not None
        versions.check_options(self.folder, self.run.recipe)
        notes = checkpoint.resume(self.run, self.folder)
        self.began = self.run.step
        return notes + versions.changes(self.folder, self.run.recipe)

    def open(self, seen: Callable[[Row], None]) -> bool:
        """Create a new folder, and open the files of the session.

        Calls `seen` with each row of earlier sessions. Returns whether a folder was created.
        """
        if self.new is not None:
            name = self._make(self.new) if self.leader else ""
            self.folder = Path(distributed.broadcast_text(name))
        assert self.folder is not None
        if self.leader:
            if self._lock is not None:
                self._lock.check()
            folders.keep_recipe(self.folder, self.run.recipe)
            if self.began == 0:
                environment = json.dumps(versions.environment(self.run), indent=1)
                files.write_text(self.folder / "environment.json", environment)
            self.metrics = Metrics(self.folder / "metrics.jsonl", self.began, seen)
            self.board = _tensorboard(self.folder)
        return self.new is not None

    def _make(self, new: NewFolder) -> str:
        self.folder = new.make()
        self.lock()
        new.fill()
        return str(self.folder)

    def add(self, rows: list[Row]) -> None:
        """Append steps to the metrics. Raises WriteError if the folder was removed or replaced."""
        if self._lock is not None:
            self._lock.check()
        if self.metrics is not None:
            self.metrics.add(rows)
        if self.board is not None:
            for row in rows:
                for name, value in {"loss": row.loss, "lr": row.lr, **row.metrics}.items():
                    self.board.add_scalar(name, value, row.step)

    def save(self, *, last: bool = True) -> None:
        """Write the encoder, the checkpoint and the curves.

        The checkpoint follows the encoder, so a run with its last checkpoint is complete. Draws
        curves at most every `REDRAW` seconds, except after the `last` step of the session.
        """
        assert self.folder is not None
        if self._lock is not None:
            self._lock.check()
        if self.leader:
            checkpoint.save_encoder(self.run, self.folder)
        checkpoint.save(self.run, self.folder)
        self.saved = self.run.step
        if self.leader and (last or time.monotonic() - self._drawn >= REDRAW):
            self._draw_curves()
            self._drawn = time.monotonic()

    def _draw_curves(self) -> None:
        """Write curves.png."""
        from sslkit.report import figures

        assert self.folder is not None and self.metrics is not None
        with files.writing(self.folder / "curves.png"):
            figures.curves(
                self.folder,
                self.metrics.bins,
                title=self._title(),
                epoch=self.run.loader.steps_per_epoch,
                chances=self.run.method.at_chance(self.run.recipe.train.batch_size),
            )

    def _name(self) -> str:
        """Return the names of the run and its method."""
        assert self.folder is not None
        recipe = self.run.recipe
        return f"{recipe.name} / {self.folder.name}   method {recipe.method.use}"

    def _title(self) -> str:
        """Return the names of the run and its method, and the step."""
        run = self.run
        step = f"step {run.step:,} of {run.steps:,}, {run.loader.steps_per_epoch:,} per epoch"
        return f"{self._name()}   {step}"

    def draw_views(self) -> None:
        """Write views.png, after the first step because the import of matplotlib takes a second."""
        from sslkit.report.views_figure import draw_views

        assert self.folder is not None
        path, seed = self.folder / "views.png", self.run.recipe.train.seed
        with files.writing(path):
            title = f"{self._name()}, transform"
            draw_views(self.run.source, self.run.transform, path, seed=seed, title=title)

    def refused(self, error: files.WriteError) -> files.WriteError:
        """Return `error` with a remedy. Removes a new folder without steps."""
        folder = self.folder
        if folder is None or (self._lock is not None and not self._lock.holds()):
            return error
        first = not metrics.last_step(folder / "metrics.jsonl")
        if self.new is not None and self.leader and first:
            self.new.remove()
            return files.WriteError(f"{error}; another place: {self.new.option} DIR")
        return files.WriteError(
            f"{error}; then resume: sslkit train --resume {shlex.quote(str(folder))}"
        )

    def close(self) -> None:
        """Release the lock of the folder."""
        self._held.close()


def _tensorboard(folder: Path) -> Any:
    """Return a TensorBoard writer; None without `pip install 'sslkit[tensorboard]'`."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    with files.writing(folder / "tensorboard"):
        return SummaryWriter(folder / "tensorboard")
