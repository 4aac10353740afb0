"""The base of transforms that cut random resized crops and change their colours."""

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
    """Subtracts the mean and divides by the standard deviation, for pixels in 0 … 255."""

    def __init__(self, normalisation: Normalisation, device: torch.device) -> None:
        mean, scale = normalisation.tensors()
        self.mean = mean.to(device, non_blocking=True)
        self.scale = scale.to(device, non_blocking=True)

    def __call__(self, pixels: Tensor, out: Tensor | None = None) -> Tensor:
        """Normalise float32 [N,C,H,W] into `out`, or in place; `pixels` are changed."""
        return torch.mul(pixels.sub_(self.mean), self.scale, out=pixels if out is None else out)


class Photometric(PretextTransform):
    """A transform whose views are random resized crops with colours of their own.

    `cuts` has one Cut for each view, in the order in which boxes are drawn. `channels` is the
    number of channels of the images. A subclass changes `__call__` where a view is more than its
    crops, and `shapes`, `size` and `num_targets` with it. Raises RecipeError for colours that do
    not fit the crops or the channels.
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
        if channels != 3:  # The encoder's replaces it.
            self.normalisation = Normalisation(mean=(0.0,) * channels, std=(1.0,) * channels)

    @property
    def crops(self) -> list[Cut]:
        """The cut of every crop, in the order of `boxes`."""
        return [cut for cut in self.cuts.values() for _ in range(cut.count or 1)]

    def boxes(self, width: int, height: int, rng: np.random.Generator) -> list[Box]:
        """Return the box of every crop of an image of `width` × `height`, in order."""
        return [crop_box(width, height, rng, cut.area, cut.aspect) for cut in self.crops]

    def fetch(
        self, source: ImageSource, index: int, rng: np.random.Generator
    ) -> Image.Image | Pixels:
        """Return the pixels of image `index`, reduced where no crop has to be enlarged for it."""

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
        """Cut the views: integer [C,size,size] or [K,C,size,size]."""
        crops = self.cut(image, rng)
        views = {}
        for name, cut in self.cuts.items():
            if cut.count is None:
                views[name] = next(crops)
            else:
                views[name] = torch.stack([next(crops) for _ in range(cut.count)])
        return Sample(views, {})

    def encoding(self, device: torch.device) -> Encoding:
        """Return what turns pixels in 0 … 255 into what the encoder is shown."""
        return Normaliser(self.normalisation, device)

    def on_device(self, batch: Batch, draws: Draws) -> Batch:
        """Colour, flip and normalise: integer views → float32 views of the same shapes."""
        views = {}
        for name, view in batch.views.items():
            cut, lists, encode = self.cuts[name], self.colours[name], self.encoding(view.device)
            views[name] = finish(view, draws, lists, encode, flip=cut.flip, shared=cut.shared)
        return replace(batch, views=views)

    def plain(self, images: Tensor) -> Tensor:
        """Normalise integer [N,C,H,W] → float32 [N,C,H,W]."""
        return self.encoding(images.device)(to_floats(images), None)
