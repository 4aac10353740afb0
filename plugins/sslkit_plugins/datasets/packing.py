"""Writes packed sets: every image as JPEG, in shards, all of them or nothing."""

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
"""Encoded bytes after which a shard is full: all that a writer holds in memory."""

AT_ONCE = 16
"""Images that a worker codes for one order."""

SHOWN = 10
"""Unreadable images that are named in one sentence."""

How = Literal["kept", "coded", "reduced"]
"""The bytes that were stored; coded anew; reduced to the short side and coded anew."""

Coded = tuple[bytes, How] | str
"""The JPEG file of an image and how it was made, or why there is none."""


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

    A JPEG whose short side is at most `short_side` px keeps its bytes. Any other image is made
    upright RGB, reduced to that, and coded as JPEG of `quality` without chroma subsampling. What
    is written depends on the images and these options alone. `advance` gets the number of images
    newly done and the total. Raises DataError.
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
                f"{_told(packing.unreadable)}; repair or remove them, or leave them out: "
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
            f"cannot write {root}, and nothing of it is left ({reason}); make room, or name "
            "another place"
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return index


def _check_format(source: ImageSource) -> None:
    if source.channels != 3 or source.bits != 8:
        held = f"{source.channels} channels in {source.bits} bits"
        raise DataError(
            f"these images have {held}, and packed sets RGB in 8 bits; train on them as they are"
        )


def _make_beside(to: Path, root: str) -> Path:
    """Make the folder that becomes `to` when all is written."""
    beside = to.with_name(f"{to.name}.writing")
    if to.exists():
        raise DataError(f"{root} is there already; name a new folder, or remove it")
    try:
        beside.mkdir()
    except FileExistsError as error:
        raise DataError(
            f"{beside} is there: another `sslkit pack` writes it, or was killed; in that case "
            "remove it"
        ) from error
    except OSError as error:
        raise DataError(
            f"cannot make the folder {beside} ({error.strerror}); name a DEST in a folder that "
            "exists and may be written"
        ) from error
    return beside


def _told(unreadable: list[tuple[str, str]]) -> str:
    """Return how many images cannot be read, with the first ones and why."""
    named = [f"{printable(name)} ({reason})" for name, reason in unreadable[:SHOWN]]
    if len(unreadable) > SHOWN:
        named.append(f"and {len(unreadable) - SHOWN} more")
    return f"{counted(len(unreadable), 'image')} cannot be read: {', '.join(named)}"


def _text(name: str) -> str:
    """Return a name that JSON can hold, even where the file system's is no text."""
    return name.encode("utf-8", "backslashreplace").decode()


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


@dataclass
class _Packing:
    """One packing under way: where to, how, and what has come of it so far."""

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
            raise DataError(f"nothing to pack: {_told(self.unreadable)}")
        classes = [_text(known) for known in source.classes]
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
        """Yield every image in order, coded ahead by the workers."""
        orders = np.array_split(np.arange(len(source)), -(-len(source) // AT_ONCE))
        loader: DataLoader = DataLoader(
            _Coder(source, self.short_side, self.quality),
            batch_size=None,
            sampler=orders,  # type: ignore[arg-type]
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
                "a worker was ended by the system, for lack of memory perhaps; take fewer: "
                f"--workers 0 ({error})"
            ) from error


def _arrays(source: ImageSource, shard: list[tuple[int, bytes]]) -> dict[str, np.ndarray]:
    """Return what a shard holds."""
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
    """Codes the images of an order, which holds their indices."""

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
        """Return the file of an image, nothing where the data set stores pixels."""
        find = getattr(self.source, "stored", None)
        stored = find(index) if find is not None else None
        if stored is None:
            return b""
        return stored.read_bytes() if isinstance(stored, Path) else stored.getvalue()
