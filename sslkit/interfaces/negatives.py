"""Negatives and where they come from."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from sslkit.draws import Draws


class Negatives(ABC):
    """Candidates that are not the query's own image. The sampler chooses how to compare them."""

    count: int
    """Candidates per query."""

    @abstractmethod
    def similarity(self, query: Tensor) -> Tensor:
        """[T,B,D] or [B,D] unit-norm queries → float32 [T,B,M] or [B,M] cosines.

        A candidate that is the query's own image gives -inf.
        """


class NegativeSampler(nn.Module, ABC):
    """Where negatives come from. `draw` never updates; all state is a persistent buffer."""

    recalls: ClassVar[bool] = False
    """True where `recall` works: the sampler remembers a vector of each image."""
    needs_fill: bool = False
    """True: a method that stores images fills it with a pass over all of them before step 0."""
    candidates: int
    """Negatives that one query of a full memory is compared with."""

    @abstractmethod
    def draw(self, index: Tensor, draws: Draws, terms: int = 1) -> Negatives:
        """index int64 [B] → the negatives of these images, for a loss of `terms` terms."""

    def recall(self, index: Tensor) -> Tensor:
        """index int64 [B] → [B,D] unit-norm memory of these images."""
        raise NotImplementedError(f"{type(self).__name__} remembers no image")

    def update(self, index: Tensor, keys: Tensor) -> None:
        """Store keys [B,D] of images `index` [B]: those of all ranks, in the same order on each."""

    def fill(self, index: Tensor, keys: Tensor) -> None:
        """Like `update`, before step 0: the keys replace what is stored."""

    def shard(self) -> dict[str, tuple[int, int, int]]:
        """Return the buffers of which this rank holds only rows: name → (first, last, count).

        The rank holds rows first … last-1 of count. Empty where every rank holds all rows.
        """
        return {}
