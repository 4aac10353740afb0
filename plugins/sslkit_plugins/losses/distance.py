"""Distances between a prediction and a target. Letters: N rows, D features."""

from torch import Tensor
from torch.nn import functional as F

from sslkit.interfaces import Loss, Negatives
from sslkit_plugins.precision import at_least_float32


class Cosine(Loss):
    """2 - 2·cos(prediction, target), the squared distance of unit vectors.

    BYOL (Grill et al. 2020, arXiv:2006.07733, equation 2). SimSiam's -cos is half of it, minus 1.
    """

    roles = ()

    def forward(
        self, prediction: Tensor, target: Tensor, negatives: Negatives | None = None
    ) -> Tensor:
        """prediction [N,D], target [N,D] → mean over N, in [0, 4]."""
        prediction, target = at_least_float32(prediction), at_least_float32(target)
        return (2 - 2 * F.cosine_similarity(prediction, target, dim=-1)).mean()

    def at_start(self, *, dim: int, negatives: int) -> float | None:
        """Return 2, the loss of orthogonal vectors."""
        return 2.0


class NegativeCosine(Loss):
    """-cos(prediction, target). SimSiam (Chen & He 2020, arXiv:2011.10566, equation 1)."""

    roles = ()

    def forward(
        self, prediction: Tensor, target: Tensor, negatives: Negatives | None = None
    ) -> Tensor:
        """prediction [N,D], target [N,D] → mean over N, in [-1, 1]."""
        prediction, target = at_least_float32(prediction), at_least_float32(target)
        return -F.cosine_similarity(prediction, target, dim=-1).mean()

    def at_start(self, *, dim: int, negatives: int) -> float | None:
        """Return 0, the loss of orthogonal vectors."""
        return 0.0


class SquaredError(Loss):
    """The squared difference, averaged over all elements.

    MAE (He et al. 2022, arXiv:2111.06377, section 3).
    """

    roles = ("elements",)

    def forward(
        self, prediction: Tensor, target: Tensor, negatives: Negatives | None = None
    ) -> Tensor:
        """prediction [N,…], target [N,…] → scalar."""
        return F.mse_loss(at_least_float32(prediction), at_least_float32(target))
