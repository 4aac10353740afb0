"""Binary cross-entropy. Letter: N rows."""

import math

from torch import Tensor
from torch.nn import functional as F

from sslkit.interfaces import Loss, Negatives
from sslkit_plugins.precision import at_least_float32


class Binary(Loss):
    """Binary cross-entropy with logits: -y log σ(s) - (1-y) log(1 - σ(s)).

    The loss of a discriminator (Goodfellow et al. 2014, arXiv:1406.2661, equation 1), as in BiGAN.
    """

    roles = ("elements",)

    def forward(
        self, prediction: Tensor, target: Tensor, negatives: Negatives | None = None
    ) -> Tensor:
        """prediction [N] logits s, target [N] in 0 … 1 → scalar."""
        logits = at_least_float32(prediction)
        return F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype))

    def at_start(self, *, dim: int, negatives: int) -> float | None:
        """Return log 2, the loss of logits 0."""
        return math.log(2)
