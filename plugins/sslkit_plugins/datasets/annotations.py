"""Reads the objects of an image from a Pascal VOC annotation (XML)."""

from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from sslkit.errors import DataError, counted, printable
from sslkit_plugins.datasets.decoding import FORMATS

MAX_BYTES = 4 << 20
"""Largest annotation, bytes. VOC's are below 20 kB."""

FAULTS = (ElementTree.ParseError, ValueError, OverflowError, LookupError, OSError)
"""Errors of files that are not annotations."""

SIDES = ("xmin", "ymin", "xmax", "ymax")


class Objects(NamedTuple):
    """Objects of one image: names, corners float32 [n,4] in pixels, difficult bool [n]."""

    names: list[str]
    corners: np.ndarray
    difficult: np.ndarray


class _Builder(ElementTree.TreeBuilder):
    """Refuses a DOCTYPE, which is where entities are declared."""

    def doctype(self, name: str, pubid: str, system: str) -> None:
        raise ValueError("it declares a DOCTYPE, which no annotation needs")


def read_objects(file: Path, image: Path) -> Objects:
    """Return the objects of an annotation, whose image is `image`.

    VOC counts pixels from 1 and includes the last one. A box from 1 to w becomes 0 to w, and one
    from 9 to 9 has a width of one pixel. Corners at most one pixel outside, as in annotations that
    count from 0, are moved to the border. Raises DataError for broken XML, and for boxes that are
    empty or outside the image.
    """
    try:
        root = _parse(file)
        found = [_object(one) for one in root.findall("object")]
        if not found:
            return Objects([], np.zeros((0, 4), np.float32), np.zeros(0, bool))
        width, height = _size(root, image)
        names, corners, difficult = zip(*found, strict=True)
        boxes = np.array(corners, np.float64)
        for number, (name, box) in enumerate(zip(names, boxes, strict=True), 1):
            box[:] = _pixels(f"object {number} ({printable(name)})", box, width, height)
    except FAULTS as error:
        raise DataError(
            f"the annotation {file} cannot be used: {printable(str(error))}; correct it, or remove "
            "its image from the lists in ImageSets/Main"
        ) from None
    return Objects(list(names), boxes.astype(np.float32), np.array(difficult, bool))


def _parse(file: Path) -> ElementTree.Element:
    """Return the root of an XML file without DOCTYPE, and so without entities."""
    size = file.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"it has {size:,} bytes, more than {MAX_BYTES:,}")
    parser = ElementTree.XMLParser(target=_Builder())
    parser.feed(file.read_bytes())
    return parser.close()


def _object(one: ElementTree.Element) -> tuple[str, list[float], bool]:
    """Return name, corners as written, and "difficult" of an object."""
    name = (one.findtext("name") or "").strip()
    if not name:
        raise ValueError("an object has no name")
    corners = []
    for side in SIDES:
        text = one.findtext(f"bndbox/{side}")
        if text is None:
            raise ValueError(f"an object ({name}) has no {side} in its bndbox")
        try:
            corners.append(float(text))
        except ValueError:
            raise ValueError(f"{side} of an object ({name}) is {text!r}, not a number") from None
    return name, corners, (one.findtext("difficult") or "0").strip() == "1"


def _size(root: ElementTree.Element, image: Path) -> tuple[int, int]:
    """Return width and height as annotated; if they are missing or 0, those of the image file."""
    width = int(float(root.findtext("size/width") or 0))
    height = int(float(root.findtext("size/height") or 0))
    if width > 0 and height > 0:
        return width, height
    with Image.open(image, formats=FORMATS) as opened:
        return opened.size


def _pixels(called: str, box: np.ndarray, width: int, height: int) -> np.ndarray:
    """Return a box [4] in pixels from 0, within the image.

    Raises ValueError if it is empty, has no pixel of the image, or ends more than a pixel outside.
    """
    shown = " ".join(f"{side} {value:g}" for side, value in zip(SIDES, box, strict=True))
    if not np.isfinite(box).all():
        raise ValueError(f"the box of {called} is not finite: {shown}")
    left, top, right, bottom = box
    if right < left or bottom < top:
        raise ValueError(f"the box of {called} is empty: {shown}")
    moved = (box - [1, 1, 0, 0]).clip(0, [width, height, width, height])
    is_far = min(left, top) < 0 or right > width + 1 or bottom > height + 1
    if is_far or (moved[2:] <= moved[:2]).any():
        raise ValueError(f"the box of {called} is outside the picture of {width}×{height}: {shown}")
    return moved


def read_list(file: Path) -> list[str]:
    """Return the image names of a list, one a line; a number after a name (−1, 0, 1) is dropped.

    Raises DataError if the list is empty, cannot be read, or names an image twice.
    """
    try:
        lines = file.read_text("utf-8-sig", errors="replace").splitlines()
    except OSError as error:
        raise DataError(f"the list {file} cannot be read ({error.strerror})") from error
    names = []
    for line in lines:
        words = line.split()
        if len(words) == 2 and words[1] in ("-1", "0", "1"):
            names.append(words[0])
        elif words:
            names.append(line.strip())
    if not names:
        raise DataError(f"the list {file} is empty; write the name of one image on each line")
    repeated = len(names) - len(set(names))
    if repeated:
        first = next(name for name in names if names.count(name) > 1)
        raise DataError(
            f"the list {file} repeats {counted(repeated, 'name')}, such as {printable(first)}; "
            "name every image once"
        )
    return names
