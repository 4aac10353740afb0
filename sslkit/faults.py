"""Converts exceptions of parts to error messages with part, place, shapes and a remedy.

The traceback identifies the part: the innermost labelled object with a method call. So the message
is the same in a rehearsal, in a loader worker and at step 1000, and there is no cost without an
error. Exceptions outside parts are bugs in sslkit and propagate.
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
"""Environment variable that makes the command line show tracebacks of parts."""

LABEL = "_sslkit_label"
"""Attribute with the name of a part in messages."""

LONGEST = 300
"""Largest number of displayed characters of an exception's first line."""

LIBRARIES = {"torch", "torchvision", "timm", "numpy", "PIL", "sslkit"} | sys.stdlib_module_names
"""Packages whose frames are not the place of a part's error."""

CALLS = {"_wrapped_call_impl", "_call_impl"}
"""Functions of torch that call `forward`."""

MEMORY = "out of memory|not enough memory|can't allocate memory|MemoryError|bad_alloc"
"""Pattern of exceptions for lack of memory."""

ALLOCATION = re.compile(r"DefaultCPUAllocator: .*you tried to allocate (\d+) bytes")
"""PyTorch's message about memory of the CPU."""

REMEDIES = [
    (
        f"fails in __init__.*({MEMORY})",
        "use smaller values for its options, or for those of the part before it",
    ),
    (
        MEMORY,
        "use a smaller train.batch_size, more micro-batches (train.accumulate), smaller views or "
        "train.precision=bf16",
    ),
    (
        "Expected more than 1 value per channel",
        "a batch norm sees a single value; use a larger train.batch_size (or fewer devices, fewer "
        "micro-batches){without}",
    ),
    (
        "mat1 and mat2 shapes cannot be multiplied",
        "the part before it returns vectors of another length",
    ),
    (
        "to have \\d+ channels, but got",
        "the part before it returns another number of channels",
    ),
    (
        "Kernel size can't be greater than actual input size|Output size is too small"
        "|Padding size should be less",
        "the views are too small for it; use larger ones",
    ),
    (
        "not implemented for '(BFloat16|Half)'|expected m1 and m2 to have the same dtype"
        "|same dtype, but got",
        "try train.precision=fp32",
    ),
    (
        "Target -?\\d+ is out of bounds|device-side assert",
        "a target is out of the range of the head's classes",
    ),
    (
        "on the same device|found at least two devices",
        "create tensors on the device of the input, or register them as buffers",
    ),
    (
        "modified by an inplace operation",
        "do not modify a tensor that the backward pass needs",
    ),
    (
        "without overflow",
        "use smaller numbers for its options",
    ),
    (
        "does not require grad",
        "the loss must depend on trained weights, without detach",
    ),
    (
        "positional argument|unexpected keyword argument|multiple values for argument",
        "compare its signature with sslkit.interfaces",
    ),
]
"""Patterns of subject, type and first line of exceptions, with remedies.

`{without}` is replaced by an option of the failing part.
"""


def label(part: object, name: str) -> None:
    """Set the name of a part in messages, such as "head 'linear' (heads.image)"."""
    with suppress(AttributeError, TypeError):
        object.__setattr__(part, LABEL, name)


def called(part: object) -> str:
    """Return the name of a part in messages."""
    return getattr(part, "__dict__", {}).get(LABEL) or type(part).__name__


@contextmanager
def telling(otherwise: str | None = None, *, about: str = "") -> Iterator[None]:
    """Convert an exception of a part to PluginError; other exceptions propagate.

    `otherwise` is the subject of the message if the traceback has no part, such as "loss 'hinge'
    fails in backward". Without it, such an exception propagates. `about` names the input of the
    part. KeyboardInterrupt, signals and SslkitError always propagate.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        found = converted(error, otherwise, about=about)
        if found is None:
            raise
        raise found from error


def converted(
    error: BaseException, otherwise: str | None = None, *, about: str = ""
) -> PluginError | None:
    """Return the exception of a part as a PluginError; None for other exceptions."""
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
    told = f"{subject}: {reason}"
    remedies = [remedy for pattern, remedy in REMEDIES if re.search(pattern, told)]
    text += [remedy.replace("{without}", without) for remedy in remedies[:1]]
    text.append(f"{DEBUG}=1 shows the traceback")
    found = PluginError("; ".join(text))
    found.traceback = "".join(traceback.format_exception(error))
    return found


def describe(error: BaseException) -> str:
    """Return type and first line of an exception, printable."""
    if allocation := ALLOCATION.search(str(error)):
        size = int(allocation[1]) / 2**30
        return f"{type(error).__name__}: not enough memory for a tensor of {size:,.1f} GiB"
    lines = str(error).strip().splitlines() or [""]
    line = lines[0] if len(lines[0]) <= LONGEST else f"{lines[0][:LONGEST]}…"
    return printable(f"{type(error).__name__}: {line}" if line else type(error).__name__)


def lost(error: BaseException) -> bool:
    """Return whether a collective failed because another rank died."""
    pattern = r"(?i)connection|broken pipe|by peer|nccl|socket"
    return isinstance(error, RuntimeError) and re.search(pattern, str(error)) is not None


@dataclass
class _Call:
    """A method call of a part."""

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
        """Return the option that removes batch norm from a head or an encoder, as a remedy."""
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
    code, variables = frame.f_code, frame.f_locals
    if code.co_name in CALLS:
        given = [*variables.get("args", ()), *variables.get("kwargs", {}).values()]
    else:
        given = [variables.get(name) for name in _arguments(code)]
    shown = [text for text in map(_shape, given) if text]
    return " and ".join(shown[:3])


def _arguments(code: CodeType) -> tuple[str, ...]:
    """Return the names of the arguments after `self`."""
    return code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]


def _shape(value: Any) -> str:
    """Return the shape of a tensor, an array, an image or a batch; "" for other values."""
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
    """Return file and line of the innermost frame outside of libraries."""
    place = ""
    while trace is not None:
        module = trace.tb_frame.f_globals.get("__name__") or ""
        if module.partition(".")[0] not in LIBRARIES:
            place = f" ({Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno})"
        trace = trace.tb_next
    return place
