"""Shared memory, through which loader workers hand over their batches."""

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
"""Batches that a worker holds ready at most."""

PREFETCHED = 2**30
"""Bytes that the workers of a rank hold ready at most, unless one batch each is more."""

PLAIN = (str, bytes, int, float, bool, type(None), SslkitError)
"""What an item may hold beside tensors."""


def room() -> int | None:
    """Return the free bytes of shared memory for one rank; None where the system sets no limit."""
    try:
        free = shutil.disk_usage(PLACE).free
    except OSError:
        return None
    return free // launcher.local_world()


def prefetch(workers: int, size: int) -> int:
    """Return how many batches of `size` bytes each of `workers` holds ready: 1 to PREFETCH.

    All together they take PREFETCHED bytes at most, and half of the shared memory that is free.
    """
    free = room()
    budget = PREFETCHED if free is None else min(PREFETCHED, free // 2)
    return max(1, min(PREFETCH, budget // max(1, workers * size)))


def fitting(workers: int, size: int) -> int:
    """Return how many of `workers` have room for a batch of `size` bytes each."""
    free = room()
    return workers if free is None else min(workers, free // 2 // max(1, size))


def share(item: Any, remedy: str) -> Any:
    """Move the tensors of a worker's item into shared memory.

    PyTorch would do so in a thread that only prints its errors, and the training process would
    wait forever. Returns an error where there is no room, and where the item cannot be sent.
    """
    try:
        return _moved(item)
    except SslkitError as error:
        return error
    except (OSError, RuntimeError) as error:
        return no_room(_bytes(item), remedy, str(error))


def no_room(size: int, remedy: str, reason: str) -> DataError:
    """Return the error for a batch of `size` bytes, 0 where it is not known."""
    if "open files" in reason:
        return DataError(
            "loader workers have too many files open; raise the limit (ulimit -n 65536)"
            f"{remedy} ({reason})"
        )
    info = get_worker_info()
    needed = 2 * PREFETCH * size * (1 if info is None else info.num_workers)
    held, reason = "", reason.rpartition(": ")[2]
    if PLACE.exists():
        held = f" ({PLACE}, {shutil.disk_usage(PLACE).total / 2**20:,.0f} MiB)"
    return DataError(
        f"the shared memory of this machine{held} has no room for the batches of loader workers; "
        f"give it more (docker run --shm-size={max(1, math.ceil(needed / 2**30))}g){remedy} "
        f"({reason})"
    )


def _moved(item: Any) -> Any:
    """Return the item with its tensors in shared memory. PluginError for what cannot be sent."""
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
    """Return the bytes of an item's tensors."""
    if isinstance(item, Tensor):
        return item.nbytes
    if isinstance(item, dict):
        item = list(item.values())
    return sum(map(_bytes, item)) if isinstance(item, list | tuple) else 0
