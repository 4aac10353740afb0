"""Keeps the features of all images: float32 in memory, or float16 on disk."""

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sslkit import memory
from sslkit.errors import SslkitError

Row = tuple[str | None, str]
"""Row and candidate. The row None applies to all rows."""
CHUNK = 8192
"""Rows that are checked together."""
GIB = 2**30


class FeatureStore:
    """Features of both splits by row and candidate, of `counts` images.

    They go to unnamed files in `scratch` if they exceed a quarter of the memory as float32. The
    system deletes these files when they are dropped or the process ends, however it ends.
    """

    def __init__(self, counts: Sequence[int], scratch: Path | None) -> None:
        self.counts, self.scratch = counts, place(scratch)
        self.on_disk = False
        self._found: dict[Row, list[Tensor]] = {}

    def __iter__(self) -> Iterator[Row]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def write(self, split: int, index: Tensor, found: Mapping[Row, Tensor]) -> None:
        """Store features [n,D] of the images `index` of a split. The first call allocates.

        Raises SslkitError if the disk is full, or if a value exceeds float16.
        """
        if not self._found:
            widths = {key: rows.shape[1] for key, rows in found.items()}
            self.on_disk = self.size(widths.values(), self.counts) > memory.total() // 4
            for key, width in widths.items():
                self._found[key] = [self._empty(count, width) for count in self.counts]
        for key, rows in found.items():
            if self.on_disk:
                _check_range(key, rows)
            self._found[key][split][index] = rows.to(self._found[key][split].dtype)

    @staticmethod
    def size(widths: Iterable[int], counts: Sequence[int]) -> int:
        """Return the size of features as float32, bytes."""
        return 4 * sum(widths) * sum(counts)

    def take(self, key: Row, device: torch.device, *, chunked: bool) -> tuple[Tensor, Tensor]:
        """Remove and return the features of both splits.

        They are float32 on the device. If they exceed its memory and the scorer is `chunked`, they
        stay where they are, or are moved as float16.
        """
        train, val = self._found.pop(key)
        if chunked:
            room, count = memory.room(device), train.numel() + val.numel()
            if 4 * count > room and (self.on_disk or device.type != "cpu"):
                if device.type != "cpu" and train.element_size() * count <= room:
                    return train.to(device), val.to(device)
                return train, val
        return train.to(device, torch.float32), val.to(device, torch.float32)

    def _empty(self, count: int, width: int) -> Tensor:
        if not self.on_disk:
            return torch.empty(count, width)
        return _mapped(count, width, self.scratch)


def place(scratch: Path | None) -> Path:
    """Return the folder for temporary files: TMPDIR, or `scratch`, or its nearest parent."""
    if scratch is None or "TMPDIR" in os.environ:
        return Path(tempfile.gettempdir())
    for folder in (scratch, *scratch.absolute().parents):
        if folder.is_dir() and os.access(folder, os.W_OK):
            return folder
    return Path(tempfile.gettempdir())


def _mapped(count: int, width: int, folder: Path) -> Tensor:
    """Map an unnamed temporary file as float16 [count,width]. Raises SslkitError if disk is full.

    Allocates all blocks, because writing to a full disk through a map ends the process.
    """
    size = 2 * count * width
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, max(1, size))
            else:
                file.truncate(max(1, size))
            return torch.from_numpy(np.memmap(file, np.float16, "r+", shape=(count, width)))
    except OSError as error:
        raise SslkitError(
            f"features of {size / GIB:,.1f} GiB do not fit on {folder} "
            f"({error.strerror or error}); set the environment variable TMPDIR to a folder with "
            "more space, or use --layers last, or fewer images; --plan shows the sizes"
        ) from error


def _check_range(key: Row, rows: Tensor) -> None:
    """Raise SslkitError if a finite value exceeds the range of float16."""
    largest = torch.finfo(torch.float16).max
    if bool(((rows.abs() > largest) & rows.isfinite()).any()):
        raise SslkitError(
            f"features of {key[1]} exceed {largest:,.0f}, the range of half precision, in which "
            "features beyond a quarter of the memory are kept; use fewer images"
        )


def is_finite(rows: Tensor) -> bool:
    """Return whether all values are finite; reads in chunks."""
    return all(bool(chunk.isfinite().all()) for chunk in rows.split(CHUNK))
