"""Reads rank and world size from the environment variables of a launcher.

`torchrun` and `sslkit train --devices N` set RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE,
MASTER_ADDR and MASTER_PORT. A subset comes from a scheduler or another job.
"""

import os
import re

from sslkit.errors import SslkitError, printable


def number(name: str) -> int | None:
    """Return a variable as an int, or None if it is not a number."""
    text = os.environ.get(name, "").strip()
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else None


def launched() -> bool:
    """Return whether a launcher started this process as one of several ranks."""
    return (number("WORLD_SIZE") or 1) > 1 and number("RANK") is not None


def local_world() -> int:
    """Return the number of ranks on this machine; 1 without a launcher."""
    if not launched():
        return 1
    return number("LOCAL_WORLD_SIZE") or number("WORLD_SIZE") or 1


def check() -> None:
    """Raise SslkitError if the variables do not define rank and world size.

    Otherwise each process would train separately.
    """
    for name in ("WORLD_SIZE", "RANK"):
        text = os.environ.get(name, "").strip()
        if text and number(name) is None:
            raise _unusable(name, f"{name} is {printable(repr(text))}, not a number")
    count, rank = number("WORLD_SIZE") or 1, number("RANK")
    if rank is None:
        if count > 1:
            raise _unusable("WORLD_SIZE", f"WORLD_SIZE is {count}, but RANK is not set")
        return
    if rank >= count:
        raise _unusable("RANK", f"RANK is {rank}, but WORLD_SIZE is {count}")
    if count > 1:
        for name in ("MASTER_ADDR", "MASTER_PORT"):
            if not os.environ.get(name):
                raise _unusable("WORLD_SIZE", f"WORLD_SIZE is {count}, but {name} is not set")
        if number("MASTER_PORT") is None:
            port = printable(repr(os.environ["MASTER_PORT"]))
            raise _unusable("WORLD_SIZE", f"MASTER_PORT is {port}, not a number")


def _unusable(name: str, what: str) -> SslkitError:
    return SslkitError(
        f"{what}; start ranks with torchrun or `sslkit train --devices N`, or train in one "
        f"process: unset {name}"
    )
