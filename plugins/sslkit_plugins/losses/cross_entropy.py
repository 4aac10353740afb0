"""Cross-entropy with classes and with soft targets. Letters: N rows, C classes."""

import math
from typing import Annotated

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from sslkit.interfaces import Loss, Negatives
from sslkit_plugins.losses.contrast import Temperature
from sslkit_plugins.precision import at_least_float32


class CrossEntropy(Loss):
    """Softmax cross-entropy over C classes."""

    roles = ("classes",)

    def __init__(
        self,
        *,
        label_smoothing: Annotated[
            float,
            Field(
                ge=0,
                lt=1,
                description="Probability spread evenly over all classes (Szegedy et al. 2016, "
                "arXiv:1512.00567, section 7), usually 0 or 0.1.",
            ),
        ] = 0.0,
    ) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(
        self, prediction: Tensor, target: Tensor, negatives: Negatives | None = None
    ) -> Tensor:
        """prediction [N,C] logits, target int64 [N] → scalar."""
        return F.cross_entropy(
            at_least_float32(prediction), target, label_smoothing=self.label_smoothing
        )

    def at_start(self, *, dim: int, negatives: int) -> float | None:
        """Return log C, the loss of equally likely classes; `dim` is C."""
        return math.log(dim)


class SoftCrossEntropy(Loss):
    """-Σ q log softmax(s/τ), where the target q is a distribution over C classes.

    SwAV (Caron et al. 2020, arXiv:2006.09882, equation 2), DINO (Caron et al. 2021,
    arXiv:2104.14294, equation 1), DeepCluster. A row of q that does not sum to 1 weighs its row.
    """

    roles = ()

    def __init__(self, *, temperature: Temperature = 0.1) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(
        self, prediction: Tensor, target: Tensor, negatives: Negatives | None = None
    ) -> Tensor:
        """prediction [N,C] scores s, target [N,C] distributions q → scalar."""
        log_probabilities = F.log_softmax(at_least_float32(prediction) / self.temperature, dim=-1)
        return -(target * log_probabilities).sum(-1).mean()

    def at_start(self, *, dim: int, negatives: int) -> float | None:
        """Return log C, the loss of equally likely classes; `dim` is C."""
        return math.log(dim)
