"""Where negatives come from. Letters: T terms, B images, M negatives, D features, n images of the data set."""

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from sslkit.errors import Fault, RecipeError
from sslkit.interfaces import Draws, Negatives, NegativeSampler

Fraction = Annotated[float, Field(ge=0, le=1)]

CHUNK = 2**24
"""Numbers that one chunk of gathered bank rows may hold (64 MiB of float32)."""


class _Gathered(torch.autograd.Function):
    """query [R,D] · bank[picks [R,M]] → [R,M], a few rows at a time, and again in the backward pass: R×M×D is never held."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, bank: Tensor, picks: Tensor) -> Tensor:
        ctx.save_for_backward(bank, picks)
        rows = max(1, CHUNK // (picks.shape[1] * bank.shape[1]))
        return torch.cat(
            [torch.bmm(bank[p], q.unsqueeze(2)).squeeze(2) for q, p in zip(query.split(rows), picks.split(rows), strict=True)]
        )

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        bank, picks = ctx.saved_tensors
        rows = max(1, CHUNK // (picks.shape[1] * bank.shape[1]))
        parts = zip(gradient.split(rows), picks.split(rows), strict=True)
        return torch.cat([torch.bmm(g.unsqueeze(1), bank[p]).squeeze(1) for g, p in parts]), None, None


class BankNegatives(Negatives):
    """Rows of a bank [n,D]: all of them (`picks` None), or `picks` [T,B,M] of each term and image, or [M] shared by the batch.

    `own` [B] are the images' own rows, which count as -inf among shared candidates and are left out of `picks` of each image by who
    drew them; None where they may stand among the candidates.
    """

    def __init__(self, bank: Tensor, picks: Tensor | None, own: Tensor | None) -> None:
        self.bank, self.picks, self.own = bank, picks, own
        self.count = len(bank) - (own is not None) if picks is None else picks.shape[-1]

    def similarity(self, query: Tensor) -> Tensor:
        """[T,B,D] or [B,D] unit-norm queries → float32 [T,B,M] or [B,M]."""
        with torch.autocast(query.device.type, enabled=False):
            query = query.float()
            if self.picks is None:
                scores = query @ self.bank.T
                return (
                    scores
                    if self.own is None
                    else scores.scatter(-1, self.own.unsqueeze(-1).expand(*query.shape[:-1], 1), -math.inf)
                )
            if self.picks.dim() == 1:
                scores = query @ self.bank[self.picks].T
                return scores if self.own is None else scores.masked_fill(self.picks == self.own.unsqueeze(1), -math.inf)
            return self._picked(query)

    def _picked(self, query: Tensor) -> Tensor:
        assert self.picks is not None
        picks = self.picks if query.dim() == 3 else self.picks[0]
        if len(self.bank) <= 16 * picks.shape[-1]:
            return (query @ self.bank.T).gather(-1, picks)
        flat = _Gathered.apply(query.flatten(0, -2), self.bank, picks.flatten(0, -2))
        return flat.unflatten(0, query.shape[:-1])


class MemoryBank(NegativeSampler):
    """One unit-norm vector per image, moving towards the image's newest embedding (Wu et al. 2018, arXiv:1805.01978;
    PIRL, arXiv:1912.01991).

    Rows begin as random unit vectors, or with `init: forward` as the embeddings that the untrained network gives in a first pass
    over all images. A written row is normalize(momentum · row + (1 - momentum) · embedding). `negatives` are drawn uniformly with
    replacement from the rows of the *other* images; `all` takes every other row, for sets small enough. `draws` says for whom one
    set of negatives is drawn: each image and term of the loss (the official code), each image, or the whole batch.
    `exclude_own: false` lets an image's own row be drawn, as the official code does.
    """

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
    ) -> None:
        super().__init__()
        if num_images < 2:
            raise RecipeError(Fault("sampler", f"a memory bank needs at least 2 images, the data set has {num_images}"))
        self.negatives, self.momentum, self.draws, self.exclude_own = negatives, momentum, draws, exclude_own
        self.needs_fill = init == "forward"
        self.bank: Tensor
        self.register_buffer("bank", F.normalize(torch.rand(num_images, dim) * 2 - 1))

    def draw(self, index: Tensor, draws: Draws, terms: int = 1) -> Negatives:
        """index int64 [B] → the negatives of these images, drawn anew; the bank is only read."""
        rows, own = len(self.bank), index if self.exclude_own else None
        if self.negatives == "all":
            return BankNegatives(self.bank, None, own)
        if self.draws == "batch":
            return BankNegatives(self.bank, draws.shared_integers(self.negatives, high=rows, device=index.device), own)
        sets = terms if self.draws == "term" else 1
        picks = draws.integers(len(index), sets, self.negatives, high=rows - self.exclude_own, device=index.device).transpose(0, 1)
        if self.exclude_own:
            picks = picks + (picks >= index.view(1, -1, 1))
        return BankNegatives(self.bank, picks.expand(terms, -1, -1), own)

    def recall(self, index: Tensor) -> Tensor:
        """index int64 [B] → [B,D] unit-norm rows."""
        return self.bank[index]

    @torch.no_grad()
    def update(self, index: Tensor, keys: Tensor) -> None:
        """Move the rows `index` [B], each named once, towards `keys` [B,D]."""
        mixed = self.momentum * self.bank[index] + (1 - self.momentum) * F.normalize(keys.float(), dim=-1)
        self.bank.index_copy_(0, index, F.normalize(mixed, dim=-1))

    @torch.no_grad()
    def fill(self, index: Tensor, keys: Tensor) -> None:
        """Set the rows `index` [B] to `keys` [B,D]."""
        self.bank.index_copy_(0, index, F.normalize(keys.float(), dim=-1))
