"""Turns an exception of a part into one sentence: which part, where, on which shapes, a remedy.

The part is found in the traceback: it is the innermost labelled object that a method was called on.
So the sentence is the same in a rehearsal, in a loader worker and at step 1000, and costs nothing
before something fails. An exception outside every part is an error of the toolkit and passes.
"""

import inspect
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import Any

from sslkit import launcher
from sslkit.errors import PluginError, SslkitError, printable

DEBUG = "SSLKIT_DEBUG"
"""The environment variable which makes the command line show tracebacks of parts."""

LABEL = "_sslkit_label"
"""The attribute in which an instance of a part keeps what messages call it."""

LONGEST = 300
"""Characters of an exception's first line that are shown."""

LIBRARIES = {"torch", "torchvision", "timm", "numpy", "PIL", "sslkit"} | sys.stdlib_module_names
"""Packages in which an error of a part surfaces, but is not made."""

CALLS = {"_wrapped_call_impl", "_call_impl"}
"""How torch calls `forward`."""

REMEDIES = [
    (
        "out of memory|not enough memory|can't allocate memory",
        "take a smaller train.batch_size, more micro-batches (train.accumulate), smaller views or "
        "train.precision=bf16",
    ),
    (
        "Expected more than 1 value per channel",
        "a batch norm sees one value only; take a larger train.batch_size (or fewer devices, less "
        "accumulate){without}",
    ),
    (
        "mat1 and mat2 shapes cannot be multiplied",
        "the part before it gives vectors of another length",
    ),
    (
        "to have \\d+ channels, but got",
        "the part before it gives another number of channels",
    ),
    (
        "Kernel size can't be greater than actual input size|Output size is too small"
        "|Padding size should be less",
        "the views are too small for it; take larger ones",
    ),
    (
        "not implemented for '(BFloat16|Half)'|expected m1 and m2 to have the same dtype"
        "|same dtype, but got",
        "try train.precision=fp32",
    ),
    (
        "Target -?\\d+ is out of bounds|device-side assert",
        "a target lies outside the classes that the head has",
    ),
    (
        "on the same device|found at least two devices",
        "make tensors on the device of the input, or keep them as buffers",
    ),
    (
        "modified by an inplace operation",
        "do not write into a tensor that the backward pass needs",
    ),
    (
        "does not require grad",
        "the loss must depend on weights that are trained, without detach",
    ),
    (
        "positional argument|unexpected keyword argument|multiple values for argument",
        "compare its signature with sslkit.interfaces",
    ),
]
"""What to do about an exception whose type and first line match. `{without}` stands for what else
helps the part where it fails."""


def label(part: object, name: str) -> None:
    """Let messages call this instance `name`, such as "head 'linear' (heads.image)"."""
    with suppress(AttributeError, TypeError):
        object.__setattr__(part, LABEL, name)


def called(part: object) -> str:
    """Return what messages call a part."""
    return getattr(part, "__dict__", {}).get(LABEL) or type(part).__name__


@contextmanager
def telling(otherwise: str | None = None, *, about: str = "") -> Iterator[None]:
    """Raise PluginError for an exception of a part; other exceptions pass unchanged.

    `otherwise` is the subject of the sentence where no part is found in the traceback, such as
    "loss 'hinge' fails in backward"; without it such an exception passes. `about` says what the
    part worked on. A signal, KeyboardInterrupt and SslkitError always pass.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        found = told(error, otherwise, about=about)
        if found is None:
            raise
        raise found from error


def told(
    error: BaseException, otherwise: str | None = None, *, about: str = ""
) -> PluginError | None:
    """Return the exception of a part as a PluginError; None where it is no part's."""
    if isinstance(error, SslkitError) or (launcher.launched() and lost(error)):
        return None
    call = _innermost(error.__traceback__)
    if call is None and otherwise is None:
        return None
    subject = otherwise if call is None else call.subject()
    reason = describe(error)
    place = _place(error.__traceback__ if call is None else call.trace)
    text = [f"{subject}{f' ({about})' if about else ''}: {reason}{place}"]
    without = "" if call is None else call.without_batch_norm()
    remedies = [remedy for pattern, remedy in REMEDIES if re.search(pattern, reason)]
    text += [remedy.replace("{without}", without) for remedy in remedies[:1]]
    text.append(f"{DEBUG}=1 shows the traceback")
    found = PluginError("; ".join(text))
    found.traceback = "".join(traceback.format_exception(error))
    return found


