"""How views are cut from an image in the loader's workers, and how their colours are drawn for a whole batch on the device.

Letters: B images, K crops of one image, N = B·K rows. On the device pixels are float32 in 0 … 255 and are rounded nowhere but
where an operation rounds by its nature (posterize). All random numbers come from the host, so grouping rows waits for no device.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor
from torch.nn.functional import interpolate

from sslkit.interfaces import Batch, Draws, ImageSource, Pixels, PretextTransform

Area = Annotated[float, Field(gt=0, le=1)]
"""The least part of an image that a random resized crop may cover."""

ColourList = Literal["official", "blur", "npid", "gray", "none"]
"""Names of COLOURS."""

MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
"""ImageNet's, times 255."""
_MEAN, _SCALE = torch.tensor(MEAN).view(3, 1, 1), 1 / torch.tensor(STD).view(3, 1, 1)

PARCEL = 5 * 224 * 224
"""Values that pass through all operations together on a CPU: one image, or twenty patches. Fewer cost more calls, more leave the cache."""


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
    "official": Colours(
        jitter=(0.4, 0.4, 0.4, 0.2), jitter_chance=1, photometric_chance=0.66, gray_chance=0.2
    ),
    "blur": Colours(
        jitter=(0.8, 0.8, 0.8, 0.2), jitter_chance=0.8, gray_chance=0.2, blur_chance=0.5
    ),
    "npid": Colours(jitter=(0.4, 0.4, 0.4, 0.4), jitter_chance=1, gray_chance=0.2),
    "gray": Colours(gray_chance=0.66),
    "none": Colours(),
}
"""`official`: PIRL's released models (VISSL, `pirl_jigsaw_4node_resnet50.yaml`); `blur`: its MLP models (VISSL, `photo_gblur.yaml`,
SimCLR's list at strength 1); `npid`: Wu et al. 2018; `gray`: VISSL's Jigsaw; `none`: no colours."""


# ---------------------------------------------------------------------------------------------------------- cutting, in workers


def crop_box(
    width: int, height: int, rng: np.random.Generator, min_area: float
) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a random resized crop, distributed as torchvision's: area `min_area` … 1, ratio 3/4 … 4/3."""
    for _ in range(10):
        area = width * height * (min_area + (1 - min_area) * rng.random())
        ratio = 3 / 4 * (16 / 9) ** rng.random()
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int((width - w + 1) * rng.random()), int((height - h + 1) * rng.random())
            return left, top, left + w, top + h
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def crop(pixels: Pixels, box: tuple[int, int, int, int], size: int) -> Tensor:
    """The `box` of the whole image, resized bilinearly with antialiasing: uint8 [3,size,size]."""
    _, height, width = pixels.values.shape
    x, y = width / pixels.width, height / pixels.height
    left, top = min(width - 1, round(box[0] * x)), min(height - 1, round(box[1] * y))
    right, bottom = max(left + 1, round(box[2] * x)), max(top + 1, round(box[3] * y))
    inside = pixels.values[None, :, top:bottom, left:right]
    return interpolate(inside, (size, size), mode="bilinear", antialias=True)[0].contiguous()


def flip_or_not(views: Tensor, rng: np.random.Generator) -> Tensor:
    """[…,W], mirrored half of the time."""
    return views.flip(-1) if rng.random() < 0.5 else views


# ------------------------------------------ operations, in place: float32 [N,3,H,W] in 0 … 255, one parameter a row [N,1,1,1]
#
# On a CPU comparisons, `where` and indices cost ten times as much as arithmetic, so that there are none.


def luma(pixels: Tensor) -> Tensor:
    """[N,3,H,W] → [N,1,H,W], ITU-R 601. Not in place."""
    return (
        (pixels[:, :1] * 0.2989).add_(pixels[:, 1:2], alpha=0.587).add_(pixels[:, 2:], alpha=0.114)
    )


def adjust_brightness(pixels: Tensor, factor: Tensor) -> None:
    """factor · pixels."""
    pixels.mul_(factor).clamp_max_(255)


