"""Folders of images."""

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from PIL import Image
from pydantic import Field

from sslkit.errors import DataError
from sslkit.interfaces import ImageSource, Pixels
from sslkit_plugins.datasets.decoding import BANDS, ENDINGS, decode, decode_pixels, odd_bands

FollowLinks = Annotated[
    bool, Field(description="Whether links may lead out of the folder of a split.")
]


TIFF = {".tif", ".tiff"}


def _passed_over(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


class ImageFolder(ImageSource):
    """A folder of images, flat or nested, of any size and mode.

    Folders `train/` and `val/` (or `test/`) below `root` are the two splits; without them all
    images are one split, and `train/` among other folders is a class like them. An image's class
    is the first folder below the split, as in torchvision; there are no classes where there is at
    most one such folder, or images lie beside it. Hidden files and folders, links that lead out of the
    split, and what is no regular file, such as pipes and devices, are skipped. Files hold gray,
    RGB, RGBA or CMYK; a TIFF of other bands is refused, and a fourth band that is neither
    transparency nor black is not read.
    """

    opens: ClassVar[dict[str, str]] = {"/": "root"}

    def __init__(
        self,
        split: str,
        /,
        *,
        root: Annotated[str, Field(description="Folder of the images.")],
        follow_links: FollowLinks = False,
    ) -> None:
        top = Path(os.path.expanduser(root))
        if not os.path.isdir(top):
            state = "is a file" if os.path.exists(top) else "does not exist"
            raise DataError(
                f"the folder of images {root} {state}; name one that holds images: --data DIR"
            )
        self.follow_links = follow_links
        endings: Counter[str] = Counter()
        try:
            self.root, self.has_val = self._half(top, split)
            self._inside = os.path.realpath(self.root)
            self.names = sorted(self._walk(self.root, "", frozenset(), endings))
        except OSError as error:
            raise DataError(
                f"the folder {error.filename} cannot be read ({error.strerror})"
            ) from error
        if not self.names:
            counts = [f"{n} × {ending or 'no ending'}" for ending, n in endings.most_common(5)]
            images = ", ".join(sorted(ENDINGS))
            raise DataError(
                f"no image below {self.root} ({', '.join(counts) or 'no files'}); "
                f"files that end in {images} count as images"
            )
        if endings.keys() & TIFF:
            self._refuse_odd_bands()
        tops = [name.split("/", 1)[0] if "/" in name else "" for name in self.names]
        classes = sorted(set(tops))
        if "" not in classes and len(classes) > 1:
            number = {name: label for label, name in enumerate(classes)}
            self.classes, self.labels = classes, np.array([number[name] for name in tops], np.int64)

    def _refuse_odd_bands(self) -> None:
        """DataError where the first TIFF file has bands that files cannot be read with.

        Others like it count as unreadable later, with the same reason.
        """
        for name in self.names:
            if name.lower().endswith(tuple(TIFF)):
                with contextlib.suppress(OSError), (self.root / name).open("rb") as stream:
                    if (bands := odd_bands(stream)) is not None:
                        raise DataError(f"{self.root / name} has {bands} bands; {BANDS}")
                return

    @staticmethod
    def _half(top: Path, split: str) -> tuple[Path, bool]:
        """Return the folder of a split, and whether there are validation images of their own."""
        folders = {
            entry.name for entry in top.iterdir() if entry.is_dir() and not _passed_over(entry.name)
        }
        val = next((name for name in ("val", "test") if name in folders), None)
        halves = "train" in folders and (val is not None or folders == {"train"})
        if split == "val" and not (halves and val):
            raise DataError(
                f"{top} has no validation images of its own: "
                "there are no folders train/ and val/ below it"
            )
        if not halves:
            return top, False
        return top / (val if split == "val" and val else "train"), val is not None

    def _walk(
        self, folder: Path, prefix: str, above: frozenset[str], endings: Counter[str]
    ) -> Iterator[str]:
        """Yield the names of images below `folder`, and count the endings of files.

        A folder that is its own ancestor, by a link, is not entered again.
        """
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
                        Path(entry.path), f"{prefix}{entry.name}/", above | {real}, endings
                    )
                    continue
                ending = os.path.splitext(entry.name)[1].lower()
                endings[ending] += 1
                if ending in ENDINGS and entry.is_file():
                    yield prefix + entry.name

    def _leads_to_something(self, link: str) -> bool:
        """Tell whether a link may be read: inside the split, or anywhere where `follow_links`."""
        if not os.path.exists(link):
            return False
        return self.follow_links or Path(os.path.realpath(link)).is_relative_to(self._inside)

    def stored(self, index: int) -> Path:
        """Return the file of an image."""
        return self.root / self.names[index]

    def image(self, index: int) -> Image.Image:
        """Decode an image as RGB."""
        return decode(self.stored(index))

    def pixels(self, index: int, reduction: Callable[[int, int], float]) -> Pixels:
        """Decode an image, smaller where `reduction` allows."""
        return decode_pixels(self.stored(index), reduction)


class ImageNet(ImageFolder):
    """ImageNet-1k (Russakovsky et al. 2015, arXiv:1409.0575) in folders, one for each class.

    `train/` and `val/` lie below `root`. It has to be fetched by hand, and the 50,000 validation
    images moved into folders of their classes.
    """

    opens: ClassVar[dict[str, str]] = {}
    paths: ClassVar[dict[str, tuple[str, ...]]] = {"root": ()}

    nominal: ClassVar[dict[str, int]] = {"pretrain": 1_281_167, "train": 1_281_167, "val": 50_000}

    def __init__(
        self,
        split: str,
        /,
        *,
        root: Annotated[
            str, Field(description="Folder that holds train/ and val/.")
        ] = "data/imagenet",
        follow_links: FollowLinks = False,
    ) -> None:
        if not os.path.isdir(Path(os.path.expanduser(root), "train")):
            raise DataError(
                f"ImageNet is not below {root}: put its folders train/ and val/ there, with one "
                "folder a class, or name theirs: --data DIR"
            )
        super().__init__(split, root=root, follow_links=follow_links)
