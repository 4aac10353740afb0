"""Computes cosines of queries with rows of a bank in bounded memory.

Letters: G sets of M candidates, S queries of each set, R queries in all, n rows, D features.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Costs(NamedTuple):
    """Memory limits of a comparison, in elements, and the relative time of a gather."""

    rows: int
    """Elements of rows gathered from the bank at once."""
    products: int
    """Elements of products with the full bank at once."""
    gather: float
    """Time to gather a row, in units of one dot product within a matrix product."""


COSTS = {"cpu": Costs(2**18, 2**24, 15), "cuda": Costs(2**27, 2**27, 80)}
"""Costs by device type; other types use the CPU's.

On a CPU, 1 MiB of gathered rows stays in the L2 cache. `benchmarks/negatives.py` measures `gather`.
The value for GPUs is computed: 600 ps to gather 512 bytes at random, 7 ps for 256 operations in
float32.
"""


class Scores(torch.autograd.Function):
    """query [G,S,D] · bank[picks [G,M]] → float32 [G,S,M]; `picks` None means all rows.

    Gathers rows, or computes products with the full bank and selects from them, whichever is
    cheaper. Works in chunks and recomputes them in the backward pass, so it never stores G×M×D or
    G×S×n elements.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, bank: Tensor, picks: Tensor | None) -> Tensor:
        ctx.save_for_backward(bank, picks)
        scores = query.new_empty(*query.shape[:2], len(bank) if picks is None else picks.shape[1])
        if picks is None:
            _product(query.flatten(0, 1), bank, out=scores.flatten(0, 1))
        elif _takes_all(bank, picks, query.shape[1]):
            for sets in _slices(len(query), query.shape[1] * len(bank), costs(bank).products):
                products = query.new_empty(*query[sets].shape[:2], len(bank))
                _product(query[sets].flatten(0, 1), bank, out=products.flatten(0, 1))
                torch.gather(products, -1, each(picks[sets], query.shape[1]), out=scores[sets])
        else:
            for sets, some in _tiles(picks, bank):
                scores[sets, :, some] = query[sets] @ _rows(bank, picks[sets, some]).mT
        return scores

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        bank, picks = ctx.saved_tensors
        queries = gradient.shape[1]
        if picks is None:
            mixed = _mixture(gradient.flatten(0, 1), bank)
            return mixed.unflatten(0, gradient.shape[:2]), None, None
        total = gradient.new_zeros(len(gradient), queries, bank.shape[1])
        if _takes_all(bank, picks, queries):
            for sets in _slices(len(gradient), queries * len(bank), costs(bank).products):
                weights = gradient.new_zeros(len(picks[sets]), queries, len(bank))
                weights.scatter_add_(-1, each(picks[sets], queries), gradient[sets])
                total[sets] = _mixture(weights.flatten(0, 1), bank).unflatten(0, (-1, queries))
        elif queries == 1 and bank.dtype == torch.float32:
            # Sums rows without copying them, twice as fast on a CPU.
            weights = gradient[:, 0]
            mixed = F.embedding_bag(picks, bank, per_sample_weights=weights, mode="sum")
            total = mixed.unsqueeze(1)
        else:
            for sets, some in _tiles(picks, bank):
                total[sets] += gradient[sets, :, some] @ _rows(bank, picks[sets, some])
        return total, None, None


def costs(bank: Tensor) -> Costs:
    """Return the costs on the bank's device."""
    return COSTS.get(bank.device.type, COSTS["cpu"])


def each(picks: Tensor, queries: int) -> Tensor:
    """Repeat picks [G,M] for every query of a set: int64 [G,S,M]."""
    return picks.long().unsqueeze(1).expand(-1, queries, -1)


def _takes_all(bank: Tensor, picks: Tensor, queries: int) -> bool:
    """Tell whether products with the full bank cost less than gathering the picks."""
    return len(bank) <= picks.shape[1] * (1 + costs(bank).gather / queries)


def _slices(count: int, numbers: int, budget: int) -> list[slice]:
    """Return slices of `count` items of `numbers` elements, within the budget or of one item."""
    step = max(1, budget // numbers)
    return [slice(first, min(count, first + step)) for first in range(0, count, step)]


def _tiles(picks: Tensor, bank: Tensor) -> list[tuple[slice, slice]]:
    """Return slices of sets and of candidates over picks [G,M], whose rows fit the budget."""
    (sets, candidates), dim, budget = picks.shape, bank.shape[1], costs(bank).rows
    tiles = []
    for some in _slices(sets, candidates * dim, budget):
        tiles += [(some, columns) for columns in _slices(candidates, dim, budget)]
    return tiles


def _rows(bank: Tensor, picks: Tensor) -> Tensor:
    """Gather picks [G,M] → float32 [G,M,D].

    On a CPU, `index_select` is three times as fast as indexing.
    """
    return bank.index_select(0, picks.flatten()).float().unflatten(0, picks.shape)


def _product(query: Tensor, bank: Tensor, out: Tensor) -> None:
    """Write query [R,D] · bankᵀ to `out` float32 [R,n], one slice of the bank at a time.

    Slices limit the memory of rows converted to float32.
    """
    for rows in _slices(len(bank), bank.shape[1], costs(bank).rows):
        torch.mm(query, bank[rows].float().T, out=out[:, rows])


def _mixture(weights: Tensor, bank: Tensor) -> Tensor:
    """weights [R,n] · bank → float32 [R,D]."""
    total = weights.new_zeros(len(weights), bank.shape[1])
    for rows in _slices(len(bank), bank.shape[1], costs(bank).rows):
        total.addmm_(weights[:, rows], bank[rows].float())
    return total
