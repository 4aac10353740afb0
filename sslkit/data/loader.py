"""Image sources → batches. Deterministic: what is in a batch is a function of seed and step alone, whatever the number of workers.

A worker builds one whole batch from a ticket (epoch, the indices of the global batch, this rank's share), so that an unreadable
image can be replaced by one that is not in the batch already.
"""

import hashlib
import math
import os
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from sslkit.data.workers import deliver, read
from sslkit.errors import DataError, PluginError, SslkitError, printable
from sslkit.interfaces import Batch, ImageSource, PretextTransform

ORDER, VIEWS, FIRST_PASS, REPLACEMENT = range(4)
"""Streams of random numbers: the order of an epoch, an image's views, its views in the first pass, what replaces it."""


def fingerprint(source: ImageSource) -> str:
    """SHA-256 over the names of all images in their order."""
    digest = hashlib.sha256()
    for name in source.names:
        digest.update(str(name).encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()


def auto_workers(device_type: str) -> int:
    """Loader processes of one training process: up to 16 beside a GPU; half of its share of the cores where the CPU itself trains."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    share = cores // int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("WORLD_SIZE") or 1)
    return min(16, max(1, share)) if device_type == "cuda" else share // 2


class Ticket(NamedTuple):
    """What a worker needs to build a batch: all `indices` of the global batch, of which `first` … `last`-1 are to be built."""

    stream: int
    epoch: int
    indices: np.ndarray
    first: int
    last: int


class _Builder(Dataset):
    """Ticket → the fields of a Batch. They become one in the process that trains: pinning looks into tuples and dictionaries only."""

    def __init__(self, source: ImageSource, transform: PretextTransform, seed: int) -> None:
        self.source, self.transform, self.seed = source, transform, seed

    def __getitem__(self, ticket: Ticket) -> tuple[Any, ...] | SslkitError:
        taken = set(ticket.indices.tolist())
        count, size = len(self.source), len(ticket.indices)
        samples, index, unreadable = [], [], []
        for place in range(ticket.first, ticket.last):
            wanted = int(ticket.indices[place])
            number, replacements = (
                wanted,
                np.random.default_rng((self.seed, REPLACEMENT, ticket.epoch, wanted)),
            )
            while isinstance(
                image := read(self.transform.fetch, self.source, number, self._rng(ticket, number)),
                str,
            ):
                unreadable.append((printable(str(self.source.names[number])), image))
                # Ranks do not hear of each other's replacements: each place in the batch has images of its own to take from first.
                left = [other for other in range(place, count, size) if other not in taken] or [
                    *set(range(count)) - taken
                ]
                if not left:
                    return DataError(
                        f"{printable(str(self.source.names[number]))} cannot be read ({image}), and no image is left to replace it in a batch of "
                        f"{size}; mend or remove it"
                    )
                number = left[int(replacements.integers(len(left)))]
                taken.add(number)
            samples.append(self.transform(image, self._rng(ticket, number)))
            index.append(number)
        for name, view in (
            (name, view) for sample in samples for name, view in sample.views.items()
        ):
            if view.dtype != torch.uint8 or tuple(view.shape) != tuple(
                self.transform.shapes.get(name, ())
            ):
                return PluginError(
                    f"transform {type(self.transform).__name__} made a view '{name}' of {view.dtype} {list(view.shape)}; its `shapes` promise "
                    f"torch.uint8 of {self.transform.shapes}"
                )
        views = {
            name: torch.stack([sample.views[name] for sample in samples])
            for name in samples[0].views
        }
        targets = {
            name: torch.stack([sample.targets[name] for sample in samples])
            for name in samples[0].targets
        }
        return views, targets, torch.tensor(index), tuple(unreadable)

    def _rng(self, ticket: Ticket, index: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, ticket.stream, ticket.epoch, index))


class Loader:
    """Batches for training, from any step on. An epoch's incomplete last batch is left out.

    `batch_size` counts the images of one batch here, of which a step takes `parts` in each of `world` processes. Raises DataError where
    the images do not fill a step.
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
        parts: int = 1,
        pin: bool = False,
    ) -> None:
        self.source, self.builder = source, _Builder(source, transform, seed)
        self.batch_size, self.seed, self.workers, self.rank, self.world, self.pin = (
            batch_size,
            seed,
            workers,
            rank,
            world,
            pin,
        )
        self.parts, self.step_size = parts, batch_size * parts * world
        self.steps_per_epoch = len(source) // self.step_size
        if self.steps_per_epoch == 0:
            raise DataError(
                f"{len(source)} images do not fill a batch of {self.step_size}; take smaller ones: --set train.batch_size={max(2, len(source) // 2)}"
            )

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of steps `start` … `stop`-1, `parts` a step, read ahead across the borders of epochs."""
        return self._batches(self._steps(start, stop))

    def first_pass(self) -> Iterator[Batch]:
        """Every image once, in order, with views of its own; the last batch is filled up from the beginning."""
        count = math.ceil(len(self.source) / self.step_size)
        places = np.arange(count * self.step_size) % len(self.source)
        return self._batches(
            ticket
            for i in range(count)
            for ticket in self._tickets(
                FIRST_PASS, 0, places[i * self.step_size : (i + 1) * self.step_size]
            )
        )

    def _steps(self, start: int, stop: int) -> Iterator[Ticket]:
        order, known = np.empty(0, np.int64), -1
        for step in range(start, stop):
            epoch, place = divmod(step, self.steps_per_epoch)
            if epoch != known:
                order, known = (
                    np.random.default_rng((self.seed, ORDER, epoch)).permutation(len(self.source)),
                    epoch,
                )
            yield from self._tickets(
                VIEWS, epoch, order[place * self.step_size : (place + 1) * self.step_size]
            )

    def _tickets(self, stream: int, epoch: int, indices: np.ndarray) -> Iterator[Ticket]:
        for place in range(self.rank * self.parts, (self.rank + 1) * self.parts):
            yield Ticket(
                stream, epoch, indices, place * self.batch_size, (place + 1) * self.batch_size
            )

    def _batches(self, tickets: Iterable[Ticket]) -> Iterator[Batch]:
        return (Batch(*fields) for fields in deliver(self.builder, tickets, self.workers, self.pin))
