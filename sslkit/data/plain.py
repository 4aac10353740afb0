"""Images as evaluations show them: resized, cropped in the centre, not augmented."""

from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from sslkit.data.workers import deliver, read
from sslkit.errors import DataError, printable
from sslkit.interfaces import ImageSource


class Plain(Dataset):
    """Indices [N] → un-augmented uint8 [N,3,size,size], and the indices.

    `strict`: an unreadable image is an error; otherwise it is black.
    """

    def __init__(self, source: ImageSource, size: int, *, strict: bool = True) -> None:
        self.source, self.size, self.strict = source, size, strict

    def __getitem__(self, indices: np.ndarray) -> tuple[Tensor, Tensor] | DataError:
        pixels = np.zeros((len(indices), self.size, self.size, 3), np.uint8)
        for row, index in enumerate(indices.tolist()):
            image = read(self.source.image, index)
            if not isinstance(image, str):
                pixels[row] = np.asarray(plain_view(image, self.size))
            elif self.strict:
                return DataError(
                    f"{printable(str(self.source.names[index]))} cannot be read, and an evaluation "
                    f"replaces no image: repair or remove it ({image})"
                )
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(indices)


def plain_view(image: Image.Image, size: int) -> Image.Image:
    """Return the central square that evaluations show (`plain_box`), resized to `size`."""
    box = plain_box(*image.size, size)
    return image.resize((size, size), Image.Resampling.BILINEAR, box=box)


def plain_box(width: int, height: int, size: int) -> tuple[float, float, float, float]:
    """Return the box (left, top, right, bottom) that becomes the un-augmented view of `size` px.

    The short side is resized to 256/224 · `size`, then the central square of `size` is cut. An
    image whose short side is at most 1.15 · `size` is resized to `size` straight.
    """
    short = min(width, height)
    target = size if short <= 1.15 * size else round(size * 256 / 224)
    across, down = (max(target, round(side * target / short)) for side in (width, height))
    left, top = (across - size) / 2, (down - size) / 2
    scale_x, scale_y = width / across, height / down
    return left * scale_x, top * scale_y, (left + size) * scale_x, (top + size) * scale_y


def plain_batches(
    source: ImageSource, size: int, batch_size: int, workers: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """uint8 [N,3,size,size] and index [N] of every image in order, as evaluations show them (`plain_view`)."""
    orders = np.split(np.arange(len(source)), range(batch_size, len(source), batch_size))
    return deliver(Plain(source, size), orders, workers)
