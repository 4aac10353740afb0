"""How views are cut from an image in the loader's workers, and how their colours are drawn for a whole batch on the device.

Letters: B images, K crops of one image, N = B·K rows. On the device pixels are float32 in 0 … 255 and are rounded nowhere but
where an operation rounds by its nature (posterize). All random numbers come from the host, so grouping rows waits for no device.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from sslkit.interfaces import Batch, Draws, PretextTransform

Area = Annotated[float, Field(gt=0, le=1)]
"""The least part of an image that a random resized crop may cover."""

ColourList = Literal["official", "blur", "npid", "gray", "none"]
"""Names of COLOURS."""

MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
"""ImageNet's, times 255."""


@dataclass(frozen=True)
class Colours:
    """What happens to a row, in this order; each coin and number is drawn for each row."""

    jitter: tuple[float, float, float, float] = (0, 0, 0, 0)
    """Brightness, contrast, saturation, hue as in torchvision's ColorJitter, in random order."""
    jitter_chance: float = 0
    photometric_chance: float = 0
    """One coin for posterize to 4 … 8 bits, sharpness 0.1 … 1.9, solarize at 0 … 256, autocontrast."""
    gray_chance: float = 0
    blur_chance: float = 0
    """Gaussian blur of standard deviation 0.1 … 2 pixels."""


COLOURS = {
    "official": Colours(jitter=(0.4, 0.4, 0.4, 0.2), jitter_chance=1, photometric_chance=0.66, gray_chance=0.2),
    "blur": Colours(jitter=(0.8, 0.8, 0.8, 0.2), jitter_chance=0.8, gray_chance=0.2, blur_chance=0.5),
    "npid": Colours(jitter=(0.4, 0.4, 0.4, 0.4), jitter_chance=1, gray_chance=0.2),
    "gray": Colours(gray_chance=0.66),
    "none": Colours(),
}
"""`official`: PIRL's released models (VISSL, `pirl_jigsaw_4node_resnet50.yaml`); `blur`: its MLP models (VISSL, `photo_gblur.yaml`,
SimCLR's list at strength 1); `npid`: Wu et al. 2018; `gray`: VISSL's Jigsaw; `none`: no colours."""


# ---------------------------------------------------------------------------------------------------------- cutting, in workers


def crop_box(width: int, height: int, rng: np.random.Generator, min_area: float) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a random resized crop, distributed as torchvision's: area `min_area` … 1, ratio 3/4 … 4/3."""
    for _ in range(10):
        area = width * height * rng.uniform(min_area, 1)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def crop(image: Image.Image, size: int, rng: np.random.Generator, min_area: float, *, flip: bool = False) -> Tensor:
    """A random resized crop, uint8 [3,size,size], bilinear; `flip` mirrors it half of the time."""
    box = crop_box(*image.size, rng, min_area)
    pixels = np.array(image.resize((size, size), Image.Resampling.BILINEAR, box=box))
    if flip and rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


# ------------------------------------------------------------------------- operations: float32 [N,3,H,W], one parameter a row [N]


def column(values: Tensor, pixels: Tensor) -> Tensor:
    """[N] of the host → [N,1,1,1] beside `pixels`."""
    return values.to(pixels.device, non_blocking=True).view(-1, 1, 1, 1)


def luma(pixels: Tensor) -> Tensor:
    """[N,3,H,W] → [N,1,H,W], ITU-R 601."""
    return (pixels[:, :1] * 0.2989).add_(pixels[:, 1:2], alpha=0.587).add_(pixels[:, 2:], alpha=0.114)


def blend(pixels: Tensor, kind: Tensor, factor: Tensor) -> Tensor:
    """Brightness (`kind` 0), contrast (1) or saturation (2): factor · pixels + (1-factor) · (black, mean gray, gray). In place."""
    gray = luma(pixels)
    mean = gray.mean((2, 3), keepdim=True).mul_(column((1 - factor) * (kind == 1), pixels))
    base = gray.mul_(column((1 - factor) * (kind == 2), pixels)).add_(mean)
    return pixels.mul_(column(factor, pixels)).add_(base).clamp_(0, 255)


