"""Image sources → batches. Deterministic: what is in a batch is a function of seed and step alone, whatever the number of workers.

A worker builds one whole batch from a ticket (epoch, the indices of the global batch, this rank's share), so that an unreadable
image can be replaced by one that is not in the batch already.
"""

import hashlib
import math
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sslkit.errors import DataError, PluginError, SslkitError, printable
from sslkit.interfaces import Batch, ImageSource, PretextTransform

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
    """Loader processes of one training process: up to 16 beside a GPU; half of its share of the cores where the CPU itself trains."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = cores // int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("WORLD_SIZE") or 1)
    return min(16, max(1, share)) if device_type == "cuda" else share // 2


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
            number, replacements = wanted, np.random.default_rng((self.seed, REPLACEMENT, ticket.epoch, wanted))
            while isinstance(image := _read(self.transform.fetch, self.source, number, self._rng(ticket, number)), str):
                unreadable.append((printable(str(self.source.names[number])), image))
                # Ranks do not hear of each other's replacements: each place in the batch has images of its own to take from first.
                left = [other for other in range(place, count, size) if other not in taken] or [*set(range(count)) - taken]
                if not left:
                    return DataError(
                        f"{printable(str(self.source.names[number]))} cannot be read ({image}), and no image is left to replace it in a batch of "
                        f"{size}; mend or remove it"
                    )
                number = left[int(replacements.integers(len(left)))]
                taken.add(number)
            samples.append(self.transform(image, self._rng(ticket, number)))
            index.append(number)
        for name, view in ((name, view) for sample in samples for name, view in sample.views.items()):
            if view.dtype != torch.uint8 or tuple(view.shape) != tuple(self.transform.shapes.get(name, ())):
                return PluginError(
                    f"transform {type(self.transform).__name__} made a view '{name}' of {view.dtype} {list(view.shape)}; its `shapes` promise "
                    f"torch.uint8 of {self.transform.shapes}"
                )
        views = {name: torch.stack([sample.views[name] for sample in samples]) for name in samples[0].views}
        targets = {name: torch.stack([sample.targets[name] for sample in samples]) for name in samples[0].targets}
        return views, targets, torch.tensor(index), tuple(unreadable)

    def _rng(self, ticket: Ticket, index: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, ticket.stream, ticket.epoch, index))


def _read(read: Callable[..., Any], *what: Any) -> Any:
    """The image, or the reason why there is none. What goes wrong in cutting it is no fault of an image, so that it is not caught here."""
    try:
        return read(*what)
    except Exception as error:
        return printable(f"{type(error).__name__}: {error}")


def _begin_worker(_: int) -> None:
    """One thread; signals are left to the process that trains, for terminals and schedulers send them to all."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """End when `parent` sends SIGTERM: at its exit it waits for its workers, and for ever if they ignored that too."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def _whole(item: object) -> object:
    return item


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Keep SIGCHLD as it is: PyTorch would raise at a lost worker wherever this process happens to be, in the middle of a save for one.
    Its queue tells as well, within seconds."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)


def _deliver(builder: Dataset, orders: Iterable[Any], workers: int, pin: bool = False) -> Iterator[Any]:
    """What `builder` makes of each order, in their sequence, made ahead by `workers` processes. Raises the error for the user that it returns.

    An error that a worker *raised* would reach the user with the worker's traceback in its text.
    """
    made: Iterable[Any] = map(builder.__getitem__, orders)
    if workers:
        made = DataLoader(
            builder,
            batch_size=None,
            sampler=orders,
            num_workers=workers,
            collate_fn=_whole,
            prefetch_factor=PREFETCH,
            worker_init_fn=_begin_worker,
            multiprocessing_context="fork" if sys.platform == "linux" else "spawn",
            pin_memory=pin,
        )
    with _undisturbed():
        made = iter(made)
    try:
        for item in made:
            if isinstance(item, SslkitError):
                raise item
            yield item
    except RuntimeError as error:
        if not re.match(r"DataLoader worker \(pid", str(error)):
            raise
        raise DataError(
            f"a loader process was ended by the system, for lack of memory perhaps; --set train.workers=0 needs least ({error})"
        ) from error


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
        self.batch_size, self.seed, self.workers, self.rank, self.world, self.pin = batch_size, seed, workers, rank, world, pin
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
            for ticket in self._tickets(FIRST_PASS, 0, places[i * self.step_size : (i + 1) * self.step_size])
        )

    def _steps(self, start: int, stop: int) -> Iterator[Ticket]:
        order, known = np.empty(0, np.int64), -1
        for step in range(start, stop):
            epoch, place = divmod(step, self.steps_per_epoch)
            if epoch != known:
                order, known = np.random.default_rng((self.seed, ORDER, epoch)).permutation(len(self.source)), epoch
            yield from self._tickets(VIEWS, epoch, order[place * self.step_size : (place + 1) * self.step_size])

    def _tickets(self, stream: int, epoch: int, indices: np.ndarray) -> Iterator[Ticket]:
        for place in range(self.rank * self.parts, (self.rank + 1) * self.parts):
            yield Ticket(stream, epoch, indices, place * self.batch_size, (place + 1) * self.batch_size)

    def _batches(self, tickets: Iterable[Ticket]) -> Iterator[Batch]:
        return (Batch(*fields) for fields in _deliver(self.builder, tickets, self.workers, self.pin))


class _Plain(Dataset):
    """Indices [N] → uint8 [N,3,size,size], un-augmented, and the indices."""

    def __init__(self, source: ImageSource, size: int) -> None:
        self.source, self.size = source, size

    def __getitem__(self, indices: np.ndarray) -> tuple[Tensor, Tensor] | DataError:
        pixels = np.empty((len(indices), self.size, self.size, 3), np.uint8)
        for row, index in enumerate(indices.tolist()):
            if isinstance(image := _read(self.source.image, index), str):
                return DataError(
                    f"{printable(str(self.source.names[index]))} cannot be read, and an evaluation replaces no image: mend or remove it ({image})"
                )
            pixels[row] = np.asarray(plain_view(image, self.size))
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(indices)


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
    orders = np.split(np.arange(len(source)), range(batch_size, len(source), batch_size))
    return _deliver(_Plain(source, size), orders, workers)
