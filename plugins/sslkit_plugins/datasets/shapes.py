"""Generates a data set of textured objects on cloudy backgrounds, without files or network."""

from collections.abc import Callable
from typing import Annotated

import numpy as np
from PIL import Image
from pydantic import Field, NonNegativeInt, PositiveInt

from sslkit.interfaces import ImageSource

Plane = np.ndarray
"""float32 [H,W]."""


def near(t: Plane) -> Plane:
    """Return the distance to the nearest integer, 0 … 0.5."""
    return abs(t - np.round(t))


def radius(x: Plane, y: Plane) -> Plane:
    """Return the distance from the origin."""
    return np.hypot(x, y)


OUTLINES: dict[str, Callable[[Plane, Plane], Plane]] = {
    "disc": lambda x, y: 0.85 - radius(x, y),
    "square": lambda x, y: 0.75 - np.maximum(abs(x), abs(y)),
    "triangle": lambda x, y: np.minimum(y + 0.55, 0.5 - 0.5 * y - 0.87 * abs(x)),
    "star": lambda x, y: 1 - 1.2 * near(np.arctan2(y, x) * 5 / (2 * np.pi)) - radius(x, y),
    "ring": lambda x, y: 0.27 - abs(radius(x, y) - 0.68),
    "cross": lambda x, y: np.maximum(
        np.minimum(0.3 - abs(x), 0.95 - abs(y)), np.minimum(0.3 - abs(y), 0.95 - abs(x))
    ),
    "crescent": lambda x, y: np.minimum(0.95 - radius(x, y), radius(x - 0.45, y) - 0.6),
    "bar": lambda x, y: np.minimum(0.36 - abs(y), 1 - abs(x)),
    "flower": lambda x, y: 0.66 + 0.24 * np.cos(6 * np.arctan2(y, x)) - radius(x, y),
    "lens": lambda x, y: 0.62 - np.maximum(radius(x - 0.2, y) - 0.4, radius(x + 0.2, y) - 0.4),
}
"""Functions that are positive inside an object, which spans about -1 … 1."""

TEXTURES: dict[str, Callable[[Plane, Plane], Plane]] = {
    "dots": lambda x, y: 0.3 - radius(near(x), near(y)),
    "stripes": lambda x, y: 0.25 - near(x),
    "checks": lambda x, y: np.sin(np.pi * x) * np.sin(np.pi * y),
    "waves": lambda x, y: 0.25 - near(x + 0.3 * np.sin(2 * np.pi * y / 2.5)),
    "grid": lambda x, y: np.maximum(0.13 - near(x), 0.13 - near(y)),
    "bricks": lambda x, y: np.minimum(near(x / 2 + 0.5 * (np.round(y) % 2)) - 0.06, 0.38 - near(y)),
    "circles": lambda x, y: 0.25 - near(1.2 * radius(x % 3 - 1.5, y % 3 - 1.5)),
    "zigzag": lambda x, y: 0.25 - near(x + 1.6 * near(y / 2.4)),
    "weave": lambda x, y: 0.25 - near(np.where((np.floor(x / 2) + np.floor(y / 2)) % 2 == 0, x, y)),
    "crosses": lambda x, y: np.maximum(
        np.minimum(0.12 - near(x), 0.36 - near(y)), np.minimum(0.12 - near(y), 0.36 - near(x))
    ),
}
"""Functions that are positive where the object has its second colour; x and y count periods."""

CLASSES = [f"{texture} {outline}" for outline, texture in zip(OUTLINES, TEXTURES, strict=True)]

OVERSAMPLING = 2


def clouds(rng: np.random.Generator, side: int, cells: int) -> Plane:
    """Return smooth noise in 0 … 1 with about `cells` blobs per side: float32 [side,side]."""
    coarse = Image.fromarray(rng.random((cells + 1, cells + 1), dtype=np.float32))
    return np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC)).clip(0, 1)


def rotated(x: Plane, y: Plane, angle: float) -> tuple[Plane, Plane]:
    """Return the coordinates rotated by `angle`, radians."""
    cos, sin = np.cos(angle), np.sin(angle)
    return cos * x + sin * y, cos * y - sin * x


UPRIGHT = 0.1
"""Range of angles of upright images, as a fraction of the full circle around the vertical."""


