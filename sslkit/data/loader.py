"""Image sources → batches. What is in a batch depends on seed and step alone, not on workers.

A worker builds one full batch from a ticket: epoch, indices of the global batch, the places of this
rank. So an unreadable image can be replaced by one that is not in the batch already.
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
"""Streams of random numbers: the order of an epoch, views, views of a full pass, replacements."""


def fingerprint(source: ImageSource) -> str:
    """SHA-256 over the names of all images in their order."""
    digest = hashlib.sha256()
    for name in source.names:
        digest.update(str(name).encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()


def auto_workers(device_type: str) -> int:
    """Return the loader processes of one rank.

    Up to 16 beside a GPU; half of the rank's cores where the CPU itself trains.
    """
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    share = cores // launcher.local_world()
    return min(16, max(1, share)) if device_type == "cuda" else share // 2


class Ticket(NamedTuple):
    """The order for one micro-batch.

    `indices` are those of the global batch, of which places `first` … `last`-1 are to be built.
    """

    stream: int
    epoch: int
    indices: np.ndarray
    first: int
    last: int


class _Builder(Dataset):
    """Builds the fields of a Batch from a Ticket.

    They become a Batch in the training process: pinning looks into tuples and dictionaries only.
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
                left = self._untaken(taken, place, len(ticket.indices))
                if not left:
                    return DataError(
                        f"{self._name(number)} cannot be read ({image}), and no image is left to "
                        f"replace it in a batch of {len(ticket.indices)}; repair or remove it"
                    )
                number = left[int(draws.integers(len(left)))]
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
        """Return the image to cut, or the reason why it cannot be read."""
        image = read(self.transform.fetch, self.source, index, self._rng(ticket, index))
        return unlike(image, self.source) or image

    def _rng(self, ticket: Ticket, index: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, ticket.stream, ticket.epoch, index))

    def _name(self, index: int) -> str:
        return printable(str(self.source.names[index]))

    def _untaken(self, taken: set[int], place: int, size: int) -> list[int]:
        """Return the images that may replace one at `place` of a global batch of `size`.

        Ranks do not hear of each other's replacements, so each place first takes from images of its
        own: those at its residue modulo `size`.
        """
        count = len(self.source)
        own = [other for other in range(place, count, size) if other not in taken]
        return own or [*set(range(count)) - taken]

    def _wrong_sample(self, samples: list[Sample]) -> PluginError | None:
        """Return an error where a sample is not what the transform promised."""
        called, shapes = faults.called(self.transform), self.transform.shapes
        for sample in samples:
            if not isinstance(sample, Sample):
                return PluginError(f"{called} returned {type(sample).__name__}, not a Sample")
            if sample.views.keys() != shapes.keys():
                made, promised = ", ".join(sample.views), ", ".join(shapes)
                return PluginError(
                    f"{called} made the views {made}; its `shapes` promise {promised}"
                )
            for name, view in sample.views.items():
                dtype, shape = getattr(view, "dtype", None), list(getattr(view, "shape", ()))
                integer = dtype in (torch.uint8, torch.uint16)
                if not integer or shape != list(shapes[name]):
                    made = f"{type(view).__name__} of {dtype} {shape}"
                    return PluginError(
                        f"{called} made a view '{name}' that is a {made}; its `shapes` promise "
                        f"torch.uint8 or torch.uint16 of {list(shapes[name])}"
                    )
        return None


def _stacked(items: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Stack tensors of several images by name."""
    return {name: torch.stack([item[name] for item in items]) for name in items[0]}


def batch_bytes(transform: PretextTransform, source: ImageSource, images: int) -> int:
    """Return the bytes of the views of so many images."""
    numbers = sum(math.prod(shape) for shape in transform.shapes.values())
    return images * numbers * source.bits // 8


def check_fills(images: int, batch_size: int, shares: int = 1) -> None:
    """Raise DataError where the images of a data set do not fill one batch.

    `shares` is the number of micro-batches of all ranks, which the batch must divide into.
    """
    if images >= batch_size:
        return
    held = "1 image does not" if images == 1 else f"{images} images do not"
    smaller = max(2 * shares, images // 2 // shares * shares)
    remedy = f"take smaller batches: --set train.batch_size={smaller}"
    if images < smaller:
        remedy = f"{smaller} are needed at least; name a data set with more: --data PATH"
        if shares > 1:
            remedy += ", or take fewer ranks and micro-batches"
    raise DataError(f"{held} fill a batch of {batch_size}; {remedy}")


class Loader:
    """Batches for training, from any step on. An epoch's incomplete last batch is left out.

    `batch_size` counts the images of one micro-batch; a step takes `micro_batches` of them on each
    of `world` ranks. `labels` int64 [N] add the target `label`. Raises DataError where the images
    do not fill a step.
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
        """Steps of a pass over all images."""
        return math.ceil(len(self.source) / self.step_size)

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Yield the micro-batches of steps `start` … `stop`-1, read ahead across epochs."""
        return self._batches(self._steps(start, stop))

    def full_pass(self, epoch: int) -> Iterator[Batch]:
        """Yield every image once, in order, with views of its own for each epoch.

        The last batch is filled up from the beginning.
        """
        return self._batches(
            ticket
            for indices in self._in_order()
            for ticket in self._tickets(FULL_PASS, epoch, indices)
        )

    def plain_pass(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every image once, in order, un-augmented: integer [B,C,size,size], int64 [B].

        The last batch is filled up from the beginning. An unreadable image is black.
        """
        orders = []
        for indices in self._in_order():
            for ticket in self._tickets(FULL_PASS, 0, indices):
                orders.append(ticket.indices[ticket.first : ticket.last])
        return deliver(
            Plain(self.source, size),
            orders,
            self.workers,
            self.pin,
            size=self.batch_size * size**2 * self.source.channels * self.source.bits // 8,
            remedy=NO_WORKERS,
        )

    def _in_order(self) -> Iterator[np.ndarray]:
        """Yield the global batches of a pass in the order of the data set."""
        places = np.arange(self.steps_of_pass * self.step_size) % len(self.source)
        yield from np.split(places, self.steps_of_pass)

    def _steps(self, start: int, stop: int) -> Iterator[Ticket]:
        order, known = np.empty(0, np.int64), -1
        for step in range(start, stop):
            epoch, place = divmod(step, self.steps_per_epoch)
            if epoch != known:
                rng = np.random.default_rng((self.seed, ORDER, epoch))
                order, known = rng.permutation(len(self.source)), epoch
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
