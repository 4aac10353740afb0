"""Handles signals during training: the first stops training, a second ends the process."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

AGAIN = 1.0
"""Time in which further signals are duplicates, from a terminal and a launcher, s."""


class Stopped(BaseException):
    """A signal ended the session."""

    def __init__(self, signum: int) -> None:
        self.exit_code = 128 + signum
        super().__init__(signal.Signals(signum).name)


@contextmanager
def signals(at_once: Callable[[], bool]) -> Iterator[list[int]]:
    """Collect the first SIGINT or SIGTERM; raise Stopped immediately if `at_once()`.

    Another signal more than AGAIN seconds later has its default effect.
    """
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    first = 0.0

    def catch(signum: int, frame: object) -> None:
        nonlocal first
        if not caught:
            caught.append(signum)
            first = time.monotonic()
            if at_once():
                raise Stopped(signum)
        elif time.monotonic() - first > AGAIN:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)

    before = {number: signal.signal(number, catch) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
