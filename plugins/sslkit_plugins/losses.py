"""Losses. Letters: T terms, N rows, M negatives, D features, C classes."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor
from torch.nn import functional as F

from sslkit import distributed
from sslkit.interfaces import Loss, Negatives

Fraction = Annotated[float, Field(ge=0, le=1)]


def contrast(
    prediction: Tensor, target: Tensor, negatives: Negatives, temperature: float
) -> tuple[Tensor, Tensor]:
    """prediction [T,N,D], target [N,D] of unit norm → logits of the positive [T,N] and of the negatives [T,N,M], float32.

    float32 because exp(1/τ) overflows half precision for the customary τ = 0.07.
    """
    query = F.normalize(prediction.float(), dim=-1)
    return (query * target.float()).sum(-1) / temperature, negatives.similarity(query) / temperature


def info_nce_terms(positive: Tensor, others: Tensor) -> Tensor:
    """[T,N], [T,N,M] logits → [T]: mean over N of -log( e₀ / (e₀ + Σⱼ eⱼ) )."""
    return (torch.logaddexp(positive, others.logsumexp(-1)) - positive).mean(-1)


def log_mean_exp_at_start(dim: int, temperature: float) -> float:
    """log E[exp(s/τ)] for the cosine s of random unit vectors of `dim` numbers, by the normal approximation 1 / (2·D·τ²)."""
    return 1 / (2 * dim * temperature**2)


class LambdaNCE(Loss):
    """λ · term(pretext view) + (1-λ) · term(image): PIRL's loss (arXiv:1912.01991). λ = 0 is NPID.

    Let eₖ = exp(cos(v, mₖ)/τ), m₀ the image's own memory, and M negatives. `form` says what a term is:

    * `official`: -log(e₀/(e₀+K)) - Σⱼ log(K/(eⱼ+K)), where K = M·ē and ē, the mean of e over the pretext term of the first batch,
      is frozen for ever (NCE as the released models were trained: VISSL, `nce_loss.py`). log ē is a buffer and survives a resume.
    * `paper`: the same with K replaced by each row's own Σⱼ eⱼ (the paper's h with the denominator of the network's output).
    * `info_nce`: -log(e₀/(e₀+Σⱼ eⱼ)), as PIRL's MLP models (with τ = 0.1) and PyContrast have it.
    """

    needs_negatives = True

    def __init__(
        self,
        *,
        lambda_: Fraction = 0.5,
        temperature: PositiveFloat = 0.07,
        form: Literal["official", "paper", "info_nce"] = "official",
    ) -> None:
        super().__init__()
        self.lambda_, self.temperature, self.form = lambda_, temperature, form
        self.log_mean_exp: Tensor
        self.frozen: Tensor
        self.register_buffer("log_mean_exp", torch.zeros(()))
        self.register_buffer("frozen", torch.tensor(False))
        self.terms: Tensor | None = None
        self._seen: list[Tensor] | None = None
        self._is_frozen = False

    def forward(
        self, prediction: Tensor, target: Tensor, negatives: Negatives | None = None
    ) -> Tensor:
        """prediction [T,N,D] (T = 2: pretext view, image; T = 1: image), target [N,D] memory of the images → scalar."""
        assert negatives is not None, "lambda_nce needs the negatives of a sampler"
        positive, others = contrast(prediction, target, negatives, self.temperature)
        terms = (
            info_nce_terms(positive, others)
            if self.form == "info_nce"
            else self._nce(positive, others, negatives.count)
        )
        self.terms = terms.detach()
        if len(terms) == 1:
            return terms[0]
        return self.lambda_ * terms[0] + (1 - self.lambda_) * terms[1]

    def _nce(self, positive: Tensor, others: Tensor, count: int) -> Tensor:
        """[T,N], [T,N,M] logits → [T], written with softplus: -log(e/(e+K)) = softplus(log K - s/τ)."""
        if self.form == "official":
            constant = self._frozen_at(positive[0].detach(), others[0].detach(), count) + math.log(
                count
            )
        else:
            # A row all of whose shared candidates are its own image has no negatives: K is 0, and so is the term.
            constant = others.logsumexp(-1).clamp(min=torch.finfo(torch.float32).min)
        pull = F.softplus(constant - positive)
        push = F.softplus(
            others - (constant if constant.dim() == 0 else constant.unsqueeze(-1))
        ).sum(-1)
        return (pull + push).mean(-1)

    @contextmanager
    def observe(self) -> Iterator[None]:
        """ē is then the mean over all calls inside, each of as many rows, and over ranks; what was frozen before stays."""
        self._seen = []
        try:
            yield
            if self._seen:
                seen = distributed.gather(torch.stack(self._seen))
                self.log_mean_exp.copy_(seen.logsumexp(0) - math.log(len(seen)))
                self.frozen.fill_(True)
        finally:
            self._seen = None

    def _frozen_at(self, positive: Tensor, others: Tensor, count: int) -> Tensor:
        """log ē; [N], [N,M] logits of the pretext term → that of this batch alone as long as more of them are observed."""
        self._is_frozen = self._is_frozen or bool(self.frozen)
        if self._is_frozen:
            return self.log_mean_exp
        if self._seen is None:
            with self.observe():
                self._frozen_at(positive, others, count)
            return self.log_mean_exp
        seen = torch.logaddexp(positive, others.logsumexp(-1)).logsumexp(0) - math.log(
            len(positive) * (1 + count)
        )
        self._seen.append(seen)
        return seen

    def at_start(self, *, dim: int, negatives: int) -> float | None:
        """log M + 1/(2Dτ²), and 1 more for the NCE forms: 12.17 and 11.17 for M = 32,000, D = 128, τ = 0.07."""
        value = math.log(negatives) + log_mean_exp_at_start(dim, self.temperature)
        return value if self.form == "info_nce" else value + 1


class InfoNCE(Loss):
    """-log( e₀ / (e₀ + Σⱼ eⱼ) ), eₖ = exp(cos/τ), averaged over rows and terms.

    van den Oord et al. 2018, arXiv:1807.03748, equation 4; with the other images of the batch as
    negatives (`samplers.in_batch`) it is NT-Xent (Chen et al. 2020, arXiv:2002.05709, equation 1).
    """

    needs_negatives = True

    def __init__(self, *, temperature: PositiveFloat = 0.07) -> None:
        super().__init__()
        self.temperature = temperature
        self.terms: Tensor | None = None

    def forward(
        self, prediction: Tensor, target: Tensor, negatives: Negatives | None = None
    ) -> Tensor:
        """prediction [N,D] or [T,N,D], target [N,D] → scalar."""
        assert negatives is not None, "info_nce needs negatives"
        prediction = prediction if prediction.dim() == 3 else prediction.unsqueeze(0)
        target = F.normalize(target.float(), dim=-1)
        terms = info_nce_terms(*contrast(prediction, target, negatives, self.temperature))
        self.terms = terms.detach()
        return terms.mean()

    def at_start(self, *, dim: int, negatives: int) -> float | None:
        """log M + 1/(2Dτ²)."""
        return math.log(negatives) + log_mean_exp_at_start(dim, self.temperature)


class CrossEntropy(Loss):
    """Softmax cross-entropy of a pretext task whose answer is one of C classes."""

    def __init__(self, *, label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(
        self, prediction: Tensor, target: Tensor, negatives: Negatives | None = None
    ) -> Tensor:
        """prediction [N,C] logits, target int64 [N] → scalar."""
        return F.cross_entropy(prediction.float(), target, label_smoothing=self.label_smoothing)

    def at_start(self, *, dim: int, negatives: int) -> float | None:
        """log C: every answer equally likely; `dim` is C."""
        return math.log(dim)
