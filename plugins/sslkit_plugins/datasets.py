"""Data sets: folders of images, arrays, and the customary sets."""

import contextlib
import importlib
import io
import math
import os
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torchvision
from PIL import ExifTags, Image, ImageOps
from PIL.ImageFile import ImageFile
from torch import Tensor

from sslkit.errors import DataError, printable
from sslkit.interfaces import ImageSource, Pixels

ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM")
"""What a file may hold, whatever its name says; Pillow would hand PostScript to Ghostscript, which runs it."""

ARRAYS = ("images", "labels", "label", "classes", "jpeg", "offset")
"""What is read of an archive, under these names and the same with `_val` behind them."""

GENEROUS = 1 << 30
"""Bytes that an archive may unpack to without being looked at askance."""
RATIO = 100
"""An archive that unpacks to more than GENEROUS and more than this many times its size is a bomb."""
MOST_CLASSES = 1_000_000


def _faster_decoders() -> dict[str, Callable[[Tensor], Tensor]]:
    """By format, what decodes uint8 [bytes] to [3,H,W] faster than Pillow and to the same values: TorchCodec's decoders, or torchvision's,
    which gives way to it. Either raises RuntimeError on a file that is not whole."""
    for library in ("torchcodec.decoders", "torchvision.io"):
        with contextlib.suppress(ImportError, AttributeError, RuntimeError, OSError):
            module = importlib.import_module(library)
            mode = module.ImageReadMode.RGB
            return {
                "JPEG": partial(module.decode_jpeg, mode=mode),
                "WEBP": partial(module.decode_webp, mode=mode),
            }
    return {}


FASTER = _faster_decoders()


def decode(file: Path | io.BytesIO) -> Image.Image:
    """The first frame, upright, as RGB, transparency laid on white.

    16 bits, and whole numbers of 32 bits as if they were 16, are divided by 257; floating-point pixels count from 0 to 1, or to 255
    where one is greater than 1. Raises what Pillow raises on a file that is not whole, and on one of more pixels than
    `PIL.Image.MAX_IMAGE_PIXELS`; Pillow's other warnings, such as those of odd metadata, are no fault of the picture.
    """
    with _opened(file) as opened:
        return _shown(opened)


