"""Folders for unfinished evaluations, and files with their state."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sslkit.data.plain import decoded
from sslkit.data.workers import read
from sslkit.errors import counted
from sslkit.interfaces import ImageSource, Pixels
from sslkit.runs import files

UNFINISHED = "unfinished"
"""Folder of unfinished evaluations, below the folder of results."""
SAMPLE = 256
"""Largest number of images of a split whose pixels are compared."""


def unfinished_folder(home: Path, name: str, conditions: Mapping[str, Any]) -> Path:
    """Return a path below `home` for evaluation `name`, the same for equal conditions."""
    text = json.dumps(conditions, sort_keys=True, default=str)
    return home / UNFINISHED / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def content(source: ImageSource) -> str:
    """Return a SHA-256 of names, classes, labels, tags, groups, boxes and pixels.

    The pixels are those of at most SAMPLE images at equal distances.
    """
    found = hashlib.sha256()
    found.update(repr((list(source.names), list(source.classes), source.groups)).encode())
    for values in (source.labels, source.tags):
        found.update(b"none" if values is None else np.ascontiguousarray(values).tobytes())
    for boxes in source.boxes or ():
        found.update(b"".join(values.tobytes() for values in boxes))
    rows = np.linspace(0, len(source) - 1, min(SAMPLE, len(source))).astype(int)
    for row in rows.tolist():
        found.update(_pixels(read(decoded, source, row)))
    return found.hexdigest()


def _pixels(image: Image.Image | Pixels | str) -> bytes:
    """Return the values of an image, or the reason why it cannot be read."""
    if isinstance(image, str):
        return image.encode()
    return image.values.numpy().tobytes() if isinstance(image, Pixels) else image.tobytes()


def discard(folder: Path) -> None:
    """Remove such a folder, and its parent if that is empty."""
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        folder.parent.rmdir()


def left(home: Path) -> str | None:
    """Return a sentence about states of other evaluations below `home`; None without any."""
    folders = sorted((home / UNFINISHED).glob("*-*"))
    if not folders:
        return None
    return (
        f"{home / UNFINISHED} has {counted(len(folders), 'unfinished evaluation')} with other "
        "options, images or weights; delete what you do not want to go on with"
    )


def save_state(path: Path, tensors: dict[str, Tensor], notes: Mapping[str, str]) -> None:
    """Write tensors and notes atomically to a safetensors file. Creates its folder.

    Raises CheckpointError if the file cannot be written.
    """
    with files.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as beside:
        files.save_tensors(tensors, beside, dict(notes))


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """Return tensors and notes of `save_state`; None if there is no such file, or it is damaged."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (SafetensorError, OSError):
        return None
