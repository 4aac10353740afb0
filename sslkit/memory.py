"""Sizes of the memory of this machine and of its accelerators, and of a training step."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

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


def promised() -> int:
    """Return the data memory that Linux has promised to this process, bytes; elsewhere 0."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[5])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def limited() -> Iterator[None]:
    """Let allocations beyond the memory of the machine fail, as far as the system supports it.

    Linux promises more memory than there is, and kills the process that uses it. What the process
    has been promised before is not counted.
    """
    try:
        import resource
    except ImportError:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limits = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min([promised() + total(), *limits]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


@contextmanager
def activations(module: nn.Module) -> Iterator[dict[int, int]]:
    """Collect the sizes of tensors that are saved for the backward pass, by address, bytes.

    Parameters and buffers of `module` do not count.
    """
    sizes: dict[int, int] = {}
    own = {value.untyped_storage().data_ptr() for value in module.parameters()}
    own |= {value.untyped_storage().data_ptr() for value in module.buffers()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield sizes
