"""Data sets that torchvision reads and downloads."""

import os
from typing import Annotated, Any, ClassVar

import numpy as np
import torchvision
from PIL import Image
from pydantic import Field

from sslkit.errors import DataError
from sslkit.interfaces import ImageSource

Root = Annotated[str, Field(description="Folder with torchvision's files.")]
Download = Annotated[bool, Field(description="Let torchvision download the files.")]


class _Torchvision(ImageSource):
    """A data set of torchvision; `download` lets torchvision download it."""

    has_val = True
    paths: ClassVar[dict[str, tuple[str, ...]]] = {"root": ()}

    def __init__(
        self, set_name: str, split: str, root: str, download: bool, chosen: dict[str, Any], /
    ) -> None:
        try:
            self.set = getattr(torchvision.datasets, set_name)(
                os.path.expanduser(root), download=download, **chosen
            )
        except (RuntimeError, OSError) as error:
            how = "download it once with --set data.download=true"
            if download:
                how = "the download failed"
            raise DataError(
                f"{set_name} is not below {root}: {how}, or put torchvision's files there ({error})"
            ) from error
        self.names = [f"{split}/{number}" for number in range(len(self.set))]
        stored = self.set.labels if hasattr(self.set, "labels") else self.set.targets
        labels = np.asarray(stored, dtype=np.int64)
        if labels.min() >= 0:
            self.labels, self.classes = labels, list(self.set.classes)

    def image(self, index: int) -> Image.Image:
        """Return an image as RGB."""
        return self.set[index][0].convert("RGB")


class Cifar10(_Torchvision):
    """CIFAR-10 (Krizhevsky 2009): 50,000 + 10,000 images of 32×32 in 10 classes.

    torchvision verifies the checksums of the files.
    """

    nominal: ClassVar[dict[str, int]] = {
        "pretrain": 50_000,
        "train": 50_000,
        "val": 10_000,
        "classes": 10,
    }

    def __init__(self, split: str, /, *, root: Root = "data", download: Download = False) -> None:
        super().__init__("CIFAR10", split, root, download, {"train": split != "val"})


class Cifar100(_Torchvision):
    """CIFAR-100 (Krizhevsky 2009): 50,000 + 10,000 images of 32×32 in 100 classes.

    torchvision verifies the checksums of the files.
    """

    nominal: ClassVar[dict[str, int]] = {
        "pretrain": 50_000,
        "train": 50_000,
        "val": 10_000,
        "classes": 100,
    }

    def __init__(self, split: str, /, *, root: Root = "data", download: Download = False) -> None:
        super().__init__("CIFAR100", split, root, download, {"train": split != "val"})


class Stl10(_Torchvision):
    """STL-10 (Coates, Ng & Lee 2011): 100,000 unlabelled training images of 96×96.

    Evaluations use 5,000 + 8,000 labelled images.
    """

    nominal: ClassVar[dict[str, int]] = {"pretrain": 100_000, "train": 5_000, "val": 8_000}

    def __init__(self, split: str, /, *, root: Root = "data", download: Download = False) -> None:
        named = {"pretrain": "unlabeled", "train": "train", "val": "test"}
        super().__init__("STL10", split, root, download, {"split": named[split]})
