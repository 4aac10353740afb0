"""An encoder and a head that change nothing, so that a test chooses the features of every crop."""

import torch
from torch import Tensor, nn

from sslkit import distributed
from sslkit.interfaces import Batch, Draws, Encoder, Head, Parts, Progress
from sslkit_plugins.losses import InfoNCE
from sslkit_plugins.samplers import Queue


class Bare(Encoder):
    """The pixels of an image as its features."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        return {"pixels": images}


class Same(Head):
    """The features themselves, times a weight of 1."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.out_dim = dim
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, features: Tensor) -> Tensor:
        return features * self.scale


class Layer(Head):
    """A linear layer in float64, with fixed weights."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.out_dim = dim
        self.layer = nn.Linear(dim, dim, bias=False).double()
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            self.layer.weight.copy_(torch.randn(dim, dim, generator=generator))

    def forward(self, features: Tensor) -> Tensor:
        return self.layer(features)


def bare(cls, dim, *heads, temperature=0.1, keys=None, loss=None, **options):
    """Make a method in float64 on bare features. `keys` [K,D] fill a queue for the first head."""
    made = {}
    for head in heads or ("projector",):
        name, layer = head if isinstance(head, tuple) else (head, Same(dim))
        made[name] = layer
    samplers = {}
    if keys is not None:
        queue = Queue(dim, 100, size=len(keys)).double()
        queue.keys.copy_(keys)
        samplers[next(iter(made))] = queue
    parts = Parts(Bare(dim), made, samplers, loss or InfoNCE(temperature=temperature), 100)
    return cls(parts, **options).double()


def crops(*views, index=None):
    """A batch of features [B,D], one tensor for each crop, as crops of the view `global`."""
    stacked = torch.stack(views, 1)[..., None, None]
    index = torch.arange(len(stacked)) if index is None else index
    return Batch({"global": stacked}, {}, index)


def progress(step=0, steps=10):
    return Progress(step, steps, 0, 1, Draws(3))


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def mean_gradients(method, batch):
    """The gradients that the ranks apply, each with an equal part of the batch."""
    rows = len(batch.index) // distributed.world()
    own = slice(distributed.rank() * rows, (distributed.rank() + 1) * rows)
    views = {name: view[own] for name, view in batch.views.items()}
    method(Batch(views, {}, batch.index[own]), progress()).loss.backward()
    weights = [value for value in method.parameters() if value.requires_grad]
    return [distributed.mean(value.grad) for value in weights]
