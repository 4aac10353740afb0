"""Runs loader workers, and reports lost workers and failing parts."""

import errno
import multiprocessing
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from sslkit import faults
from sslkit.data import shared
from sslkit.errors import DataError, PluginError, SslkitError, printable
from sslkit.faults import describe

NO_WORKERS = ", or use no loader workers (--set train.workers=0)"
"""End of an error message during training."""
ALONE = ", or use no loader workers (--workers 0)"
"""End of an error message during evaluations."""

START = "fork" if sys.platform == "linux" else "spawn"
"""Start method of workers. Spawned workers receive their parts as a pickle."""


def read(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return the image that a function reads, or the reason why it cannot be read."""
    try:
        return function(*arguments)
    except SslkitError as error:
        return printable(str(error))
    except Exception as error:
        return printable(f"{type(error).__name__}: {error}")


def _begin_worker(_: int) -> None:
    """Use one thread, and leave signals to the training process.

    Terminals and schedulers send signals to all processes.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """Exit when `parent` sends SIGTERM, because it waits for its workers at exit."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def _uncollated(item: object) -> object:
    return item


class _Caught(Dataset):
    """Returns the item that `builder` builds, or its error.

    PyTorch would add a worker's traceback to the message of an error that is raised.
    """

    def __init__(self, builder: Dataset, remedy: str) -> None:
        self.builder, self.remedy = builder, remedy

    def __getitem__(self, order: Any) -> Any:
        try:
            with faults.telling():
                item = self.builder[order]
        except SslkitError as error:
            return error
        return item if get_worker_info() is None else shared.share(item, self.remedy)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Preserve the handler of SIGCHLD, and block SIGTERM in new workers.

    PyTorch's handler raises for a lost worker at any point, even while a checkpoint is written. Its
    queue also reports lost workers, within seconds. New workers inherit the signal handlers of this
    process until `_begin_worker`.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    blocked = {signal.SIGTERM} if hasattr(signal, "sigwaitinfo") else set()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextmanager
def _sent() -> Iterator[None]:
    """Raise PluginError if a part cannot be sent to a spawned worker."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Got pickle error")
            yield
    except Exception as error:
        if START == "fork" or not re.search("(?i)pickl|local object", describe(error)):
            raise
        raise PluginError(
            f"the data set or the transform cannot be sent to a loader worker ({describe(error)}); "
            "it must not contain a lambda, local class or open file: define these at the top of a "
            "module, or load without workers: --set train.workers=0 (in evaluations --workers 0)"
        ) from error


def deliver(
    builder: Dataset,
    orders: Iterable[Any],
    workers: int,
    pin: bool = False,
    *,
    size: int = 0,
    remedy: str = "",
) -> Iterator[Any]:
    """Yield the items that `builder` builds for `orders`, prefetched by `workers` processes.

    `size` is the size of an item, bytes, and limits prefetching. `remedy` is the end of the error
    message about missing memory. Raises an SslkitError that `builder` returns or raises,
    PluginError for a part's exception, and DataError for a lost worker.
    """
    caught = _Caught(builder, remedy)
    if not workers:
        yield from map(_raised, map(caught.__getitem__, orders))
        return
    with warnings.catch_warnings():
        # The recipe may ask for more workers than cores.
        warnings.filterwarnings("ignore", "This DataLoader will create .* worker processes")
        loader = DataLoader(
            caught,
            batch_size=None,
            sampler=orders,
            num_workers=workers,
            collate_fn=_uncollated,
            prefetch_factor=shared.prefetch(workers, size),
            worker_init_fn=_begin_worker,
            multiprocessing_context=START,
            pin_memory=pin,
        )
    others = multiprocessing.active_children()
    try:
        with _undisturbed(), _sent():
            made = iter(loader)
    except OSError as error:
        _forget(error)
        if error.errno not in (errno.ENOSPC, errno.EMFILE):
            raise DataError(f"no loader worker can be started{remedy} ({error})") from error
        raise shared.no_room(workers * size, remedy, str(error)) from error
    started = [child for child in multiprocessing.active_children() if child not in others]
    try:
        yield from map(_raised, made)
    except RuntimeError as error:
        lost = re.match(r"DataLoader worker \(pid|Too many open files", str(error))
        if lost is None:
            raise
        raise _lost(started, size, remedy, str(error)) from error
    finally:
        # A caller that stops early does not wait for pending images.
        for child in started:
            child.terminate()


def _forget(error: OSError) -> None:
    """Delete PyTorch's partial iterator, which prints a traceback on deletion."""
    before, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        error.__traceback__ = None
    finally:
        sys.unraisablehook = before


def _raised(item: Any) -> Any:
    """Return the item, or raise it if it is an error."""
    if isinstance(item, SslkitError):
        raise item
    return item


def _lost(
    workers: list[multiprocessing.process.BaseProcess], size: int, remedy: str, reason: str
) -> DataError:
    """Return the error for workers that died."""
    # Writing to unavailable shared memory causes a bus error.
    bus_error = -getattr(signal, "SIGBUS", signal.SIGABRT)
    without_room = any(child.exitcode == bus_error for child in workers)
    if without_room or reason.startswith("Too many open files"):
        return shared.no_room(len(workers) * size, remedy, reason.partition("\n")[0])
    return DataError(
        f"the system killed a loader worker, perhaps for lack of memory{remedy} ({reason})"
    )
