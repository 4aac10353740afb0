"""How a session shows itself: callbacks, and the output of its steps."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sslkit.interfaces import ImageSource
from sslkit.recipe import Recipe
from sslkit.runs.metrics import Row
from sslkit.runs.run import Run
from sslkit.training.health import Health


class Screen(Protocol):
    """The output of a session, such as `screen.TrainingScreen`."""

    def begin(self, notes: list[str], folder: Path | None) -> None:
        """Show the settings of the run; `folder` is the folder of a resumed run."""

    def made(self, folder: Path) -> None:
        """Show the folder of a new run."""

    def passing(self, done: int) -> None:
        """Show the progress of a pass over the images."""

    def show(self, rows: list[Row], skipped: list[str], health: Health) -> None:
        """Show new steps and messages about skipped steps."""

    def stopped(self, signal: str, saved: bool) -> None:
        """Show that a signal stopped the session."""

    def done(self, health: Health) -> None:
        """Show the end of the training."""

    def close(self) -> None:
        """Release the terminal."""


@dataclass(frozen=True)
class Viewer:
    """Callbacks that show a session, called on rank 0. The defaults show nothing."""

    look: Callable[[ImageSource, Recipe], None] = lambda source, recipe: None
    """Called with the data set before parts are created."""
    say: Callable[[str], None] = lambda text: None
    """Called with sentences about the run."""
    screen: Callable[[Run], Screen | None] = lambda run: None
    """Creates the output of the steps."""


SILENT = Viewer()
"""A viewer that shows nothing."""
