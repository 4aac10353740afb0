"""Errors with messages for the user: what is wrong, where, and a remedy."""

from dataclasses import dataclass


def printable(text: str) -> str:
    """Return one line of text with control characters and line ends escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def counted(count: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun: 1 image, 1,000 images, 2 classes (with `plural`)."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


class SslkitError(Exception):
    """Base class of errors with a message for the user; commands print it and exit with code 2."""

    traceback: str = ""
    """The traceback of the original exception, shown if SSLKIT_DEBUG is set."""


@dataclass(frozen=True)
class Fault:
    """An error in a recipe: file and line, dotted key, and a message with a remedy."""

    key: str
    message: str
    file: str | None = None
    line: int | None = None

    def __post_init__(self) -> None:
        """Escape line ends and control characters."""
        for name in ("key", "message", "file"):
            if (text := getattr(self, name)) is not None:
                object.__setattr__(self, name, printable(text))

    def __str__(self) -> str:
        place = self.file or ""
        if self.file is not None and self.line is not None:
            place = f"{self.file}:{self.line}"
        return "  ".join(part for part in (place, self.key, self.message) if part)


class RecipeError(SslkitError):
    """Errors in a recipe or in `--set`, with all faults."""

    def __init__(self, *faults: Fault) -> None:
        self.faults = faults
        super().__init__("\n".join(str(fault) for fault in faults))

    def __reduce__(self) -> tuple[type["RecipeError"], tuple[Fault, ...]]:
        """Support pickling between a loader worker and the training process."""
        return type(self), self.faults


class PluginError(SslkitError):
    """A part is not installed, cannot be imported, raises, or breaks its contract."""


class DataError(SslkitError):
    """Images are missing, unreadable, or different from those at the start of the run."""


class CheckpointError(SslkitError):
    """A run folder or checkpoint cannot be read, written or resumed."""


class TrainingError(SslkitError):
    """Training stopped because a loss or gradient is not finite."""


class LostProcess(SslkitError):  # noqa: N818  (it names what happened)
    """Another rank died without reporting an error."""
