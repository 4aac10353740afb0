"""Momentum encoders, stop-gradients, and a measure of collapse."""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from sslkit import distributed
from sslkit.interfaces import Draws

TeacherMomentum = Annotated[
    float,
    Field(
        ge=0,
        le=1,
        description="Momentum of the slow copy at the first step; it increases to 1. BYOL: 0.99 "
        "for 100 and 300 epochs, 0.996 for 1,000. DINO: 0.996, with batches of 256 images 0.9995.",
    ),
]
"""Option of methods whose momentum increases to 1 along half a cosine."""


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


def shuffled(rows: Tensor, draws: Draws, encode: Callable[[Tensor], Tensor]) -> Tensor:
    """Encode rows [N,…] of all ranks in random order, and return the results in the given order.

    Shuffling BN (He et al. 2020, arXiv:1911.05722, section 3.3): query and key of an image do not
    share the batch-norm statistics of one rank, or of one slice with `encoder.norm: split`. Every
    rank passes the same permutation, drawn with `draws`, and encodes N of the world·N rows.
    """
    every = distributed.gather(rows)
    order = draws.shared_integers(len(every), high=2**62, device=rows.device).argsort()
    first = distributed.rank() * len(rows)
    own = slice(first, first + len(rows))
    encoded = distributed.gather(encode(every[order[own]]))
    return encoded[order.argsort()[own]]


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
