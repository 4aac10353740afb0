"""Copies that follow: exponential moving averages, stop-gradients, and a measure of collapse."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Momentum(nn.ModuleDict):
    """Copies of modules without gradient that follow the originals.

    The copies are submodules, so checkpoints hold them. They stay in training mode: their batch
    norms have statistics of their own.
    """

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__({name: copy.deepcopy(module) for name, module in modules.items()})
        self.requires_grad_(False)

    @torch.no_grad()
    def follow(self, momentum: float, **modules: nn.Module) -> None:
        """Set copies to momentum · copy + (1 - momentum) · original, over all parameters."""
        copies: list[Tensor] = []
        originals: list[Tensor] = []
        for name, module in modules.items():
            copies += list(self[name].parameters())
            originals += list(module.parameters())
        torch._foreach_lerp_(copies, originals, 1 - momentum)


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Compute without gradients for the parameters of `modules`; their inputs still get theirs."""
    parameters = []
    for module in modules:
        parameters += [value for value in module.parameters() if value.requires_grad]
    for value in parameters:
        value.requires_grad_(False)
    try:
        yield
    finally:
        for value in parameters:
            value.requires_grad_(True)


def feature_std(unit: Tensor) -> Tensor:
    """[B,D] of unit norm → scalar: standard deviation over B, averaged over D, times √D.

    1 means spread over all directions, 0 collapsed.
    """
    return unit.std(0, correction=0).mean() * math.sqrt(unit.shape[1])
