"""A part that cannot be imported, on purpose: it needs a library that nobody has.

Only a recipe that names it is harmed.
"""

import hyperbolic_layers_that_nobody_has as hyperbolic
from torch import Tensor

from sslkit.interfaces import Head


class Hyperbolic(Head):
    """The features in a ball of negative curvature."""

    def __init__(self, in_dim: int, /) -> None:
        super().__init__()
        self.out_dim = in_dim

    def forward(self, features: Tensor) -> Tensor:
        """[…,in_dim] → […,in_dim]."""
        return hyperbolic.project(features)
