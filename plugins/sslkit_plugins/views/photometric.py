"""Base class of transforms with random resized crops and colour augmentation."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sslkit.interfaces import (
    Batch,
    Draws,
    ImageSource,
    Normalisation,
    Pixels,
    PretextTransform,
    Sample,
)
from sslkit_plugins.views.colours import colours_of
from sslkit_plugins.views.cuts import Box, Cut, crop, crop_box
from sslkit_plugins.views.steps import Encoding, finish, to_floats


class Normaliser:
    """Subtracts mean and divides by standard deviation, for pixels in 0 … 255."""

    def __init__(self, normalisation: Normalisation, device: torch.device) -> None:
        mean, scale = normalisation.tensors()
        self.mean = mean.to(device, non_blocking=True)
        self.scale = scale.to(device, non_blocking=True)

    def __call__(self, pixels: Tensor, out: Tensor | None = None) -> Tensor:
        """Normalise float32 [N,C,H,W] into `out`, or in place; overwrites `pixels`."""
        return torch.mul(pixels.sub_(self.mean), self.scale, out=pixels if out is None else out)


class Photometric(PretextTransform):
    """A transform whose views are random resized crops with colour augmentation.

    `cuts` has one Cut per view, in the order in which boxes are drawn. `channels` is the number of
    channels of the images. Subclasses with other views override `__call__`, and set `shapes`,
    `size` and `num_targets`. Raises RecipeError if the colours do not fit the number of crops or
    channels.
    """

    def __init__(self, cuts: dict[str, Cut], channels: int = 3, /) -> None:
        self.cuts = cuts
        self.colours = {}
        self.shapes = {}
        for name, cut in cuts.items():
            count, key = cut.count or 1, f"{cut.key}.colours"
            self.colours[name] = colours_of(cut.colours, count=count, channels=channels, key=key)
            self.shapes[name] = cut.shape(channels)
        self.size = next(iter(cuts.values())).size
        self.num_targets = {}
        if channels != 3:  # The encoder's normalisation replaces it.
            self.normalisation = Normalisation(mean=(0.0,) * channels, std=(1.0,) * channels)

    @property
    def crops(self) -> list[Cut]:
        """The cut of every crop, in the order of `boxes`."""
        crops = []
        for cut in self.cuts.values():
            crops += [cut] * (cut.count or 1)
        return crops

    def boxes(self, width: int, height: int, rng: np.random.Generator) -> list[Box]:
        """Return the box of every crop of an image of `width` × `height`, in order."""
        return [crop_box(width, height, rng, cut.area, cut.aspect) for cut in self.crops]

    def fetch(
        self, source: ImageSource, index: int, rng: np.random.Generator
    ) -> Image.Image | Pixels:
        """Return the pixels of image `index`, reduced as far as no crop has to be enlarged."""

        def reduction(width: int, height: int) -> float:
            boxes = self.boxes(width, height, rng)
            pairs = zip(boxes, self.crops, strict=True)
            return min(min(box[2] - box[0], box[3] - box[1]) / cut.size for box, cut in pairs)

        return source.pixels(index, reduction)

    def cut(self, image: Image.Image | Pixels, rng: np.random.Generator) -> Iterator[Tensor]:
        """Draw all boxes, then yield the crops in order: integer [C,size,size]."""
        pixels = image if isinstance(image, Pixels) else Pixels.of(image)
        boxes = self.boxes(pixels.width, pixels.height, rng)
        pairs = zip(boxes, self.crops, strict=True)
        return (crop(pixels, box, cut.size, cut.interpolation) for box, cut in pairs)

    def __call__(self, image: Image.Image | Pixels, rng: np.random.Generator) -> Sample:
        """Return the views, integer [C,size,size] or [K,C,size,size]."""
        crops = self.cut(image, rng)
        views = {}
        for name, cut in self.cuts.items():
            if cut.count is None:
                views[name] = next(crops)
            else:
                views[name] = torch.stack([next(crops) for _ in range(cut.count)])
        return Sample(views, {})

    def encoding(self, device: torch.device) -> Encoding:
        """Return the conversion of pixels in 0 … 255 to the encoder's input."""
        return Normaliser(self.normalisation, device)

    def on_device(self, batch: Batch, draws: Draws) -> Batch:
        """Augment, flip and normalise: integer views → float32 views of the same shapes."""
        views = {}
        for name, view in batch.views.items():
            cut, lists, encode = self.cuts[name], self.colours[name], self.encoding(view.device)
            views[name] = finish(view, draws, lists, encode, flip=cut.flip, shared=cut.shared)
        return replace(batch, views=views)

    def plain(self, images: Tensor) -> Tensor:
        """Normalise integer [N,C,H,W] → float32 [N,C,H,W]."""
        return self.encoding(images.device)(to_floats(images), None)
