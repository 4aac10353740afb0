"""Random numbers as pure functions of a key, so no random state is saved."""

from collections.abc import Callable
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor


class Draws:
    """Random numbers of one step, a pure function of a key such as (seed, step).

    There is one row per image of the global batch. A rank generates only the rows of its images, in
    blocks of BLOCK rows with one generator each. So the numbers of an image do not depend on the
    number of ranks. Draws have no state between steps, so checkpoints store no random state. Each
    micro-batch of a rank counts as a rank.
    """

    BLOCK: ClassVar[int] = 16
    """Rows per generator."""

    def __init__(self, *key: int, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world = rank, world
        self._key, self._calls = key, 0
        self.seed = _seed(*key)

    def _rows(
        self, rows: int, make: Callable[[int, torch.Generator], Tensor], device: torch.device | str
    ) -> Tensor:
        """Return the rows of this rank, sliced from their blocks."""
        self._calls += 1
        generator = torch.Generator(device=device)
        first, last = self.rank * rows, (self.rank + 1) * rows
        blocks = range(first // self.BLOCK, -(-last // self.BLOCK))
        made = []
        for block in blocks:
            generator.manual_seed(_seed(self.seed, self._calls, block))
            made.append(make(self.BLOCK, generator))
        return torch.cat(made)[first - blocks.start * self.BLOCK :][:rows]

    def uniform(
        self,
        rows: int,
        *shape: int,
        low: float = 0.0,
        high: float = 1.0,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Return float32 [rows, *shape] in [low, high); `rows` is this rank's number of images."""

        def make(count: int, source: torch.Generator) -> Tensor:
            return torch.rand(count, *shape, generator=source, device=device)

        return self._rows(rows, make, device) * (high - low) + low

    def integers(
        self, rows: int, *shape: int, high: int, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Return int64 [rows, *shape] in 0 … high-1; `rows` is this rank's number of images."""

        def make(count: int, source: torch.Generator) -> Tensor:
            return torch.randint(high, (count, *shape), generator=source, device=device)

        return self._rows(rows, make, device)

    def shared_integers(self, *shape: int, high: int, device: torch.device | str = "cpu") -> Tensor:
        """Return int64 [*shape] in 0 … high-1, the same on every rank."""
        self._calls += 1
        source = torch.Generator(device=device).manual_seed(_seed(self.seed, self._calls))
        return torch.randint(high, shape, generator=source, device=device)


def _seed(*key: int) -> int:
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))
