"""Errors that the user can mend: one sentence each, with what, where and a remedy."""

from dataclasses import dataclass


def printable(text: str) -> str:
    """Return one line that cannot steer a terminal: control characters and line ends escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def counted(count: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun: 1 image, 1,000 images, 2 classes (`plural`: classes)."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


class SslkitError(Exception):
    """An error that the user can mend. The command line prints it and exits with code 2."""

    traceback: str = ""
    """The traceback of the exception behind it, shown where SSLKIT_DEBUG is set."""


@dataclass(frozen=True)
class Fault:
    """One fault of a recipe: file and line, dotted key, a sentence with a remedy."""

    key: str
    message: str
    file: str | None = None
    line: int | None = None

    def __post_init__(self) -> None:
        """Keep a fault to one line, whatever a file has put into it."""
        for name in ("key", "message", "file"):
            if (text := getattr(self, name)) is not None:
                object.__setattr__(self, name, printable(text))

    def __str__(self) -> str:
        place = self.file or ""
        if self.file is not None and self.line is not None:
            place = f"{self.file}:{self.line}"
        return "  ".join(part for part in (place, self.key, self.message) if part)


class RecipeError(SslkitError):
    """A recipe, or a `--set`, that cannot be run. Holds every fault found, not the first."""

    def __init__(self, *faults: Fault) -> None:
        self.faults = faults
        super().__init__("\n".join(str(fault) for fault in faults))

    def __reduce__(self) -> tuple[type["RecipeError"], tuple[Fault, ...]]:
        """Survive the way from a loader worker to the process that trains."""
        return type(self), self.faults


class PluginError(SslkitError):
    """A part that is not installed, cannot be imported, raises, or breaks its contract."""


class DataError(SslkitError):
    """Images that are missing, unreadable, or not the ones that a run began with."""


class CheckpointError(SslkitError):
    """A run folder or checkpoint that cannot be read, written or continued."""


class TrainingError(SslkitError):
    """A run that had to stop: a loss or gradient that is not finite."""


class LostProcess(SslkitError):  # noqa: N818  (it names what happened)
    """Another rank died without reporting an error: killed, or its machine gone."""
