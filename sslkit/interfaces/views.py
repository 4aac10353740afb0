"""Pretext transforms: the views of a task."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sslkit.draws import Draws
from sslkit.interfaces.images import Batch, ImageSource, Sample


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """Mean and standard deviation per channel, of pixels in 0 … 1. The default is ImageNet's."""

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Return 255·mean and 1/(255·std), both float32 [C,1,1], for pixels in 0 … 255."""
        mean = torch.tensor([255 * value for value in self.mean])
        std = torch.tensor([255 * value for value in self.std])
        return mean.view(-1, 1, 1), 1 / std.view(-1, 1, 1)


class PretextTransform(ABC):
    """Cuts the views of a pretext task from an image, and finishes them for a batch on the device.

    Class attribute `views` names the views. Every instance has `size`, the side in pixels of the
    square that evaluations show to the encoder; `shapes`, the shape of each view without B;
    `num_targets`, the number of classes of each target.
    """

    views: ClassVar[tuple[str, ...]]
    size: int
    shapes: dict[str, tuple[int, ...]]
    num_targets: dict[str, int]
    normalisation: Normalisation = Normalisation()
    """Set by the toolkit to that of the encoder."""

    @abstractmethod
    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Sample:
        """Cut an image of any size into integer views of fixed size.

        Runs in loader workers; a pure function of `image` and `rng`.
        """

    def fetch(self, source: ImageSource, index: int, rng: np.random.Generator) -> Any:
        """Return what `__call__` gets for image `index`: the image, or something faster to cut.

        `rng` starts in the same state as the generator that `__call__` gets. An exception marks an
        unreadable image.
        """
        return source.image(index)

    @abstractmethod
    def on_device(self, batch: Batch, draws: Draws) -> Batch:
        """Colour, blur, flip and normalise: integer views → float32 views of the same shapes.

        Every row has its own draws. 16 bits are divided by 257, so colours work in 0 … 255.
        """

    @abstractmethod
    def plain(self, images: Tensor) -> Tensor:
        """Normalise integer [N,C,H,W] → float32 [N,C,H,W], as evaluations and export do."""

    def picture(self, views: Tensor) -> Tensor:
        """Turn views of `on_device` into pictures: float32 [N,C,H,W] → RGB [N,3,H,W] in 0 … 1.

        Shows the first three channels, or the first as gray where there are fewer.
        """
        ends = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1)
        low, high = self.plain(ends.repeat(1, views.shape[1], 1, 1))
        shown = ((views - low) / (high - low)).clamp(0, 1)
        return shown[:, :3] if views.shape[1] >= 3 else shown[:, :1].expand(-1, 3, -1, -1)

    def state(self) -> dict[str, Tensor]:
        """Return what the checkpoint must hold, such as a set of permutations.

        A resumed run checks that the transform still makes the same.
        """
        return {}
