"""Images packed into few files: JPEG bytes in memory-mapped shards, written once from a folder and read without opening one again.

DEST/packed.json                 options, classes and, of each half, how many images and shards and the SHA-256 of the list of names
DEST/train-00000.safetensors …   `bytes` uint8, the JPEG files one after another; `offset` int64 [n+1], where each begins;
                                 `checksum` int64 [n], the CRC-32 of each; `names` uint8, UTF-8 with a zero between two;
                                 `labels` int64 [n], where they are known
"""

import hashlib
import io
import json
import os
import shutil
import signal
import sys
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pydantic
import torch
from PIL import Image
from pydantic import NonNegativeInt, PositiveInt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch.utils.data import DataLoader, Dataset

from sslkit.errors import DataError
from sslkit.interfaces import ImageSource, Pixels
from sslkit_plugins.datasets import ImageFolder, Npz, decode, decode_pixels

INDEX = "packed.json"
SHARD_BYTES = 128 * 2**20
"""Encoded bytes after which a shard is full: all that a writer holds in memory."""

SHOWN = 10
"""Unreadable images that are named in one sentence."""


@dataclass(frozen=True)
class Half:
    """What the index says of "train" or "val"."""

    images: PositiveInt
    shards: Annotated[int, pydantic.Field(ge=1, le=1_000_000)]
    sha256: str
    classes: list[str]


@dataclass(frozen=True)
class Index:
    """What packed.json holds: the options, the halves, the images that could not be read and were left out, how many of the others kept
    the bytes that they had and how many were coded anew."""

    short_side: PositiveInt
    quality: PositiveInt
    halves: dict[Literal["train", "val"], Half]
    skipped: list[str]
    kept: NonNegativeInt
    coded: NonNegativeInt
    format: Literal["sslkit packed 1"] = "sslkit packed 1"


def list_hash(names: list[str]) -> str:
    """SHA-256 of a list of names, each ended by a zero, as checkpoints keep it."""
    return hashlib.sha256(
        "".join(f"{name}\0" for name in names).encode("utf-8", "surrogateescape")
    ).hexdigest()


