"""Turns a failed import of a dependency into one sentence with the command that mends it."""

import re
import sys
from types import TracebackType

from sslkit.errors import printable

IMPORTED_AS = {"pillow": "PIL", "pyyaml": "yaml"}
"""Distribution → the module it installs, where the names differ."""

TOGETHER = ("torch", "torchvision")
"""Distributions whose releases fit only in pairs."""


def fault(error: BaseException) -> str | None:
    """Return what is wrong with an installed dependency; None for any other exception.

    A dependency is broken where it is missing, or where an exception leaves the body of one of its
    modules: a shared library that is not found, or releases that do not fit together.
    """
    modules = _modules()
    broken = _missing(error) or _importing(error.__traceback__, set(modules))
    if broken not in modules:
        return None
    reason = printable((str(error).strip().splitlines() or [type(error).__name__])[0])
    wanted = TOGETHER if broken in TOGETHER else (modules[broken],)
    again = "" if isinstance(error, ModuleNotFoundError) else "--force-reinstall "
    command = f"{sys.executable} -m pip install {again}{' '.join(wanted)}"
    return f"cannot import {broken}: {reason}; install it: {command}"


def _modules() -> dict[str, str]:
    """Return the modules of the required distributions: module → distribution."""
    from importlib import metadata  # Takes a tenth of the time of `sslkit --help`.

    found = {}
    for requirement in metadata.requires("sslkit") or ():
        match = re.match(r"[\w-]+", requirement)
        if match and "extra ==" not in requirement:
            found[IMPORTED_AS.get(match[0].lower(), match[0])] = match[0]
    return found


def _missing(error: BaseException) -> str | None:
    """Return the package of a module that was not found."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return error.name.partition(".")[0]
    return None


def _importing(trace: TracebackType | None, modules: set[str]) -> str | None:
    """Return the innermost of these modules whose body the exception left."""
    found = None
    while trace is not None:
        package = (trace.tb_frame.f_globals.get("__name__") or "").partition(".")[0]
        if package in modules and trace.tb_frame.f_code.co_name == "<module>":
            found = package
        trace = trace.tb_next
    return found
