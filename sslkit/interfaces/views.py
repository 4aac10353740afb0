"""Pretext transforms and normalisation."""

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
    """Mean and standard deviation per channel for pixels in 0 … 1, by default ImageNet's."""

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Return 255·mean and 1/(255·std), both float32 [C,1,1], for pixels in 0 … 255."""
        mean = torch.tensor([255 * value for value in self.mean])
        std = torch.tensor([255 * value for value in self.std])
        return mean.view(-1, 1, 1), 1 / std.view(-1, 1, 1)


class PretextTransform(ABC):
    """Cuts views of a pretext task from an image, and augments batches of views on the device.

    The class attribute `views` names the views. Instances have these attributes:

    * `size`, the side of the square images in evaluations, px.
    * `shapes`, the shape of each view without batch dimension.
    * `num_targets`, the number of classes of each target.
    """

    views: ClassVar[tuple[str, ...]]
    counts: ClassVar[dict[str, str | None] | None] = None
    """View with several crops per image → the option with their number, such as `local.count`.

    The option is None if the number follows from others. None for all views: not stated.
    """
    targets: ClassVar[tuple[str, ...] | None] = None
    """Targets that some options of the transform provide; None: not stated."""
    size: int
    shapes: dict[str, tuple[int, ...]]
    num_targets: dict[str, int]
    normalisation: Normalisation = Normalisation()
    """The encoder's normalisation, which sslkit sets."""

    @abstractmethod
    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Sample:
        """Cut integer views of fixed size from an image of any size.

        Runs in loader workers. Must be a pure function of `image` and `rng`.
        """

    def fetch(self, source: ImageSource, index: int, rng: np.random.Generator) -> Any:
        """Return the first argument of `__call__` for image `index`.

        By default the decoded image. `rng` has the same initial state as the generator of
        `__call__`. Any exception marks an unreadable image.
        """
        return source.image(index)

    @abstractmethod
    def on_device(self, batch: Batch, draws: Draws) -> Batch:
        """Augment and normalise: integer views → float32 views of the same shapes.

        Every row has separate draws. 16-bit values are divided by 257, so colours are in 0 … 255.
        """

    @abstractmethod
    def plain(self, images: Tensor) -> Tensor:
        """Normalise integer [N,C,H,W] → float32 [N,C,H,W] without augmentation."""

    def scales(self) -> str:
        """Describe the values that `plain` returns, as in a model card."""
        mean, std = list(self.normalisation.mean), list(self.normalisation.std)
        return f"pixels in 0 … 1, minus {mean}, divided by {std}"

    def picture(self, views: Tensor) -> Tensor:
        """Convert views of `on_device` to pictures: float32 [N,C,H,W] → RGB [N,3,H,W] in 0 … 1.

        Shows the first three channels, or the first channel as gray if there are fewer.
        """
        ends = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1)
        low, high = self.plain(ends.repeat(1, views.shape[1], 1, 1))
        shown = ((views - low) / (high - low)).clamp(0, 1)
        return shown[:, :3] if views.shape[1] >= 3 else shown[:, :1].expand(-1, 3, -1, -1)

    def state(self) -> dict[str, Tensor]:
        """Return tensors for the checkpoint, such as a set of permutations.

        A resumed run verifies that the transform still has the same tensors.
        """
        return {}
