"""In-place operations on pixels, float32 [N,C,H,W] in 0 … 255, one parameter per row [N,1,1,1].

Only posterize rounds. At 224 px on one CPU core, a comparison takes 7 times as long as an in-place
product; `where` and boolean indices take over 100 times as long. So no operation applies them to
pixels.
"""

import torch
from torch import Tensor


def luma(pixels: Tensor) -> Tensor:
    """Return the luma [N,1,H,W] of ITU-R 601; for C ≠ 3, the mean over channels."""
    if pixels.shape[1] != 3:
        return pixels.mean(1, keepdim=True)
    red, green, blue = pixels[:, :1], pixels[:, 1:2], pixels[:, 2:]
    return (red * 0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def adjust_brightness(pixels: Tensor, factor: Tensor) -> None:
    """Set pixels to factor · pixels."""
    pixels.mul_(factor).clamp_max_(255)


def adjust_contrast(pixels: Tensor, factor: Tensor) -> None:
    """Set pixels to factor · pixels + (1-factor) · mean gray."""
    mean = luma(pixels.mean((2, 3), keepdim=True))
    pixels.mul_(factor).add_(mean.mul_(1 - factor)).clamp_(0, 255)


def adjust_saturation(pixels: Tensor, factor: Tensor) -> None:
    """Set pixels to factor · pixels + (1-factor) · gray."""
    gray = luma(pixels).mul_(1 - factor)
    pixels.mul_(factor).add_(gray).clamp_(0, 255)


def adjust_hue(pixels: Tensor, shift: Tensor) -> None:
    """Rotate the hue of HSV by `shift` in -0.5 … 0.5; C = 3.

    With channels scaled to 0 … 1 by their minimum and maximum, hue in sixths is
    ±(1 - red + green + blue), -3 … 3 from red. Red falls from 1 to 0 between 1 and 2 on either
    side. Green rises between 0 and 1 and falls between -3 and -2. Blue mirrors green.
    """
    red, green, blue = pixels.unbind(1)
    low, high = torch.minimum(red, green), torch.maximum(red, green)
    torch.minimum(low, blue, out=low)
    torch.maximum(high, blue, out=high)
    chroma = high - low
    hue = high.sub_(low, alpha=2).sub_(red).add_(green).add_(blue)
    hue.div_(chroma.clamp_min(1e-6)).copysign_(green - blue)
    hue.add_(6 * shift.squeeze(1))
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
    """Set pixels to factor · pixels + (1-factor) · pixels smoothed by (1 1 1, 1 5 1, 1 1 1) / 13.

    Pixels at the border do not change.
    """
    width, flat = pixels.shape[3], pixels.flatten(2)
    left, right = pixels[..., 0].clone(), pixels[..., -1].clone()
    # Treats the image as one long row, then restores the first and last pixel of each row.
    rows = (flat[..., : -2 * width] + flat[..., width:-width]).add_(flat[..., 2 * width :])
    box = (rows[..., :-2] + rows[..., 1:-1]).add_(rows[..., 2:])
    weight = (1 - factor.flatten(2)) / 13
    flat[..., width + 1 : -width - 1].mul_(1 - 9 * weight).addcmul_(box, weight)
    pixels[..., 0], pixels[..., -1] = left, right
    pixels.clamp_(0, 255)


def solarize(pixels: Tensor, threshold: Tensor) -> None:
    """Invert values at or above `threshold`, an integer."""
    sign = torch.sub(threshold - 1e-3, pixels).sign_()
    pixels.sub_(127.5).mul_(sign).add_(127.5)


def autocontrast(pixels: Tensor, _: Tensor) -> None:
    """Stretch each channel to 0 … 255; constant channels do not change."""
    low, high = pixels.amin((2, 3), keepdim=True), pixels.amax((2, 3), keepdim=True)
    flat = high == low
    pixels.sub_(low.masked_fill_(flat, 0)).mul_(torch.where(flat, 1.0, 255 / (high - low)))


def gaussian_blur(pixels: Tensor, sigma: Tensor) -> None:
    """Blur with standard deviation `sigma` ≤ 2 px and repeated edges.

    Equals Pillow's `GaussianBlur`, which the official code of PIRL, MoCo v2, SwAV and DINO uses:
    three box filters with fractional ends. A sampled Gaussian, as in SimCLR, BYOL and torchvision,
    blurs less below 0.6 px. Multiplies by two banded matrices of 13 taps.
    """
    kernel = blur_kernel(sigma.flatten())
    rows, columns = (_banded(kernel, length) for length in pixels.shape[2:])
    pixels.copy_(rows.unsqueeze(1) @ pixels @ columns.unsqueeze(1).mT)


def blur_kernel(sigma: Tensor) -> Tensor:
    """Return the weights [N,13] of Pillow's blur for `sigma` [N] ≤ 2 px.

    Applies three box filters, each with the variance sigma²/3. A box has 2·n + 1 weights of 1 and a
    weight `end` on either side, divided by their sum (Gwosdek et al. 2011, "Theoretical Foundations
    of Gaussian Convolution by Extended Box Filtering", equations 7 and 8).
    """
    variance = sigma.unsqueeze(1).square() / 3
    n = ((torch.sqrt(12 * variance + 1) - 1) / 2).floor()
    end = (2 * n + 1) * (n * (n + 1) - 3 * variance) / (6 * (variance - (n + 1).square()))
    distance = torch.arange(-2, 3, device=sigma.device).abs()
    box = (n + end + 1 - distance).clamp(0, 1)
    once = _banded(box / box.sum(1, keepdim=True), 13)
    return (once @ once @ once)[:, 6]


def _banded(kernel: Tensor, length: int) -> Tensor:
    """Return matrices [N,length,length] that apply kernels [N,T], T odd, with repeated edges."""
    radius = kernel.shape[1] // 2
    offset = torch.arange(-radius, radius + 1, device=kernel.device)
    place = torch.arange(length, device=kernel.device)
    source = (place.unsqueeze(1) + offset).clamp_(0, length - 1)
    hits = (source.unsqueeze(2) == place).float()
    return torch.einsum("nt,itj->nij", kernel, hits)


def flip(pixels: Tensor, _: Tensor) -> None:
    """Flip horizontally."""
    pixels.copy_(pixels.flip(-1))
