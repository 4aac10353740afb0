"""Writes files atomically."""

import errno
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import safetensors
from safetensors.torch import save_file
from torch import Tensor

from sslkit.errors import CheckpointError

FULL = (errno.ENOSPC, errno.EDQUOT)
FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)


class WriteError(CheckpointError):
    """A file cannot be written."""


def reason(error: OSError | safetensors.SafetensorError) -> str:
    """Return the reason of an error, with a remedy for a full disk or missing permissions."""
    text = getattr(error, "strerror", None) or str(error)
    number = getattr(error, "errno", None)
    if found := re.search(r"os error (\d+)", text):
        number = int(found[1])
    if number in FULL:
        return f"{text}; free space on the disk"
    if number in FORBIDDEN:
        return f"{text}; make the folder writable"
    return text


@contextmanager
def writing(path: Path, option: str = "") -> Iterator[None]:
    """Convert an error of the operating system to a WriteError that names `path`.

    `option` selects another path, such as "--out DIR".
    """
    try:
        yield
    except (OSError, safetensors.SafetensorError) as error:
        elsewhere = f"; another place: {option}" if option else ""
        raise WriteError(f"cannot write {path}: {reason(error)}{elsewhere}") from error


@contextmanager
def replacing(path: Path, option: str = "") -> Iterator[Path]:
    """Yield a temporary path that replaces `path` at the end, and is removed after an error.

    Raises WriteError; the message names `option`, which selects another path.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with writing(path, option):
        try:
            yield beside
            beside.replace(path)
        finally:
            # The unlink may fail for the same reason; the first error is the one to report.
            with suppress(OSError):
                beside.unlink(missing_ok=True)


def write_text(path: Path, text: str, option: str = "") -> None:
    """Write a text file atomically; see `replacing`."""
    with replacing(path, option) as beside, beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def save_tensors(
    tensors: dict[str, Tensor], path: Path, notes: dict[str, str] | None = None
) -> None:
    """Write tensors and flush them to disk, with the permissions of the folder."""
    save_file(unshared(tensors), path, notes)
    path.chmod(path.parent.stat().st_mode & 0o666)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return copies of the tensors on the CPU that share no memory.

    Modules may share parameters, and safetensors refuses tensors that share memory.
    """
    found: dict[str, Tensor] = {}
    places = set()
    for name, value in tensors.items():
        value = value.detach().cpu().contiguous()
        if value.untyped_storage().data_ptr() in places:
            value = value.clone()
        places.add(value.untyped_storage().data_ptr())
        found[name] = value
    return found


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
