"""Generates noise images in the format of a data set, for rehearsals and estimates."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from sslkit.interfaces import ImageSource, Pixels

WIDTH, HEIGHT = 500, 375
"""Size of a made-up image, px: ImageNet's usual size."""

DISTINCT = 8
"""Number of different images, which are repeated."""


class MadeUp(ImageSource):
    """`count` images of uniform noise, with labels if `classes` is a number.

    Other attributes come from `like`, because a transform may need attributes of its data set.
    """

    def __init__(
        self,
        channels: int,
        bits: Literal[8, 16],
        classes: int | None,
        count: int,
        like: ImageSource | None = None,
    ) -> None:
        self.names = [f"made-up-{number}" for number in range(count)]
        self.channels, self.bits, self.like = channels, bits, like
        if classes is not None:
            self.labels = np.arange(count) % classes
            self.classes = [str(number) for number in range(classes)]
        if like is not None:
            self.boxes, self.tags, self.groups = like.boxes, like.tags, like.groups

    def __getattr__(self, name: str) -> Any:
        like = self.__dict__.get("like")
        if like is None:
            raise AttributeError(f"made-up images have no '{name}'")
        return getattr(like, name)

    def image(self, index: int) -> Image.Image:
        """Return an RGB image."""
        return Image.fromarray(_noise(index % DISTINCT, 3, 8).transpose(1, 2, 0))

    def pixels(self, index: int, reduction: Callable[[int, int], float]) -> Pixels:
        """Return an image with the data set's channels and bits."""
        values = _noise(index % DISTINCT, self.channels, self.bits)
        return Pixels(torch.from_numpy(values), WIDTH, HEIGHT)


def _noise(seed: int, channels: int, bits: int) -> np.ndarray:
    """Return uniform noise, uint8 or uint16 [channels, HEIGHT, WIDTH]."""
    dtype = np.uint8 if bits == 8 else np.uint16
    shape = (channels, HEIGHT, WIDTH)
    return np.random.default_rng(seed).integers(0, 2**bits, shape, dtype=dtype)
