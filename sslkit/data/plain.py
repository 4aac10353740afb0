"""Un-augmented images for evaluations, resized and cropped at the centre."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from sslkit.data.workers import read
from sslkit.interfaces import ImageSource, Pixels


class Plain(Dataset):
    """Reads un-augmented images: indices [N] → uint8 or uint16 [N,C,size,size], and the indices.

    An unreadable image is black.
    """

    def __init__(self, source: ImageSource, size: int) -> None:
        self.source, self.size = source, size

    def __getitem__(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        kind = np.uint8 if self.source.bits == 8 else np.uint16
        pixels = np.zeros((len(indices), self.size, self.size, self.source.channels), kind)
        for row, index in enumerate(indices.tolist()):
            image = read(decoded, self.source, index)
            image = unlike(image, self.source) or image
            if not isinstance(image, str):
                pixels[row] = plain_pixels(image, self.size, self.source.reduced_to)
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(indices)


def decoded(source: ImageSource, index: int) -> Image.Image | Pixels:
    """Return an image of any number of channels and bits."""
    if source.channels == 3 and source.bits == 8:
        return source.image(index)
    return source.pixels(index, lambda width, height: 1.0)


def unlike(image: Image.Image | Pixels | str, source: ImageSource) -> str | None:
    """Return how decoded pixels differ from their source's format; None if they do not."""
    if not isinstance(image, Pixels):
        return None
    kind = torch.uint8 if source.bits == 8 else torch.uint16
    if image.values.dtype == kind and len(image.values) == source.channels:
        return None
    found = f"{len(image.values)} channels of {image.values.dtype}"
    return f"has {found}, but the data set {source.channels} of {kind}"


def plain_pixels(
    image: Image.Image | Pixels, size: int, reduced_to: int | None = None
) -> np.ndarray:
    """Return the un-augmented view, uint8 or uint16 [size,size,C], resized channel by channel."""
    if not isinstance(image, Pixels):
        return np.asarray(plain_view(image, size, reduced_to))
    channels = []
    for values in image.values.numpy():
        if values.dtype == np.uint8:
            channels.append(np.asarray(plain_view(Image.fromarray(values), size, reduced_to)))
        else:  # Pillow resizes 16 bits as floating-point numbers only.
            shown = plain_view(Image.fromarray(values.astype(np.float32)), size, reduced_to)
            channels.append(np.asarray(shown).round().astype(np.uint16))
    return np.stack(channels, -1)


def plain_view(image: Image.Image, size: int, reduced_to: int | None = None) -> Image.Image:
    """Return the central square that evaluations show (`plain_box`), resized to `size`."""
    box = plain_box(*image.size, size, reduced_to)
    return image.resize((size, size), Image.Resampling.BILINEAR, box=box)


def plain_box(
    width: int, height: int, size: int, reduced_to: int | None = None
) -> tuple[float, float, float, float]:
    """Return the box (left, top, right, bottom) that becomes the un-augmented view of `size` px.

    The short side is resized to 256/224 · `size`, then the central square of `size` is cut. Of an
    image whose short side is at most `size`, as in CIFAR at 32 px, the whole short side is shown. A
    short side of `reduced_to` px was longer in the original, so it does not count as that small.
    """
    short = min(width, height)
    small = short <= size and short != reduced_to
    target = size if small else round(size * 256 / 224)
    across, down = (max(target, round(side * target / short)) for side in (width, height))
    left, top = (across - size) / 2, (down - size) / 2
    scale_x, scale_y = width / across, height / down
    return left * scale_x, top * scale_y, (left + size) * scale_x, (top + size) * scale_y
