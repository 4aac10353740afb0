"""Random resized crops, cut in the loader's workers."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import interpolate

from sslkit.errors import Fault, RecipeError
from sslkit.interfaces import Pixels
from sslkit_plugins.views.colours import ColourLists
from sslkit_plugins.views.steps import Shared

Area = Annotated[float, Field(gt=0, le=1)]
"""Area of a random resized crop, as a fraction of the image."""

Ratio = Annotated[float, Field(gt=0)]

Interpolation = Literal["bilinear", "bicubic"]

Box = tuple[int, int, int, int]
"""Left, top, right, bottom, in pixels of the full image."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Options of the crops, colours and flips of one view.

    A view is [count,C,size,size], or [C,size,size] if `count` is None. Crops have an area in
    `area`, as a fraction of the image, and width:height in `aspect`. `flip` is the probability of a
    horizontal flip on the device; use 0 if `__call__` flips. `shared` names the draws on the device
    that the crops of an image share: none, the flip, or all. `key` is the recipe key of these
    options. Raises RecipeError for a descending range.
    """

    size: int
    area: tuple[float, float] = (0.08, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    count: int | None = None
    colours: ColourLists = "none"
    flip: float = 0.5
    shared: Shared = "none"
    interpolation: Interpolation = "bilinear"
    key: str = "transform"

    def __post_init__(self) -> None:
        if self.area[0] > self.area[1]:
            message = f"{self.area[0]} exceeds max_area, {self.area[1]}; use a smaller value"
            raise RecipeError(Fault(f"{self.key}.min_area", message))
        low, high = self.aspect
        if low > high:
            message = f"[{low}, {high}] descends; write the smaller number first: [{high}, {low}]"
            raise RecipeError(Fault(f"{self.key}.aspect", message))

    def shape(self, channels: int) -> tuple[int, ...]:
        """Return the shape of the view without batch dimension."""
        crop = (channels, self.size, self.size)
        return crop if self.count is None else (self.count, *crop)


def crop_box(
    width: int,
    height: int,
    rng: np.random.Generator,
    area: tuple[float, float],
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """Draw the box of a random resized crop, with torchvision's distribution.

    Its area is in `area`, as a fraction of the image, and width:height is log-uniform in `aspect`.
    """
    (smallest, largest), (narrow, wide) = area, aspect
    for _ in range(10):
        pixels = width * height * (smallest + (largest - smallest) * rng.random())
        ratio = narrow * (wide / narrow) ** rng.random()
        w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int((width - w + 1) * rng.random()), int((height - h + 1) * rng.random())
            return left, top, left + w, top + h
    w, h = max(1, min(width, round(height * wide))), max(1, min(height, round(width / narrow)))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def crop(pixels: Pixels, box: Box, size: int, interpolation: Interpolation = "bilinear") -> Tensor:
    """Resize `box` of the full image with antialiasing: [C,h,w] → [C,size,size], same dtype."""
    _, height, width = pixels.values.shape
    x, y = width / pixels.width, height / pixels.height
    left, top = min(width - 1, round(box[0] * x)), min(height - 1, round(box[1] * y))
    right, bottom = max(left + 1, round(box[2] * x)), max(top + 1, round(box[3] * y))
    return resize(pixels.values[:, top:bottom, left:right], (size, size), interpolation)


def resize(
    values: Tensor, size: tuple[int, int], interpolation: Interpolation = "bilinear"
) -> Tensor:
    """Resize uint8 or uint16 [C,h,w] to `size` (height, width) with antialiasing.

    uint16 follows PyTorch's uint8 path: columns, clamping of the overshoot of `bicubic`, rows.
    """
    resized = values.unsqueeze(0)
    if values.dtype == torch.uint8:
        return interpolate(resized, size, mode=interpolation, antialias=True)[0].contiguous()
    most = torch.iinfo(values.dtype).max
    resized = resized.float()
    for side in ((values.shape[1], size[1]), size):
        resized = interpolate(resized, side, mode=interpolation, antialias=True).clamp_(0, most)
    return resized[0].round_().to(values.dtype)


def flip_or_not(views: Tensor, rng: np.random.Generator, chance: float = 0.5) -> Tensor:
    """Flip […,W] horizontally with probability `chance`."""
    return views.flip(-1) if rng.random() < chance else views
