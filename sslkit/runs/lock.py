"""Locks a run folder while a process trains in it."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sslkit.errors import CheckpointError
from sslkit.runs.files import WriteError, writing

FILE = ".lock"

_held: set[tuple[int, int]] = set()
"""Locks of this process by device and inode, because the system lets a process lock twice."""


@dataclass(frozen=True)
class Lock:
    """A locked run folder of this process."""

    folder: Path
    descriptor: int

    def holds(self) -> bool:
        """Tell whether the folder is still the one that was locked."""
        try:
            return os.path.samestat(os.fstat(self.descriptor), os.stat(self.folder / FILE))
        except OSError:
            return False

    def check(self) -> None:
        """Raise WriteError if the folder was removed or replaced."""
        if not self.holds():
            raise WriteError(
                f"cannot write into {self.folder}: No such file or directory; it was removed or "
                "replaced while this process trained in it"
            )


@contextmanager
def held(folder: Path) -> Iterator[Lock]:
    """Lock the run folder for this process, until it ends or is killed.

    Raises CheckpointError if another session trains in it.
    """
    path = folder / FILE
    # Must precede open(), because closing a file releases all locks of this process on it.
    if path.exists() and _key(path.stat()) in _held:
        raise _in_use(folder, "this process")
    with writing(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    key = _key(os.fstat(descriptor))
    try:
        _take(descriptor, folder)
        _held.add(key)
        yield Lock(folder, descriptor)
    finally:
        _held.discard(key)
        os.close(descriptor)


def _key(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _take(descriptor: int, folder: Path) -> None:
    """Lock an open file, if the system supports it."""
    try:
        import fcntl

        # Loader workers, which may outlive a killed process, do not inherit a record lock.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {platform.node()}".encode())
    except (BlockingIOError, PermissionError):
        holder = os.pread(descriptor, 200, 0).decode(errors="replace")
        raise _in_use(folder, holder or "another process") from None
    except (ImportError, OSError):
        pass


def _in_use(folder: Path, holder: str) -> CheckpointError:
    return CheckpointError(
        f"{folder} is in use: {holder} trains in it; wait for it, stop it, or start a new run"
    )
