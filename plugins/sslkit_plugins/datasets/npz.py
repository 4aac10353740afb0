"""Reads images from NumPy archives."""

import io
import math
import os
import zipfile
from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field

from sslkit.errors import DataError, printable
from sslkit.interfaces import ImageSource, Pixels
from sslkit_plugins.datasets.decoding import MAX_PIXELS, MaxPixels, decode, decode_pixels

ARRAYS = ("images", "labels", "label", "classes", "jpeg", "offset")
"""Names of the arrays that are read, and of those with the suffix `_val`."""

GENEROUS = 1 << 30
"""Unpacked size that is allowed for any archive, bytes."""
RATIO = 100
"""Above GENEROUS, the largest allowed ratio of unpacked to packed size."""
MOST_CLASSES = 1_000_000


class Npz(ImageSource):
    """Images in a NumPy archive: `images`, optionally `labels` [N] and `classes`.

    `images` are uint8 or uint16: [N,H,W,C] with any number of channels, or [N,H,W], gray, which
    becomes three equal channels. Alternatively, `jpeg` uint8 has the concatenated files and
    `offset` [N+1] the start of each. `label` is an alias of `labels`. Validation images come from
    `val_file`, an archive of the same format, or from arrays `images_val` and `labels_val`.

    Pickled arrays raise an error, as do archives whose unpacked size is far larger than the file or
    exceeds the memory.
    """

    opens: ClassVar[dict[str, str]] = {"*.npz": "file"}
    paths: ClassVar[dict[str, tuple[str, ...]]] = {"val_file": ()}

    def __init__(
        self,
        split: str,
        /,
        *,
        file: Annotated[str, Field(description="Archive of images, .npz.")],
        val_file: Annotated[
            str,
            Field(description="Archive of the validation images, .npz, if they are not in `file`."),
        ] = "",
        max_pixels: MaxPixels = MAX_PIXELS,
    ) -> None:
        self.max_pixels = max_pixels
        train = self._open(file)
        val = (
            self._open(val_file)
            if val_file
            else {k.removesuffix("_val"): v for k, v in train.items() if k.endswith("_val")}
        )
        self.has_val = bool(val_file) or "images" in val
        if split == "val" and not self.has_val:
            raise DataError(f"{file} has no array images_val, and data.val_file is not set")
        self.file, self.arrays = (val_file or file, val) if split == "val" else (file, train)
        count = self._check()
        self.channels, self.bits = _format(self.arrays)
        if self.has_val and _format(train) != _format(val):
            splits = " and ".join(
                "{} channels in {} bits".format(*_format(x)) for x in (train, val)
            )
            raise DataError(
                f"training and validation images of {file} differ: {splits}; convert one of them"
            )
        self.names = [f"{'val' if split == 'val' else 'train'}/{number}" for number in range(count)]
        labels = _labels(self.arrays)
        if labels is None:
            return
        if (
            labels.shape != (count,)
            or not np.issubdtype(labels.dtype, np.integer)
            or labels.min() < 0
        ):
            raise DataError(
                f"labels in {self.file} must be {count} integers ≥ 0, one per image; they are "
                f"{labels.dtype} {list(labels.shape)}"
            )
        of_splits = [found for found in (_labels(train), _labels(val)) if found is not None]
        most = max(int(found.max(initial=0)) for found in of_splits)
        if most >= MOST_CLASSES:
            raise DataError(
                f"{file} has the label {most}; labels number the classes from 0 to "
                f"{MOST_CLASSES - 1:,}"
            )
        self.labels = labels.astype(np.int64)
        self.classes = [str(name) for name in train.get("classes", np.arange(most + 1))]
        if len(self.classes) <= most:
            raise DataError(
                f"{file} has the label {most} but names only {len(self.classes)} classes; name "
                f"{most + 1} in the array classes, or leave it out"
            )

    @staticmethod
    def _open(file: str) -> dict[str, np.ndarray]:
        """Read the arrays of an archive. Raises DataError if it has none or cannot be read."""
        path = os.path.expanduser(file)
        if not os.path.isfile(path):
            raise DataError(f"there is no file {file}; name a NumPy archive: --data FILE.npz")
        try:
            with open(path, "rb") as stream, zipfile.ZipFile(stream) as archive:
                members = {
                    member.filename.removesuffix(".npy"): member for member in archive.infolist()
                }
                found = {
                    name: member
                    for name, member in members.items()
                    if name.removesuffix("_val") in ARRAYS
                }
                if not found:
                    contents = ", ".join(map(printable, sorted(members)[:10])) or "nothing"
                    raise DataError(
                        f"{file} holds {contents}, but neither 'images' nor 'jpeg' and 'offset'; "
                        "name the array: np.savez(FILE, images=images)"
                    )
                _refuse_bomb(
                    file, os.path.getsize(path), sum(member.file_size for member in found.values())
                )
                return {name: _read_array(archive, member) for name, member in found.items()}
        except DataError:
            raise
        except Exception as error:
            raise DataError(
                f"{file} is not a NumPy archive (.npz) of plain arrays "
                f"({type(error).__name__}: {printable(str(error))}); write it with np.savez"
            ) from error

    def _check(self) -> int:
        """Return the number of images. Raises DataError if the arrays have another format."""
        if "images" in self.arrays:
            images = self.arrays["images"]
            if (
                images.dtype not in (np.uint8, np.uint16)
                or images.ndim not in (3, 4)
                or 0 in images.shape
            ):
                raise DataError(
                    f"images in {self.file} must be uint8 or uint16 [N,H,W,C] or [N,H,W]; they are "
                    f"{images.dtype} {list(images.shape)}; convert them, such as floats from 0 to "
                    "1: (255 * images).round().astype(np.uint8)"
                )
            if _has_channels_first(images.shape):
                raise DataError(
                    f"images in {self.file} must have their channels last, [N,H,W,C]; they are "
                    f"{images.dtype} {list(images.shape)}; move them: np.moveaxis(images, 1, -1)"
                )
            return len(images)
        if {"jpeg", "offset"} <= self.arrays.keys():
            offset, stream = self.arrays["offset"], self.arrays["jpeg"]
            are_vectors = (
                stream.dtype == np.uint8
                and stream.ndim == 1
                and offset.ndim == 1
                and len(offset) > 1
            )
            if (
                not are_vectors
                or not np.issubdtype(offset.dtype, np.integer)
                or offset[0] != 0
                or offset[-1] != len(stream)
                or (offset[1:] < offset[:-1]).any()
            ):
                raise DataError(
                    f"offset in {self.file} must rise from 0 to the length of jpeg "
                    f"({stream.size}), one number more than there are images"
                )
            return len(offset) - 1
        contents = ", ".join(sorted(self.arrays)) or "nothing"
        raise DataError(
            f"{self.file} holds {contents}, but neither 'images' nor 'jpeg' and 'offset'; name the "
            "array: np.savez(FILE, images=images)"
        )

    def stored(self, index: int) -> io.BytesIO | None:
        """Return the file of an image, or None if the archive stores pixels."""
        if "images" in self.arrays:
            return None
        first, last = self.arrays["offset"][index : index + 2]
        return io.BytesIO(self.arrays["jpeg"][first:last].tobytes())

    def image(self, index: int) -> Image.Image:
        """Return an image as 8-bit RGB: its first three channels, or the first as gray."""
        file = self.stored(index)
        if file is not None:
            return decode(file, self.max_pixels)
        values = self.arrays["images"][index]
        if values.dtype == np.uint16:
            values = (values / 257).round().astype(np.uint8)
        if values.ndim == 3:
            values = values[..., :3] if values.shape[2] >= 3 else values[..., 0]
        return Image.fromarray(values).convert("RGB")

    def pixels(self, index: int, reduction: Callable[[int, int], float]) -> Pixels:
        """Return all channels of an image, in 8 or 16 bits."""
        file = self.stored(index)
        if file is not None:
            return decode_pixels(file, reduction, self.max_pixels)
        if self.channels == 3 and self.bits == 8:
            return super().pixels(index, reduction)
        values = self.arrays["images"][index]
        height, width = values.shape[:2]
        values = np.broadcast_to(values.reshape(height, width, -1), (height, width, self.channels))
        return Pixels(torch.from_numpy(values.transpose(2, 0, 1).copy()), width, height)