class Packed(ImageSource):
    """A set that `sslkit pack SRC DEST` wrote from an image folder or a .npz file: few large files, mapped into memory, instead of many.

    Names, labels and classes are those of what was packed, and so is the hash of their list: a run that began on one goes on with the
    other. An image's bytes are checked when they are read.
    """

    opens: ClassVar[dict[str, str]] = {"/packed.json": "root"}

    def __init__(self, split: str, /, *, root: str) -> None:
        self.root = Path(os.path.expanduser(root))
        half = "val" if split == "val" else "train"
        index = self._index()
        self.reduced_to = index.short_side if index.coded else None
        self.has_val = "val" in index.halves
        if half not in index.halves:
            raise DataError(
                f"{root} has no {half} images of its own: what was packed had no folders train/ and val/"
            )
        told = index.halves[half]
        self.names: list[str] = []
        self.classes = told.classes
        self._files = [
            self.root / f"{half}-{number:05}.safetensors" for number in range(told.shards)
        ]
        self._maps: dict[int, dict[str, np.ndarray]] = {}
        self._first: list[int] = []
        labels = []
        for number in range(told.shards):
            shard = self._shard(number)
            self._first.append(len(self.names))
            self.names += shard["names"].tobytes().decode("utf-8", "surrogateescape").split("\0")
            labels.append(shard.get("labels", np.empty(0, np.int64)))
        if (len(self.names), list_hash(self.names)) != (told.images, told.sha256):
            raise self._damaged(self.root / INDEX, "its shards hold another list of images")
        known = np.concatenate(labels)
        if len(known):
            if len(known) != len(self.names) or known.min() < 0 or known.max() >= len(self.classes):
                raise self._damaged(self.root / INDEX, "labels do not fit images and classes")
            self.labels = known

    def _index(self) -> Index:
        path = self.root / INDEX
        try:
            return pydantic.TypeAdapter(Index).validate_json(path.read_bytes())
        except FileNotFoundError as error:
            raise DataError(
                f"{self.root} is no packed set, it holds no {INDEX}; make one: sslkit pack FOLDER {self.root}"
            ) from error
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror})") from error
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            raise self._damaged(
                path, f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")
            ) from error

    @staticmethod
    def _damaged(path: Path, why: str) -> DataError:
        return DataError(f"{path} is not what `sslkit pack` wrote ({why}); pack the images again")

    def _shard(self, number: int) -> dict[str, np.ndarray]:
        """Arrays over the mapped file, by name. Raises DataError where they do not fit each other."""
        if number not in self._maps:
            path = self._files[number]
            try:
                with safe_open(path, framework="pt") as file:
                    tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
            except (OSError, SafetensorError, RuntimeError) as error:
                raise self._damaged(path, str(error)) from error
            self._check(path, tensors)
            self._maps[number] = {name: tensor.numpy() for name, tensor in tensors.items()}
        return self._maps[number]

    def _check(self, path: Path, tensors: dict[str, torch.Tensor]) -> None:
        types = {
            "bytes": torch.uint8,
            "offset": torch.int64,
            "checksum": torch.int64,
            "names": torch.uint8,
            "labels": torch.int64,
        }
        for name, dtype in types.items():
            if name not in tensors and name != "labels":
                raise self._damaged(path, f"it has no '{name}'")
            if name in tensors and (tensors[name].dtype != dtype or tensors[name].dim() != 1):
                raise self._damaged(
                    path, f"'{name}' is {tensors[name].dtype} {list(tensors[name].shape)}"
                )
        offset, count = tensors["offset"], len(tensors["checksum"])
        names = int((tensors["names"] == 0).sum()) + 1
        if (
            len(offset) != count + 1
            or names != count
            or len(tensors.get("labels", offset[1:])) != count
        ):
            raise self._damaged(path, "its arrays are of different lengths")
        if offset[0] != 0 or offset[-1] != len(tensors["bytes"]) or bool((offset.diff() < 0).any()):
            raise self._damaged(path, "'offset' does not rise from 0 to the length of 'bytes'")

    def __getstate__(self) -> dict[str, Any]:
        """What a spawned worker is sent: it maps the files itself."""
        return {**vars(self), "_maps": {}}

    def stored(self, index: int) -> io.BytesIO:
        """The image as it is stored. Raises DataError where its bytes are not those that were packed."""
        number = bisect_right(self._first, index) - 1
        shard, row = self._shard(number), index - self._first[number]
        first, last = shard["offset"][row : row + 2].tolist()
        file = shard["bytes"][first:last].tobytes()
        if zlib.crc32(file) != shard["checksum"][row]:
            raise DataError(
                f"its bytes in {self._files[number].name} are not those that were packed (their checksum differs)"
            )
        return io.BytesIO(file)

    def image(self, index: int) -> Image.Image:
        """Decoded as RGB."""
        return decode(self.stored(index))

    def pixels(self, index: int, reduction: Callable[[int, int], float]) -> Pixels:
        """The same as pixels."""
        return decode_pixels(self.stored(index), reduction)

    @classmethod
    def write(
        cls,
        source: str,
        root: str,
        *,
        short_side: int = 256,
        quality: int = 95,
        follow_links: bool = False,
        skip_unreadable: bool = False,
        workers: int = 0,
        advance: Callable[[int, int], None] = lambda done, total: None,
    ) -> Index:
        """Pack the image folder, .npz file or packed set `source` into a new folder `root`: all of it or nothing.

        A JPEG whose short side is at most `short_side` pixels keeps its bytes; any other image is made upright RGB, reduced to that and
        coded as JPEG of `quality`, its colours as fine as its brightness. What is written depends on the images and these options alone.
        Raises DataError with the sentence for the user.
        """
        to = Path(os.path.expanduser(root))
        beside = to.with_name(f"{to.name}.writing")
        sources = _halves(source, follow_links)
        if to.exists():
            raise DataError(f"{root} is there already; name a new folder, or remove it")
        try:
            beside.mkdir()
        except FileExistsError as error:
            raise DataError(
                f"{beside} is there: another `sslkit pack` writes it, or was killed; in that case remove it"
            ) from error
        except OSError as error:
            raise DataError(f"cannot make the folder {beside} ({error.strerror})") from error
        packing = _Packing(
            beside, short_side, quality, workers, sum(map(len, sources.values())), advance
        )
        try:
            halves = {half: packing.half(half, images) for half, images in sources.items()}
            if packing.unreadable and not skip_unreadable:
                raise DataError(
                    f"{_told(packing.unreadable)}; mend or remove them, or leave them out with --skip-unreadable"
                )
            index = Index(
                short_side,
                quality,
                halves,
                [_text(name) for name, _ in packing.unreadable],
                packing.kept,
                packing.coded,
            )
            (beside / INDEX).write_text(json.dumps(asdict(index), indent=1), encoding="utf-8")
            _flush(beside / INDEX)
            beside.rename(to)
        except (OSError, SafetensorError) as error:
            raise DataError(
                f"cannot write {root}, and nothing of it is left ({getattr(error, 'strerror', None) or error})"
            ) from error
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        return index


Stored = ImageFolder | Npz | Packed


def _halves(source: str, follow_links: bool) -> dict[Literal["train", "val"], Stored]:
    """The images of each half of a folder, an archive or a packed set."""

    def half(split: str) -> Stored:
        if os.path.isfile(Path(os.path.expanduser(source), INDEX)):
            return Packed(split, root=source)
        if source.endswith(".npz"):
            return Npz(split, file=source)
        return ImageFolder(split, root=source, follow_links=follow_links)

    train = half("train")
    if train.channels != 3 or train.bits != 8:
        held = f"{train.channels} channels in {train.bits} bits"
        raise DataError(
            f"{source} holds {held}, and packed sets RGB in 8 bits; train from it itself"
        )
    return {"train": train, "val": half("val")} if train.has_val else {"train": train}


