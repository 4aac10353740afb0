"""Stages of a timm model that is no ResNet, from timm's own groups of layers."""

from typing import Any

from timm.models._manipulate import group_with_matcher
from torch import nn

from sslkit.errors import SslkitError

UNMATCHED = "(no group)"
"""A name that no group of timm matches."""


def stages(model: Any, name: str) -> dict[str, list[nn.Module]]:
    """Return all modules with weights by stage: stem, stage1, stage2, ….

    Stages are named block1, block2, … if they are not the layers of `Encoder.maps`. A final norm
    belongs to the last stage. Raises SslkitError if timm has no groups for the model.
    """
    if not hasattr(model, "group_matcher"):
        raise SslkitError(f"timm has no stages of '{name}'; use a ResNet or a vision transformer")
    named = [*model.named_parameters(), *model.named_buffers(), (UNMATCHED, None)]
    numbers = group_with_matcher(iter(named), model.group_matcher(coarse=True), reverse=True)
    last = numbers.pop(UNMATCHED) - 1
    numbers = {name: min(number, last) for name, number in numbers.items()}
    word = "stage" if last == len(getattr(model, "feature_info", ())) else "block"
    found: dict[str, list[nn.Module]] = {"stem": []}
    for number in range(1, last + 1):
        found[f"{word}{number}"] = []
    _gather(model, "", numbers, list(found.values()))
    return found


def _gather(
    module: nn.Module, prefix: str, numbers: dict[str, int], found: list[list[nn.Module]]
) -> None:
    """Append a module to its stage, or its children to theirs if it spans several stages."""
    inside = {number for name, number in numbers.items() if name.startswith(prefix)}
    if len(inside) == 1:
        found[inside.pop()].append(module)
        return
    for name, value in module.named_parameters(recurse=False):
        found[numbers[prefix + name]].append(nn.ParameterList([value]))
    for name, child in module.named_children():
        if any(other.startswith(f"{prefix}{name}.") for other in numbers):
            _gather(child, f"{prefix}{name}.", numbers, found)