def describe(error: BaseException) -> str:
    """Return type and first line of an exception, printable."""
    lines = str(error).strip().splitlines() or [""]
    line = lines[0] if len(lines[0]) <= LONGEST else f"{lines[0][:LONGEST]}…"
    return printable(f"{type(error).__name__}: {line}" if line else type(error).__name__)


def lost(error: BaseException) -> bool:
    """Return whether a collective failed, because another rank is gone."""
    pattern = r"(?i)connection|broken pipe|by peer|nccl|socket"
    return isinstance(error, RuntimeError) and re.search(pattern, str(error)) is not None


@dataclass
class _Call:
    """A call of a method of a part."""

    owner: object
    name: str
    function: str
    shapes: str
    trace: TracebackType

    def subject(self) -> str:
        """Return "PART fails in FUNCTION on SHAPES"."""
        function = "forward" if self.function in CALLS else self.function
        return f"{self.name} fails in {function}{f' on {self.shapes}' if self.shapes else ''}"

    def without_batch_norm(self) -> str:
        """Return how a head or an encoder does without batch norm, by the options that it has."""
        options = inspect.signature(type(self.owner)).parameters
        if self.name.startswith("encoder "):
            return ", larger views" + (", or encoder.norm=group" if "norm" in options else "")
        place = re.search(r"\((heads\..+)\)", self.name)
        if place is None or "batch_norm" not in options:
            return ""
        return f", or {place[1]}.batch_norm=false"


def _innermost(trace: TracebackType | None) -> _Call | None:
    """Return the innermost call of a labelled object in a traceback."""
    found: _Call | None = None
    while trace is not None:
        frame = trace.tb_frame
        owner = frame.f_locals.get("self")
        name = getattr(owner, "__dict__", {}).get(LABEL)
        if name is not None and (found is None or owner is not found.owner):
            found = _Call(owner, name, frame.f_code.co_name, _shapes(frame), trace)
        trace = trace.tb_next
    return found


def _shapes(frame: FrameType) -> str:
    """Return the shapes of a call's arguments."""
    code, known = frame.f_code, frame.f_locals
    if code.co_name in CALLS:
        given = [*known.get("args", ()), *known.get("kwargs", {}).values()]
    else:
        given = [known.get(name) for name in _arguments(code)]
    shown = [text for text in map(_shape, given) if text]
    return " and ".join(shown[:3])


def _arguments(code: CodeType) -> tuple[str, ...]:
    """Return the names of the arguments after `self`."""
    return code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]


def _shape(value: Any) -> str:
    """Return the shape of a tensor, an array, an image or a batch; nothing for other values."""
    with suppress(Exception):
        views = getattr(value, "views", None)
        if isinstance(views, dict):
            return ", ".join(f"{name} {list(view.shape)}" for name, view in views.items())
        shape = getattr(value, "shape", None)
        if isinstance(shape, tuple):
            return str(list(shape))
        return f"{value.width}×{value.height} px"
    return ""


def _place(trace: TracebackType | None) -> str:
    """Return file and line of the innermost code that is no library's."""
    place = ""
    while trace is not None:
        module = trace.tb_frame.f_globals.get("__name__") or ""
        if module.partition(".")[0] not in LIBRARIES:
            place = f" ({Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno})"
        trace = trace.tb_next
    return place
