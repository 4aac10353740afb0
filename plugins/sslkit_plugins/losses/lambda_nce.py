"""The loss of PIRL and NPID. Letters: T terms, N rows, M negatives, D features."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from sslkit import distributed
from sslkit.interfaces import Loss, Negatives
from sslkit_plugins.losses.contrast import (
    Temperature,
    contrast,
    info_nce_terms,
    nce_terms,
    random_logits,
)


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

    roles = ()
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
        """prediction [T,N,D] or [N,D], target [N,D] bank entries of the images → scalar.

        The terms are pretext view and image (T = 2), or image alone (T = 1, or [N,D]).
        """
        assert negatives is not None, "check refuses a method without negatives"
        if prediction.dim() == 2:
            prediction = prediction.unsqueeze(0)
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
