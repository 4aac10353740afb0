"""Checks what a method returns, so that a broken contract is one sentence at any step."""

from collections.abc import Sequence

from torch import Tensor

from sslkit import faults
from sslkit.errors import PluginError
from sslkit.interfaces import Method, Output


def checked(output: object, method: Method) -> Output:
    """Return `output`; PluginError where it breaks the contract. Never waits for the device."""
    called = faults.called(method)
    if not isinstance(output, Output):
        raise PluginError(f"{called} returned {type(output).__name__}; it must return an Output")
    loss = output.loss
    if not isinstance(loss, Tensor) or loss.dim() > 0 or not loss.is_floating_point():
        raise PluginError(
            f"{faults.called(method.loss)} gives {called} a loss that is {_shown(loss)}; it must "
            "be a float scalar: take the mean over images"
        )
    for name, value in {**output.feature_std, **output.metrics}.items():
        if not isinstance(value, Tensor) or value.dim() > 0 or value.requires_grad:
            raise PluginError(
                f"{called} reports '{name}' as {_shown(value)}; it must be a detached scalar tensor"
            )
    for name, rows in output.keep.items():
        if not isinstance(rows, Tensor) or rows.dim() == 0:
            raise PluginError(f"{called} keeps '{name}' as {_shown(rows)}; it must have rows")
    return output


def check_alike(outputs: Sequence[Output], method: Method) -> None:
    """Raise PluginError where micro-batches of a step have other names than the first."""
    first = outputs[0]
    for field in ("metrics", "feature_std", "keep"):
        names = getattr(first, field).keys()
        for output in outputs:
            others = getattr(output, field).keys()
            if others != names:
                raise PluginError(
                    f"{faults.called(method)} returns {field} named {', '.join(others)} for one "
                    f"micro-batch and {', '.join(names)} for another; the names must be the same"
                )


def _shown(value: object) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    graph = ", with gradient" if value.requires_grad else ""
    return f"{value.dtype} {list(value.shape)}{graph}"
