"""Reads images for evaluations, resized without augmentation or randomly cropped."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from sslkit.data import shared
from sslkit.data.plain import decoded, plain_box, unlike
from sslkit.data.workers import ALONE, deliver, read
from sslkit.errors import DataError, printable
from sslkit.interfaces import ImageSource, Pixels

View = Literal["crop", "squash", "square"]
SHOWN = {
    "crop": "crop: short side to 256/224 of the size, central square; no border is cut off an "
    "image whose short side is at most the size",
    "squash": "squash: the full image, resized to a square",
    "square": "square: the central square, its side the short side",
}
"""Description of each view in a protocol."""
BATCH = 128
"""Images that are read, resized and embedded together."""
PIECE = 256
"""Largest number of images of a random batch that a worker returns together."""
MIN_AREA, ASPECT = 0.08, (3 / 4, 4 / 3)
"""Smallest area of random crops, as a fraction of the image, and range of width / height.

Szegedy et al. 2015, arXiv:1409.4842, section 6.
"""

Progress = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]
"""title → context manager of a function of the newly completed number and the total."""

Picture = Image.Image | Pixels
Box = tuple[float, float, float, float]


def shown(view: View, source: ImageSource) -> str:
    """Describe which part of the images of `source` a view shows, for a protocol."""
    if view == "crop" and source.reduced_to is not None:
        note = f"a short side of {source.reduced_to} px, reduced by packing, counts as longer"
        return f"{SHOWN[view]}; {note}"
    return SHOWN[view]


class Order(NamedTuple):
    """A batch of images to read. `epoch` is part of the key of their random numbers."""

    epoch: int
    indices: np.ndarray


@dataclass(frozen=True)
class Resized:
    """Resizes an image to several sizes, px, without augmentation: [C,S,S] for each."""

    sizes: tuple[int, ...]
    view: View
    reduced_to: int | None = None
    """`reduced_to` of the image's source."""

    def __call__(self, image: Picture, rng: np.random.Generator) -> tuple[Tensor, ...]:
        width, height = _extent(image)
        cuts = []
        for size in self.sizes:
            box = (0.0, 0.0, float(width), float(height))
            if self.view == "crop":
                box = plain_box(width, height, size, self.reduced_to)
            elif self.view == "square":
                short = min(width, height)
                left, top = (width - short) / 2, (height - short) / 2
                box = (left, top, left + short, top + short)
            cuts.append(resize(image, box, size))
        return tuple(cuts)


@dataclass(frozen=True)
class RandomCrops:
    """Cuts `count` random crops with random flips of an image: [count,C,S,S]."""

    size: int
    count: int

    def __call__(self, image: Picture, rng: np.random.Generator) -> tuple[Tensor, ...]:
        cuts = []
        for _ in range(self.count):
            cut = resize(image, random_box(*_extent(image), rng), self.size)
            cuts.append(cut.flip(-1) if rng.random() < 0.5 else cut)
        return (torch.stack(cuts),)


def entire(image: Picture, rng: np.random.Generator) -> tuple[Tensor, ...]:
    """Return the image itself: [C,h,w]."""
    pixels = image if isinstance(image, Pixels) else Pixels.of(image)
    return (pixels.values,)


Cut = Callable[[Picture, np.random.Generator], tuple[Tensor, ...]]


def _extent(image: Picture) -> tuple[int, int]:
    """Return width and height."""
    if isinstance(image, Pixels):
        return image.values.shape[-1], image.values.shape[-2]
    return image.size


def random_box(width: int, height: int, rng: np.random.Generator) -> Box:
    """Draw a box of random area and aspect; the full image if ten draws do not fit."""
    for _ in range(10):
        area = width * height * rng.uniform(MIN_AREA, 1)
        aspect = np.exp(rng.uniform(*np.log(ASPECT)))
        across, down = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if 0 < across <= width and 0 < down <= height:
            left, top = rng.integers(width - across + 1), rng.integers(height - down + 1)
            return float(left), float(top), float(left + across), float(top + down)
    return 0.0, 0.0, float(width), float(height)