def adjust_contrast(pixels: Tensor, factor: Tensor) -> None:
    """factor · pixels + (1-factor) · mean gray."""
    mean = luma(pixels.mean((2, 3), keepdim=True))
    pixels.mul_(factor).add_(mean.mul_(1 - factor)).clamp_(0, 255)


def adjust_saturation(pixels: Tensor, factor: Tensor) -> None:
    """factor · pixels + (1-factor) · gray."""
    gray = luma(pixels).mul_(1 - factor)
    pixels.mul_(factor).add_(gray).clamp_(0, 255)


def adjust_hue(pixels: Tensor, turn: Tensor) -> None:
    """Rotate the hue of HSV by `turn` in -0.5 … 0.5.

    Hue in sixths is ±(1 - red + green + blue) from red, -3 … 3, each channel relative to the least and the greatest. There red
    falls from 1 to 0 between 1 and 2 on either side; green rises between 0 and 1 and falls behind 3, that is between -3 and -2; and
    blue is its mirror image.
    """
    red, green, blue = pixels.unbind(1)
    low, high = torch.minimum(red, green), torch.maximum(red, green)
    torch.minimum(low, blue, out=low)
    torch.maximum(high, blue, out=high)
    chroma = high - low
    hue = (
        high.sub_(low, alpha=2)
        .sub_(red)
        .add_(green)
        .add_(blue)
        .div_(chroma.clamp_min(1e-6))
        .copysign_(green - blue)
    )
    hue.add_(6 * turn.squeeze(1))
    hue.sub_((hue / 6).round_(), alpha=6)
    near, far = hue.clamp(-1, 1), hue.clamp(-2, 2).sub_(hue)
    torch.addcmul(low, torch.maximum(near, far), chroma, out=green)
    torch.addcmul(low, torch.minimum(near, far), chroma, value=-1, out=blue)
    torch.addcmul(low.add_(chroma, alpha=2), hue.abs_().clamp_(1, 2), chroma, value=-1, out=red)


def posterize(pixels: Tensor, bits: Tensor) -> None:
    """Keep the `bits` highest of eight bits."""
    step = torch.exp2(8 - bits)
    pixels.mul_(1 / step).floor_().mul_(step)


def adjust_sharpness(pixels: Tensor, factor: Tensor) -> None:
    """factor · pixels + (1-factor) · smoothed by (1 1 1, 1 5 1, 1 1 1) / 13, the outermost pixels unchanged."""
    width, flat = pixels.shape[3], pixels.flatten(2)
    left, right = pixels[..., 0].clone(), pixels[..., -1].clone()
    # One long row instead of many short ones: what is wrong where a row begins and ends is put back.
    rows = (flat[..., : -2 * width] + flat[..., width:-width]).add_(flat[..., 2 * width :])
    box = (rows[..., :-2] + rows[..., 1:-1]).add_(rows[..., 2:])
    share = (1 - factor.flatten(2)) / 13
    flat[..., width + 1 : -width - 1].mul_(1 - 9 * share).addcmul_(box, share)
    pixels[..., 0], pixels[..., -1] = left, right
    pixels.clamp_(0, 255)


def solarize(pixels: Tensor, threshold: Tensor) -> None:
    """Invert the values from `threshold` (a whole number) on."""
    sign = torch.sub(threshold - 1e-3, pixels).sign_()
    pixels.sub_(127.5).mul_(sign).add_(127.5)


def autocontrast(pixels: Tensor, _: Tensor) -> None:
    """Stretch each channel to 0 … 255; a constant channel stays as it is."""
    low, high = pixels.amin((2, 3), keepdim=True), pixels.amax((2, 3), keepdim=True)
    flat = high == low
    pixels.sub_(low.masked_fill_(flat, 0)).mul_(torch.where(flat, 1.0, 255 / (high - low)))


def gaussian_blur(pixels: Tensor, sigma: Tensor) -> None:
    """Blur with standard deviation `sigma` ≤ 2 pixels, the edge pixels repeated outwards, as two products with banded matrices."""
    offset = torch.arange(-6, 7, device=pixels.device)
    weight = torch.softmax(-offset.square() / (2 * sigma.view(-1, 1).square()), 1)

    def matrix(length: int) -> Tensor:
        place = torch.arange(length, device=pixels.device)
        source = (place.unsqueeze(1) + offset).clamp_(0, length - 1)
        return torch.einsum(
            "nt,itj->nij", weight, (source.unsqueeze(2) == place).float()
        ).unsqueeze(1)

    pixels.copy_(matrix(pixels.shape[2]) @ pixels @ matrix(pixels.shape[3]).mT)