def adjust_hue(pixels: Tensor, turn: Tensor) -> Tensor:
    """Rotate the hue of HSV by `turn` in -0.5 … 0.5."""
    red, green, blue = pixels.unbind(1)
    high, low = torch.maximum(torch.maximum(red, green), blue), torch.minimum(torch.minimum(red, green), blue)
    chroma = high - low
    from_green = torch.where(high == green, (blue - red).add_(chroma, alpha=2), (red - green).add_(chroma, alpha=4))
    sector = torch.where(high == red, green - blue, from_green).div_(chroma.clamp_min(1e-6))
    sector = sector.add_(column(6 * turn, pixels).squeeze(1)).remainder_(6)
    mixed = torch.stack([(sector - 3).abs_().sub_(1), (sector - 2).abs_().neg_().add_(2), (sector - 4).abs_().neg_().add_(2)], 1)
    return mixed.clamp_(0, 1).mul_(chroma.unsqueeze(1)).add_(low.unsqueeze(1))


def jitter(pixels: Tensor, factors: Tensor, turn: Tensor, order: Tensor, slot: Tensor) -> Tensor:
    """ColorJitter: each row's `factors` [N,3] of brightness, contrast and saturation in its `order` [N,3], hue before number `slot` 0 … 3."""
    for number in range(4):
        rows = (slot == number).nonzero().flatten()
        if len(rows):
            here = rows.to(pixels.device, non_blocking=True)
            pixels[here] = adjust_hue(pixels[here], turn[rows])
        if number < 3:
            kind = order[:, number]
            pixels = blend(pixels, kind, factors.gather(1, kind.unsqueeze(1)).squeeze(1))
    return pixels


def posterize(pixels: Tensor, bits: Tensor) -> Tensor:
    """Keep the `bits` highest of eight bits. In place."""
    step = column(2.0 ** (8 - bits), pixels)
    return pixels.div_(step).floor_().mul_(step)


def adjust_sharpness(pixels: Tensor, factor: Tensor) -> Tensor:
    """factor · pixels + (1-factor) · smoothed, the outermost pixels unchanged. In place."""
    rows = pixels[:, :, :-2] + pixels[:, :, 1:-1] + pixels[:, :, 2:]
    inner = pixels[:, :, 1:-1, 1:-1]
    smooth = (rows[..., :-2] + rows[..., 1:-1]).add_(rows[..., 2:]).add_(inner, alpha=4).div_(13)
    inner.add_(smooth.sub_(inner).mul_(column(1 - factor, pixels)))
    return pixels.clamp_(0, 255)


def solarize(pixels: Tensor, threshold: Tensor) -> Tensor:
    """Invert the values from `threshold` on."""
    return torch.where(pixels >= column(threshold, pixels), 255 - pixels, pixels)


def autocontrast(pixels: Tensor) -> Tensor:
    """Stretch each channel to 0 … 255; a constant channel stays as it is. In place."""
    low, high = pixels.amin((2, 3), keepdim=True), pixels.amax((2, 3), keepdim=True)
    flat = high == low
    scale = torch.where(flat, 1.0, 255 / (high - low))
    return pixels.sub_(low.masked_fill_(flat, 0)).mul_(scale)


def photometric(pixels: Tensor, bits: Tensor, sharpness: Tensor, threshold: Tensor) -> Tensor:
    """PIRL's list (VISSL, `img_pil_random_photometric.py`)."""
    return autocontrast(solarize(adjust_sharpness(posterize(pixels, bits), sharpness), threshold))


