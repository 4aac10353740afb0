"""Negatives and their samplers."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from sslkit.draws import Draws


class Negatives(ABC):
    """Candidates other than the query's own image, and their comparison with queries."""

    count: int
    """Candidates per query."""

    @abstractmethod
    def similarity(self, query: Tensor) -> Tensor:
        """[T,B,D] or [B,D] unit-norm queries → float32 [T,B,M] or [B,M] cosines.

        The similarity with the query's own image is -inf.
        """


class NegativeSampler(nn.Module, ABC):
    """A source of negatives. `draw` does not change it; all state is in persistent buffers."""

    recalls: ClassVar[bool] = False
    """True if the sampler stores a vector per image, which `recall` returns."""
    roles: ClassVar[tuple[str, ...] | None] = None
    """Roles in `Method.needs` that the sampler has; None: not stated, so any is accepted."""
    needs_fill: bool = False
    """True: methods that store images call `fill` with all images before step 0."""
    candidates: int
    """Negatives per query once the memory is full."""
    notes: tuple[str, ...] = ()
    """Sentences that training prints at the start."""

    @abstractmethod
    def draw(self, index: Tensor, draws: Draws, terms: int = 1) -> Negatives:
        """Return the negatives of the images `index`, int64 [B], for a loss of `terms` terms."""

    def recall(self, index: Tensor) -> Tensor:
        """Return the stored unit-norm vectors [B,D] of the images `index`, int64 [B]."""
        raise NotImplementedError(f"{type(self).__name__} stores no images")

    def update(self, index: Tensor, keys: Tensor) -> None:
        """Store keys [B,D] of the images `index` [B], the same of all ranks on every rank."""

    def fill(self, index: Tensor, keys: Tensor) -> None:
        """Initialise the stored vectors before step 0; arguments are those of `update`."""

    def shard(self) -> dict[str, tuple[int, int, int]]:
        """Return the sharded buffers: name → (first, last, count).

        This rank stores rows first … last-1 of count. Empty if every rank stores all rows.
        """
        return {}
