"""Sizes of the memory of this machine and of its accelerators."""

import os
from pathlib import Path

import torch

LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
"""Files with the memory limit of a container."""
UNKNOWN = 2**33
"""Size that is assumed if the system does not report one, bytes."""


def total() -> int:
    """Return the memory of the machine or the container, bytes."""
    try:
        found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        found = UNKNOWN
    for path in LIMITS:
        try:
            found = min(found, int(path.read_text()))
        except (OSError, ValueError):
            continue
    return found


def room(device: torch.device) -> int:
    """Return how many bytes the features of one layer may occupy on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 2
    return total() // 4
