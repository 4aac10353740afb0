"""The state of a training run."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from sslkit.data.loader import Loader
from sslkit.interfaces import ImageSource, Method, PretextTransform
from sslkit.recipe import Recipe


@dataclass
class Run:
    """Everything that training needs, and where it stands. `step` is the number of steps done."""

    recipe: Recipe
    source: ImageSource
    fingerprint: str
    transform: PretextTransform
    method: Method
    model: nn.Module
    """`method`, wrapped for many processes or compiled where the recipe says so: what training calls."""
    loader: Loader
    optimizer: torch.optim.Optimizer
    set_rate: Callable[[int], float]
    device: torch.device
    precision: torch.dtype
    step: int = 0
    skipped: int = 0
    """Steps that `train.on_nan: skip` passed over."""
    unreadable: dict[str, str] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        return self.recipe.train.epochs * self.loader.steps_per_epoch