def _refuse_bomb(file: str, stored: int, unpacked: int) -> None:
    """Raise DataError for an archive that unpacks to more bytes than images do."""
    memory = math.inf
    if hasattr(os, "sysconf"):
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if unpacked > memory or unpacked > max(GENEROUS, RATIO * stored):
        raise DataError(
            f"{file} has {stored:,} bytes and would unpack to {unpacked:,}, more than this "
            "machine's memory or than any archive of images; convert it to a folder of images, or "
            "use a file from a source that you trust"
        )


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """Read an array. Raises ValueError for pickles, and if the size differs from the header's."""
    with archive.open(member) as stream:
        if np.lib.format.read_magic(stream) == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
        else:
            shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
        if dtype.hasobject:
            raise ValueError(f"{member.filename} holds pickled objects")
        if stream.tell() + math.prod(shape) * dtype.itemsize != member.file_size:
            raise ValueError(
                f"{member.filename} is not as large as its header says: {list(shape)} of {dtype}"
            )
    with archive.open(member) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


def _format(arrays: dict[str, np.ndarray]) -> tuple[int, Literal[8, 16]]:
    """Return channels and bits of the images; gray images have three channels."""
    if "images" not in arrays:
        return 3, 8
    images = arrays["images"]
    channels = images.shape[3] if images.ndim == 4 else 3
    return channels, 16 if images.dtype == np.uint16 else 8


def _has_channels_first(shape: tuple[int, ...]) -> bool:
    """Tell whether images [N,?,?,?] look like [N,C,H,W] with C ≤ 4."""
    return len(shape) == 4 and shape[3] != 3 and shape[1] <= 4 and shape[1] < min(shape[2:])


def _labels(arrays: dict[str, np.ndarray]) -> np.ndarray | None:
    """Return the stored labels [N], or None."""
    return arrays.get("labels", arrays.get("label"))
