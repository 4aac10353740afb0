"""Image sources → batches. Deterministic: what is in a batch is a function of seed and step alone, whatever the number of workers.

A worker builds one whole batch from a ticket (epoch, the indices of the global batch, this rank's share), so that an unreadable
image can be replaced by one that is not in the batch already.
"""

import hashlib
import math
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sslkit.errors import DataError
from sslkit.interfaces import Batch, ImageSource, PretextTransform, Sample

ORDER, VIEWS, FIRST_PASS, REPLACEMENT = range(4)
"""Streams of random numbers: the order of an epoch, an image's views, its views in the first pass, what replaces it."""

PREFETCH = 4
"""Batches that each worker holds ready."""


def fingerprint(source: ImageSource) -> str:
    """SHA-256 over the names of all images in their order."""
    digest = hashlib.sha256()
    for name in source.names:
        digest.update(str(name).encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()


def auto_workers(device_type: str) -> int:
    """Loader processes: up to 16 beside a GPU; half of the cores where the CPU itself trains."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if device_type == "cuda":
        return min(16, max(1, cores // max(1, torch.cuda.device_count())))
    return cores // 2


def split_by_class(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of two halves, the second with `fraction` of every class (at least one image, never all of them)."""
    rng = np.random.default_rng(seed)
    held = []
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        held.append(rows[: min(len(rows) - 1, max(1, round(fraction * len(rows))))])
    second = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels)), second), second


class Ticket(NamedTuple):
    """What a worker needs to build a batch: all `indices` of the global batch, of which `first` … `last` are this rank's."""

    stream: int
    epoch: int
    indices: np.ndarray
    first: int
    last: int


class _Builder(Dataset):
    """Ticket → Batch."""

    def __init__(self, source: ImageSource, transform: PretextTransform, seed: int) -> None:
        self.source, self.transform, self.seed = source, transform, seed

    def __getitem__(self, ticket: Ticket) -> Batch:
        taken = set(ticket.indices.tolist())
        samples, index, unreadable = [], [], []
        for wanted in ticket.indices[ticket.first : ticket.last].tolist():
            number, replacements = wanted, np.random.default_rng((self.seed, REPLACEMENT, ticket.epoch, wanted))
            while True:
                try:
                    samples.append(self._sample(ticket, number))
                    break
                except Exception as error:
                    unreadable.append((str(self.source.names[number]), f"{type(error).__name__}: {error}"))
                if len(taken) == len(self.source):
                    raise DataError(f"{unreadable[-1][0]} cannot be read, and no image is left to replace it ({unreadable[-1][1]})")
                while number in taken:
                    number = int(replacements.integers(len(self.source)))
                taken.add(number)
            index.append(number)
        views = {name: torch.stack([sample.views[name] for sample in samples]) for name in samples[0].views}
        targets = {name: torch.stack([sample.targets[name] for sample in samples]) for name in samples[0].targets}
        return Batch(views, targets, torch.tensor(index), tuple(unreadable))

    def _sample(self, ticket: Ticket, number: int) -> Sample:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            image = self.source.image(number)
        return self.transform(image, np.random.default_rng((self.seed, ticket.stream, ticket.epoch, number)))


def _begin_worker(_: int) -> None:
    """One thread, and Ctrl-C left to the process that trains."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _whole(item: object) -> object:
    return item


class Loader:
    """Batches for training, from any step on. An epoch's incomplete last batch is left out.

    `batch_size` counts this process's images, `world`·`batch_size` those of a step. Raises DataError where the images do not fill one.
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
        pin: bool = False,
    ) -> None:
        self.source, self.builder = source, _Builder(source, transform, seed)
        self.batch_size, self.seed, self.workers, self.rank, self.world, self.pin = batch_size, seed, workers, rank, world, pin
        self.step_size = batch_size * world
        self.steps_per_epoch = len(source) // self.step_size
        if self.steps_per_epoch == 0:
            raise DataError(
                f"{len(source)} images do not fill a batch of {self.step_size}; take smaller ones: --set train.batch_size={max(2, len(source) // 2)}"
            )

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of steps `start` … `stop`-1, read ahead across the borders of epochs."""
        return self._deliver(self._steps(start, stop))

    def first_pass(self) -> Iterator[Batch]:
        """Every image once, in order, with views of its own; the last batch is filled up from the beginning."""
        count = math.ceil(len(self.source) / self.step_size)
        places = np.arange(count * self.step_size) % len(self.source)
        return self._deliver(
            self._ticket(FIRST_PASS, 0, places[i * self.step_size : (i + 1) * self.step_size]) for i in range(count)
        )

    def _steps(self, start: int, stop: int) -> Iterator[Ticket]:
        order, known = np.empty(0, np.int64), -1
        for step in range(start, stop):
            epoch, place = divmod(step, self.steps_per_epoch)
            if epoch != known:
                order, known = np.random.default_rng((self.seed, ORDER, epoch)).permutation(len(self.source)), epoch
            yield self._ticket(VIEWS, epoch, order[place * self.step_size : (place + 1) * self.step_size])

    def _ticket(self, stream: int, epoch: int, indices: np.ndarray) -> Ticket:
        return Ticket(stream, epoch, indices, self.rank * self.batch_size, (self.rank + 1) * self.batch_size)

    def _deliver(self, tickets: Iterator[Ticket]) -> Iterator[Batch]:
        if self.workers == 0:
            return map(self.builder.__getitem__, tickets)
        return iter(
            DataLoader(
                self.builder,
                batch_size=None,
                sampler=tickets,
                num_workers=self.workers,
                collate_fn=_whole,
                prefetch_factor=PREFETCH,
                worker_init_fn=_begin_worker,
                multiprocessing_context="fork" if sys.platform == "linux" else "spawn",
                pin_memory=self.pin,
            )
        )


class _Plain(Dataset):
    """Index → uint8 [3,size,size], un-augmented."""

    def __init__(self, source: ImageSource, size: int) -> None:
        self.source, self.size = source, size

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        try:
            image = self.source.image(index)
        except Exception as error:
            raise DataError(f"{self.source.names[index]} cannot be read, and an evaluation replaces no image ({error})") from error
        return torch.from_numpy(np.array(plain_view(image, self.size)).transpose(2, 0, 1).copy()), index


def plain_view(image: Image.Image, size: int) -> Image.Image:
    """The short side resized to 256/224 · `size`, then the central square of `size`; an image whose short side is at most 1.15 · `size`
    is resized to `size` straight, so that little of a small picture is cut away."""
    short = min(image.size)
    target = size if short <= 1.15 * size else round(size * 256 / 224)
    width, height = (max(target, round(side * target / short)) for side in image.size)
    left, top = (width - size) / 2, (height - size) / 2
    scale_x, scale_y = image.width / width, image.height / height
    box = (left * scale_x, top * scale_y, (left + size) * scale_x, (top + size) * scale_y)
    return image.resize((size, size), Image.Resampling.BILINEAR, box=box)


def plain_batches(source: ImageSource, size: int, batch_size: int, workers: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """uint8 [N,3,size,size] and index [N] of every image in order, as evaluations show them (`plain_view`)."""
    context = None if workers == 0 else "fork" if sys.platform == "linux" else "spawn"
    return iter(
        DataLoader(
            _Plain(source, size), batch_size, num_workers=workers, worker_init_fn=_begin_worker, multiprocessing_context=context
        )
    )
