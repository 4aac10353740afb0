"""Explains a failed import of a dependency, with the command that repairs it."""

import re
import sys
from types import TracebackType

from sslkit.errors import printable

IMPORTED_AS = {"pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn"}
"""Distribution → module, if the names differ."""

TOGETHER = ("torch", "torchvision")
"""Distributions that must be installed in matching releases."""


def fault(error: BaseException) -> str | None:
    """Return a message if an exception comes from a broken dependency, else None.

    A dependency is broken if it is missing or if one of its modules raises on import. Causes are
    missing shared libraries and incompatible releases.
    """
    modules = _modules()
    broken = _missing(error) or _importing(error.__traceback__, set(modules))
    if broken not in modules:
        return None
    reason = printable((str(error).strip().splitlines() or [type(error).__name__])[0])
    packages = TOGETHER if broken in TOGETHER else (modules[broken],)
    force = "" if isinstance(error, ModuleNotFoundError) else "--force-reinstall "
    command = f"{sys.executable} -m pip install {force}{' '.join(packages)}"
    return f"cannot import {broken}: {reason}; install it: {command}"


def _modules() -> dict[str, str]:
    """Return the required dependencies: module → distribution."""
    from importlib import metadata  # The import takes a tenth of the time of `sslkit --help`.

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
    """Return the innermost of these modules that raised the exception on import."""
    found = None
    while trace is not None:
        package = (trace.tb_frame.f_globals.get("__name__") or "").partition(".")[0]
        if package in modules and trace.tb_frame.f_code.co_name == "<module>":
            found = package
        trace = trace.tb_next
    return found
