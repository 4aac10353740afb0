"""Standard transforms of images, drawn per image, and the features of transformed images.

Letters: N images, C channels, S side in px, D features. A transform maps float32 [C,S,S] in 0 … 255
to the same shape.
"""

import io
import math
import zlib
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from sslkit.evaluation import Rows
from sslkit.interfaces import ImageSource, Probe
from sslkit_plugins.evaluations import effort
from sslkit_plugins.views import operations

SAMPLE = 16
"""Largest number of images whose transforms are timed."""
GRID = 3
"""Cells per side of a jigsaw (PIRL, arXiv:1912.01991, section 3.1)."""
MIN_AREA = 0.2
"""Smallest area of a crop, as a fraction of the image (MoCo v2, arXiv:2003.04297)."""
JITTER, HUE = 0.4, 0.1
"""Strength of brightness, contrast and saturation, and of hue (MoCo v2)."""
SIGMA = (0.1, 2.0)
"""Standard deviation of the blur for images of 224 px, px (SimCLR, arXiv:2002.05709)."""
QUALITY = 10
"""JPEG quality, one of Copydays's nine from 3 to 75."""

Transform = Callable[[Tensor, np.random.Generator], Tensor]


def jigsaw(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Shuffle the cells of a 3×3 grid; 1 or 2 px at the right and bottom may stay in place."""
    side = image.shape[-1] // GRID
    inner = image[:, : GRID * side, : GRID * side]
    cells = inner.unfold(1, side, side).unfold(2, side, side).flatten(1, 2)
    order = torch.from_numpy(rng.permutation(GRID**2))
    shuffled = cells[:, order].unflatten(1, (GRID, GRID)).transpose(2, 3)
    result = image.clone()
    result[:, : GRID * side, : GRID * side] = shuffled.flatten(3, 4).flatten(1, 2)
    return result


def rotate(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Rotate by 90, 180 or 270 degrees."""
    return torch.rot90(image, int(rng.integers(1, 4)), (1, 2))


def crop(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Cut a square of 20 to 100 % of the area, and enlarge it to the image's size."""
    size = image.shape[-1]
    side = max(1, round(size * math.sqrt(rng.uniform(MIN_AREA, 1))))
    top, left = rng.integers(size - side + 1, size=2).tolist()
    square = image[:, top : top + side, left : left + side]
    return F.interpolate(square[None], (size, size), mode="bilinear", align_corners=False)[0]


def colour(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Change brightness, contrast, saturation and hue; images of C ≠ 3: the first two."""
    pixels = image[None].clone()
    brightness, contrast, saturation = rng.uniform(1 - JITTER, 1 + JITTER, 3)
    hue = rng.uniform(-HUE, HUE)
    operations.adjust_brightness(pixels, _number(brightness, pixels))
    operations.adjust_contrast(pixels, _number(contrast, pixels))
    if pixels.shape[1] == 3:
        operations.adjust_saturation(pixels, _number(saturation, pixels))
        operations.adjust_hue(pixels, _number(hue, pixels))
    return pixels[0]


def blur(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Blur with a standard deviation of 0.1 to 2 px at 224 px, proportional to the side."""
    pixels = image[None].clone()
    sigma = min(SIGMA[1], rng.uniform(*SIGMA) * image.shape[-1] / 224)
    operations.gaussian_blur(pixels, _number(sigma, pixels))
    return pixels[0]


def flip(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Flip horizontally."""
    return image.flip(-1)


def jpeg(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Compress an RGB image as JPEG of quality 10."""
    written = io.BytesIO()
    pixels = image.round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
    Image.fromarray(pixels).save(written, "JPEG", quality=QUALITY)
    decoded = np.array(Image.open(written))
    return torch.from_numpy(decoded).permute(2, 0, 1).to(image)


def _number(value: float, pixels: Tensor) -> Tensor:
    return pixels.new_full((1, 1, 1, 1), value)


TRANSFORMS: dict[str, Transform] = {
    "jigsaw": jigsaw,
    "rotation": rotate,
    "crop": crop,
    "colour": colour,
    "blur": blur,
    "flip": flip,
    "jpeg": jpeg,
}
SHOWN = {
    "jigsaw": "cells of a 3×3 grid shuffled",
    "rotation": "90, 180 or 270 degrees",
    "crop": "a square of 20 to 100 % of the area, enlarged",
    "colour": "brightness, contrast, saturation ± 0.4, hue ± 0.1",
    "blur": "Gaussian of 0.1 to 2 px at 224 px",
    "flip": "horizontal",
    "jpeg": "quality 10",
}
"""Description of each transform in a protocol."""


def transformed(images: Tensor, index: Tensor, name: str) -> Tensor:
    """Transform integer images [N,C,S,S]; the draws are a function of `name` and the index [N]."""
    scale = 257 if images.dtype == torch.uint16 else 1
    key, rows = zlib.crc32(name.encode()), []
    for image, number in zip(images, index.tolist(), strict=True):
        rng = np.random.default_rng((key, number))
        rows.append(TRANSFORMS[name](image.float() / scale, rng))
    return _integer(torch.stack(rows) * scale, images)


def resized(images: Tensor, size: int) -> Tensor:
    """Resize integer images [N,C,S,S] to [N,C,size,size]."""
    if images.shape[-1] == size:
        return images
    pixels = F.interpolate(
        images.float(), (size, size), mode="bilinear", antialias=True, align_corners=False
    )
    return _integer(pixels, images)


def _integer(pixels: Tensor, like: Tensor) -> Tensor:
    """Round float pixels to the integers of `like`."""
    highest = 65535 if like.dtype == torch.uint16 else 255
    return pixels.round().clamp(0, highest).to(like.dtype)


def embed(probe: Probe, source: ImageSource, name: str | None = None) -> dict[str, Tensor]:
    """Return the features of every transformed image by candidate, float32 [N,D].

    Images are transformed at the largest size of all candidates, then resized to each one's.
    `name` None leaves them as they are.
    """
    side = max(candidate.size for candidate in probe.candidates)
    rows: dict[str, list[Tensor]] = {candidate.name: [] for candidate in probe.candidates}
    for images, index in probe.images(source, size=side):
        shown = images if name is None else transformed(images, index, name)
        for candidate in probe.candidates:
            features = candidate.embed(resized(shown, candidate.size))["features"]
            rows[candidate.name].append(features)
    return {name: torch.cat(found) for name, found in rows.items()}


def some(source: ImageSource, count: int) -> ImageSource:
    """Return `count` random images of a source in order, or all of them."""
    if len(source) <= count:
        return source
    rows = np.random.default_rng(0).permutation(len(source))[:count]
    return Rows(source, np.sort(rows))


def fitting(names: list[str], source: ImageSource) -> list[str]:
    """Return the transforms that apply to the images of a source; JPEG needs 8-bit RGB."""
    if (source.channels, source.bits) == (3, 8):
        return names
    return [name for name in names if name != "jpeg"]


def seconds(probe: Probe, source: ImageSource, names: list[str]) -> float:
    """Return the time of all transforms of one image, measured on a few, s."""
    few = Rows(source, np.arange(min(SAMPLE, len(source))))
    side = max(candidate.size for candidate in probe.candidates)
    images, index = next(iter(probe.images(few, size=side)))

    def transform() -> None:
        for name in names:
            transformed(images, index, name)

    return effort.seconds(transform, probe.device) / len(few)
