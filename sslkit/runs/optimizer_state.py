"""Converts the state of an optimizer to tensors and numbers for files, and back."""

from typing import Any

import torch
from torch import Tensor

GROUP = "group "
"""Prefix of keys of values in a parameter group, such as LAMB's step count."""


def flatten(
    optimizer: torch.optim.Optimizer,
) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """Return tensors by `key.name`, and other values by key and name.

    A key is the number of a parameter, or that of a group after GROUP.
    """
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    given = {"params", "initial_lr", *optimizer.defaults}
    added = {}
    for number, group in enumerate(optimizer.param_groups):
        options = {name: value for name, value in group.items() if name not in given}
        added[f"{GROUP}{number}"] = options
    for key, values in (optimizer.state_dict()["state"] | added).items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{key}.{name}"] = value
            else:
                numbers.setdefault(str(key), {})[name] = value
    return tensors, numbers


def restore(
    optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], numbers: dict[str, dict[str, Any]]
) -> None:
    """Restore a flattened state of an optimizer.

    Raises ValueError for keys and names that `flatten` does not write.
    """
    state: dict[int, dict[str, Any]] = {}
    groups = optimizer.state_dict()["param_groups"]
    parameters: list[Any] = []
    for group in optimizer.param_groups:
        parameters += group["params"]
    given = {"params", "initial_lr", *optimizer.defaults}
    entries: list[tuple[str, str, Any]] = []
    for key, values in numbers.items():
        entries += [(key, name, value) for name, value in values.items()]
    for name, value in tensors.items():
        key, _, entry = name.partition(".")
        entries.append((key, entry, value))
    for key, entry, value in entries:
        number, is_group = key.removeprefix(GROUP), key.startswith(GROUP)
        count = len(groups) if is_group else len(parameters)
        if not number.isdecimal() or int(number) >= count or (is_group and entry in given):
            raise ValueError(f"the optimizer has no entry for {key}.{entry}")
        if is_group:
            groups[int(number)][entry] = value
            continue
        owner = parameters[int(number)]
        if isinstance(value, Tensor) and value.shape == owner.shape:
            value = torch.empty_like(owner, dtype=value.dtype).copy_(value)
        state.setdefault(int(number), {})[entry] = value
    optimizer.load_state_dict({"state": state, "param_groups": groups})
