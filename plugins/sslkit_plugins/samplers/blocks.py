"""Assigns the rows of a bank to ranks."""

import torch
from torch import Tensor

from sslkit import distributed


class Blocks:
    """`count` rows in blocks of `size`, one per rank; this rank stores `first` … `last`-1.

    Letters: G sets of M picks; W is the largest number of picks of one set in one block.
    """

    def __init__(self, count: int) -> None:
        self.count, self.size = count, -(-count // distributed.world())
        self.first = distributed.rank() * self.size
        self.last = min(count, self.first + self.size)

    def route(self, picks: Tensor) -> tuple[Tensor, Tensor]:
        """Send the picks [G,M] of every rank to the ranks that store their rows.

        Returns the rows that all ranks request from this rank's block, int32 [world·G,W]. Also
        returns the index of each of this rank's picks in the concatenated replies of all blocks,
        int64 [G,M] within [G,world·W]. Padding requests row 0.
        """
        world, owner = distributed.world(), picks // self.size
        order = owner.argsort(dim=-1, stable=True)
        counts = owner.new_zeros(len(picks), world).scatter_add_(1, owner, torch.ones_like(owner))
        width = distributed.largest(counts.max())
        ranked = torch.arange(picks.shape[1], device=picks.device).expand_as(order)
        slot = torch.empty_like(owner).scatter_(1, order, ranked)
        place = slot - (counts.cumsum(1) - counts).gather(1, owner) + owner * width
        requested = torch.zeros(len(picks), world * width, dtype=torch.int32, device=picks.device)
        requested.scatter_(1, place, (picks - owner * self.size).int())
        by_rank = requested.unflatten(1, (world, width)).transpose(0, 1).flatten(0, 1)
        return distributed.exchange(by_rank), place