def flip(pixels: Tensor, _: Tensor) -> None:
    """Left becomes right."""
    pixels.copy_(pixels.flip(-1))


def normalise(pixels: Tensor, out: Tensor | None = None) -> Tensor:
    """0 … 255 → ImageNet's mean 0 and standard deviation 1, in `out` or in place; `pixels` are changed."""
    mean, scale = (values.to(pixels.device, non_blocking=True) for values in (_MEAN, _SCALE))
    return torch.mul(pixels.sub_(mean), scale, out=pixels if out is None else out)


# ------------------------------------------------------------------------------------------------------------------ whole batches


class Step(NamedTuple):
    """An operation, the rows that it changes, bool [N], and its parameter, float32 [N]. Both are on the host."""

    operation: Callable[[Tensor, Tensor], None]
    chosen: Tensor
    parameter: Tensor


JITTER = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)
ORDERS = torch.tensor(list(itertools.permutations(range(4))))
NUMBERS = 13
"""How many random numbers a row needs."""


def draw_steps(uniform: Tensor, colours: Colours, flips: bool) -> list[Step]:
    """float32 [N,NUMBERS] in 0 … 1 → what happens to N rows, in this order. An operation of the jitter stands there once for each place."""
    numbers = uniform.unbind(1)
    jittered, order = numbers[0] < colours.jitter_chance, ORDERS[(numbers[1] * 24).long()]
    turns = [
        strength * (2 * number - 1)
        for strength, number in zip(colours.jitter, numbers[2:6], strict=True)
    ]
    strengths = [*(1 + turn for turn in turns[:3]), turns[3]]
    steps = [
        Step(JITTER[kind], jittered & (order[:, place] == kind), strengths[kind])
        for place in range(4)
        for kind in range(4)
    ]
    listed, gray, blurred = (
        numbers[place] < chance
        for place, chance in (
            (6, colours.photometric_chance),
            (7, colours.gray_chance),
            (8, colours.blur_chance),
        )
    )
    return [
        *steps,
        Step(posterize, listed, 4 + (numbers[9] * 5).floor()),
        Step(adjust_sharpness, listed, 0.1 + 1.8 * numbers[10]),
        Step(solarize, listed, (numbers[11] * 257).floor()),
        Step(autocontrast, listed, torch.zeros(len(uniform))),
        Step(adjust_saturation, gray, torch.zeros(len(uniform))),
        Step(gaussian_blur, blurred, 0.1 + 1.9 * numbers[9]),
        Step(flip, (numbers[12] < 0.5) & flips, torch.zeros(len(uniform))),
    ]


def finish(view: Tensor, draws: Draws, colours: Colours, *, flips: bool, shared: bool) -> Tensor:
    """uint8 [B,3,H,W] or [B,K,3,H,W] → float32 of the same shape: coloured, flipped half of the time, normalised.

    Every row has its own draws; with `shared` the K crops of one image have the same.
    """
    batch, crops = len(view), view.shape[1] if view.dim() == 5 else 1
    uniform = (
        draws.uniform(batch, 1 if shared else crops, NUMBERS)
        .expand(batch, crops, NUMBERS)
        .flatten(0, 1)
    )
    images = view.reshape(-1, *view.shape[-3:])
    return apply(draw_steps(uniform, colours, flips), images).reshape(view.shape)


