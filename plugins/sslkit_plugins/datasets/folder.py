"""Folders of images."""

import contextlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from PIL import Image
from pydantic import Field

from sslkit.errors import DataError, counted, printable
from sslkit.interfaces import ImageSource, Pixels
from sslkit_plugins.datasets.decoding import (
    BANDS,
    ENDINGS,
    MAX_PIXELS,
    MaxPixels,
    decode,
    decode_pixels,
    odd_bands,
)
from sslkit_plugins.datasets.layout import (
    NAMED,
    TRAIN,
    VAL,
    Layout,
    has_training_folder,
    read_layout,
)
from sslkit_plugins.datasets.ours import is_our_folder
from sslkit_plugins.datasets.walk import Walk

FollowLinks = Annotated[
    bool, Field(description="Follow links whose targets are outside the split's folder.")
]
Splits = Annotated[
    bool,
    Field(
        description="Use folders directly in root as splits if they are named train, val, test or "
        "similar. false: use them as classes."
    ),
]

TIFF = (".tif", ".tiff")
REFILL = "add images, or remove the folder, so that a fifth of the training images validates"


class ImageFolder(ImageSource):
    """A folder of images, flat or nested, of any size and mode.

    Splits are folders directly in `root`, in any case: train or training; val, valid,
    validation or dev. test or testing is the validation split if none of these has images. Without
    such folders, all images form one split. Evaluations refuse a validation folder without images.

    Classes are the folders directly in a split, as in torchvision. There are no classes if
    there is at most one such folder, or if images are next to it.

    Skipped are hidden files, sslkit's own files (runs, packed sets, pictures), links out of the
    split, broken links, pipes and devices. No image is read twice through links.

    Files are gray, RGB, RGBA or CMYK. A TIFF file with other bands raises an error. A fourth band
    that is neither transparency nor black is not read.
    """

    opens: ClassVar[dict[str, str]] = {"/": "root"}

    def __init__(
        self,
        split: str,
        /,
        *,
        root: Annotated[str, Field(description="Folder of images.")],
        follow_links: FollowLinks = False,
        splits: Splits = True,
        max_pixels: MaxPixels = MAX_PIXELS,
    ) -> None:
        top = Path(os.path.expanduser(root))
        if not os.path.isdir(top):
            state = "is a file" if os.path.exists(top) else "does not exist"
            raise DataError(
                f"the folder of images {root} {state}; name a folder with images: --data DIR"
            )
        if is_our_folder(str(top)):
            raise DataError(
                f"{root} is a run folder or a packed set of sslkit; name a folder of images"
            )
        self.follow_links, self.max_pixels = follow_links, max_pixels
        try:
            layout = read_layout(top) if splits else Layout()
            self.has_val = layout.val is not None
            self._val = top / (layout.val or "")
            if split == "val" and not self.has_val:
                raise DataError(
                    f"{root} has no separate validation images: it has no folders train/ and val/ "
                    "with images"
                )
            self.root = self._val if split == "val" else top / layout.train
            walk = Walk(self.root, follow_links)
        except OSError as error:
            raise DataError(
                f"the folder {error.filename} cannot be read ({error.strerror}); make it "
                "readable, or move it elsewhere"
            ) from error
        self.names, self.place = walk.names, str(self.root)
        if not self.names:
            skipped = walk.skipped()
            contents = f": {skipped}" if skipped else ", and nothing else"
            remedy = f"; {REFILL}" if split == "val" else ""
            raise DataError(
                f"no image below {self.root}{contents}; files that end in "
                f"{', '.join(sorted(ENDINGS))} count as images{remedy}"
            )
        self._refuse_odd_bands()
        self._number_classes(1 if split == "val" else 2)
        self.notes = self._notes(walk, () if split == "val" else layout.unused)
        if splits and not layout.train and split != "val":
            self.notes += self._nested_splits() + self._numbered_splits()

    def _number_classes(self, fewest: int) -> None:
        """Set labels and classes if all images are in folders, of which there are `fewest` or more.

        Otherwise set `unlabelled`, the reason.
        """
        tops = [name.split("/", 1)[0] if "/" in name else "" for name in self.names]
        classes = sorted(set(tops))
        if "" not in classes and len(classes) >= fewest:
            number = {name: label for label, name in enumerate(classes)}
            self.classes, self.labels = classes, np.array([number[name] for name in tops], np.int64)
        elif classes == [""]:
            self.unlabelled = "it has no folders"
        elif "" in classes:
            first = tops.index("")
            loose = printable(self.names[first])
            self.unlabelled = f"some are next to its folders, such as {loose}"
        else:
            self.unlabelled = f"all of them are in one folder, {printable(classes[0])}/"

    def _notes(self, walk: Walk, unused: tuple[str, ...]) -> list[str]:
        """Return a sentence about skipped files, and one about folders that are no splits."""
        notes = []
        if skipped := walk.skipped():
            notes.append(f"skipped in {self.place}: {skipped}")
        if unused:
            notes.append(
                f"not read, next to the training and validation folders: {', '.join(unused)}"
            )
        return notes

    def _nested_splits(self) -> list[str]:
        """Return a sentence about folders named like splits one level deeper."""
        nested = set()
        for name in self.names:
            folders = name.split("/", 2)[:-1]
            if len(folders) == 2 and folders[1].lower() in (*TRAIN, *VAL):
                nested.add(printable(f"{folders[0]}/{folders[1]}/"))
        if not nested:
            return []
        parent = self.root / min(nested).split("/")[0]
        are, them, splits = (
            ("are", "them", "splits") if len(nested) > 1 else ("is", "it", "a split")
        )
        return [
            f"{', '.join(sorted(nested)[:NAMED])} in {self.place} {are} read like any folder; "
            f"to use {them} as {splits}, name the parent folder, such as {parent}"
        ]

    def _numbered_splits(self) -> list[str]:
        """Return a sentence about classes named like splits with a number, such as train2017."""
        pattern = rf"({'|'.join((*TRAIN, *VAL))})[-_. ]?\d+"
        found = [name for name in self.classes if re.fullmatch(pattern, name.lower())]
        if not found:
            return []
        shown = ", ".join(f"{printable(name)}/" for name in found[:NAMED])
        read, them = (
            ("are read as classes", "them") if len(found) > 1 else ("is read as a class", "it")
        )
        return [
            f"{shown} in {self.place} {read}; to use {them} as splits, rename {them} to train/ and "
            f"val/, or name one of the folders, such as {self.root / found[0]}"
        ]

    def validation(self) -> str:
        """Return the validation folder, its number of images, and why evaluations refuse it, if so.

        Evaluations refuse validation classes that the training images lack, and images without a
        class.
        """
        if not self.has_val:
            return ""
        try:
            names = Walk(self._val, self.follow_links).names
        except OSError:
            return str(self._val)
        count = counted(len(names), "image")
        if fault := self._validation_fault(names):
            return f"{self._val} ({count}, which evaluations refuse: {fault})"
        return f"{self._val} ({count})"

    def _validation_fault(self, names: list[str]) -> str:
        """Return why the validation images do not fit the classes; "" if they do."""
        if not names:
            return REFILL
        if self.labels is None:
            return ""
        if any("/" not in name for name in names):
            return "they are not all in class folders"
        strange = sorted({name.split("/", 1)[0] for name in names} - set(self.classes))
        if not strange:
            return ""
        shown = ", ".join(f"{printable(name)}/" for name in strange[:NAMED])
        return f"{shown}{', …' * (len(strange) > NAMED)} not among the training classes"

    def _refuse_odd_bands(self) -> None:
        """Raise DataError if the first TIFF file has an unsupported number of bands.

        Later files of this kind count as unreadable, with the same reason.
        """
        for name in self.names:
            if name.lower().endswith(TIFF):
                with contextlib.suppress(OSError), (self.root / name).open("rb") as stream:
                    if (bands := odd_bands(stream)) is not None:
                        raise DataError(f"{self.root / name} has {bands} bands; {BANDS}")
                return

    def stored(self, index: int) -> Path:
        """Return the file of an image."""
        return self.root / self.names[index]

    def image(self, index: int) -> Image.Image:
        """Decode an image as RGB."""
        return decode(self.stored(index), self.max_pixels)

    def pixels(self, index: int, reduction: Callable[[int, int], float]) -> Pixels:
        """Decode an image, at a smaller size if `reduction` allows."""
        return decode_pixels(self.stored(index), reduction, self.max_pixels)


class ImageNet(ImageFolder):
    """ImageNet-1k (Russakovsky et al. 2015, arXiv:1409.0575) in folders, one per class.

    `root` contains `train/` and `val/`. Download the data set by hand, and move the 50,000
    validation images into class folders.
    """

    opens: ClassVar[dict[str, str]] = {}
    paths: ClassVar[dict[str, tuple[str, ...]]] = {"root": ()}

    nominal: ClassVar[dict[str, int]] = {
        "pretrain": 1_281_167,
        "train": 1_281_167,
        "val": 50_000,
        "classes": 1000,
    }

    def __init__(
        self,
        split: str,
        /,
        *,
        root: Annotated[str, Field(description="Folder with train/ and val/.")] = "data/imagenet",
        follow_links: FollowLinks = False,
        max_pixels: MaxPixels = MAX_PIXELS,
    ) -> None:
        top = Path(os.path.expanduser(root))
        if not (os.path.isdir(top) and has_training_folder(top)):
            raise DataError(
                f"ImageNet is not below {root}: put its folders train/ and val/ there, with one "
                "folder per class, or name their parent folder: --data DIR"
            )
        super().__init__(split, root=root, follow_links=follow_links, max_pixels=max_pixels)
