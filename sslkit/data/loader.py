"""Loads batches from image sources, as a pure function of seed and step.

A worker builds one micro-batch from a ticket with the indices of the global batch. It can therefore
replace an unreadable image by one that is not in the batch.
"""

import hashlib
import math
import os
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sslkit import faults, launcher
from sslkit.data.plain import Plain, unlike
from sslkit.data.workers import NO_WORKERS, deliver, read
from sslkit.errors import DataError, PluginError, SslkitError, printable
from sslkit.interfaces import Batch, ImageSource, PretextTransform, Sample

ORDER, VIEWS, FULL_PASS, REPLACEMENT = range(4)
"""Random streams: order of an epoch, views, views of a full pass, replacements."""


def fingerprint(source: ImageSource) -> str:
    """Return the SHA-256 of the names of all images in order."""
    digest = hashlib.sha256()
    for name in source.names:
        digest.update(str(name).encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()


def auto_workers(device_type: str) -> int:
    """Return the number of loader workers per rank.

    One per core of the rank, at most 16, for a GPU; one per two cores for training on the CPU.
    """
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    per_rank = cores // launcher.local_world()
    return min(16, max(1, per_rank)) if device_type == "cuda" else per_rank // 2


class Ticket(NamedTuple):
    """The specification of one micro-batch.

    `indices` are the images of the global batch; the micro-batch has places `first` … `last`-1.
    """

    stream: int
    epoch: int
    indices: np.ndarray
    first: int
    last: int


class _Builder(Dataset):
    """Builds the fields of a Batch from a Ticket.

    Returns a tuple, because PyTorch pins only tensors in tuples and dictionaries. The training
    process creates the Batch.
    """

    def __init__(
        self,
        source: ImageSource,
        transform: PretextTransform,
        seed: int,
        labels: np.ndarray | None = None,
    ) -> None:
        self.source, self.transform, self.seed, self.labels = source, transform, seed, labels

    def __getitem__(self, ticket: Ticket) -> tuple[Any, ...] | SslkitError:
        taken = set(ticket.indices.tolist())
        samples, index, unreadable = [], [], []
        for place in range(ticket.first, ticket.last):
            number = int(ticket.indices[place])
            draws = np.random.default_rng((self.seed, REPLACEMENT, ticket.epoch, number))
            image = self._fetch(ticket, number)
            while isinstance(image, str):
                unreadable.append((self._name(number), image))
                free = self._replacements(taken, place, len(ticket.indices))
                if not free:
                    return DataError(
                        f"{self._name(number)} cannot be read ({image}), and no image is left to "
                        f"replace it in a batch of {len(ticket.indices)}; repair or remove it"
                    )
                number = free[int(draws.integers(len(free)))]
                taken.add(number)
                image = self._fetch(ticket, number)
            with faults.telling(about=f"image {self._name(number)}"):
                samples.append(self.transform(image, self._rng(ticket, number)))
            index.append(number)
        if (wrong := self._wrong_sample(samples)) is not None:
            return wrong
        with faults.telling(f"targets of {faults.called(self.transform)} cannot be stacked"):
            targets = _stacked([sample.targets for sample in samples])
        views = _stacked([sample.views for sample in samples])
        if self.labels is not None:
            targets["label"] = torch.from_numpy(self.labels[index])
        return views, targets, torch.tensor(index), tuple(unreadable)

    def _fetch(self, ticket: Ticket, index: int) -> Any:
        """Return the image, or the reason why it cannot be read."""
        image = read(self.transform.fetch, self.source, index, self._rng(ticket, index))
        return unlike(image, self.source) or image

    def _rng(self, ticket: Ticket, index: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, ticket.stream, ticket.epoch, index))

    def _name(self, index: int) -> str:
        return printable(str(self.source.names[index]))

    def _replacements(self, taken: set[int], place: int, size: int) -> list[int]:
        """Return the images that may replace one at `place` of a global batch of `size`.

        Ranks do not communicate replacements. Each place therefore prefers the images with its
        residue modulo `size`, which no other place uses.
        """
        count = len(self.source)
        own = [other for other in range(place, count, size) if other not in taken]
        return own or [*set(range(count)) - taken]

    def _wrong_sample(self, samples: list[Sample]) -> PluginError | None:
        """Return an error if a sample does not match the transform's attributes."""
        called, shapes = faults.called(self.transform), self.transform.shapes
        for sample in samples:
            if not isinstance(sample, Sample):
                return PluginError(f"{called} returned {type(sample).__name__}, not a Sample")
            if sample.views.keys() != shapes.keys():
                made, promised = ", ".join(sample.views), ", ".join(shapes)
                return PluginError(
                    f"{called} returned the views {made}; its `shapes` promise {promised}"
                )
            for name, view in sample.views.items():
                dtype, shape = getattr(view, "dtype", None), list(getattr(view, "shape", ()))
                integer = dtype in (torch.uint8, torch.uint16)
                if not integer or shape != list(shapes[name]):
                    made = f"{type(view).__name__} of {dtype} {shape}"
                    return PluginError(
                        f"{called} returned a view '{name}' that is a {made}; its `shapes` promise "
                        f"torch.uint8 or torch.uint16 of {list(shapes[name])}"
                    )
        return None


