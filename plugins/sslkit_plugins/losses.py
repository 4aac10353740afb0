"""Losses that papers share. Letters: T terms, N rows, M negatives, D features, C classes."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from sslkit import distributed
from sslkit.interfaces import Loss, Negatives

Temperature = Annotated[
    float,
    Field(gt=0, description="τ, the divisor of cosines. Usually 0.07 to 0.5; NPID, PIRL: 0.07."),
]


def contrast(
    prediction: Tensor, target: Tensor, negatives: Negatives, temperature: float
) -> tuple[Tensor, Tensor]:
    """Return float32 logits of the positive [T,N] and of the negatives [T,N,M].

    `prediction` is [T,N,D], `target` [N,D] of unit norm. At the usual τ = 0.07, exp(1/τ) overflows
    float16.
    """
    query = F.normalize(prediction.float(), dim=-1)
    positive = (query * target.float()).sum(-1)
    return positive / temperature, negatives.similarity(query) / temperature


def info_nce_terms(positive: Tensor, others: Tensor) -> Tensor:
    """Return [T], the mean over N of -log(e₀ / (e₀ + Σⱼ eⱼ)), for logits [T,N] and [T,N,M]."""
    return (torch.logaddexp(positive, others.logsumexp(-1)) - positive).mean(-1)


def nce_terms(positive: Tensor, others: Tensor, constant: Tensor) -> Tensor:
    """Return [T], the mean over N of -log(e₀/(e₀+K)) - Σⱼ log(K/(eⱼ+K)).

    The logits are [T,N] and [T,N,M]; `constant` is log K, a scalar or [T,N]. Uses softplus, since
    -log(e/(e+K)) = softplus(log K - s/τ).
    """
    push = F.softplus(others - constant.unsqueeze(-1)).sum(-1)
    return (F.softplus(constant - positive) + push).mean(-1)


DRAWN, COLUMNS, ROWS = 2**19, 2**14, 2**9
"""Limits of the simulated first loss: cosines in total, negatives per row, rows."""


def random_logits(dim: int, negatives: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Draw logits [N] and [N,M] of random unit vectors of length `dim`, with a fixed seed.

    (1 + cos)/2 follows a beta distribution with both parameters (D-1)/2. Each positive cosine is
    used with both signs. M is `negatives`, at most COLUMNS; beyond that, each drawn negative stands
    for several.
    """
    rng = np.random.default_rng(0)
    columns = min(negatives, COLUMNS)
    pairs = min(ROWS, DRAWN // columns) // 2
    beta = max(dim - 1, 0.01) / 2
    positive = torch.from_numpy(rng.beta(beta, beta, (1, pairs))) * 2 - 1
    others = torch.from_numpy(rng.beta(beta, beta, (1, 2 * pairs, columns))) * 2 - 1
    weight = math.log(negatives / columns)
    return torch.cat([positive, -positive], 1) / temperature, others / temperature + weight


class LambdaNCE(Loss):
    """λ · term(pretext view) + (1-λ) · term(image), the loss of PIRL; λ = 0 gives NPID's.

    Misra & van der Maaten 2020, arXiv:1912.01991. Let eₖ = exp(cos(v, mₖ)/τ), where m₀ is the
    image's own bank entry and there are M negatives. `form` selects the term:

    * `official`: -log(e₀/(e₀+K)) - Σⱼ log(K/(eⱼ+K)) with K = M·ē, VISSL's default (`nce_loss.py`).
      ē is the mean of e over the pretext term of the first batch, and then stays frozen. log ē is a
      buffer, so a resumed run keeps it. Two details differ from VISSL. VISSL adds float32's ε to
      the denominators, at most 5·10⁻⁶ of them at M = 32,000 on ImageNet. With several ranks, VISSL
      starts from the mean of their random banks: at 32 ranks its rows have norm 1/√32 and ē is
      1.03; unit norm gives 2.22.
    * `paper`: the same, with each row's own Σⱼ eⱼ in place of K.
    * `info_nce`: -log(e₀/(e₀+Σⱼ eⱼ)), as in PIRL's MLP models (τ = 0.1) and PyContrast.
    """

    needs_negatives = True

    def __init__(
        self,
        *,
        lambda_: Annotated[
            float,
            Field(ge=0, le=1, description="λ, the weight of the pretext term. PIRL: 0.5; NPID: 0."),
        ] = 0.5,
        temperature: Temperature = 0.07,
        form: Annotated[
            Literal["official", "paper", "info_nce"],
            Field(
                description="Form of a term. official: NCE with a frozen constant, as in VISSL. "
                "paper: the paper's NCE. info_nce: InfoNCE."
            ),
        ] = "official",
    ) -> None:
        super().__init__()
        self.lambda_, self.temperature, self.form = lambda_, temperature, form
        self.log_mean_exp: Tensor
        self.frozen: Tensor
        self.register_buffer("log_mean_exp", torch.zeros(()))
        self.register_buffer("frozen", torch.tensor(False))
        self.weights = (lambda_, 1 - lambda_)
        """Weights of the terms: pretext view, image."""
        self.terms: Tensor | None = None
        self._seen: list[Tensor] | None = None
        self._is_frozen = False

    def forward(
        self, prediction: Tensor, target: Tensor, negatives: Negatives | None = None
    ) -> Tensor:
        """prediction [T,N,D], target [N,D] bank entries of the images → scalar.

        The terms are pretext view and image (T = 2), or image alone (T = 1).
        """
        assert negatives is not None, "check refuses a method without negatives"
        positive, others = contrast(prediction, target, negatives, self.temperature)
        if self.form == "info_nce":
            terms = info_nce_terms(positive, others)
        else:
            terms = self._nce(positive, others, negatives.count)
        self.terms = terms.detach()
        if len(terms) == 1:
            return terms[0]
        return self.lambda_ * terms[0] + (1 - self.lambda_) * terms[1]

    def _nce(self, positive: Tensor, others: Tensor, count: int) -> Tensor:
        """Return the NCE terms [T] of logits [T,N] and [T,N,M]."""
        if self.form == "official":
            frozen = self._frozen_at(positive[0].detach(), others[0].detach(), count)
            return nce_terms(positive, others, frozen + math.log(count))
        # Shared candidates may all be the row's own image. Then K = 0 and the term is 0.
        constant = others.logsumexp(-1).clamp(min=torch.finfo(torch.float32).min)
        return nce_terms(positive, others, constant)

    @contextmanager
    def observe(self) -> Iterator[None]:
        """Freeze ē at its mean over all calls in the context and over ranks.

        All calls have the same number of rows. A constant that is already frozen does not change.
        A constant that is not finite is not frozen: training skips that step, and the next step
        freezes ē.
        """
        self._seen = []
        try:
            yield
            if self._seen:
                seen = distributed.gather(torch.stack(self._seen))
                constant = seen.logsumexp(0) - math.log(len(seen))
                if constant.isfinite():
                    self.log_mean_exp.copy_(constant)
                    self.frozen.fill_(True)
        finally:
            self._seen = None

    def _frozen_at(self, positive: Tensor, others: Tensor, count: int) -> Tensor:
        """Return log ē for logits [N], [N,M] of the pretext term.

        Inside `observe`, it is the value of this batch alone.
        """
        self._is_frozen = self._is_frozen or bool(self.frozen)
        if self._is_frozen:
            return self.log_mean_exp
        if self._seen is None:
            with self.observe():
                self._frozen_at(positive, others, count)
            return self.log_mean_exp
        total = torch.logaddexp(positive, others.logsumexp(-1)).logsumexp(0)
        self._seen.append(total - math.log(len(positive) * (1 + count)))
        return self._seen[-1]

    def at_start(self, *, dim: int, negatives: int) -> float | None:
        """Simulate the first loss: about log M + 1/(2Dτ²), less at small τ; 1 more for NCE.

        M = 32,000, D = 128, τ = 0.07 give 11.17, and 12.17 for the NCE forms.
        """
        positive, others = random_logits(dim, negatives, self.temperature)
        if self.form == "info_nce":
            return info_nce_terms(positive, others).item()
        constant = others.logsumexp(-1)
        if self.form == "official":
            constant = constant.logsumexp(1) - math.log(constant.shape[1])
        return nce_terms(positive, others, constant).item()

    def at_chance(self, *, dim: int, negatives: int) -> float | None:
        """Return log(1 + M), the loss if the positive is like any negative; 1 more for NCE."""
        value = math.log1p(negatives)
        return value if self.form == "info_nce" else value + 1


class InfoNCE(Loss):
    """-log(e₀ / (e₀ + Σⱼ eⱼ)), eₖ = exp(cos/τ), averaged over rows and terms.

    van den Oord et al. 2018, arXiv:1807.03748, equation 4. With the other images of the batch as
    negatives (`samplers.in_batch`), this is NT-Xent (Chen et al. 2020, arXiv:2002.05709,
    equation 1).
    """

    needs_negatives = True

    def __init__(self, *, temperature: Temperature = 0.07) -> None:
        super().__init__()
        self.temperature = temperature
        self.terms: Tensor | None = None

    def forward(
        self, prediction: Tensor, target: Tensor, negatives: Negatives | None = None
    ) -> Tensor:
        """prediction [N,D] or [T,N,D], target [N,D] → scalar."""
        assert negatives is not None, "check refuses a method without negatives"
        prediction = prediction if prediction.dim() == 3 else prediction.unsqueeze(0)
        target = F.normalize(target.float(), dim=-1)
        terms = info_nce_terms(*contrast(prediction, target, negatives, self.temperature))
        self.terms = terms.detach()
        return terms.mean()

    def at_start(self, *, dim: int, negatives: int) -> float | None:
        """Simulate the first loss: about log M + 1/(2Dτ²), less at small τ."""
        positive, others = random_logits(dim, negatives, self.temperature)
        return info_nce_terms(positive, others).item()

    def at_chance(self, *, dim: int, negatives: int) -> float | None:
        """Return log(1 + M), the loss if the positive is like any negative."""
        return math.log1p(negatives)


class CrossEntropy(Loss):
    """Softmax cross-entropy over C classes."""

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
        return F.cross_entropy(prediction.float(), target, label_smoothing=self.label_smoothing)

    def at_start(self, *, dim: int, negatives: int) -> float | None:
        """Return log C, the loss of equally likely classes; `dim` is C."""
        return math.log(dim)