def gaussian_blur(pixels: Tensor, sigma: Tensor) -> Tensor:
    """Blur with standard deviation `sigma` ≤ 2 pixels, the edge pixels repeated outwards, as two products with banded matrices."""
    offset = torch.arange(-6, 7)
    weight = torch.exp(-offset.square() / (2 * sigma.unsqueeze(1).square()))
    weight = (weight / weight.sum(1, keepdim=True)).to(pixels.device, non_blocking=True)

    def matrix(length: int) -> Tensor:
        place = torch.arange(length, device=pixels.device)
        source = (place.unsqueeze(1) + offset.to(pixels.device)).clamp_(0, length - 1)
        return torch.einsum("nt,itj->nij", weight, (source.unsqueeze(2) == place).float()).unsqueeze(1)

    return matrix(pixels.shape[2]) @ pixels @ matrix(pixels.shape[3]).mT


def normalise(pixels: Tensor) -> Tensor:
    """0 … 255 → ImageNet's mean 0 and standard deviation 1. In place."""
    mean, std = (torch.tensor(values).view(3, 1, 1).to(pixels.device, non_blocking=True) for values in (MEAN, STD))
    return pixels.sub_(mean).div_(std)


# ------------------------------------------------------------------------------------------------------------------ whole batches


def finish(view: Tensor, draws: Draws, colours: Colours, *, flips: bool, shared: bool) -> Tensor:
    """uint8 [B,3,H,W] or [B,K,3,H,W] → float32 of the same shape: flipped half of the time, coloured, normalised.

    Every row has its own draws; with `shared` the K crops of one image have the same.
    """
    batch, crops = len(view), view.shape[1] if view.dim() == 5 else 1

    def numbers(low: float = 0, high: float = 1, *shape: int) -> Tensor:
        drawn = draws.uniform(batch, 1 if shared else crops, *shape, low=low, high=high)
        return drawn.expand(batch, crops, *shape).flatten(0, 1)

    images = view.reshape(-1, *view.shape[-3:])
    if flips:
        # All that follows treats left and right alike, and bytes are cheaper to flip than floats.
        images = torch.where(column(numbers() < 0.5, images), images.flip(-1), images)
    pixels = images.float()

    def change(chance: float, operation: Callable[..., Tensor], *parameters: Tensor) -> None:
        rows = (numbers() < chance).nonzero().flatten()
        here = rows.to(pixels.device, non_blocking=True)
        if len(rows):
            pixels[here] = operation(pixels[here], *(values[rows] for values in parameters))

    if colours.jitter_chance:
        *strengths, hue = colours.jitter
        factors = 1 + torch.tensor(strengths) * numbers(-1, 1, 3)
        change(colours.jitter_chance, jitter, factors, numbers(-hue, hue), numbers(0, 1, 3).argsort(1), numbers(0, 4).floor())
    if colours.photometric_chance:
        change(colours.photometric_chance, photometric, numbers(4, 9).floor(), numbers(0.1, 1.9), numbers(0, 257).floor())
    if colours.gray_chance:
        change(colours.gray_chance, luma)
    if colours.blur_chance:
        change(colours.blur_chance, gaussian_blur, numbers(0.1, 2))
    return normalise(pixels).reshape(view.shape)


class Photometric(PretextTransform):
    """The device phase of transforms whose views all get one list of colours. Says nothing of how they are cut.

    `flips`: rows are mirrored on the device; False where the cut has done it. `shared`: the crops of one image are treated alike.
    """

    flips = True
    shared = False
    colours: ColourList

    def on_device(self, batch: Batch, draws: Draws) -> Batch:
        """uint8 views → float32 normalised views of the same shapes."""
        chosen = COLOURS[self.colours]
        views = {name: finish(view, draws, chosen, flips=self.flips, shared=self.shared) for name, view in batch.views.items()}
        return replace(batch, views=views)

    def plain(self, images: Tensor) -> Tensor:
        """uint8 [N,3,H,W] → float32 [N,3,H,W], normalised."""
        return normalise(images.float())
