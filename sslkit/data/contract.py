"""Checks that a data set fulfils the contract of ImageSource."""

import numpy as np

from sslkit.errors import PluginError
from sslkit.interfaces import ImageSource


def check_source(source: ImageSource, called: str) -> None:
    """Raise PluginError if names, labels, tags, boxes or format break the contract.

    `called` is the name of the data set in messages.
    """
    count = len(source)
    if len(source.names) != count:
        raise PluginError(f"{called} has {count} images and {len(source.names)} names")
    _check_labels(source, called, count)
    for name in ("boxes", "groups"):
        values = getattr(source, name)
        if values is not None and len(values) != count:
            raise PluginError(f"{called} has {count} images and {len(values)} {name}")
    if not isinstance(source.channels, int) or source.channels < 1:
        raise PluginError(f"{called} has channels = {source.channels!r}; it must be an int ≥ 1")
    if source.bits not in (8, 16):
        raise PluginError(f"{called} has bits = {source.bits!r}; it must be 8 or 16")


def _check_labels(source: ImageSource, called: str, count: int) -> None:
    for name, required in (("labels", (count,)), ("tags", (count, len(source.classes)))):
        values = getattr(source, name)
        if values is None:
            continue
        if not isinstance(values, np.ndarray) or values.dtype.kind not in "iu":
            kind = getattr(values, "dtype", type(values).__name__)
            raise PluginError(f"{called} has {name} as {kind}; they must be an integer ndarray")
        if values.shape != required:
            raise PluginError(
                f"{called} has {count} images and {len(source.classes)} classes, but {name} of "
                f"shape {list(values.shape)} instead of {list(required)}"
            )
