"""Data sets: folders of images, arrays, and the customary sets."""

import io
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torchvision
from PIL import Image, ImageOps

from sslkit.errors import DataError
from sslkit.interfaces import ImageSource

ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}


def decode(file: Path | io.BytesIO) -> Image.Image:
    """The first frame, upright, as RGB: 16 bits scaled to 8, transparency laid on white."""
    with Image.open(file) as image:
        image.load()
        upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith(("I", "F")):
        values = np.asarray(upright, dtype=np.float64)
        upright = Image.fromarray((values / (257 if values.max() > 255 else 1)).clip(0, 255).astype(np.uint8))
    if upright.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in upright.info:
        solid = upright.convert("RGBA")
        ground = Image.new("RGBA", solid.size, "white")
        return Image.alpha_composite(ground, solid).convert("RGB")
    return upright.convert("RGB")


class ImageFolder(ImageSource):
    """A folder of images, flat or nested, of any size and mode.

    Where `train/` (and `val/`) lie below `root`, they are the two halves; otherwise all is one. An image's class is the first folder
    below the half, as in torchvision; where there is at most one such folder, or images lie beside it, nothing is known of classes.
    """

    def __init__(self, split: str, /, *, root: str, follow_links: bool = False) -> None:
        top = Path(root).expanduser()
        if not top.is_dir():
            raise DataError(f"there is no folder {root}; name one that holds images: --data DIR")
        halves = (top / "train").is_dir()
        self.has_val = halves and (top / "val").is_dir()
        if split == "val" and not self.has_val:
            raise DataError(f"{root} has no folder val/ below it")
        self.root = top / ("val" if split == "val" else "train") if halves else top
        self.follow_links = follow_links
        found = sorted(self._walk(self.root, ""))
        if not found:
            raise DataError(f"no image below {self.root}; files that end in {', '.join(sorted(ENDINGS))} count")
        self.names = found
        tops = [name.split("/", 1)[0] if "/" in name else "" for name in found]
        classes = sorted(set(tops))
        if "" not in classes and len(classes) > 1:
            self.classes = classes
            self.labels = np.searchsorted(np.array(classes), np.array(tops)).astype(np.int64)

    def _walk(self, folder: Path, prefix: str) -> Iterator[str]:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name == "__MACOSX":
                    continue
                if (
                    entry.is_symlink()
                    and not self.follow_links
                    and not Path(entry.path).resolve().is_relative_to(self.root.resolve())
                ):
                    continue
                if entry.is_dir():
                    yield from self._walk(Path(entry.path), f"{prefix}{entry.name}/")
                elif os.path.splitext(entry.name)[1].lower() in ENDINGS:
                    yield prefix + entry.name

    def image(self, index: int) -> Image.Image:
        """Decoded as RGB."""
        return decode(self.root / self.names[index])


class Npz(ImageSource):
    """Images in a NumPy archive: `images` uint8 [N,H,W,3] or [N,H,W] (gray) and, where known, `labels` [N] and `classes` [C].

    Instead of `images` there may be `jpeg` uint8, the files one after another, and `offset` [N+1] where each begins; `label` is read
    like `labels`. Validation images come from `val_file`, an archive of the same form, or from arrays named `images_val` and
    `labels_val`. Nothing pickled is read.
    """

    def __init__(self, split: str, /, *, file: str, val_file: str = "") -> None:
        self.has_val = bool(val_file)
        arrays = self._open(val_file if split == "val" and val_file else file)
        if not val_file and "images_val" in arrays:
            self.has_val = True
            if split == "val":
                arrays = {name.removesuffix("_val"): array for name, array in arrays.items() if name.endswith("_val") or name == "classes"}
        if split == "val" and not self.has_val:
            raise DataError(f"{file} has no array images_val, and no data.val_file is named")
        self.arrays, self.file = arrays, file
        count = self._check()
        self.names = [f"{split if split == 'val' else 'train'}/{number}" for number in range(count)]
        labels = arrays.get("labels", arrays.get("label"))
        if labels is not None:
            if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
                raise DataError(f"labels in {file} must be {count} whole numbers from 0 up, one an image; they are {labels.dtype} {labels.shape}")
            self.labels = labels.astype(np.int64)
            names = arrays.get("classes", np.arange(int(labels.max()) + 1))
            self.classes = [str(name) for name in names]
            if len(self.classes) <= labels.max():
                raise DataError(f"{file} has the label {labels.max()} but names only {len(self.classes)} classes")

    @staticmethod
    def _open(file: str) -> dict[str, np.ndarray]:
        path = Path(file).expanduser()
        if not path.is_file():
            raise DataError(f"there is no file {file}; name a NumPy archive: --data FILE.npz")
        try:
            with np.load(path, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        except (ValueError, OSError, zipfile.BadZipFile, EOFError, AttributeError) as error:
            raise DataError(f"{file} is not a NumPy archive of plain arrays ({error})") from error

    def _check(self) -> int:
        """How many images there are. Raises DataError where the arrays are not of the form above."""
        if "images" in self.arrays:
            images = self.arrays["images"]
            if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] != 3) or 0 in images.shape:
                raise DataError(f"images in {self.file} must be uint8 [N,H,W,3] or [N,H,W]; they are {images.dtype} {list(images.shape)}")
            return len(images)
        if {"jpeg", "offset"} <= self.arrays.keys():
            offset, stream = self.arrays["offset"], self.arrays["jpeg"]
            whole = stream.dtype == np.uint8 and stream.ndim == 1 and offset.ndim == 1 and len(offset) > 1
            if not whole or not np.issubdtype(offset.dtype, np.integer) or offset[0] != 0 or offset[-1] != len(stream) or (np.diff(offset) < 0).any():
                raise DataError(f"offset in {self.file} must rise from 0 to the length of jpeg ({stream.size}), one number more than there are images")
            return len(offset) - 1
        raise DataError(f"{self.file} holds {', '.join(sorted(self.arrays)) or 'nothing'}, but neither 'images' nor 'jpeg' and 'offset'")

    def image(self, index: int) -> Image.Image:
        """RGB."""
        if "images" in self.arrays:
            return Image.fromarray(self.arrays["images"][index]).convert("RGB")
        first, last = self.arrays["offset"][index : index + 2]
        return decode(io.BytesIO(self.arrays["jpeg"][first:last].tobytes()))


