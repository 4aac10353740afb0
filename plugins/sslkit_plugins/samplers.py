"""Where negatives come from. Letters: T terms, B images, M negatives, D features, n images of the data set.

Inside: G sets of M candidates, S queries to each set. Draws per term: G = T·B, S = 1; per image: G = B, S = T; for the batch: G = 1.
"""

import math
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from sslkit import distributed
from sslkit.errors import Fault, RecipeError
from sslkit.interfaces import Draws, Negatives, NegativeSampler

Fraction = Annotated[float, Field(ge=0, le=1)]


class Costs(NamedTuple):
    """What similarities may hold beside their result, in numbers, and what they take."""

    rows: int
    """Of rows gathered from the bank at once."""
    products: int
    """Of products with the whole bank at once."""
    gather: float
    """Time to gather a row, in the times that a matrix product with the bank takes for one of its dot products."""


COSTS = {"cpu": Costs(2**18, 2**24, 15), "cuda": Costs(2**27, 2**27, 80)}
"""By kind of device; others take the CPU's. On a CPU 1 MiB of gathered rows stays in its second cache. `benchmarks/negatives.py` measures
`gather`; the figure for GPUs is computed: 600 ps for 512 bytes at random beside 7 ps for 256 operations of float32."""

BLOCK = 2**12
"""Rows of a new bank that come from one generator."""


def _costs(bank: Tensor) -> Costs:
    return COSTS.get(bank.device.type, COSTS["cpu"])


