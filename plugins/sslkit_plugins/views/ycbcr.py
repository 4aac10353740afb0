"""Views in YCbCr, as in CMC."""

import torch
from torch import Tensor

from sslkit_plugins.views.lab import Lab
from sslkit_plugins.views.steps import Encoding

TO_YCBCR = torch.tensor(
    [
        [0.299, 0.587, 0.114],
        [-0.299 / 1.772, -0.587 / 1.772, 0.5],
        [0.5, -0.587 / 1.402, -0.114 / 1.402],
    ],
    dtype=torch.float64,
)
"""R'G'B' → Y, Cb, Cr of ITU-R BT.601, full range: Y in 0 … 1, Cb and Cr in -0.5 … 0.5."""


def rgb_to_ycbcr(pixels: Tensor) -> Tensor:
    """Convert sRGB float32 [N,3,H,W] in 0 … 255 to YCbCr, all channels in -1 … 1."""
    values = torch.einsum("oc,nchw->nohw", TO_YCBCR.to(pixels) * (2 / 255), pixels)
    values[:, 0] -= 1
    return values


def ycbcr_to_rgb(values: Tensor) -> Tensor:
    """Convert YCbCr float32 [N,3,H,W] in -1 … 1 to sRGB in 0 … 255, clipped to the gamut."""
    matrix = torch.linalg.inv(TO_YCBCR).to(values)
    shifted = torch.cat([values[:, :1] + 1, values[:, 1:]], 1)
    return torch.einsum("oc,nchw->nohw", matrix * (255 / 2), shifted).clamp(0, 255)


class YCbCrNormaliser:
    """Converts sRGB to YCbCr, scaled to -1 … 1."""

    def __call__(self, pixels: Tensor, out: Tensor | None = None) -> Tensor:
        """Convert float32 [N,3,H,W] in 0 … 255; write to `out`, if given."""
        with torch.autocast(pixels.device.type, enabled=False):
            values = rgb_to_ycbcr(pixels)
        return values if out is None else out.copy_(values)


class YCbCr(Lab):
    """One crop in YCbCr (luma, blue and red chroma), in the view `image`.

    The other colour space of CMC (Tian et al. 2020, arXiv:1906.05849), half a point to a point
    better than Lab according to its authors. BT.601, full range, all channels scaled to -1 … 1.
    """

    space = "YCbCr (BT.601, full range)"
    ranges = "Y 0 … 1, Cb and Cr -0.5 … 0.5"

    def encoding(self, device: torch.device) -> Encoding:
        """Return the conversion of sRGB in 0 … 255 to YCbCr."""
        return YCbCrNormaliser()

    def picture(self, views: Tensor) -> Tensor:
        """Convert YCbCr views to RGB in 0 … 1."""
        return ycbcr_to_rgb(views) / 255
