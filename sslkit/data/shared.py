"""Shared memory, in which loader workers pass batches to the training process."""

import math
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import get_worker_info

from sslkit import launcher
from sslkit.errors import DataError, PluginError, SslkitError

PLACE = Path("/dev/shm")

PREFETCH = 4
"""Largest number of prefetched batches per worker."""

PREFETCHED = 2**30
"""Largest size of all prefetched batches of a rank, bytes, unless one per worker is more."""

PLAIN = (str, bytes, int, float, bool, type(None), SslkitError)
"""Types that an item may contain besides tensors."""


def room() -> int | None:
    """Return the free shared memory per rank, bytes; None if the system has no limit."""
    try:
        free = shutil.disk_usage(PLACE).free
    except OSError:
        return None
    return free // launcher.local_world()


def prefetch(workers: int, size: int) -> int:
    """Return the number of prefetched batches of `size` bytes per worker, 1 to PREFETCH.

    All batches together use at most PREFETCHED bytes and half of the free shared memory.
    """
    free = room()
    budget = PREFETCHED if free is None else min(PREFETCHED, free // 2)
    return max(1, min(PREFETCH, budget // max(1, workers * size)))


def fitting(workers: int, size: int) -> int:
    """Return how many of `workers` fit into shared memory with a batch of `size` bytes each."""
    free = room()
    return workers if free is None else min(workers, free // 2 // max(1, size))


def share(item: Any, remedy: str) -> Any:
    """Move the tensors of a worker's item to shared memory.

    PyTorch does this in a thread that only prints errors, so the training process would wait
    forever. Returns an error if shared memory is full or the item cannot be sent.
    """
    try:
        return _moved(item)
    except SslkitError as error:
        return error
    except (OSError, RuntimeError) as error:
        return no_room(_bytes(item), remedy, str(error))


def no_room(size: int, remedy: str, reason: str) -> DataError:
    """Return the error for a batch of `size` bytes; 0 if unknown."""
    if "open files" in reason:
        return DataError(
            "loader workers have too many files open; raise the limit (ulimit -n 65536)"
            f"{remedy} ({reason})"
        )
    info = get_worker_info()
    needed = 2 * PREFETCH * size * (1 if info is None else info.num_workers)
    place, reason = "", reason.rpartition(": ")[2]
    if PLACE.exists():
        place = f" ({PLACE}, {shutil.disk_usage(PLACE).total / 2**20:,.0f} MiB)"
    return DataError(
        f"the shared memory of this machine{place} has no room for the batches of loader workers; "
        f"increase it (docker run --shm-size={max(1, math.ceil(needed / 2**30))}g){remedy} "
        f"({reason})"
    )


def _moved(item: Any) -> Any:
    """Return the item with its tensors in shared memory. Raises PluginError for other types."""
    if isinstance(item, Tensor):
        return item.share_memory_()
    if isinstance(item, dict):
        return {key: _moved(value) for key, value in item.items()}
    if isinstance(item, list | tuple):
        return tuple(map(_moved, item))
    if isinstance(item, PLAIN):
        return item
    raise PluginError(f"a loader worker cannot send a {type(item).__name__}; return tensors")


def _bytes(item: Any) -> int:
    """Return the size of an item's tensors, bytes."""
    if isinstance(item, Tensor):
        return item.nbytes
    if isinstance(item, dict):
        item = list(item.values())
    return sum(map(_bytes, item)) if isinstance(item, list | tuple) else 0
