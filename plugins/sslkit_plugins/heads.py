"""Projection heads between encoder and loss, discarded after training.

Letter: K crops or patches.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from sslkit.interfaces import Head

OutDim = Annotated[
    PositiveInt | Literal["auto"],
    Field(
        description="Length of the output, usually 128. auto: the number of classes of "
        "the target that the head predicts."
    ),
]
BatchNorm = Annotated[
    bool,
    Field(
        description="Apply batch norm without scale and shift to the output. Learns sooner on "
        "small data sets. PIRL: false."
    ),
]
HiddenDim = Annotated[int, Field(ge=1, description="Width of the hidden layer. PIRL-MLP: 2048.")]


def resolved(out_dim: OutDim) -> int:
    """Return `out_dim` as an int; sslkit replaces `auto` before it builds a head."""
    assert out_dim != "auto", "sslkit resolves auto"
    return out_dim


def flat_batch_norm(norm: nn.BatchNorm1d | None, features: Tensor) -> Tensor:
    """Apply `norm` to [..., D] with statistics over all leading dimensions, if there is one."""
    if norm is None:
        return features
    return norm(features.flatten(0, -2)).unflatten(0, features.shape[:-1])


class Projection(nn.Linear):
    """A linear layer in float32, also under autocast.

    The last layer of a head. Losses divide cosines of its output by τ. Rounding to bfloat16 would
    change the gradients of nearly solved comparisons by about 1 %.
    """

    def forward(self, features: Tensor) -> Tensor:
        """[…,in_features] → float32 […,out_features]."""
        with torch.autocast(features.device.type, enabled=False):
            return super().forward(features.float())


class Linear(Head):
    """One linear layer (f of PIRL: Misra & van der Maaten 2020, arXiv:1912.01991)."""

    def __init__(
        self, in_dim: int, /, *, out_dim: OutDim = 128, batch_norm: BatchNorm = False
    ) -> None:
        super().__init__()
        self.out_dim = resolved(out_dim)
        self.project = Projection(in_dim, self.out_dim)
        self.norm = nn.BatchNorm1d(self.out_dim, affine=False) if batch_norm else None

    def forward(self, features: Tensor) -> Tensor:
        """[…,in_dim] → […,out_dim]."""
        return flat_batch_norm(self.norm, self.project(features))


class Mlp(Head):
    """Two linear layers with a ReLU between them.

    The image head of PIRL's MLP models (VISSL, `resnet50_mlphead.yaml`), and SimCLR's projection
    (Chen et al. 2020, arXiv:2002.05709, section 4.2).
    """

    def __init__(
        self,
        in_dim: int,
        /,
        *,
        hidden_dim: HiddenDim = 2048,
        out_dim: OutDim = 128,
        batch_norm: BatchNorm = False,
    ) -> None:
        super().__init__()
        self.out_dim = resolved(out_dim)
        self.project = nn.Sequential(
            nn.Linear(in_dim, hidden_dim),
            nn.ReLU(inplace=True),
            Projection(hidden_dim, self.out_dim),
        )
        self.norm = nn.BatchNorm1d(self.out_dim, affine=False) if batch_norm else None

    def forward(self, features: Tensor) -> Tensor:
        """[…,in_dim] → […,out_dim]."""
        return flat_batch_norm(self.norm, self.project(features))


class ConcatPatches(Head):
    """Project each patch, concatenate the projections in the given order, project again.

    g of PIRL (Misra & van der Maaten 2020, arXiv:1912.01991). All patches share one projection,
    which the image head does not use.
    """

    def __init__(
        self,
        in_dim: int,
        crops: int,
        /,
        *,
        patch_dim: Annotated[
            int, Field(ge=1, description="Length of each patch's projection. PIRL: 128.")
        ] = 128,
        out_dim: OutDim = 128,
        hidden_dim: Annotated[
            PositiveInt | None,
            Field(
                description="Width of a hidden layer in the patch projection, with a ReLU after "
                "each layer. VISSL (`resnet50_mlphead.yaml`): 2048. null: no hidden "
                "layer."
            ),
        ] = None,
        batch_norm: BatchNorm = False,
    ) -> None:
        super().__init__()
        self.out_dim = resolved(out_dim)
        self.patch: nn.Module = nn.Linear(in_dim, patch_dim)
        if hidden_dim is not None:
            self.patch = nn.Sequential(
                nn.Linear(in_dim, hidden_dim),
                nn.ReLU(inplace=True),
                nn.Linear(hidden_dim, patch_dim),
                nn.ReLU(inplace=True),
            )
        self.join = Projection(crops * patch_dim, self.out_dim)
        self.norm = nn.BatchNorm1d(self.out_dim, affine=False) if batch_norm else None

    def forward(self, features: Tensor) -> Tensor:
        """[…,K,in_dim] → […,out_dim]."""
        return flat_batch_norm(self.norm, self.join(self.patch(features).flatten(-2)))