class _Scores(torch.autograd.Function):
    """query [G,S,D] · bank[picks [G,M]] → [G,S,M]; every row of the bank where `picks` is None. float32, whatever the bank is kept in.

    Rows are gathered, or products with the whole bank are taken and the picks from among them, whichever is cheaper; in chunks, and
    anew in the backward pass, so that neither G×M×D nor G×S×n numbers are ever held.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, bank: Tensor, picks: Tensor | None) -> Tensor:
        ctx.save_for_backward(bank, picks)
        scores = query.new_empty(*query.shape[:2], len(bank) if picks is None else picks.shape[1])
        if picks is None:
            _product(query.flatten(0, 1), bank, out=scores.flatten(0, 1))
        elif _whole(bank, picks, query.shape[1]):
            for sets in _parts(len(query), query.shape[1] * len(bank), _costs(bank).products):
                products = query.new_empty(*query[sets].shape[:2], len(bank))
                _product(query[sets].flatten(0, 1), bank, out=products.flatten(0, 1))
                torch.gather(products, -1, _each(picks[sets], query.shape[1]), out=scores[sets])
        else:
            for sets, some in _tiles(picks, bank):
                scores[sets, :, some] = query[sets] @ _rows(bank, picks[sets, some]).mT
        return scores

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        bank, picks = ctx.saved_tensors
        queries = gradient.shape[1]
        if picks is None:
            return (
                _mixture(gradient.flatten(0, 1), bank).unflatten(0, gradient.shape[:2]),
                None,
                None,
            )
        total = gradient.new_zeros(len(gradient), queries, bank.shape[1])
        if _whole(bank, picks, queries):
            for sets in _parts(len(gradient), queries * len(bank), _costs(bank).products):
                weights = gradient.new_zeros(len(picks[sets]), queries, len(bank))
                weights.scatter_add_(-1, _each(picks[sets], queries), gradient[sets])
                total[sets] = _mixture(weights.flatten(0, 1), bank).unflatten(0, (-1, queries))
        elif queries == 1 and bank.dtype == torch.float32:
            # A weighted sum of rows of which no copy is made, in less than half of the time.
            total = F.embedding_bag(
                picks, bank, per_sample_weights=gradient[:, 0], mode="sum"
            ).unsqueeze(1)
        else:
            for sets, some in _tiles(picks, bank):
                total[sets] += gradient[sets, :, some] @ _rows(bank, picks[sets, some])
        return total, None, None


def _whole(bank: Tensor, picks: Tensor, queries: int) -> bool:
    """True where products of `queries` with the whole bank cost less than gathering the picks."""
    return len(bank) <= picks.shape[1] * (1 + _costs(bank).gather / queries)


def _parts(count: int, numbers: int, budget: int) -> list[slice]:
    """Slices that cover `count` things of so many `numbers`, each slice within the budget or of one thing."""
    step = max(1, budget // numbers)
    return [slice(first, min(count, first + step)) for first in range(0, count, step)]


def _tiles(picks: Tensor, bank: Tensor) -> list[tuple[slice, slice]]:
    """Slices of sets and of candidates that cover `picks` [G,M], whose rows are within the budget."""
    (sets, candidates), dim, budget = picks.shape, bank.shape[1], _costs(bank).rows
    return [
        (some, part)
        for some in _parts(sets, candidates * dim, budget)
        for part in _parts(candidates, dim, budget)
    ]


def _rows(bank: Tensor, picks: Tensor) -> Tensor:
    """picks [G,M] → float32 [G,M,D]. `index_select` is three times as fast as indexing on a CPU."""
    return bank.index_select(0, picks.flatten()).float().unflatten(0, picks.shape)


def _each(picks: Tensor, queries: int) -> Tensor:
    """[G,M] → int64 [G,S,M]."""
    return picks.long().unsqueeze(1).expand(-1, queries, -1)


def _product(query: Tensor, bank: Tensor, out: Tensor) -> None:
    """query [R,D] · bankᵀ → `out` float32 [R,n], a part of the bank at a time, for it may have to be widened to float32."""
    for part in _parts(len(bank), bank.shape[1], _costs(bank).rows):
        torch.mm(query, bank[part].float().T, out=out[:, part])


def _mixture(weights: Tensor, bank: Tensor) -> Tensor:
    """weights [R,n] · bank → float32 [R,D]."""
    total = weights.new_zeros(len(weights), bank.shape[1])
    for part in _parts(len(bank), bank.shape[1], _costs(bank).rows):
        total.addmm_(weights[:, part], bank[part].float())
    return total


class BankNegatives(Negatives):
    """Rows of a bank [n,D]: all of them (`picks` None), or `picks` [T,B,M] of each term and image, [1,B,M] of each image, or [M] shared
    by the batch.

    `own` [B] are the images' own rows, which count as -inf among shared candidates and are left out of `picks` of each image by who
    drew them; None where they may stand among the candidates. `blocks` says of which rows `bank` is this process's part; None: of all.
    """

    def __init__(
        self, bank: Tensor, picks: Tensor | None, own: Tensor | None, blocks: "Blocks | None" = None
    ) -> None:
        self.bank, self.picks, self.own, self.blocks = bank, picks, own, blocks
        rows = len(bank) if blocks is None else blocks.count
        self.count = rows - (own is not None) if picks is None else picks.shape[-1]

    def similarity(self, query: Tensor) -> Tensor:
        """[T,B,D] or [B,D] unit-norm queries → float32 [T,B,M] or [B,M]."""
        with torch.autocast(query.device.type, enabled=False):
            query = query.float()
            if self.picks is not None and self.picks.dim() == 3:
                return self._of_each_image(query.view(-1, *query.shape[-2:]), self.picks).view(
                    *query.shape[:-1], -1
                )
            picks = None if self.picks is None else self.picks.unsqueeze(0)
            scores = self._scores(query.reshape(1, -1, query.shape[-1]), picks).reshape(
                *query.shape[:-1], -1
            )
            if self.own is None:
                return scores
            if self.picks is None:
                return scores.scatter_(
                    -1, self.own.unsqueeze(-1).expand(*query.shape[:-1], 1), -math.inf
                )
            return scores.masked_fill_(self.picks == self.own.unsqueeze(1), -math.inf)

    def _of_each_image(self, query: Tensor, picks: Tensor) -> Tensor:
        """query [T,B,D], picks [T,B,M] or [1,B,M] → [T,B,M]: terms that share candidates are one set's queries."""
        picks = picks[: len(query)].transpose(0, 1)
        sets = query.unflatten(0, (picks.shape[1], -1)).permute(2, 0, 1, 3)
        scores = self._scores(sets.flatten(0, 1), picks.flatten(0, 1))
        return scores.unflatten(0, picks.shape[:2]).permute(1, 2, 0, 3).flatten(0, 1)

    def _scores(self, query: Tensor, picks: Tensor | None) -> Tensor:
        """query [G,S,D], picks [G,M] → [G,S,M]; where the bank is spread, computed by those who hold the rows."""
        if self.blocks is None:
            return _Scores.apply(query, self.bank, picks)
        queries = distributed.gather_with_gradient(query)
        if picks is None:
            scores = _Scores.apply(
                queries.reshape(1, -1, query.shape[-1]), self.bank, None
            ).unflatten(1, (-1, query.shape[1]))
            scores = F.pad(scores[0], (0, self.blocks.size - len(self.bank)))
            return (
                distributed.exchange(scores)
                .transpose(0, 1)
                .flatten(1)[None, :, : self.blocks.count]
            )
        asked, place = self.blocks.route(picks)
        answers = distributed.exchange(_Scores.apply(queries, self.bank, asked)).unflatten(
            0, (-1, len(query))
        )
        return answers.permute(1, 2, 0, 3).flatten(2).gather(-1, _each(place, query.shape[1]))


