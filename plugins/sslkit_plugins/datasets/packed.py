"""Reads packed sets: JPEG files in a few large memory-mapped files.

DEST/packed.json   options and classes; for each split the number of images and shards, and the
                   SHA-256 of the list of names
DEST/train-00000.safetensors, …
    bytes     uint8, the concatenated JPEG files
    offset    int64 [n+1], start of each file
    checksum  int64 [n], CRC-32 of each file
    names     uint8, UTF-8, separated by zero bytes
    labels    int64 [n], optional
"""

import io
import os
import shlex
import zlib
from bisect import bisect_right
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pydantic
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open

from sslkit.errors import DataError
from sslkit.interfaces import ImageSource, Pixels
from sslkit_plugins.datasets import packing
from sslkit_plugins.datasets.decoding import MAX_PIXELS, MaxPixels, decode, decode_pixels
from sslkit_plugins.datasets.packed_index import INDEX, Index, list_hash


class Packed(ImageSource):
    """A set written by `sslkit pack SRC DEST`: a few large memory-mapped files.

    Names, labels, classes and the hash of the list are equal to those of the source, so a run can
    resume on either. The checksum of an image is verified on each read.
    """

    opens: ClassVar[dict[str, str]] = {"/packed.json": "root"}
    packs: ClassVar[bool] = True

    def __init__(
        self,
        split: str,
        /,
        *,
        root: Annotated[str, pydantic.Field(description="Folder written by `sslkit pack`.")],
        max_pixels: MaxPixels = MAX_PIXELS,
    ) -> None:
        self.root, self.max_pixels, self.place = Path(os.path.expanduser(root)), max_pixels, root
        name = "val" if split == "val" else "train"
        index = self._index()
        self.reduced_to = index.reduced_to
        self.has_val = "val" in index.splits
        if name not in index.splits:
            raise DataError(
                f"{root} has no separate {name} images, because its source has none; pack a folder "
                "with train/ and val/"
            )
        if self.has_val:
            self.place = f"{root}, {name}"
            self._val = f"{root}, val ({index.splits['val'].images:,} images)"
        entry = index.splits[name]
        self.names: list[str] = []
        self.classes = entry.classes
        self._files = [self.root / f"{name}-{n:05}.safetensors" for n in range(entry.shards)]
        self._maps: dict[int, dict[str, np.ndarray]] = {}
        self._first: list[int] = []
        labels = []
        for number in range(entry.shards):
            shard = self._shard(number)
            self._first.append(len(self.names))
            self.names += shard["names"].tobytes().decode("utf-8", "surrogateescape").split("\0")
            labels.append(shard.get("labels", np.empty(0, np.int64)))
        if (len(self.names), list_hash(self.names)) != (entry.images, entry.sha256):
            raise self._damaged(self.root / INDEX, "its shards hold another list of images")
        stored = np.concatenate(labels)
        if len(stored):
            if len(stored) != len(self.names) or not self._are_classes(stored):
                raise self._damaged(self.root / INDEX, "labels do not fit images and classes")
            self.labels = stored

    def _are_classes(self, labels: np.ndarray) -> bool:
        return labels.min() >= 0 and labels.max() < len(self.classes)

    def _index(self) -> Index:
        path = self.root / INDEX
        try:
            return pydantic.TypeAdapter(Index).validate_json(path.read_bytes())
        except FileNotFoundError as error:
            raise DataError(
                f"{self.root} is not a packed set, it has no {INDEX}; name one, --data DIR, or "
                f"create it: sslkit pack FOLDER {shlex.quote(str(self.root))}"
            ) from error
        except OSError as error:
            raise DataError(
                f"{path} cannot be read ({error.strerror}); make it readable, or pack the images "
                "again"
            ) from error
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            reason = f"{place}: {first['msg']}" if place else first["msg"]
            raise self._damaged(path, reason) from error

    @staticmethod
    def _damaged(path: Path, why: str) -> DataError:
        return DataError(f"{path} is not what `sslkit pack` wrote ({why}); pack the images again")

    def _shard(self, number: int) -> dict[str, np.ndarray]:
        """Return the arrays of a mapped file by name. Raises DataError if they do not match."""
        if number not in self._maps:
            path = self._files[number]
            try:
                with safe_open(path, framework="pt") as file:
                    names = list(file.keys())
                    tensors = {name: file.get_tensor(name) for name in names}
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
        """Return the state to pickle for a spawned worker, which maps the files itself."""
        return {**vars(self), "_maps": {}}

    def stored(self, index: int) -> io.BytesIO:
        """Return the file of an image. Raises DataError if the checksum of its bytes differs."""
        number = bisect_right(self._first, index) - 1
        shard, row = self._shard(number), index - self._first[number]
        first, last = shard["offset"][row : row + 2].tolist()
        file = shard["bytes"][first:last].tobytes()
        if zlib.crc32(file) != shard["checksum"][row]:
            raise DataError(
                f"its bytes in {self._files[number].name} have changed since packing (the checksum "
                "differs)"
            )
        return io.BytesIO(file)

    def image(self, index: int) -> Image.Image:
        """Decode an image as RGB."""
        return decode(self.stored(index), self.max_pixels)

    def pixels(self, index: int, reduction: Callable[[int, int], float]) -> Pixels:
        """Decode an image, at a smaller size if `reduction` allows."""
        return decode_pixels(self.stored(index), reduction, self.max_pixels)

    def validation(self) -> str:
        """Return the place of the validation images and their number."""
        return self._val if self.has_val else ""

    @classmethod
    def write(
        cls, splits: Mapping[Literal["train", "val"], ImageSource], root: str, **options: Any
    ) -> Index:
        """Pack the splits of a data set into a new folder; see `packing.write`."""
        return packing.write(splits, root, **options)