class _Torchvision(ImageSource):
    """A set that torchvision reads, and fetches where `download` says so."""

    has_val = True

    def __init__(self, set_name: str, half: str, /, root: str, download: bool, **chosen: Any) -> None:
        try:
            self.set = getattr(torchvision.datasets, set_name)(str(Path(root).expanduser()), download=download, **chosen)
        except (RuntimeError, OSError) as error:
            how = "it could not be fetched" if download else "fetch it once with --set data.download=true"
            raise DataError(f"{set_name} is not below {root}: {how}, or put torchvision's files there ({error})") from error
        self.names = [f"{half}/{number}" for number in range(len(self.set))]
        labels = np.asarray(self.set.labels if hasattr(self.set, "labels") else self.set.targets, dtype=np.int64)
        if labels.min() >= 0:
            self.labels, self.classes = labels, list(self.set.classes)

    def image(self, index: int) -> Image.Image:
        """RGB."""
        return self.set[index][0].convert("RGB")


class Cifar10(_Torchvision):
    """CIFAR-10 (Krizhevsky 2009): 50,000 and 10,000 images of 32×32 in 10 classes. torchvision checks the files before it reads them."""

    nominal: ClassVar[dict[str, int]] = {"pretrain": 50_000, "train": 50_000, "val": 10_000}

    def __init__(self, split: str, /, *, root: str = "data", download: bool = False) -> None:
        super().__init__("CIFAR10", split, root, download, train=split != "val")


class Cifar100(_Torchvision):
    """CIFAR-100 (Krizhevsky 2009): 50,000 and 10,000 images of 32×32 in 100 classes. torchvision checks the files before it reads them."""

    nominal: ClassVar[dict[str, int]] = {"pretrain": 50_000, "train": 50_000, "val": 10_000}

    def __init__(self, split: str, /, *, root: str = "data", download: bool = False) -> None:
        super().__init__("CIFAR100", split, root, download, train=split != "val")


class Stl10(_Torchvision):
    """STL-10 (Coates, Ng & Lee 2011): 100,000 unlabelled images of 96×96 to train on, 5,000 and 8,000 labelled ones to evaluate."""

    nominal: ClassVar[dict[str, int]] = {"pretrain": 100_000, "train": 5_000, "val": 8_000}

    def __init__(self, split: str, /, *, root: str = "data", download: bool = False) -> None:
        super().__init__("STL10", split, root, download, split={"pretrain": "unlabeled", "train": "train", "val": "test"}[split])


class ImageNet(ImageFolder):
    """ImageNet-1k (Russakovsky et al. 2015, arXiv:1409.0575) as it is usually laid out: `train/` and `val/` below `root`, one folder a
    class. It has to be fetched by hand, and 50,000 validation images moved into folders of their classes."""

    nominal: ClassVar[dict[str, int]] = {"pretrain": 1_281_167, "train": 1_281_167, "val": 50_000}

    def __init__(self, split: str, /, *, root: str = "data/imagenet", follow_links: bool = False) -> None:
        super().__init__(split, root=root, follow_links=follow_links)
