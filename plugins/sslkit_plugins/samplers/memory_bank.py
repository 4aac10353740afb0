"""Memory bank with one row per image.

Letters: T terms, B images, M negatives, D features, n images.
"""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from sslkit import distributed
from sslkit.errors import Fault, RecipeError
from sslkit.interfaces import Draws, Negatives, NegativeSampler
from sslkit_plugins.samplers.bank_negatives import BankNegatives
from sslkit_plugins.samplers.blocks import Blocks

BLOCK = 2**12
"""Rows of a new bank that one random generator initialises."""

Count = Annotated[int, Field(ge=1)]


def _check_momentum(momentum: float, dtype: str) -> None:
    """Raise RecipeError for a momentum at which rounding discards updates of this dtype.

    Rounding errors are up to eps/2, so rows stop at a relative distance of eps/2 / (1 - momentum)
    from fixed embeddings. At a distance of 1/2 they reach a cosine of 0.97 (float16, momentum
    0.999).
    """
    limit = torch.finfo(getattr(torch, dtype)).eps
    if not 0 < 1 - momentum < limit:
        return
    wider = [
        name
        for name in ("float16", "float32")
        if 1 - momentum >= torch.finfo(getattr(torch, name)).eps
    ]
    remedies = [f"use at most {math.floor(1000 * (1 - limit)) / 1000}"]
    remedies += [f"set dtype: {name}" for name in wider]
    message = f"at {momentum} rows of {dtype} hardly move, because rounding discards updates"
    raise RecipeError(Fault("sampler.momentum", f"{message}; {', or '.join(remedies)}"))