def resize(image: Picture, box: Box, size: int) -> Tensor:
    """Return the box (left, top, right, bottom) of an image, resized to [C,size,size]."""
    if not isinstance(image, Pixels):
        return torch.from_numpy(_resize(image, box, size)).permute(2, 0, 1)
    channels = []
    for values in image.values.numpy():
        if values.dtype == np.uint16:  # Pillow resizes 16 bits only as floats.
            found = _resize(Image.fromarray(values.astype(np.float32)), box, size)
            channels.append(found.round().astype(np.uint16))
        else:
            channels.append(_resize(Image.fromarray(values), box, size))
    return torch.from_numpy(np.stack(channels))


def _resize(image: Image.Image, box: Box, size: int) -> np.ndarray:
    return np.array(image.resize((size, size), Image.Resampling.BILINEAR, box=box))


class UnreadableImage(DataError):  # noqa: N818  (it names what happened)
    """The first image that an evaluation cannot read."""


class _Builder(Dataset):
    """Reads and cuts the images of an Order; returns an error for an unreadable image."""

    def __init__(self, source: ImageSource, cut: Cut, seed: int) -> None:
        self.source, self.cut, self.seed = source, cut, seed

    def __getitem__(self, order: Order) -> tuple[tuple[Tensor, ...], Tensor] | UnreadableImage:
        cuts = []
        for index in order.indices.tolist():
            image = read(decoded, self.source, index)
            image = unlike(image, self.source) or image
            if isinstance(image, str):
                name = printable(str(self.source.names[index]))
                return UnreadableImage(f"{name} cannot be read: {image}")
            cuts.append(self.cut(image, np.random.default_rng((self.seed, order.epoch, index))))
        stacked = tuple(torch.stack(views) for views in zip(*cuts, strict=True))
        return stacked, torch.from_numpy(order.indices)


def read_images(
    source: ImageSource,
    cut: Cut,
    orders: Iterable[Order],
    *,
    seed: int = 0,
    workers: int = 0,
    batch: int = BATCH,
) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
    """Yield the cuts of each order of at most `batch` images, and the index int64 [N].

    Uses fewer workers if shared memory is too small for all. Raises UnreadableImage for the first
    image that cannot be read.
    """
    builder, size = _Builder(source, cut, seed), 0
    first = builder[Order(0, np.arange(1))] if workers else None
    if isinstance(first, tuple):
        size = batch * sum([value.nbytes for value in first[0]])
    fitting = shared.fitting(workers, size)
    return deliver(builder, orders, fitting, size=size, remedy=ALONE)


def in_pieces(orders: Iterable[Order]) -> Iterator[Order]:
    """Split orders into ones of at most PIECE images."""
    for order in orders:
        for indices in np.split(order.indices, range(PIECE, len(order.indices), PIECE)):
            yield Order(order.epoch, indices)


def in_order(count: int, size: int = BATCH) -> list[Order]:
    """Return batches of all images in sequence."""
    return [Order(0, rows) for rows in np.split(np.arange(count), range(size, count, size))]


def in_random_order(count: int, seed: int = 0) -> list[Order]:
    """Return batches of all images in random order, of nearly equal size."""
    rows = np.random.default_rng(seed).permutation(count)
    return [Order(0, batch) for batch in np.array_split(rows, -(-count // BATCH))]


def shuffled(
    count: int, *, batch_size: int, steps: int, seed: int, first: int = 0
) -> Iterator[Order]:
    """Yield the batches first … steps−1 of shuffled epochs; drops incomplete last batches."""
    batch_size = min(batch_size, count)
    per_epoch = count // batch_size
    drawn, rows = -1, np.arange(0)
    for step in range(first, steps):
        epoch, place = divmod(step, per_epoch)
        if epoch != drawn:
            drawn, rows = epoch, np.random.default_rng((seed, epoch)).permutation(count)
        yield Order(epoch, rows[place * batch_size : (place + 1) * batch_size])
