"""Files that are written completely or not at all."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import safetensors
from safetensors.torch import save_file
from torch import Tensor

from sslkit.errors import CheckpointError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a refusal of the system into a CheckpointError that names `path`."""
    try:
        yield
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(
            f"cannot write {path}: {getattr(error, 'strerror', None) or error}"
        ) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path to write to. It replaces `path` at the end; after an error nothing is left."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with writing(path):
        try:
            yield beside
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text completely or not at all."""
    with replacing(path) as beside, beside.open("w", encoding="utf-8") as file:
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
    """Return the tensors in the memory of the CPU, each in a place of its own.

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