def turned(rng: np.random.Generator, upright: bool) -> float:
    """Draw an angle, radians: any, or near 0 for upright images."""
    angle = rng.uniform(0, 2 * np.pi)
    return UPRIGHT * (angle - np.pi) if upright else angle


def draw(label: int, side: int, rng: np.random.Generator, *, upright: bool = False) -> np.ndarray:
    """Draw an object of class `label`: uint8 [side,side,3].

    Position, size, rotation, colours, period, phase, light and background are random. Objects and
    textures of `upright` images are almost unrotated, and their light comes from above.
    """
    full = side * OVERSAMPLING
    grid = (np.arange(full, dtype=np.float32) + 0.5) / full
    x, y = np.meshgrid(grid, grid)

    ground = [tinted(rng.uniform(0.35, 0.65), rng) for _ in range(2)]
    mix = 0.7 * clouds(rng, full, int(rng.integers(2, 7))) + 0.3 * clouds(
        rng, full, int(rng.integers(8, 33))
    )
    picture = ground[0] + (ground[1] - ground[0]) * mix[..., None]

    reach = rng.uniform(0.26, 0.4)
    centre = rng.uniform(reach, 1 - reach, 2)
    u, v = rotated((x - centre[0]) / reach, (y - centre[1]) / reach, turned(rng, upright))
    inside = list(OUTLINES.values())[label](u, v) > 0

    period = rng.uniform(0.085, 0.125)
    shift = rng.uniform(0, 10, 2)
    s, t = rotated(x / period, y / period, turned(rng, upright))
    pattern = list(TEXTURES.values())[label](s + shift[0], t + shift[1]) > 0

    first, second = rng.permutation(
        [tinted(rng.uniform(0.0, 0.3), rng), tinted(rng.uniform(0.7, 1.0), rng)]
    )
    picture = np.where(
        (inside & pattern)[..., None], second, np.where(inside[..., None], first, picture)
    )

    direction = turned(rng, upright) - (np.pi / 2 if upright else 0)
    light = 1 + rng.uniform(0, 0.4) * (
        np.cos(direction) * (x - 0.5) + np.sin(direction) * (y - 0.5)
    )
    picture = 255 * picture * light[..., None] + rng.normal(0, 8, picture.shape)
    large = Image.fromarray(picture.clip(0, 255).astype(np.uint8))
    return np.asarray(large.reduce(OVERSAMPLING))


def tinted(brightness: float, rng: np.random.Generator) -> np.ndarray:
    """Draw a muted colour: float32 [3]."""
    return (brightness + rng.uniform(-0.15, 0.15, 3)).clip(0, 1).astype(np.float32)


class Shapes(ImageSource):
    """Ten classes of textured objects on cloudy backgrounds; a seed determines every image.

    A class is an outline with its texture, such as a dotted disc or a striped square. Position,
    size, rotation, colours, phase, light and background are random. All images have labels, and
    classes are balanced. Where `upright` is false, an object has no side that is up, and methods
    that predict a rotation learn nothing of it.
    """

    def __init__(
        self,
        split: str,
        /,
        *,
        images: Annotated[PositiveInt, Field(description="Number of training images.")] = 600,
        val_images: Annotated[PositiveInt, Field(description="Number of validation images.")] = 500,
        side: Annotated[PositiveInt, Field(description="Side of the images, px.")] = 64,
        seed: Annotated[NonNegativeInt, Field(description="Seed that determines every image.")] = 0,
        upright: Annotated[
            bool, Field(description="Draw objects upright, lit from above, for pretext rotations.")
        ] = False,
    ) -> None:
        count = val_images if split == "val" else images
        self.side, self.key, self.upright = side, (seed, int(split == "val")), upright
        self.classes, self.has_val = CLASSES, True
        self.labels = np.arange(count) % len(CLASSES)
        name = "val" if split == "val" else "train"
        self.names = [f"{name}/{number:06d}" for number in range(count)]
        self._drawn: dict[int, Image.Image] = {}

    def image(self, index: int) -> Image.Image:
        """Return an RGB image of `side`×`side`, which is drawn once and cached."""
        if index not in self._drawn:
            assert self.labels is not None
            rng = np.random.default_rng((*self.key, index))
            pixels = draw(int(self.labels[index]), self.side, rng, upright=self.upright)
            self._drawn[index] = Image.fromarray(pixels)
        return self._drawn[index]