def decode_pixels(file: Path | io.BytesIO, reduction: Callable[[int, int], float]) -> Pixels:
    """What `decode` makes of a file, faster and to the same values: upright RGB images in JPEG, or in WebP that does not move, go through `FASTER`.

    JPEG whose sides `reduction(width, height)` allows to be divided by 2, 4 or 8 is decoded to that size, by Pillow.
    """
    stream = io.BytesIO(file.read_bytes()) if isinstance(file, Path) else file
    with _opened(stream) as opened:
        turn = opened.getexif().get(ExifTags.Base.Orientation, 1)
        width, height = opened.size if turn not in (5, 6, 7, 8) else opened.size[::-1]
        allowed = max(1, reduction(width, height))
        divisor = max(divisor for divisor in (1, 2, 4, 8) if divisor <= allowed)
        if divisor > 1 and opened.format == "JPEG":
            opened.draft(None, (opened.width // divisor, opened.height // divisor))
        elif (
            opened.format in FASTER
            and opened.mode == "RGB"
            and turn == 1
            and not getattr(opened, "is_animated", False)
        ):
            with contextlib.suppress(RuntimeError):  # Pillow then says what is wrong with the file.
                data = torch.frombuffer(stream.getbuffer(), dtype=torch.uint8)
                return Pixels(FASTER[opened.format](data), width, height)
        return Pixels(Pixels.of(_shown(opened)).values, width, height)


@contextlib.contextmanager
def _opened(file: Path | io.BytesIO) -> Iterator[ImageFile]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(file, formats=FORMATS) as opened:
            yield opened


def _shown(opened: ImageFile) -> Image.Image:
    opened.load()
    image: Image.Image = opened
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
    elif image.mode == "F":
        values = np.nan_to_num(np.asarray(image))
        image = Image.fromarray(
            (values * (255 if values.max() <= 1 else 1)).clip(0, 255).round().astype(np.uint8)
        )
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        solid = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", solid.size, "white"), solid).convert("RGB")
    return image.convert("RGB")


def _passed_over(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


class ImageFolder(ImageSource):
    """A folder of images, flat or nested, of any size and mode.

    Where `train/` (and `val/`, or else `test/`) lie below `root`, they are the two halves; otherwise all is one (`train/` among other
    folders is a class like them). An image's class is the first folder below the half, as in torchvision; where there is at most one
    such folder, or images lie beside it, nothing is known of classes. Hidden files and folders are passed over, and so are links that
    lead out of the half, unless `follow_links`, and whatever is no regular file, such as pipes and devices.
    """

    def __init__(self, split: str, /, *, root: str, follow_links: bool = False) -> None:
        top = Path(os.path.expanduser(root))
        if not os.path.isdir(top):
            state = "is a file" if os.path.exists(top) else "does not exist"
            raise DataError(
                f"the folder of images {root} {state}; name one that holds images: --data DIR"
            )
        self.follow_links = follow_links
        others: Counter[str] = Counter()
        try:
            self.root, self.has_val = self._half(top, split)
            self._inside = os.path.realpath(self.root)
            self.names = sorted(self._walk(self.root, "", frozenset(), others))
        except OSError as error:
            raise DataError(
                f"the folder {error.filename} cannot be read ({error.strerror})"
            ) from error
        if not self.names:
            seen = (
                ", ".join(
                    f"{count} × {ending or 'no ending'}" for ending, count in others.most_common(5)
                )
                or "no files"
            )
            raise DataError(
                f"no image below {self.root} ({seen}); files that end in {', '.join(sorted(ENDINGS))} count as images"
            )
        tops = [name.split("/", 1)[0] if "/" in name else "" for name in self.names]
        classes = sorted(set(tops))
        if "" not in classes and len(classes) > 1:
            number = {name: label for label, name in enumerate(classes)}
            self.classes, self.labels = classes, np.array([number[name] for name in tops], np.int64)

    @staticmethod
    def _half(top: Path, split: str) -> tuple[Path, bool]:
        """The folder of a split, and whether there are validation images of their own."""
        folders = {
            entry.name for entry in top.iterdir() if entry.is_dir() and not _passed_over(entry.name)
        }
        val = next((name for name in ("val", "test") if name in folders), None)
        halves = "train" in folders and (val is not None or folders == {"train"})
        if split == "val" and not (halves and val):
            raise DataError(
                f"{top} has no validation images of its own: there are no folders train/ and val/ below it"
            )
        return (
            top / (val if split == "val" and val else "train") if halves else top
        ), halves and val is not None

    def _walk(
        self, folder: Path, prefix: str, above: frozenset[str], others: Counter[str]
    ) -> Iterator[str]:
        """Names of images below `folder`; counts the endings of other files. A folder that is its own ancestor, by a link, ends there."""
        real = os.path.realpath(folder)
        if real in above:
            return
        with os.scandir(folder) as entries:
            for entry in entries:
                if _passed_over(entry.name) or (
                    entry.is_symlink() and not self._leads_to_something(entry.path)
                ):
                    continue
                if entry.is_dir():
                    yield from self._walk(
                        Path(entry.path), f"{prefix}{entry.name}/", above | {real}, others
                    )
                elif (
                    ending := os.path.splitext(entry.name)[1].lower()
                ) in ENDINGS and entry.is_file():
                    yield prefix + entry.name
                else:
                    others[ending] += 1

    def _leads_to_something(self, link: str) -> bool:
        """That may be read: inside the half, or anywhere where `follow_links`."""
        return os.path.exists(link) and (
            self.follow_links or Path(os.path.realpath(link)).is_relative_to(self._inside)
        )

    def stored(self, index: int) -> Path:
        """The image as it is stored."""
        return self.root / self.names[index]

    def image(self, index: int) -> Image.Image:
        """Decoded as RGB."""
        return decode(self.stored(index))

    def pixels(self, index: int, reduction: Callable[[int, int], float]) -> Pixels:
        """The same as pixels."""
        return decode_pixels(self.stored(index), reduction)


class Npz(ImageSource):
    """Images in a NumPy archive: `images` uint8 [N,H,W,3] or [N,H,W] (gray) and, where known, `labels` [N] and `classes` [C].

    Instead of `images` there may be `jpeg` uint8, the files one after another, and `offset` [N+1] where each begins; `label` is read
    like `labels`. Validation images come from `val_file`, an archive of the same form, or from arrays named `images_val` and
    `labels_val`. Nothing pickled is read, and no archive that unpacks to far more than its size or than fits into memory.
    """

    def __init__(self, split: str, /, *, file: str, val_file: str = "") -> None:
        train = self._open(file)
        val = (
            self._open(val_file)
            if val_file
            else {k.removesuffix("_val"): v for k, v in train.items() if k.endswith("_val")}
        )
        self.has_val = bool(val_file) or "images" in val
        if split == "val" and not self.has_val:
            raise DataError(f"{file} has no array images_val, and no data.val_file is named")
        self.file, self.arrays = (val_file or file, val) if split == "val" else (file, train)
        count = self._check()
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
                f"labels in {self.file} must be {count} whole numbers from 0 up, one an image; they are {labels.dtype} {list(labels.shape)}"
            )
        most = max(
            int(known.max(initial=0))
            for half in (train, val)
            if (known := _labels(half)) is not None
        )
        if most >= MOST_CLASSES:
            raise DataError(
                f"{file} has the label {most}; labels count classes from 0, of which there may be {MOST_CLASSES:,}"
            )
        self.labels = labels.astype(np.int64)
        self.classes = [str(name) for name in train.get("classes", np.arange(most + 1))]
        if len(self.classes) <= most:
            raise DataError(
                f"{file} has the label {most} but names only {len(self.classes)} classes"
            )

    @staticmethod
    def _open(file: str) -> dict[str, np.ndarray]:
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
                    held = ", ".join(map(printable, sorted(members)[:10])) or "nothing"
                    raise DataError(
                        f"{file} holds {held}, but neither 'images' nor 'jpeg' and 'offset'"
                    )
                _refuse_bomb(
                    file, os.path.getsize(path), sum(member.file_size for member in found.values())
                )
                return {name: _read_array(archive, member) for name, member in found.items()}
        except DataError:
            raise
        except Exception as error:
            raise DataError(
                f"{file} is not a NumPy archive (.npz) of plain arrays ({type(error).__name__}: {printable(str(error))})"
            ) from error

    def _check(self) -> int:
        """How many images there are. Raises DataError where the arrays are not of the form above."""
        if "images" in self.arrays:
            images = self.arrays["images"]
            if (
                images.dtype != np.uint8
                or images.ndim not in (3, 4)
                or (images.ndim == 4 and images.shape[3] != 3)
                or 0 in images.shape
            ):
                raise DataError(
                    f"images in {self.file} must be uint8 [N,H,W,3] or [N,H,W]; they are {images.dtype} {list(images.shape)}"
                )
            return len(images)
        if {"jpeg", "offset"} <= self.arrays.keys():
            offset, stream = self.arrays["offset"], self.arrays["jpeg"]
            whole = (
                stream.dtype == np.uint8
                and stream.ndim == 1
                and offset.ndim == 1
                and len(offset) > 1
            )
            if (
                not whole
                or not np.issubdtype(offset.dtype, np.integer)
                or offset[0] != 0
                or offset[-1] != len(stream)
                or (offset[1:] < offset[:-1]).any()
            ):
                raise DataError(
                    f"offset in {self.file} must rise from 0 to the length of jpeg ({stream.size}), one number more than there are images"
                )
            return len(offset) - 1
        raise DataError(
            f"{self.file} holds {', '.join(sorted(self.arrays)) or 'nothing'}, but neither 'images' nor 'jpeg' and 'offset'"
        )

    def stored(self, index: int) -> io.BytesIO | None:
        """The image as it is stored; None where its pixels are."""
        if "images" in self.arrays:
            return None
        first, last = self.arrays["offset"][index : index + 2]
        return io.BytesIO(self.arrays["jpeg"][first:last].tobytes())

    def image(self, index: int) -> Image.Image:
        """RGB."""
        file = self.stored(index)
        return (
            decode(file)
            if file is not None
            else Image.fromarray(self.arrays["images"][index]).convert("RGB")
        )

    def pixels(self, index: int, reduction: Callable[[int, int], float]) -> Pixels:
        """The same as pixels."""
        file = self.stored(index)
        return (
            decode_pixels(file, reduction) if file is not None else super().pixels(index, reduction)
        )


def _refuse_bomb(file: str, stored: int, unpacked: int) -> None:
    memory = (
        os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if hasattr(os, "sysconf")
        else math.inf
    )
    if unpacked > memory or unpacked > max(GENEROUS, RATIO * stored):
        raise DataError(
            f"{file} has {stored:,} bytes and would unpack to {unpacked:,}, which is more than this machine's memory or than images "
            f"ever do; make it a folder of images, or take the file from whom you trust"
        )


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """An array that is as large as its header says. ValueError where it is another, or one of pickled objects."""
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        read_header = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read_header(stream)
        if dtype.hasobject:
            raise ValueError(f"{member.filename} holds pickled objects")
        if stream.tell() + math.prod(shape) * dtype.itemsize != member.file_size:
            raise ValueError(
                f"{member.filename} is not as large as its header says: {list(shape)} of {dtype}"
            )
    with archive.open(member) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


def _labels(arrays: dict[str, np.ndarray]) -> np.ndarray | None:
    return arrays.get("labels", arrays.get("label"))


class _Torchvision(ImageSource):
    """A set that torchvision reads, and fetches where `download` says so."""

    has_val = True

    def __init__(
        self, set_name: str, half: str, root: str, download: bool, chosen: dict[str, Any], /
    ) -> None:
        try:
            self.set = getattr(torchvision.datasets, set_name)(
                os.path.expanduser(root), download=download, **chosen
            )
        except (RuntimeError, OSError) as error:
            how = (
                "it could not be fetched"
                if download
                else "fetch it once with --set data.download=true"
            )
            raise DataError(
                f"{set_name} is not below {root}: {how}, or put torchvision's files there ({error})"
            ) from error
        self.names = [f"{half}/{number}" for number in range(len(self.set))]
        labels = np.asarray(
            self.set.labels if hasattr(self.set, "labels") else self.set.targets, dtype=np.int64
        )
        if labels.min() >= 0:
            self.labels, self.classes = labels, list(self.set.classes)

    def image(self, index: int) -> Image.Image:
        """RGB."""
        return self.set[index][0].convert("RGB")


class Cifar10(_Torchvision):
    """CIFAR-10 (Krizhevsky 2009): 50,000 and 10,000 images of 32×32 in 10 classes. torchvision checks the files before it reads them."""

    nominal: ClassVar[dict[str, int]] = {"pretrain": 50_000, "train": 50_000, "val": 10_000}

    def __init__(self, split: str, /, *, root: str = "data", download: bool = False) -> None:
        super().__init__("CIFAR10", split, root, download, {"train": split != "val"})


class Cifar100(_Torchvision):
    """CIFAR-100 (Krizhevsky 2009): 50,000 and 10,000 images of 32×32 in 100 classes. torchvision checks the files before it reads them."""

    nominal: ClassVar[dict[str, int]] = {"pretrain": 50_000, "train": 50_000, "val": 10_000}

    def __init__(self, split: str, /, *, root: str = "data", download: bool = False) -> None:
        super().__init__("CIFAR100", split, root, download, {"train": split != "val"})


class Stl10(_Torchvision):
    """STL-10 (Coates, Ng & Lee 2011): 100,000 unlabelled images of 96×96 to train on, 5,000 and 8,000 labelled ones to evaluate."""

    nominal: ClassVar[dict[str, int]] = {"pretrain": 100_000, "train": 5_000, "val": 8_000}

    def __init__(self, split: str, /, *, root: str = "data", download: bool = False) -> None:
        super().__init__(
            "STL10",
            split,
            root,
            download,
            {"split": {"pretrain": "unlabeled", "train": "train", "val": "test"}[split]},
        )


class ImageNet(ImageFolder):
    """ImageNet-1k (Russakovsky et al. 2015, arXiv:1409.0575) as it is usually laid out: `train/` and `val/` below `root`, one folder a
    class. It has to be fetched by hand, and 50,000 validation images moved into folders of their classes."""

    nominal: ClassVar[dict[str, int]] = {"pretrain": 1_281_167, "train": 1_281_167, "val": 50_000}

    def __init__(
        self, split: str, /, *, root: str = "data/imagenet", follow_links: bool = False
    ) -> None:
        if not os.path.isdir(Path(os.path.expanduser(root), "train")):
            raise DataError(
                f"ImageNet is not below {root}: put its folders train/ and val/ there, with one folder a class, or name theirs: --data DIR"
            )
        super().__init__(split, root=root, follow_links=follow_links)
