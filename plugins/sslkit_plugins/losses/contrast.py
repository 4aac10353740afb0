"""Terms of contrastive losses. Letters: T terms, N rows, M negatives, D features."""

import math
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from sslkit.interfaces import Negatives
from sslkit_plugins.precision import at_least_float32

Temperature = Annotated[
    float,
    Field(gt=0, description="τ, the divisor of cosines. Usually 0.07 to 0.5; NPID, PIRL: 0.07."),
]


def contrast(
    prediction: Tensor, target: Tensor, negatives: Negatives, temperature: float
) -> tuple[Tensor, Tensor]:
    """Return logits, at least float32, of the positive [T,N] and of the negatives [T,N,M].

    `prediction` is [T,N,D], `target` [N,D] of unit norm. At the usual τ = 0.07, exp(1/τ) overflows
    float16.
    """
    query = F.normalize(at_least_float32(prediction), dim=-1)
    positive = (query * at_least_float32(target)).sum(-1)
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
