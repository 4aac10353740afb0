"""Files that are written completely or not at all."""

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
    """A file that the system refuses to write."""


def reason(error: OSError | safetensors.SafetensorError) -> str:
    """Return why the system refuses, and what helps against a full disk or a lack of rights."""
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
    """Turn a refusal of the system into a WriteError that names `path`.

    `option` chooses another place, such as "--out DIR".
    """
    try:
        yield
    except (OSError, safetensors.SafetensorError) as error:
        elsewhere = f"; another place: {option}" if option else ""
        raise WriteError(f"cannot write {path}: {reason(error)}{elsewhere}") from error


@contextmanager
def replacing(path: Path, option: str = "") -> Iterator[Path]:
    """Yield a path to write to. It replaces `path` at the end; after an error nothing is left.

    Raises WriteError, which names `option` as the way to another place.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with writing(path, option):
        try:
            yield beside
            beside.replace(path)
        finally:
            # A disk that refuses the file refuses this too, and the first refusal is told.
            with suppress(OSError):
                beside.unlink(missing_ok=True)


def write_text(path: Path, text: str, option: str = "") -> None:
    """Write a text completely or not at all. WriteError names `option`, as `replacing` does."""
    with replacing(path, option) as beside, beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def save_tensors(
    tensors: dict[str, Tensor], path: Path, notes: dict[str, str] | None = None
) -> None:
    """Write tensors and flush them to the disk. Who may read the folder may read the file."""
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
