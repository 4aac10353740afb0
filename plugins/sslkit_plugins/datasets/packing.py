"""Writes packed sets: all images as JPEG in shards, or nothing on an error."""

import io
import json
import os
import shutil
import signal
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import save_file
from torch.utils.data import DataLoader, Dataset

from sslkit.errors import DataError, counted, printable
from sslkit.interfaces import ImageSource
from sslkit_plugins.datasets.packed_index import INDEX, Index, Split, list_hash

SHARD_BYTES = 128 * 2**20
"""Size of a shard and of the writer's buffer, bytes of encoded images."""

TASK_SIZE = 16
"""Images that a worker encodes per task."""

SHOWN = 10
"""Largest number of unreadable images that one sentence names."""

How = Literal["kept", "coded", "reduced"]
"""Original bytes; re-encoded; reduced to the short side and re-encoded."""

Coded = tuple[bytes, How] | str
"""The JPEG file of an image and how it was made, or the reason why it is unreadable."""


def write(
    splits: Mapping[Literal["train", "val"], ImageSource],
    root: str,
    *,
    short_side: int = 256,
    quality: int = 95,
    skip_unreadable: bool = False,
    workers: int = 0,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Index:
    """Pack the splits of a data set into a new folder `root`, or write nothing.

    A JPEG file whose short side is at most `short_side` px keeps its bytes. All other images are
    converted to upright RGB, reduced to `short_side`, and encoded as JPEG of `quality` without
    chroma subsampling (4:4:4). The result depends only on the images and these options. `advance`
    receives the number of newly packed images and the total. Raises DataError.
    """
    to = Path(os.path.expanduser(root))
    _check_format(splits["train"])
    beside = _make_beside(to, root)
    total = sum(map(len, splits.values()))
    packing = _Packing(beside, short_side, quality, workers, total, advance)
    try:
        indexed = {name: packing.split(name, source) for name, source in splits.items()}
        if packing.unreadable and not skip_unreadable:
            raise DataError(
                f"{_list_of(packing.unreadable)}; repair or remove them, or leave them out: "
                "--skip-unreadable"
            )
        skipped = [_text(name) for name, _ in packing.unreadable]
        reduced_to = packing.reduced_to or splits["train"].reduced_to
        index = Index(
            short_side, quality, indexed, skipped, packing.kept, packing.coded, reduced_to
        )
        (beside / INDEX).write_text(json.dumps(asdict(index), indent=1), encoding="utf-8")
        _flush(beside / INDEX)
        beside.rename(to)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"cannot write {root} ({reason}), and partial files are removed; free disk space, or "
            "name another folder"
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return index


def _check_format(source: ImageSource) -> None:
    if source.channels != 3 or source.bits != 8:
        found = f"{source.channels} channels in {source.bits} bits"
        raise DataError(
            f"these images have {found}, but packed sets store 8-bit RGB; train on the images "
            "without packing"
        )


def _make_beside(to: Path, root: str) -> Path:
    """Create the temporary folder that is renamed to `to` at the end."""
    beside = to.with_name(f"{to.name}.writing")
    if to.exists():
        raise DataError(f"{root} already exists; name a new folder, or remove it")
    try:
        beside.mkdir()
    except FileExistsError as error:
        raise DataError(
            f"{beside} already exists: another `sslkit pack` is writing it, or was killed; if it "
            "was killed, remove the folder"
        ) from error
    except OSError as error:
        raise DataError(
            f"cannot create the folder {beside} ({error.strerror}); name a DEST in an existing, "
            "writable folder"
        ) from error
    return beside


def _list_of(unreadable: list[tuple[str, str]]) -> str:
    """Return the number of unreadable images, and the first ones with their reasons."""
    named = [f"{printable(name)} ({reason})" for name, reason in unreadable[:SHOWN]]
    if len(unreadable) > SHOWN:
        named.append(f"and {len(unreadable) - SHOWN} more")
    return f"{counted(len(unreadable), 'image')} cannot be read: {', '.join(named)}"


def _text(name: str) -> str:
    """Return a name as valid text for JSON, with undecodable bytes escaped."""
    return name.encode("utf-8", "backslashreplace").decode()


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


@dataclass
class _Packing:
    """State of one packing: destination, options and counts."""

    folder: Path
    short_side: int
    quality: int
    workers: int
    total: int
    advance: Callable[[int, int], None]
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    kept: int = 0
    coded: int = 0
    reduced_to: int | None = None

    def split(self, name: str, source: ImageSource) -> Split:
        """Write the shards of one split."""
        names: list[str] = []
        shards = 0
        for shard in self._shards(source):
            path = self.folder / f"{name}-{shards:05}.safetensors"
            arrays = _arrays(source, shard)
            save_file(arrays, path)
            path.chmod(self.folder.stat().st_mode & 0o666)
            _flush(path)
            names += [str(source.names[index]) for index, _ in shard]
            shards += 1
        if not names:
            raise DataError(f"nothing to pack: {_list_of(self.unreadable)}")
        classes = [_text(name) for name in source.classes]
        return Split(len(names), shards, list_hash(names), classes)

    def _shards(self, source: ImageSource) -> Iterator[list[tuple[int, bytes]]]:
        """Yield readable images as (index, file), in groups of at most SHARD_BYTES."""
        shard: list[tuple[int, bytes]] = []
        size = 0
        for index, coded in enumerate(self._coded(source)):
            self.advance(1, self.total)
            if isinstance(coded, str):
                self.unreadable.append((str(source.names[index]), coded))
                continue
            file, how = coded
            self.kept += how == "kept"
            self.coded += how != "kept"
            if how == "reduced":
                self.reduced_to = self.short_side
            if shard and size + len(file) > SHARD_BYTES:
                yield shard
                shard, size = [], 0
            shard.append((index, file))
            size += len(file)
        if shard:
            yield shard

    def _coded(self, source: ImageSource) -> Iterator[Coded]:
        """Yield every image in order; the workers encode ahead."""
        tasks = np.array_split(np.arange(len(source)), -(-len(source) // TASK_SIZE))
        loader: DataLoader = DataLoader(
            _Coder(source, self.short_side, self.quality),
            batch_size=None,
            sampler=tasks,  # type: ignore[arg-type]
            num_workers=self.workers,
            collate_fn=list,
            worker_init_fn=_begin_worker,
            multiprocessing_context="fork" if self.workers and sys.platform == "linux" else None,
        )
        try:
            for coded in loader:
                yield from coded
        except RuntimeError as error:
            raise DataError(
                "the system killed a worker, perhaps for lack of memory; use fewer: "
                f"--workers 0 ({error})"
            ) from error


def _arrays(source: ImageSource, shard: list[tuple[int, bytes]]) -> dict[str, np.ndarray]:
    """Return the arrays of a shard."""
    rows = [index for index, _ in shard]
    files = [file for _, file in shard]
    names = "\0".join(str(source.names[index]) for index in rows)
    arrays: dict[str, np.ndarray] = {
        "bytes": np.frombuffer(b"".join(files), np.uint8),
        "offset": np.cumsum([0, *map(len, files)], dtype=np.int64),
        "checksum": np.array([zlib.crc32(file) for file in files], np.int64),
        "names": np.frombuffer(names.encode("utf-8", "surrogateescape"), np.uint8),
    }
    if source.labels is not None:
        arrays["labels"] = source.labels[rows]
    return arrays


def _begin_worker(_: int) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Coder(Dataset):
    """Encodes the images of a task, given their indices."""

    def __init__(self, source: ImageSource, short_side: int, quality: int) -> None:
        self.source, self.short_side, self.quality = source, short_side, quality

    def __getitem__(self, indices: np.ndarray) -> list[Coded]:
        return [self._coded(index) for index in indices.tolist()]

    def _coded(self, index: int) -> Coded:
        try:
            return self._code(index)
        except DataError as error:
            return printable(str(error))
        except Exception as error:
            return printable(f"{type(error).__name__}: {error}")

    def _code(self, index: int) -> tuple[bytes, How]:
        def reduction(width: int, height: int) -> float:
            return min(width, height) / (2 * self.short_side)

        pixels = self.source.pixels(index, reduction)
        scale = self.short_side / min(pixels.width, pixels.height)
        file = self._stored(index) if scale >= 1 else b""
        if file.startswith(b"\xff\xd8\xff"):
            return file, "kept"
        image = Image.fromarray(pixels.values.permute(1, 2, 0).contiguous().numpy())
        if scale < 1:
            sides = [max(1, round(side * scale)) for side in (pixels.width, pixels.height)]
            image = image.resize((sides[0], sides[1]), Image.Resampling.LANCZOS)
        out = io.BytesIO()
        image.save(out, "JPEG", quality=self.quality, subsampling=0)
        return out.getvalue(), "reduced" if scale < 1 else "coded"

    def _stored(self, index: int) -> bytes:
        """Return the file of an image; b"" if the data set stores pixels."""
        find = getattr(self.source, "stored", None)
        stored = find(index) if find is not None else None
        if stored is None:
            return b""
        return stored.read_bytes() if isinstance(stored, Path) else stored.getvalue()