class Blocks:
    """`count` rows in blocks of `size`, one for each process in the order of ranks: this one holds `first` … `last`-1."""

    def __init__(self, count: int) -> None:
        self.count, self.size = count, -(-count // distributed.world())
        self.first = distributed.rank() * self.size
        self.last = min(count, self.first + self.size)

    def route(self, picks: Tensor) -> tuple[Tensor, Tensor]:
        """picks [G,M] of this process → what all processes ask of its own block, int32 [world·G,W], and the place of each of `picks` in
        [G,world·W], the answers of all blocks side by side. W is the most that one set asks of one block; the rest asks for row 0."""
        world, owner = distributed.world(), picks // self.size
        order = owner.argsort(dim=-1, stable=True)
        counts = owner.new_zeros(len(picks), world).scatter_add_(1, owner, torch.ones_like(owner))
        width = distributed.largest(counts.max())
        slot = torch.empty_like(owner).scatter_(
            1, order, torch.arange(picks.shape[1], device=picks.device).expand_as(order)
        )
        place = slot - (counts.cumsum(1) - counts).gather(1, owner) + owner * width
        asked = torch.zeros(len(picks), world * width, dtype=torch.int32, device=picks.device)
        asked.scatter_(1, place, (picks - owner * self.size).int())
        return distributed.exchange(
            asked.unflatten(1, (world, width)).transpose(0, 1).flatten(0, 1)
        ), place


class MemoryBank(NegativeSampler):
    """One unit-norm vector per image, moving towards the image's newest embedding (Wu et al. 2018, arXiv:1805.01978;
    PIRL, arXiv:1912.01991).

    Rows begin as random unit vectors, or with `init: forward` as the embeddings that the untrained network gives in a first pass
    over all images. A written row is normalize(momentum · row + (1 - momentum) · embedding). `negatives` are drawn uniformly with
    replacement from the rows of the *other* images; `all` takes every other row, for sets small enough. `draws` says for whom one
    set of negatives is drawn: each image and term of the loss (the official code), each image, or the whole batch.
    `exclude_own: false` lets an image's own row be drawn, as the official code does.

    For large sets: `dtype` keeps rows in half precision (products, means and norms are float32 still), `shards: auto` spreads them
    evenly over the processes, with the same results: each holds a block of rows, writes these alone, and compares with them the
    queries of all.
    """

    recalls = True

    def __init__(
        self,
        dim: int,
        num_images: int,
        /,
        *,
        negatives: PositiveInt | Literal["all"] = 4096,
        momentum: Fraction = 0.5,
        init: Literal["random", "forward"] = "random",
        draws: Literal["term", "image", "batch"] = "term",
        exclude_own: bool = True,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        shards: Literal["none", "auto"] = "none",
    ) -> None:
        super().__init__()
        if num_images < 2:
            raise RecipeError(
                Fault(
                    "sampler",
                    f"a memory bank needs at least 2 images, the data set has {num_images}",
                )
            )
        self.negatives, self.momentum, self.draws, self.exclude_own = (
            negatives,
            momentum,
            draws,
            exclude_own,
        )
        self.needs_fill = init == "forward"
        self.candidates = num_images - exclude_own if negatives == "all" else negatives
        self.rows, self.shards, blocks = num_images, shards, Blocks(num_images)
        self.blocks = blocks if shards == "auto" and distributed.world() > 1 else None
        first, last = (0, num_images) if self.blocks is None else (blocks.first, blocks.last)
        if first >= last:
            raise RecipeError(
                Fault(
                    "sampler.shards",
                    f"{num_images} images are too few to spread over {distributed.world()} processes; set it to none",
                )
            )
        self.bank: Tensor
        self.register_buffer("bank", torch.empty(last - first, dim, dtype=getattr(torch, dtype)))
        for block in range(first // BLOCK, -(-last // BLOCK)) if not self.bank.is_meta else ():
            source = torch.Generator().manual_seed(Draws(torch.initial_seed(), block).seed)
            drawn = F.normalize(torch.rand(BLOCK, dim, generator=source) * 2 - 1)
            begin, end = max(first, block * BLOCK), min(last, (block + 1) * BLOCK)
            self.bank[begin - first : end - first] = drawn[
                begin - block * BLOCK : end - block * BLOCK
            ]

    def shard(self) -> dict[str, tuple[int, int, int]]:
        """Of `bank`, this process's block of rows with `shards: auto`."""
        first = 0 if self.blocks is None else self.blocks.first
        return {} if self.shards == "none" else {"bank": (first, first + len(self.bank), self.rows)}

    def draw(self, index: Tensor, draws: Draws, terms: int = 1) -> Negatives:
        """index int64 [B] → the negatives of these images, drawn anew; the bank is only read."""
        own = index if self.exclude_own else None
        picks = None
        if self.negatives != "all" and self.draws == "batch":
            picks = draws.shared_integers(self.negatives, high=self.rows, device=index.device)
        elif self.negatives != "all":
            sets, high = terms if self.draws == "term" else 1, self.rows - self.exclude_own
            picks = draws.integers(
                len(index), sets, self.negatives, high=high, device=index.device
            ).transpose(0, 1)
            if self.exclude_own:
                picks += picks >= index.view(1, -1, 1)
        return BankNegatives(self.bank, picks, own, self.blocks)

    def recall(self, index: Tensor) -> Tensor:
        """index int64 [B] → float32 [B,D] unit-norm rows."""
        if self.blocks is None:
            return self.bank[index].float()
        asked, place = self.blocks.route(index.unsqueeze(0))
        return distributed.exchange(self.bank[asked]).flatten(0, 1)[place[0]].float()

    @torch.no_grad()
    def update(self, index: Tensor, keys: Tensor) -> None:
        """Move the rows `index` [B], each named once, towards `keys` [B,D]."""
        index, keys = self._held(index, keys)
        self._write(
            index,
            self.momentum * self.bank[index].float()
            + (1 - self.momentum) * F.normalize(keys.float(), dim=-1),
        )

    @torch.no_grad()
    def fill(self, index: Tensor, keys: Tensor) -> None:
        """Set the rows `index` [B] to `keys` [B,D]."""
        index, keys = self._held(index, keys)
        self._write(index, keys.float())

    def _held(self, index: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Those of `index` and `keys` whose rows are here, counted from the first row of `bank`."""
        if self.blocks is None:
            return index, keys
        here = (index >= self.blocks.first) & (index < self.blocks.last)
        return index[here] - self.blocks.first, keys[here]

    def _write(self, index: Tensor, rows: Tensor) -> None:
        self.bank.index_copy_(0, index, F.normalize(rows, dim=-1).to(self.bank.dtype))


class KeyNegatives(Negatives):
    """Vectors [M,D] that every query is compared with.

    `own` bool [N,M] marks those of the query's own image, which give -inf; None marks none.
    """

    def __init__(self, vectors: Tensor, own: Tensor | None = None, *, count: int | None = None):
        self.vectors, self.own = vectors, own
        self.count = len(vectors) if count is None else count

    def similarity(self, query: Tensor) -> Tensor:
        """[T,N,D] or [N,D] unit-norm queries → float32 [T,N,M] or [N,M]."""
        with torch.autocast(query.device.type, enabled=False):
            scores = query.float() @ self.vectors.float().T
        return scores if self.own is None else scores.masked_fill(self.own, -math.inf)


def in_batch(rows: Tensor, copies: int = 2) -> KeyNegatives:
    """Take the rows of all other images of the global batch as negatives.

    `rows` [B·copies,D] of unit norm are image-major: `copies` rows of one image stand together.
    Every row of another image, on any rank, is a negative of each query, 2B-2 for two copies.
    """
    every = distributed.gather_with_gradient(rows)
    images = torch.arange(len(every), device=rows.device) // copies
    first = distributed.rank() * len(rows)
    own = images[first : first + len(rows)].unsqueeze(1) == images
    return KeyNegatives(every, own, count=len(every) - copies)
