"""Negatives that are rows of a memory bank.

Letters: T terms, B images, M negatives, D features, n rows; G sets of M candidates, S queries per
set. Picks per term have G = T·B and S = 1, picks per image G = B and S = T, shared picks G = 1.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from sslkit import distributed
from sslkit.interfaces import Negatives
from sslkit_plugins.samplers.blocks import Blocks
from sslkit_plugins.samplers.scores import Scores, each


class BankNegatives(Negatives):
    """All rows of a bank [n,D], or picks.

    `picks` are [T,B,M] per term and image, [1,B,M] per image, [M] shared by the batch, or None for
    all rows. `own` [B] are the images' own rows, whose similarity is -inf among shared candidates;
    picks per image exclude them already. None keeps them as candidates. `blocks` describes the rows
    of `bank` on this rank; None: all rows.
    """

    def __init__(
        self, bank: Tensor, picks: Tensor | None, own: Tensor | None, blocks: Blocks | None = None
    ) -> None:
        self.bank, self.picks, self.own, self.blocks = bank, picks, own, blocks
        rows = len(bank) if blocks is None else blocks.count
        self.count = rows - (own is not None) if picks is None else picks.shape[-1]

    def similarity(self, query: Tensor) -> Tensor:
        """[T,B,D] or [B,D] unit-norm queries → float32 [T,B,M] or [B,M]."""
        with torch.autocast(query.device.type, enabled=False):
            query = query.float()
            if self.picks is not None and self.picks.dim() == 3:
                terms = query.view(-1, *query.shape[-2:])
                return self._of_each_image(terms, self.picks).view(*query.shape[:-1], -1)
            return self._shared(query)

    def _shared(self, query: Tensor) -> Tensor:
        """[…,B,D] → […,B,M], with the same candidates for every query except its own image."""
        picks = None if self.picks is None else self.picks.unsqueeze(0)
        scores = self._scores(query.reshape(1, -1, query.shape[-1]), picks)
        scores = scores.reshape(*query.shape[:-1], -1)
        if self.own is None:
            return scores
        if self.picks is None:
            own = self.own.unsqueeze(-1).expand(*query.shape[:-1], 1)
            return scores.scatter_(-1, own, -math.inf)
        return scores.masked_fill_(self.picks == self.own.unsqueeze(1), -math.inf)

    def _of_each_image(self, query: Tensor, picks: Tensor) -> Tensor:
        """query [T,B,D], picks [T,B,M] or [1,B,M] → [T,B,M].

        Terms with the same candidates are queries of one set.
        """
        picks = picks[: len(query)].transpose(0, 1)
        sets = query.unflatten(0, (picks.shape[1], -1)).permute(2, 0, 1, 3)
        scores = self._scores(sets.flatten(0, 1), picks.flatten(0, 1))
        return scores.unflatten(0, picks.shape[:2]).permute(1, 2, 0, 3).flatten(0, 1)

    def _scores(self, query: Tensor, picks: Tensor | None) -> Tensor:
        """query [G,S,D], picks [G,M] → [G,S,M], computed on the ranks that store the rows."""
        if self.blocks is None:
            return Scores.apply(query, self.bank, picks)
        queries = distributed.gather_with_gradient(query)
        if picks is None:
            return self._with_all_blocks(query, queries)
        requested, place = self.blocks.route(picks)
        scores = distributed.exchange(Scores.apply(queries, self.bank, requested))
        by_block = scores.unflatten(0, (-1, len(query))).permute(1, 2, 0, 3).flatten(2)
        return by_block.gather(-1, each(place, query.shape[1]))

    def _with_all_blocks(self, query: Tensor, queries: Tensor) -> Tensor:
        """query [1,S,D] of this rank, queries of all ranks → [1,S,n]."""
        assert self.blocks is not None
        flat = queries.reshape(1, -1, query.shape[-1])
        scores = Scores.apply(flat, self.bank, None).unflatten(1, (-1, query.shape[1]))[0]
        scores = F.pad(scores, (0, self.blocks.size - len(self.bank)))
        joined = distributed.exchange(scores).transpose(0, 1).flatten(1)
        return joined[None, :, : self.blocks.count]
