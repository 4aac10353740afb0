"""Folders in VOC layout for tests: noise or coloured squares, with annotations."""

from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 48, 40

Thing = tuple[str, tuple[float, float, float, float], bool]
"""Class, box as VOC writes it (xmin, ymin, xmax, ymax, from 1), difficult."""

OBJECT = """\
  <object>
    <name>{}</name>
    <difficult>{:d}</difficult>
    <bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>
  </object>
"""
ANNOTATION = """\
<annotation>
  <size><width>{}</width><height>{}</height><depth>3</depth></size>
{}</annotation>
"""


def annotation(things: list[Thing], width: int = WIDTH, height: int = HEIGHT) -> str:
    """The XML of an image with these objects."""
    objects = [OBJECT.format(name, difficult, *box) for name, box, difficult in things]
    return ANNOTATION.format(width, height, "".join(objects))


def write_list(root: Path, name: str, images: list[str]) -> Path:
    file = root / "ImageSets" / "Main" / f"{name}.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{image}\n" for image in images))
    return file


def write_image(root: Path, name: str, things: list[Thing], seed: int = 0) -> None:
    """Noise with a bright square per object, red, green or blue by its class's first letter."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 60, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    for called, box, _ in things:
        left, top, right, bottom = map(int, box)
        pixels[top - 1 : bottom, left - 1 : right, ord(called[0]) % 3] = 250
    for folder in ("JPEGImages", "Annotations"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(root / "JPEGImages" / f"{name}.png")
    (root / "Annotations" / f"{name}.xml").write_text(annotation(things))


def write_voc(root: Path, lists: dict[str, dict[str, list[Thing]]]) -> Path:
    """A folder in VOC layout: objects by image, by list."""
    seed = 0
    for name, images in lists.items():
        write_list(root, name, list(images))
        for image, things in images.items():
            write_image(root, image, things, seed)
            seed += 1
    return root


def random_voc(root: Path, train: int = 40, test: int = 24, classes: str = "ab") -> Path:
    """A folder whose images have each class, a red, green or blue square, with probability 0.4.

    The first images have all classes and none, so that no class is without positives or negatives.
    """
    rng = np.random.default_rng(0)
    lists: dict[str, dict[str, list[Thing]]] = {}
    for name, count in {"trainval": train, "test": test}.items():
        images: dict[str, list[Thing]] = {}
        for number in range(count):
            things: list[Thing] = []
            for letter in classes:
                side = int(rng.integers(8, 20))
                left, top = int(rng.integers(1, 28)), int(rng.integers(1, 20))
                present = rng.random() < 0.4 if number > 1 else number == 0
                if present:
                    things.append((letter, (left, top, left + side, top + side), False))
            images[f"{name}{number:03}"] = things
        lists[name] = images
    return write_voc(root, lists)
