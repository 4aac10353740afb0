"""Describes a data set in one line: splits, numbers of images, classes."""

from collections.abc import Sequence

from sslkit.errors import counted, printable
from sslkit.interfaces import ImageSource
from sslkit.recipe import Choice

NAMED = 5
"""Largest number of classes that one line names."""


def place_of(data: Choice) -> str:
    """Return the folder or file of a data set, or its name."""
    return str(data.options.get("root") or data.options.get("file") or f"'{data.use}'")


def training(source: ImageSource, data: Choice, *, labels_used: bool) -> str:
    """Return the line about the images of a training run."""
    images = counted(len(source), "image")
    if not _has_classes(source):
        images += ", no classes"
    elif labels_used:
        images += f" in {_classes(source)}"
    line = f"data: training on {source.place or place_of(data)} ({images})"
    later = []
    if _has_classes(source) and not labels_used:
        later.append(_classes(source))
    if validation := source.validation():
        later.append(f"validation on {validation}")
    return f"{line}; for evaluations: {'; '.join(later)}" if later else line


def evaluation(train: ImageSource, val: ImageSource, place: str, how: str) -> str:
    """Return the line about both splits of an evaluation.

    `place` is the place of the training images, `how` describes how `val` was split off.
    """
    line = f"data: training on {split(train, place)}"
    return f"{line}; validating on {val.place or how} ({counted(len(val), 'image')})"


def split(source: ImageSource, place: str) -> str:
    """Return place, number and classes of the images of one split."""
    classes = f" in {_classes(source)}" if _has_classes(source) else ", no classes"
    return f"{source.place or place} ({counted(len(source), 'image')}{classes})"


def _has_classes(source: ImageSource) -> bool:
    return source.labels is not None or source.tags is not None


def _classes(source: ImageSource) -> str:
    """Return the number of classes and the names of the first ones."""
    names: Sequence[str] = source.classes
    if not names and source.labels is not None:
        names = [str(label) for label in range(int(source.labels.max(initial=-1)) + 1)]
    shown = ", ".join(map(printable, names[:NAMED])) + (", …" if len(names) > NAMED else "")
    return f"{counted(len(names), 'class', 'classes')}: {shown}"
