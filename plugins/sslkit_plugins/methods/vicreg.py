"""VICReg (Bardes, Ponce & LeCun 2021, arXiv:2105.04906).

"VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning". The official
code is facebookresearch/vicreg. Letters: N images of all ranks, D features.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from sslkit.interfaces import Loss, Negatives
from sslkit_plugins.methods.barlow_twins import BarlowTwins
from sslkit_plugins.precision import at_least_float32

EPSILON = 1e-4
"""Added to variances (`main_vicreg.py`)."""


class VicReg(BarlowTwins):
    """Make two views' features equal, with varied and decorrelated elements.

    The forward pass is that of Barlow Twins; the loss differs. The projector is called expander in
    the paper.
    """

    crops: ClassVar = {"global": (2, 2)}

    def at_chance(self, images: int) -> dict[str, float]:
        """Return nothing: a random network is already below the loss of constant features."""
        return {}


class VarianceCovariance(Loss):
    """Invariance, variance and covariance terms of two views.

    L = λ·MSE(z₁, z₂) + μ·[v(z₁) + v(z₂)] + ν·[c(z₁) + c(z₂)]. v is half the mean of
    max(0, 1 - σ) over the standard deviations σ of features. c is the sum of squared off-diagonal
    covariances divided by D. VICReg (Bardes et al. 2021, arXiv:2105.04906, section 4); the half is
    in its code (`main_vicreg.py`), not in the paper.
    """

    roles = ()

    def __init__(
        self,
        *,
        invariance: Annotated[
            float, Field(ge=0, description="Weight λ of the squared difference. VICReg: 25.")
        ] = 25.0,
        variance: Annotated[
            float, Field(ge=0, description="Weight μ of the variance. VICReg: 25.")
        ] = 25.0,
        covariance: Annotated[
            float, Field(ge=0, description="Weight ν of the covariance. VICReg: 1.")
        ] = 1.0,
    ) -> None:
        super().__init__()
        self.invariance, self.variance, self.covariance = invariance, variance, covariance

    def forward(
        self, prediction: Tensor, target: Tensor, negatives: Negatives | None = None
    ) -> Tensor:
        """prediction z₁ [N,D], target z₂ [N,D] of the whole batch, N ≥ 2 → scalar."""
        with torch.autocast(prediction.device.type, enabled=False):
            first, second = at_least_float32(prediction), at_least_float32(target)
            variance = small_variance(first) + small_variance(second)
            covariance = squared_covariance(first) + squared_covariance(second)
            loss = self.invariance * F.mse_loss(first, second)
            return loss + self.variance * variance + self.covariance * covariance

    def at_start(self, *, dim: int, negatives: int) -> float | None:
        """Return the loss of random unit vectors, whose features have variance 1/D, N > 1.

        N is `negatives` + 1.
        """
        variance = 1 - (1 / dim + EPSILON) ** 0.5
        covariance = 2 * (dim - 1) / (dim**2 * max(negatives, 1))
        return 2 * self.invariance / dim + self.variance * variance + self.covariance * covariance

    def at_chance(self, *, dim: int, negatives: int) -> float | None:
        """Return the loss of constant features, whose standard deviation counts as 0.01."""
        return self.variance * (1 - EPSILON**0.5)


def small_variance(features: Tensor) -> Tensor:
    """Return half the mean over D of max(0, 1 - σ), for features [N,D]."""
    deviation = (features.var(0) + EPSILON).sqrt()
    return (1 - deviation).relu().mean() / 2


def squared_covariance(features: Tensor) -> Tensor:
    """Return the sum of squared off-diagonal covariances of [N,D], divided by D."""
    centred = features - features.mean(0)
    covariance = centred.T @ centred / (len(features) - 1)
    diagonal = covariance.diagonal().square().sum()
    return (covariance.square().sum() - diagonal) / features.shape[1]