class MemoryBank(NegativeSampler):
    """One unit-norm vector per image, a moving average of the image's embeddings.

    Wu et al. 2018, arXiv:1805.01978, section 3; PIRL: arXiv:1912.01991. An update sets a row to
    normalize(momentum · row + (1 - momentum) · embedding). For large data sets, `dtype` stores rows
    in half precision; products, means and norms are float32. `shards: auto` gives each rank a block
    of rows, with the same results up to rounding.
    """

    roles = ()
    recalls = True

    def __init__(
        self,
        dim: int,
        num_images: int,
        /,
        *,
        negatives: Annotated[
            Count | Literal["all"],
            Field(
                description="Negatives per query, drawn uniformly with replacement from the rows "
                "of other images. NPID: 4,096; PIRL: 32,000. all: every other row, "
                "for small data sets."
            ),
        ] = 4096,
        momentum: Annotated[
            float,
            Field(ge=0, le=1, description="Weight of the old row in an update. NPID, PIRL: 0.5."),
        ] = 0.5,
        init: Annotated[
            Literal["random", "forward"],
            Field(
                description="Initial rows. random: unit vectors. forward: embeddings of the "
                "untrained network, from a pass over all images."
            ),
        ] = "random",
        draws: Annotated[
            Literal["term", "image", "batch"],
            Field(
                description="Which draws of negatives are separate. term: each image and term of "
                "the loss (the official code). image: each image. batch: one draw for "
                "the batch."
            ),
        ] = "term",
        exclude_own: Annotated[
            bool,
            Field(
                description="Never draw an image's own row. false: it may be drawn, as in the "
                "official code."
            ),
        ] = True,
        dtype: Annotated[
            Literal["float32", "bfloat16", "float16"],
            Field(
                description="Number format of the rows. Half precision halves the memory, and "
                "needs a momentum of at most 0.992 (bfloat16) or 0.999 (float16)."
            ),
        ] = "float32",
        shards: Annotated[
            Literal["none", "auto"],
            Field(
                description="Distribution of the rows over ranks. auto: each rank holds a block. "
                "none: each rank holds all rows."
            ),
        ] = "none",
    ) -> None:
        super().__init__()
        if num_images < 2:
            message = (
                f"a memory bank needs at least 2 images, but the data set has {num_images}; name a "
                "larger one: --data PATH"
            )
            raise RecipeError(Fault("sampler", message))
        _check_momentum(momentum, dtype)
        self.negatives, self.momentum = negatives, momentum
        self.draws, self.exclude_own = draws, exclude_own
        self.needs_fill = init == "forward"
        self.candidates = num_images - exclude_own if negatives == "all" else negatives
        self.rows, self.shards, blocks = num_images, shards, Blocks(num_images)
        self.blocks = blocks if shards == "auto" and distributed.world() > 1 else None
        first, last = (0, num_images) if self.blocks is None else (blocks.first, blocks.last)
        if first >= last:
            message = (
                f"{num_images} images are too few for {distributed.world()} ranks; set it to none"
            )
            raise RecipeError(Fault("sampler.shards", message))
        self.bank: Tensor
        self.register_buffer("bank", torch.empty(last - first, dim, dtype=getattr(torch, dtype)))
        if not self.bank.is_meta:
            self._randomise(first, last)

    def _randomise(self, first: int, last: int) -> None:
        """Set rows first … last-1 to random unit vectors that do not depend on the sharding."""
        for block in range(first // BLOCK, -(-last // BLOCK)):
            source = torch.Generator().manual_seed(Draws(torch.initial_seed(), block).seed)
            drawn = torch.rand(BLOCK, self.bank.shape[1], generator=source)
            drawn = F.normalize(drawn * 2 - 1)
            begin, end = max(first, block * BLOCK), min(last, (block + 1) * BLOCK)
            rows = drawn[begin - block * BLOCK : end - block * BLOCK]
            self.bank[begin - first : end - first] = rows

    def shard(self) -> dict[str, tuple[int, int, int]]:
        """Return this rank's block of rows of `bank` with `shards: auto`."""
        if self.shards == "none":
            return {}
        first = 0 if self.blocks is None else self.blocks.first
        return {"bank": (first, first + len(self.bank), self.rows)}

    def draw(self, index: Tensor, draws: Draws, terms: int = 1) -> Negatives:
        """Draw negatives for the images `index`, int64 [B]; does not change the bank."""
        own = index if self.exclude_own else None
        return BankNegatives(self.bank, self._picks(index, draws, terms), own, self.blocks)

    def _picks(self, index: Tensor, draws: Draws, terms: int) -> Tensor | None:
        if self.negatives == "all":
            return None
        if self.draws == "batch":
            return draws.shared_integers(self.negatives, high=self.rows, device=index.device)
        sets, high = terms if self.draws == "term" else 1, self.rows - self.exclude_own
        shape = (sets, self.negatives)
        picks = draws.integers(len(index), *shape, high=high, device=index.device).transpose(0, 1)
        if self.exclude_own:
            picks += picks >= index.view(1, -1, 1)
        return picks

    def recall(self, index: Tensor) -> Tensor:
        """Return the rows of the images `index`, int64 [B]: float32 [B,D] of unit norm."""
        if self.blocks is None:
            return self.bank[index].float()
        requested, place = self.blocks.route(index.unsqueeze(0))
        return distributed.exchange(self.bank[requested]).flatten(0, 1)[place[0]].float()

    @torch.no_grad()
    def update(self, index: Tensor, keys: Tensor) -> None:
        """Move the rows `index` [B], all different, towards `keys` [B,D]."""
        index, keys = self._local(index, keys)
        old, new = self.bank[index].float(), F.normalize(keys.float(), dim=-1)
        self._write(index, self.momentum * old + (1 - self.momentum) * new)

    @torch.no_grad()
    def fill(self, index: Tensor, keys: Tensor) -> None:
        """Set the rows `index` [B] to `keys` [B,D], normalised."""
        index, keys = self._local(index, keys)
        self._write(index, keys.float())

    def _local(self, index: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Return `index` and `keys` of the rows on this rank, numbered from its first row."""
        if self.blocks is None:
            return index, keys
        here = (index >= self.blocks.first) & (index < self.blocks.last)
        return index[here] - self.blocks.first, keys[here]

    def _write(self, index: Tensor, rows: Tensor) -> None:
        self.bank.index_copy_(0, index, F.normalize(rows, dim=-1).to(self.bank.dtype))
