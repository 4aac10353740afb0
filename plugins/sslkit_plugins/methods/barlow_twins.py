"""Barlow Twins (Zbontar, Jing, Misra, LeCun & Deny 2021, arXiv:2103.03230).

"Barlow Twins: Self-Supervised Learning via Redundancy Reduction". The official code is
facebookresearch/barlowtwins. Letters: B images, N images of all ranks, D features.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from sslkit import distributed
from sslkit.interfaces import Batch, Loss, Method, Negatives, Output, Progress
from sslkit_plugins.methods.pair import pair
from sslkit_plugins.momentum import feature_std
from sslkit_plugins.precision import at_least_float32

BATCH_NORM_EPSILON = 1e-5
"""Added to variances, as in PyTorch's batch norm."""


class BarlowTwins(Method):
    """Make the cross-correlation of two views' features the identity matrix.

    Views pass the network one after the other, so batch norm sees one view at a time, as in the
    official code. The loss sees the features of all ranks.
    """

    crops: ClassVar = {"global": (2, 2)}
    reads: ClassVar = {"projector": "global"}
    joins = True

    def project(self, view: Tensor) -> Tensor:
        """Return the features z [B,D] of a view [B,C,H,W]."""
        return self.heads["projector"](self.encode(view))

    def forward(self, batch: Batch, progress: Progress) -> Output:
        """Compare the features of both views over the whole batch (equation 1)."""
        first, second = pair(batch).unbind(1)
        first = distributed.gather_with_gradient(self.project(first))
        second = distributed.gather_with_gradient(self.project(second))
        features = torch.cat([first, second]).detach().float()
        deviation = feature_std(F.normalize(features, dim=-1))
        return Output(self.loss(first, second), feature_std={"projector": deviation})

    def at_start(self, images: int) -> float | None:
        """Return the loss of independent features."""
        dim = self.head("projector").out_dim
        return self.loss.at_start(dim=dim, negatives=images - 1)

    def at_chance(self, images: int) -> dict[str, float]:
        """Return the loss of features that do not depend on the image."""
        dim = self.head("projector").out_dim
        chance = self.loss.at_chance(dim=dim, negatives=images - 1)
        return {} if chance is None else {"loss": chance}


class CrossCorrelation(Loss):
    """Squared distance between the cross-correlation matrix of two views and the identity.

    L = s·(Σᵢ (1 - Cᵢᵢ)² + λ·Σᵢ Σⱼ≠ᵢ Cᵢⱼ²) with C = z₁ᵀz₂/N of standardised features. Barlow Twins
    (Zbontar et al. 2021, arXiv:2103.03230, equations 1 and 2).
    """

    roles = ()

    def __init__(
        self,
        *,
        off_diagonal: Annotated[
            float,
            Field(ge=0, description="Weight λ of the off-diagonal elements. Barlow Twins: 0.0051."),
        ] = 0.0051,
        scale: Annotated[
            float, Field(gt=0, description="Factor s of the loss. Barlow Twins: 1.")
        ] = 1.0,
    ) -> None:
        super().__init__()
        self.off_diagonal, self.scale = off_diagonal, scale

    def forward(
        self, prediction: Tensor, target: Tensor, negatives: Negatives | None = None
    ) -> Tensor:
        """prediction z₁ [N,D], target z₂ [N,D] of the whole batch → scalar."""
        with torch.autocast(prediction.device.type, enabled=False):
            correlation = standardised(prediction).T @ standardised(target) / len(prediction)
            invariance = (1 - correlation.diagonal()).square().sum()
            redundancy = correlation.square().sum() - correlation.diagonal().square().sum()
            return self.scale * (invariance + self.off_diagonal * redundancy)

    def at_start(self, *, dim: int, negatives: int) -> float | None:
        """Return the loss of independent features, D + (D + λD(D - 1))/N for N = negatives + 1."""
        redundancy = self.off_diagonal * dim * (dim - 1)
        return self.scale * (dim + (dim + redundancy) / (negatives + 1))

    def at_chance(self, *, dim: int, negatives: int) -> float | None:
        """Return the loss of constant features, whose correlation is 0."""
        return self.scale * dim


def standardised(features: Tensor) -> Tensor:
    """Return [N,D] with mean 0 and variance 1 of each feature: batch norm without scale."""
    features = at_least_float32(features)
    variance, mean = torch.var_mean(features, 0, correction=0)
    return (features - mean) / (variance + BATCH_NORM_EPSILON).sqrt()
