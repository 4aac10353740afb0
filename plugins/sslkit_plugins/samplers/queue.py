"""Queue of the latest keys. Letters: T terms, B images, K keys, D features."""

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from sslkit.errors import Fault, RecipeError
from sslkit.interfaces import Draws, NegativeSampler
from sslkit_plugins.samplers.in_batch import KeyNegatives


class Queue(NegativeSampler):
    """The K latest keys of all ranks, which are the negatives of every query.

    MoCo (He et al. 2020, arXiv:1911.05722, section 3.1); NNCLR (Dwibedi et al. 2021,
    arXiv:2104.14548) searches it for neighbours. Before it is full it holds random unit vectors, as
    in MoCo's code. Any batch size fits: the keys wrap around.
    """

    roles = ("queue",)

    def __init__(
        self,
        dim: int,
        num_images: int,
        /,
        *,
        size: Annotated[
            int,
            Field(
                ge=1,
                description="Number of keys K. MoCo: 65,536; NNCLR: 98,304; for CIFAR 4,096.",
            ),
        ] = 65536,
        exclude_own: Annotated[
            bool,
            Field(
                description="Never compare an image with its own earlier keys, which the queue "
                "holds if it is longer than an epoch. MoCo, NNCLR: false."
            ),
        ] = True,
    ) -> None:
        super().__init__()
        self.candidates, self.exclude_own = size, exclude_own
        self.keys: Tensor
        self.images: Tensor
        self.position: Tensor
        self.register_buffer("keys", F.normalize(torch.randn(size, dim), dim=-1))
        self.register_buffer("images", torch.full((size,), -1))
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))

    def draw(self, index: Tensor, draws: Draws, terms: int = 1) -> KeyNegatives:
        """Return all keys as negatives of the images `index`, int64 [B]."""
        own = self.images == index.unsqueeze(1) if self.exclude_own else None
        return KeyNegatives(self.keys, own)

    def nearest(self, rows: Tensor, index: Tensor) -> Tensor:
        """Return the key [B,D] with the largest cosine to each of `rows` [B,D], without gradient.

        The rows are those of the images `index`, int64 [B]. NNCLR, section 3.2.
        """
        with torch.no_grad(), torch.autocast(rows.device.type, enabled=False):
            unit = F.normalize(rows.to(self.keys.dtype), dim=-1)
            scores = unit @ self.keys.T
            if self.exclude_own:
                scores = scores.masked_fill(self.images == index.unsqueeze(1), -math.inf)
            return self.keys[scores.argmax(-1)]

    @torch.no_grad()
    def update(self, index: Tensor, keys: Tensor) -> None:
        """Replace the oldest keys by the normalised `keys` [B,D] of the images `index` [B]."""
        size = len(self.keys)
        index, keys = index[-size:], keys[-size:]
        places = (self.position + torch.arange(len(keys), device=keys.device)) % size
        self.keys.index_copy_(0, places, F.normalize(keys.to(self.keys.dtype), dim=-1))
        self.images.index_copy_(0, places, index)
        self.position.copy_((self.position + len(keys)) % size)


def as_queue(sampler: NegativeSampler, method: str) -> Queue:
    """Return the sampler of a method. Raises RecipeError if it is not a queue."""
    if not isinstance(sampler, Queue):
        message = f"method '{method}' stores keys in a queue; use: sampler: {{use: queue}}"
        raise RecipeError(Fault("sampler", message))
    return sampler
