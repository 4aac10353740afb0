"""Images with boxes in the layout of Pascal VOC."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from sslkit.errors import DataError, counted, printable
from sslkit.interfaces import Boxes, ImageSource, Pixels
from sslkit_plugins.datasets.annotations import Objects, read_list, read_objects
from sslkit_plugins.datasets.decoding import (
    ENDINGS,
    MAX_PIXELS,
    MaxPixels,
    decode,
    decode_pixels,
)
from sslkit_plugins.datasets.walk import ending_of

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
"""The classes of Pascal VOC, in its order."""

SPLITS = (
    ("trainval", "test"),
    ("train", "val"),
    ("train", "test"),
    ("trainval", ""),
    ("train", ""),
    ("val", ""),
    ("test", ""),
)
"""Lists of training and validation images, the preferred pair first."""


class Listed:
    """The images of one list, with their annotations if the folder has any."""

    def __init__(self, folder: Path, name: str) -> None:
        self.file = _list_file(folder, name)
        files = _images(folder / "JPEGImages")
        stems = [_stem(name, files) for name in read_list(self.file)]
        self.files = [self._required(files, stem) for stem in stems]
        self.objects: list[Objects] | None = None
        annotations = folder / "Annotations"
        if annotations.is_dir():
            self.objects = []
            for stem, file in zip(stems, self.files, strict=True):
                self.objects.append(self._objects(annotations / f"{stem}.xml", file))

    def _required(self, files: dict[str, Path], stem: str) -> Path:
        if stem not in files:
            raise DataError(
                f"{self.file} names {printable(stem)}, but JPEGImages has no such image; add it, "
                "or remove the line"
            )
        return files[stem]

    def _objects(self, file: Path, image: Path) -> Objects:
        if not file.is_file():
            raise DataError(
                f"{self.file} names {printable(image.stem)}, but the annotation {file} does not "
                "exist; add it (without <object> for an image without objects), or remove the line"
            )
        return read_objects(file, image)


class Voc(ImageSource):
    """Images with boxes in the layout of Pascal VOC (Everingham et al. 2010, IJCV 88).

    `root` has the folders JPEGImages, Annotations and ImageSets/Main. Training and validation
    images are those of the lists trainval and test; without these, of train and val. `test`
    requires annotations, which VOC2012 does not publish. A single list is split by evaluations.

    A folder VOCdevkit, or one that contains it, has such folders named VOC2007 and VOC2012.

    `tags` are 1 if an object of the class is not difficult, −1 if all are difficult, else 0.
    Classes are those of the annotations, in VOC's order if all are VOC's, else sorted. Without
    the folder Annotations, the images have no classes.
    """

    opens: ClassVar[dict[str, str]] = {
        "/ImageSets/Main/trainval.txt": "root",
        "/ImageSets/Main/train.txt": "root",
        "/ImageSets/Main/val.txt": "root",
        "/ImageSets/Main/test.txt": "root",
        "/VOC2007/ImageSets/Main/trainval.txt": "root",
        "/VOC2012/ImageSets/Main/trainval.txt": "root",
        "/VOCdevkit/VOC2007/ImageSets/Main/trainval.txt": "root",
        "/VOCdevkit/VOC2012/ImageSets/Main/trainval.txt": "root",
    }

    def __init__(
        self,
        split: str,
        /,
        *,
        root: Annotated[
            str, Field(description="Folder with JPEGImages, Annotations and ImageSets/Main.")
        ],
        years: Annotated[
            Literal[2007, 2012, "2007+2012"] | None,
            Field(
                description="Years of a VOCdevkit folder, by default 2007, else 2012. 2007+2012 "
                "trains on both and validates on 2007, as in the tables of detection."
            ),
        ] = None,
        max_pixels: MaxPixels = MAX_PIXELS,
    ) -> None:
        top = Path(os.path.expanduser(root))
        folders = _folders(top, years)
        train_name, val_name = _split_names(folders[0])
        self.max_pixels, self.place, self.has_val = max_pixels, str(top), bool(val_name)
        if split == "val" and not self.has_val:
            raise DataError(f"{root} has only the list {train_name}.txt, so no validation images")
        train = [Listed(folder, train_name) for folder in folders]
        self._val = Listed(folders[0], val_name) if val_name else None
        both = train if self._val is None else [*train, self._val]
        own = [self._val] if split == "val" and self._val is not None else train
        self.files: list[Path] = []
        for one in own:
            self.files += one.files
        self.names = [file.relative_to(top).as_posix() for file in self.files]
        if split != "val":
            self.notes = self._describe_lists(train)
        objects = _all_objects(both)
        if objects is None:
            self.unlabelled = "it has no folder Annotations"
            return
        self.classes = _classes(objects)
        if self.classes:
            self._number(_all_objects(own) or [])
        else:
            self.unlabelled = "no annotation has an object"

    def _number(self, objects: list[Objects]) -> None:
        """Set boxes and tags."""
        numbers = {name: number for number, name in enumerate(self.classes)}
        self.tags = np.zeros((len(objects), len(self.classes)), np.int8)
        self.boxes = []
        for row, (names, corners, difficult) in enumerate(objects):
            labels = np.array([numbers[name] for name in names], np.int64)
            self.boxes.append(Boxes(corners, labels, difficult))
            self.tags[row, labels[difficult]] = -1
            self.tags[row, labels[~difficult]] = 1

    def _describe_lists(self, train: list[Listed]) -> list[str]:
        """Return a sentence about the lists, and one about images in both of them."""
        used = " and ".join(self._relative(one.file) for one in train)
        if self._val is None:
            return [f"{self.place} has no annotated list of validation images beside {used}"]
        named = self._relative(self._val.file)
        notes = [f"in {self.place}, the training images are those of {used}, the others of {named}"]
        shared = set(self._val.files) & set(self.files)
        if shared:
            notes.append(
                f"{named} shares {counted(len(shared), 'image')} with the training images, such as "
                f"{printable(min(shared).name)}; results on shared images are too good"
            )
        return notes

    def _relative(self, file: Path) -> str:
        return file.relative_to(self.place).as_posix()

    def validation(self) -> str:
        """Return the list of validation images and their number."""
        if self._val is None:
            return ""
        return f"{self._val.file} ({counted(len(self._val.files), 'image')})"

    def stored(self, index: int) -> Path:
        """Return the file of an image."""
        return self.files[index]

    def image(self, index: int) -> Image.Image:
        """Decode an image as RGB."""
        return decode(self.stored(index), self.max_pixels)

    def pixels(self, index: int, reduction: Callable[[int, int], float]) -> Pixels:
        """Decode an image, at a smaller size if `reduction` allows."""
        return decode_pixels(self.stored(index), reduction, self.max_pixels)


def _folders(top: Path, years: int | str | None) -> list[Path]:
    """Return the folders in VOC layout: `top` itself, or those of the years below it."""
    if _is_layout(top):
        if years is not None:
            raise DataError(f"{top} is the folder of one year; remove data.years")
        return [top]
    for devkit in (top, top / "VOCdevkit"):
        present = [year for year in ("2007", "2012") if _is_layout(devkit / f"VOC{year}")]
        wanted = present[:1] if years is None else str(years).split("+")
        missing = [year for year in wanted if year not in present]
        if present and missing:
            raise DataError(f"{devkit} has no folder VOC{missing[0]}; choose another data.years")
        if present:
            return [devkit / f"VOC{year}" for year in wanted]
    raise DataError(
        f"{top} is not in VOC layout: it has no lists ImageSets/Main/trainval.txt, train.txt, "
        "val.txt or test.txt, nor folders VOC2007 or VOC2012 with them; name another: --data DIR"
    )


def _is_layout(folder: Path) -> bool:
    return any(_list_file(folder, name).is_file() for name in ("trainval", "train", "val", "test"))


def _list_file(folder: Path, name: str) -> Path:
    return folder / "ImageSets" / "Main" / f"{name}.txt"


def _split_names(folder: Path) -> tuple[str, str]:
    """Return the names of the lists for training and validation, "" without the latter."""
    for train, val in SPLITS:
        if not _list_file(folder, train).is_file():
            continue
        if not val or (_list_file(folder, val).is_file() and _is_annotated(folder, val)):
            return train, val
    raise DataError(f"{folder / 'ImageSets' / 'Main'} has no list of images")


def _is_annotated(folder: Path, name: str) -> bool:
    """Tell whether a list has annotations, by its images. False only for images without any."""
    annotations = folder / "Annotations"
    if not annotations.is_dir():
        return True
    files = _images(folder / "JPEGImages")
    stems = [_stem(line, files) for line in read_list(_list_file(folder, name))]
    if any((annotations / f"{stem}.xml").is_file() for stem in stems):
        return True
    return files.keys().isdisjoint(stems)


def _images(folder: Path) -> dict[str, Path]:
    """Return the image files of a folder by name without extension."""
    try:
        names = sorted(os.listdir(folder), reverse=True)
    except OSError as error:
        raise DataError(f"the folder {folder} cannot be read ({error.strerror})") from error
    return {
        os.path.splitext(name)[0]: folder / name for name in names if ending_of(name) in ENDINGS
    }


def _stem(name: str, files: dict[str, Path]) -> str:
    """Return a name of a list without its extension, which other tools add."""
    if name in files or ending_of(name) not in ENDINGS:
        return name
    return os.path.splitext(name)[0]


def _all_objects(lists: list[Listed]) -> list[Objects] | None:
    """Return the objects of every image of the lists; None if a folder has no annotations."""
    found: list[Objects] = []
    for one in lists:
        if one.objects is None:
            return None
        found += one.objects
    return found


def _classes(objects: list[Objects]) -> list[str]:
    """Return the classes of the objects, in VOC's order if all are VOC's, else sorted."""
    names = set().union(*(one.names for one in objects))
    if names <= set(VOC_CLASSES):
        return [name for name in VOC_CLASSES if name in names]
    return sorted(names)