def _told(unreadable: list[tuple[str, str]]) -> str:
    named = ", ".join(f"{name} ({reason})" for name, reason in unreadable[:SHOWN])
    more = f" and {len(unreadable) - SHOWN} more" if len(unreadable) > SHOWN else ""
    return f"{len(unreadable)} image{'s' * (len(unreadable) > 1)} cannot be read: {named}{more}"


def _text(name: str) -> str:
    """A name that JSON can hold, even where the file system's is no text."""
    return name.encode("utf-8", "backslashreplace").decode()


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


class _Coded(Dataset):
    """Indices → for each image its JPEG bytes and whether they are those that were stored, or the reason why there is none."""

    def __init__(self, source: Stored, short_side: int, quality: int) -> None:
        self.source, self.short_side, self.quality = source, short_side, quality

    def __getitem__(self, indices: np.ndarray) -> list[tuple[bytes, bool] | str]:
        return [self._coded(index) for index in indices.tolist()]

    def _coded(self, index: int) -> tuple[bytes, bool] | str:
        try:
            stored = self.source.stored(index)
            pixels = self.source.pixels(
                index, lambda width, height: min(width, height) / (2 * self.short_side)
            )
            scale = self.short_side / min(pixels.width, pixels.height)
            if stored is not None and scale >= 1:
                file = stored.read_bytes() if isinstance(stored, Path) else stored.getvalue()
                with Image.open(io.BytesIO(file)) as opened:
                    if opened.format == "JPEG":
                        return file, True
            image = Image.fromarray(pixels.values.permute(1, 2, 0).contiguous().numpy())
            if scale < 1:
                width, height = (
                    max(1, round(side * scale)) for side in (pixels.width, pixels.height)
                )
                image = image.resize((width, height), Image.Resampling.LANCZOS)
            out = io.BytesIO()
            image.save(out, "JPEG", quality=self.quality, subsampling=0)
            return out.getvalue(), False
        except Exception as error:
            return f"{type(error).__name__}: {error}"


def _begin_worker(_: int) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Packing:
    """One packing under way: where to, how, and what has come of it so far."""

    def __init__(
        self,
        folder: Path,
        short_side: int,
        quality: int,
        workers: int,
        total: int,
        advance: Callable[[int, int], None],
    ) -> None:
        self.folder, self.short_side, self.quality, self.workers = (
            folder,
            short_side,
            quality,
            workers,
        )
        self.total, self.advance = total, advance
        self.unreadable: list[tuple[str, str]] = []
        self.kept = self.coded = 0

    def half(self, half: str, source: Stored) -> Half:
        """Write the shards of one half."""
        names: list[str] = []
        shards = 0
        for shard in self._shards(source):
            rows, files = [index for index, _ in shard], [file for _, file in shard]
            own = [str(source.names[index]) for index in rows]
            arrays: dict[str, np.ndarray] = {
                "bytes": np.frombuffer(b"".join(files), np.uint8),
                "offset": np.cumsum([0, *map(len, files)], dtype=np.int64),
                "checksum": np.array([zlib.crc32(file) for file in files], np.int64),
                "names": np.frombuffer("\0".join(own).encode("utf-8", "surrogateescape"), np.uint8),
            }
            if source.labels is not None:
                arrays["labels"] = source.labels[rows]
            path = self.folder / f"{half}-{shards:05}.safetensors"
            save_file(arrays, path)
            path.chmod(self.folder.stat().st_mode & 0o666)
            _flush(path)
            names += own
            shards += 1
        if not names:
            raise DataError(f"nothing to pack: {_told(self.unreadable)}")
        return Half(len(names), shards, list_hash(names), [_text(name) for name in source.classes])

    def _shards(self, source: Stored) -> Iterator[list[tuple[int, bytes]]]:
        """The images that can be read, as (index, file), in groups of at most SHARD_BYTES."""
        shard: list[tuple[int, bytes]] = []
        size = 0
        for index, coded in enumerate(self._coded(source)):
            self.advance(1, self.total)
            if isinstance(coded, str):
                self.unreadable.append((str(source.names[index]), coded))
                continue
            file, same = coded
            self.kept, self.coded = self.kept + same, self.coded + (not same)
            if shard and size + len(file) > SHARD_BYTES:
                yield shard
                shard, size = [], 0
            shard.append((index, file))
            size += len(file)
        if shard:
            yield shard

    def _coded(self, source: Stored) -> Iterator[tuple[bytes, bool] | str]:
        """Every image in order, coded ahead by the workers."""
        loader: DataLoader = DataLoader(
            _Coded(source, self.short_side, self.quality),
            batch_size=None,
            sampler=np.array_split(np.arange(len(source)), -(-len(source) // 16)),  # type: ignore[arg-type]
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
                f"a worker was ended by the system, for lack of memory perhaps; take fewer: --workers 0 ({error})"
            ) from error