def _stacked(items: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Stack the tensors of several images by name."""
    stacked = {}
    for name in items[0]:
        stacked[name] = torch.stack([item[name] for item in items])
    return stacked


def batch_bytes(transform: PretextTransform, source: ImageSource, images: int) -> int:
    """Return the size of the views of `images` images, bytes."""
    numbers = sum(math.prod(shape) for shape in transform.shapes.values())
    return images * numbers * source.bits // 8


def check_fills(images: int, batch_size: int, micro_batches: int = 1) -> None:
    """Raise DataError if a data set of `images` images does not fill one batch.

    `micro_batches` counts those of all ranks; the batch size must be divisible by it.
    """
    if images >= batch_size:
        return
    subject = "1 image does not" if images == 1 else f"{images} images do not"
    smaller = 2 * micro_batches
    while 2 * smaller <= images:
        smaller *= 2
    remedy = f"use smaller batches: --set train.batch_size={smaller}"
    if images < smaller:
        remedy = f"at least {smaller} are needed; name a larger data set: --data PATH"
        if micro_batches > 1:
            remedy += ", or use fewer ranks and micro-batches"
    raise DataError(f"{subject} fill a batch of {batch_size}; {remedy}")


class Loader:
    """Yields training batches from any step on; drops the incomplete last batch of an epoch.

    `batch_size` is the number of images per micro-batch. A step has `micro_batches` of them on each
    of `world` ranks. `labels` int64 [N] adds the target `label`. Raises DataError if the images do
    not fill a step.
    """

    def __init__(
        self,
        source: ImageSource,
        transform: PretextTransform,
        *,
        batch_size: int,
        seed: int,
        workers: int = 0,
        rank: int = 0,
        world: int = 1,
        micro_batches: int = 1,
        pin: bool = False,
        labels: np.ndarray | None = None,
    ) -> None:
        self.source, self.builder = source, _Builder(source, transform, seed, labels)
        self.batch_size, self.seed, self.workers, self.pin = batch_size, seed, workers, pin
        self.rank, self.world, self.micro_batches = rank, world, micro_batches
        self.step_size = batch_size * micro_batches * world
        self.steps_per_epoch = len(source) // self.step_size
        check_fills(len(source), self.step_size, micro_batches * world)

    @property
    def steps_of_pass(self) -> int:
        """Number of steps of a pass over all images."""
        return math.ceil(len(self.source) / self.step_size)

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Yield the micro-batches of steps `start` … `stop`-1; prefetches across epochs."""
        return self._batches(self._steps(start, stop))

    def full_pass(self, epoch: int) -> Iterator[Batch]:
        """Yield every image once, in order, with different views in each epoch.

        The last batch is padded with the first images.
        """
        return self._batches(self._pass_tickets(epoch))

    def plain_pass(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every image once, in order, un-augmented: integer [B,C,size,size], int64 [B].

        The last batch is padded with the first images. An unreadable image is black.
        """
        tickets = self._pass_tickets(0)
        return deliver(
            Plain(self.source, size),
            [ticket.indices[ticket.first : ticket.last] for ticket in tickets],
            self.workers,
            self.pin,
            size=self.batch_size * size**2 * self.source.channels * self.source.bits // 8,
            remedy=NO_WORKERS,
        )

    def _in_order(self) -> Iterator[np.ndarray]:
        """Yield the global batches of a pass in the order of the data set."""
        places = np.arange(self.steps_of_pass * self.step_size) % len(self.source)
        yield from np.split(places, self.steps_of_pass)

    def _pass_tickets(self, epoch: int) -> Iterator[Ticket]:
        for indices in self._in_order():
            yield from self._tickets(FULL_PASS, epoch, indices)

    def _steps(self, start: int, stop: int) -> Iterator[Ticket]:
        order, ordered_epoch = np.empty(0, np.int64), -1
        for step in range(start, stop):
            epoch, place = divmod(step, self.steps_per_epoch)
            if epoch != ordered_epoch:
                rng = np.random.default_rng((self.seed, ORDER, epoch))
                order, ordered_epoch = rng.permutation(len(self.source)), epoch
            indices = order[place * self.step_size : (place + 1) * self.step_size]
            yield from self._tickets(VIEWS, epoch, indices)

    def _tickets(self, stream: int, epoch: int, indices: np.ndarray) -> Iterator[Ticket]:
        for place in range(self.rank * self.micro_batches, (self.rank + 1) * self.micro_batches):
            first = place * self.batch_size
            yield Ticket(stream, epoch, indices, first, first + self.batch_size)

    def _batches(self, tickets: Iterable[Ticket]) -> Iterator[Batch]:
        made = deliver(
            self.builder,
            tickets,
            self.workers,
            self.pin,
            size=batch_bytes(self.builder.transform, self.source, self.batch_size),
            remedy=NO_WORKERS,
        )
        return (Batch(*fields) for fields in made)
