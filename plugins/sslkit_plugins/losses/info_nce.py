"""InfoNCE. Letters: T terms, N rows, M negatives, D features."""

import math

from torch import Tensor
from torch.nn import functional as F

from sslkit.interfaces import Loss, Negatives
from sslkit_plugins.losses.contrast import Temperature, contrast, info_nce_terms, random_logits
from sslkit_plugins.precision import at_least_float32


class InfoNCE(Loss):
    """-log(e₀ / (e₀ + Σⱼ eⱼ)), eₖ = exp(cos/τ), averaged over rows and terms.

    van den Oord et al. 2018, arXiv:1807.03748, equation 4. With the other images of the batch as
    negatives (`samplers.in_batch`), this is NT-Xent (Chen et al. 2020, arXiv:2002.05709,
    equation 1).
    """

    roles = ()
    needs_negatives = True

    def __init__(self, *, temperature: Temperature = 0.07) -> None:
        super().__init__()
        self.temperature = temperature
        self.terms: Tensor | None = None
        self.accuracy: Tensor | None = None
        """Fraction of rows of the last call whose positive has the largest cosine."""

    def forward(
        self, prediction: Tensor, target: Tensor, negatives: Negatives | None = None
    ) -> Tensor:
        """prediction [N,D] or [T,N,D], target [N,D] → scalar."""
        assert negatives is not None, "check refuses a method without negatives"
        prediction = prediction if prediction.dim() == 3 else prediction.unsqueeze(0)
        target = F.normalize(at_least_float32(target), dim=-1)
        positive, others = contrast(prediction, target, negatives, self.temperature)
        self.accuracy = (positive.detach() > others.detach().amax(-1)).float().mean()
        terms = info_nce_terms(positive, others)
        self.terms = terms.detach()
        return terms.mean()

    def at_start(self, *, dim: int, negatives: int) -> float | None:
        """Simulate the first loss: about log M + 1/(2Dτ²), less at small τ; 0 without negatives."""
        if negatives == 0:
            return 0.0
        positive, others = random_logits(dim, negatives, self.temperature)
        return info_nce_terms(positive, others).item()

    def at_chance(self, *, dim: int, negatives: int) -> float | None:
        """Return log(1 + M), the loss if the positive is like any negative."""
        return math.log1p(negatives)