def apply(steps: list[Step], images: Tensor) -> Tensor:
    """uint8 [N,3,H,W] → float32 [N,3,H,W], each row after its own steps, normalised.

    Rows with the same steps stand together, so that a step finds them side by side. On a CPU a few rows at a time pass through all
    steps, and stay in its cache meanwhile.
    """
    device = images.device
    chosen = torch.stack([step.chosen for step in steps], 1).numpy()
    order = np.lexsort(chosen.T[::-1])
    chosen = chosen[order]
    parameters = torch.stack([step.parameter for step in steps], 1)[order].to(
        device, non_blocking=True
    )
    done = torch.empty(images.shape, device=device)
    size = max(1, PARCEL // images[0].numel()) if device.type == "cpu" else len(order)
    for start in range(0, len(order), size):
        rows, here, given = (
            order[start : start + size],
            chosen[start : start + size],
            parameters[start : start + size],
        )
        pixels = images.index_select(0, _at(rows, device)).float()
        for number in np.flatnonzero(here.any(0)).tolist():
            _change(
                pixels,
                np.flatnonzero(here[:, number]),
                steps[number].operation,
                given[:, number].view(-1, 1, 1, 1),
            )
        if len(rows) == 1:  # Saves a pass over memory.
            normalise(pixels, done[rows[0] : rows[0] + 1])
        else:
            _put(done, rows, normalise(pixels))
    return done


def _change(
    pixels: Tensor, rows: np.ndarray, operation: Callable[[Tensor, Tensor], None], parameter: Tensor
) -> None:
    """Do `operation` to `rows`, which rise, of `pixels`: in place where they lie side by side, to a copy of them otherwise."""
    first, last = int(rows[0]), int(rows[-1]) + 1
    if last - first == len(rows):
        operation(pixels[first:last], parameter[first:last])
        return
    here = _at(rows, pixels.device)
    part = pixels.index_select(0, here)
    operation(part, parameter.index_select(0, here))
    _put(pixels, rows, part)


def _at(rows: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(rows).to(device, non_blocking=True)


def _put(whole: Tensor, rows: np.ndarray, part: Tensor) -> None:
    """whole[rows] = part. On a CPU NumPy is four times as fast as `index_copy_`."""
    if whole.device.type == "cpu":
        whole.numpy()[rows] = part.numpy()
    else:
        whole.index_copy_(0, _at(rows, whole.device), part)


class Photometric(PretextTransform):
    """A transform whose views are cut from random resized crops and then all get one list of colours. Says nothing of how they are cut.

    `flips`: rows are mirrored on the device; False where the cut has done it. `shared`: the crops of one image are treated alike.
    `crops`: the side and the least area of each random resized crop that `cut` makes; their boxes are the first that is drawn.
    """

    flips = True
    shared = False
    colours: ColourList
    crops: tuple[tuple[int, float], ...] = ()

    def boxes(
        self, width: int, height: int, rng: np.random.Generator
    ) -> list[tuple[int, int, int, int]]:
        """The box of each crop of an image of `width` × `height`."""
        return [crop_box(width, height, rng, min_area) for _, min_area in self.crops]

    def fetch(
        self, source: ImageSource, index: int, rng: np.random.Generator
    ) -> Image.Image | Pixels:
        """Pixels of image `index`, reduced where no crop has to be enlarged for it; the image where `crops` does not say what is cut."""

        def reduction(width: int, height: int) -> float:
            boxes = self.boxes(width, height, rng)
            return min(
                min(box[2] - box[0], box[3] - box[1]) / size
                for box, (size, _) in zip(boxes, self.crops, strict=True)
            )

        return source.pixels(index, reduction) if self.crops else source.image(index)

    def cut(self, image: Image.Image | Pixels, rng: np.random.Generator) -> Iterator[Tensor]:
        """uint8 [3,size,size] of each crop."""
        pixels = image if isinstance(image, Pixels) else Pixels.of(image)
        boxes = self.boxes(pixels.width, pixels.height, rng)
        return (crop(pixels, box, size) for box, (size, _) in zip(boxes, self.crops, strict=True))

    def on_device(self, batch: Batch, draws: Draws) -> Batch:
        """uint8 views → float32 normalised views of the same shapes."""
        chosen = COLOURS[self.colours]
        views = {
            name: finish(view, draws, chosen, flips=self.flips, shared=self.shared)
            for name, view in batch.views.items()
        }
        return replace(batch, views=views)

    def plain(self, images: Tensor) -> Tensor:
        """uint8 [N,3,H,W] → float32 [N,3,H,W], normalised."""
        return normalise(images.float())
