"""Momentum encoders, stop-gradients, and a measure of collapse."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Momentum(nn.ModuleDict):
    """Exponential moving averages of modules, without gradients.

    The copies are submodules, so checkpoints include them. They stay in training mode, so their
    batch norms keep separate statistics.
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
    """Disable gradients of the parameters of `modules`; gradients still reach their inputs."""
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
    """Return the standard deviation over B of [B,D] of unit norm, averaged over D, times √D.

    1 means that the features use all directions, 0 that they have collapsed.
    """
    return unit.std(0, correction=0).mean() * math.sqrt(unit.shape[1])
