"""Views in CIE L*a*b*, as in CMC."""

from typing import ClassVar

import torch
from torch import Tensor

from sslkit.errors import Fault, RecipeError
from sslkit_plugins.views.crops import Coloured, Flip, MinArea, Resize, Side
from sslkit_plugins.views.cuts import Cut
from sslkit_plugins.views.photometric import Photometric
from sslkit_plugins.views.steps import Encoding

TO_XYZ = torch.tensor(
    [
        [0.412453, 0.357580, 0.180423],
        [0.212671, 0.715160, 0.072169],
        [0.019334, 0.119193, 0.950227],
    ],
    dtype=torch.float64,
)
"""Linear sRGB → XYZ, the matrix of skimage's `rgb2xyz`."""
WHITE = torch.tensor([0.95047, 1.0, 1.08883], dtype=torch.float64)
"""XYZ of the white point D65, 2° observer."""

LOW = (0.0, -86.183, -107.857)
HIGH = (100.0, 98.233, 94.478)
"""Smallest and largest L, a and b in the sRGB gamut (CMC, `train_CMC.py`)."""


def rgb_to_lab(pixels: Tensor) -> Tensor:
    """Convert sRGB float32 [N,3,H,W] in 0 … 255 to CIE L*a*b* (D65), as skimage's `rgb2lab`."""
    values = pixels / 255
    linear = torch.where(values > 0.04045, ((values + 0.055) / 1.055) ** 2.4, values / 12.92)
    matrix = (TO_XYZ / WHITE.unsqueeze(1)).to(pixels)
    xyz = torch.einsum("oc,nchw->nohw", matrix, linear)
    x, y, z = torch.where(
        xyz > 0.008856, xyz.clamp_min(0) ** (1 / 3), 7.787 * xyz + 16 / 116
    ).unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def lab_to_rgb(lab: Tensor) -> Tensor:
    """Convert CIE L*a*b* float32 [N,3,H,W] to sRGB in 0 … 255, clipped to the gamut."""
    lightness, a, b = lab.unbind(1)
    y = (lightness + 16) / 116
    roots = torch.stack([y + a / 500, y, y - b / 200], 1)
    xyz = torch.where(roots > 0.2068966, roots**3, (roots - 16 / 116) / 7.787)
    matrix = torch.linalg.inv(TO_XYZ / WHITE.unsqueeze(1)).to(lab)
    linear = torch.einsum("oc,nchw->nohw", matrix, xyz).clamp(0, 1)
    values = torch.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)
    return (255 * values).clamp(0, 255)


class LabNormaliser:
    """Converts sRGB to Lab, scaled to -1 … 1 in the sRGB gamut."""

    def __init__(self, device: torch.device) -> None:
        low, high = torch.tensor([LOW, HIGH], device=device).view(2, 3, 1, 1)
        self.centre, self.radius = (low + high) / 2, (high - low) / 2

    def __call__(self, pixels: Tensor, out: Tensor | None = None) -> Tensor:
        """Convert float32 [N,3,H,W] in 0 … 255; write to `out`, if given."""
        with torch.autocast(pixels.device.type, enabled=False):
            return torch.div(rgb_to_lab(pixels) - self.centre, self.radius, out=out)

    def undo(self, values: Tensor) -> Tensor:
        """Return the unscaled Lab values [N,3,H,W]."""
        return values * self.radius + self.centre


class Lab(Photometric):
    """One crop in CIE L*a*b* (lightness, green-red, blue-yellow), in the view `image`.

    CMC (Tian et al. 2020, arXiv:1906.05849, section 4.1) compares the first channel with the other
    two. The channels are scaled to -1 … 1 by their range in sRGB, as in CMC's code, instead of by
    the encoder's mean and standard deviation. CMC does not augment colours.
    """

    views = ("image",)
    counts: ClassVar = {}
    targets = ()
    space = "CIE L*a*b* (D65)"
    ranges = "L 0 … 100, a -86.183 … 98.233, b -107.857 … 94.478"

    def __init__(
        self,
        channels: int = 3,
        /,
        *,
        size: Side = 224,
        min_area: MinArea = 0.2,
        colours: Coloured = "none",
        flip: Flip = 0.5,
        interpolation: Resize = "bilinear",
    ) -> None:
        if channels != 3:
            name = type(self).__name__.lower()
            message = f"'{name}' needs images of 3 channels; the data set has {channels}"
            raise RecipeError(Fault("transform", f"{message}; use another transform"))
        cut = Cut(
            size=size,
            area=(min_area, 1.0),
            colours=colours,
            flip=flip,
            interpolation=interpolation,
        )
        super().__init__({"image": cut}, channels)

    def encoding(self, device: torch.device) -> Encoding:
        """Return the conversion of sRGB in 0 … 255 to Lab."""
        return LabNormaliser(device)

    def scales(self) -> str:
        """Describe the values that `plain` returns, as in a model card."""
        return (
            f"sRGB pixels converted to {self.space}, each channel scaled to -1 … 1 by its range: "
            f"{self.ranges}"
        )

    def picture(self, views: Tensor) -> Tensor:
        """Convert Lab views to RGB in 0 … 1."""
        return lab_to_rgb(LabNormaliser(views.device).undo(views)) / 255
