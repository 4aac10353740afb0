"""Negatives that are given vectors, such as rows of the batch or of a queue."""

import math

import torch
from torch import Tensor

from sslkit import distributed
from sslkit.interfaces import Negatives
from sslkit_plugins.precision import at_least_float32


class KeyNegatives(Negatives):
    """Vectors [M,D] that serve as candidates for every query.

    `own` bool [N,M] marks vectors of the query's own image, whose similarity is -inf; None marks
    none. `count` is the number of candidates per query, by default M.
    """

    def __init__(
        self, vectors: Tensor, own: Tensor | None = None, *, count: int | None = None
    ) -> None:
        self.vectors, self.own = vectors, own
        self.count = len(vectors) if count is None else count

    def similarity(self, query: Tensor) -> Tensor:
        """[T,N,D] or [N,D] unit-norm queries → float32 [T,N,M] or [N,M]."""
        with torch.autocast(query.device.type, enabled=False):
            scores = at_least_float32(query) @ at_least_float32(self.vectors).T
        return scores if self.own is None else scores.masked_fill(self.own, -math.inf)


def in_batch(rows: Tensor, copies: int = 2) -> KeyNegatives:
    """Use the rows of all other images of the global batch as negatives.

    `rows` [B·copies,D] of unit norm are image-major: the `copies` rows of an image are adjacent.
    Every row of another image, on any rank, is a negative of each query: 2B-2 for two copies (Chen
    et al. 2020, arXiv:2002.05709, section 2.1). Gradients reach the rows of all ranks.
    """
    every = distributed.gather_with_gradient(at_least_float32(rows))
    images = torch.arange(len(every), device=rows.device) // copies
    first = distributed.rank() * len(rows)
    own = images[first : first + len(rows)].unsqueeze(1) == images
    return KeyNegatives(every, own, count=len(every) - copies)
