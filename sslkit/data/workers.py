"""Loader workers: batches in order, and what happens when a worker is lost or a part fails."""

import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from sslkit import faults
from sslkit.errors import DataError, SslkitError, printable

PREFETCH = 4
"""Batches that each worker holds ready."""


def read(read: Callable[..., Any], *what: Any) -> Any:
    """Return the image, or the reason why it cannot be read.

    Errors in the transform are bugs, not bad images, and are not caught here.
    """
    try:
        return read(*what)
    except SslkitError as error:
        return printable(str(error))
    except Exception as error:
        return printable(f"{type(error).__name__}: {error}")


def _begin_worker(_: int) -> None:
    """Use one thread, and leave signals to the training process.

    Terminals and schedulers send them to all processes.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """End when `parent` sends SIGTERM, for it waits for its workers when it exits."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def _whole(item: object) -> object:
    return item


class _Told(Dataset):
    """Returns what `builder` makes of an order, or the error for the user.

    An error that a worker raises would reach the user with the worker's traceback in its text.
    """

    def __init__(self, builder: Dataset) -> None:
        self.builder = builder

    def __getitem__(self, order: Any) -> Any:
        try:
            with faults.telling():
                return self.builder[order]
        except SslkitError as error:
            return error


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Keep SIGCHLD as it is.

    PyTorch would raise at a lost worker wherever this process is, also in the middle of a save.
    Its queue reports a lost worker within seconds as well.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)


def deliver(
    builder: Dataset, orders: Iterable[Any], workers: int, pin: bool = False
) -> Iterator[Any]:
    """Yield what `builder` makes of each order, in order, made ahead by `workers` processes.

    Raises an SslkitError that `builder` returns or raises, and PluginError for a part's exception.
    """
    told = _Told(builder)
    made: Iterable[Any] = map(told.__getitem__, orders)
    if workers:
        made = DataLoader(
            told,
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
            "a loader worker was ended by the system, perhaps for lack of memory; "
            f"--set train.workers=0 needs least ({error})"
        ) from error
