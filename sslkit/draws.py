"""Random numbers as pure functions of a key: nothing about randomness is ever saved."""

from collections.abc import Callable
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor


class Draws:
    """The random numbers of one step: a pure function of a key such as (seed, step), one row per image of the *global* batch.

    A rank makes only the rows of its own images, in whole blocks of BLOCK rows, each from a generator of its own: so one process and
    eight draw the same numbers for the same image, and nobody draws for the others. Nothing is remembered between steps, hence
    nothing about randomness needs to be saved. With gradient accumulation each part of a rank's batch counts as a rank.
    """

    BLOCK: ClassVar[int] = 16

    def __init__(self, *key: int, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world = rank, world
        self._key, self._calls = key, 0
        self.seed = _seed(*key)

    def _rows(
        self, rows: int, make: Callable[[int, torch.Generator], Tensor], device: torch.device | str
    ) -> Tensor:
        """The `rows` rows of this rank, cut from the blocks that hold them."""
        self._calls += 1
        generator = torch.Generator(device=device)
        first, last = self.rank * rows, (self.rank + 1) * rows
        blocks = range(first // self.BLOCK, -(-last // self.BLOCK))
        made = [
            make(self.BLOCK, generator.manual_seed(_seed(self.seed, self._calls, block)))
            for block in blocks
        ]
        return torch.cat(made)[first - blocks.start * self.BLOCK :][:rows]

    def uniform(
        self,
        rows: int,
        *shape: int,
        low: float = 0.0,
        high: float = 1.0,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """float32 [rows, *shape], uniform in [low, high); `rows` counts this rank's images."""
        drawn = self._rows(
            rows,
            lambda count, source: torch.rand(count, *shape, generator=source, device=device),
            device,
        )
        return drawn * (high - low) + low

    def integers(
        self, rows: int, *shape: int, high: int, device: torch.device | str = "cpu"
    ) -> Tensor:
        """int64 [rows, *shape], uniform in 0 … high-1; `rows` counts this rank's images."""
        return self._rows(
            rows,
            lambda count, source: torch.randint(
                high, (count, *shape), generator=source, device=device
            ),
            device,
        )

    def shared_integers(self, *shape: int, high: int, device: torch.device | str = "cpu") -> Tensor:
        """int64 [*shape], uniform in 0 … high-1, the same on every rank."""
        self._calls += 1
        source = torch.Generator(device=device).manual_seed(_seed(self.seed, self._calls))
        return torch.randint(high, shape, generator=source, device=device)


def _seed(*key: int) -> int:
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))
