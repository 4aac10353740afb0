"""Projection heads between encoder and loss, discarded after training.

Letter: K crops or patches.
"""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from sslkit.interfaces import Head
from sslkit_plugins.precision import at_least_float32

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
            return super().forward(at_least_float32(features))


class Linear(Head):
    """One linear layer (f of PIRL: Misra & van der Maaten 2020, arXiv:1912.01991)."""

    roles = ()
    joins_crops = False

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
    """Linear layers with an activation between them.

    The image head of PIRL's MLP models (VISSL, `resnet50_mlphead.yaml`), MoCo v2 (Chen et al. 2020,
    arXiv:2003.04297); with `hidden_norm`, SimCLR (Chen et al. 2020, arXiv:2002.05709, section 4.2),
    BYOL, SimSiam, SwAV, Barlow Twins and VICReg.
    """

    roles = ()
    joins_crops = False

    def __init__(
        self,
        in_dim: int,
        /,
        *,
        hidden_dim: HiddenDim = 2048,
        out_dim: OutDim = 128,
        layers: Annotated[
            int,
            Field(
                ge=2,
                le=100,
                description="Number of linear layers. MoCo v2, BYOL, SwAV: 2; SimCLR, SimSiam, "
                "Barlow Twins, VICReg, DINO: 3.",
            ),
        ] = 2,
        hidden_norm: Annotated[
            bool,
            Field(
                description="Apply batch norm before each activation. SimCLR, BYOL, SimSiam, "
                "SwAV, Barlow Twins: true; MoCo v2, DINO: false."
            ),
        ] = False,
        activation: Annotated[
            Literal["relu", "gelu"],
            Field(description="Activation between the layers. DINO: gelu; the others: relu."),
        ] = "relu",
        bias: Annotated[
            bool,
            Field(
                description="Add a bias in the last layer. SimCLR, BYOL, Barlow Twins, VICReg: "
                "false. Hidden layers have one unless hidden_norm is true."
            ),
        ] = True,
        batch_norm: BatchNorm = False,
    ) -> None:
        super().__init__()
        self.out_dim = resolved(out_dim)
        self.hidden_norm = hidden_norm
        hidden: list[nn.Module] = []
        for _ in range(layers - 1):
            hidden.append(nn.Linear(in_dim, hidden_dim, bias=not hidden_norm))
            if hidden_norm:
                hidden.append(nn.BatchNorm1d(hidden_dim))
            hidden.append(nn.ReLU(inplace=True) if activation == "relu" else nn.GELU())
            in_dim = hidden_dim
        self.project = nn.Sequential(*hidden, Projection(hidden_dim, self.out_dim, bias=bias))
        self.norm = nn.BatchNorm1d(self.out_dim, affine=False) if batch_norm else None

    def forward(self, features: Tensor) -> Tensor:
        """[…,in_dim] → […,out_dim]."""
        if not self.hidden_norm:
            return flat_batch_norm(self.norm, self.project(features))
        rows = self.project(features.flatten(0, -2))
        return flat_batch_norm(self.norm, rows).unflatten(0, features.shape[:-1])


class Prototypes(Head):
    """Cosines of features with K unit-norm prototypes, in float32.

    SwAV (Caron et al. 2020, arXiv:2006.09882, section 3.1), DINO's last layer (Caron et al. 2021,
    arXiv:2104.14294). There are at most as many prototypes as images.
    """

    roles = ("prototypes",)
    joins_crops = False

    def __init__(
        self,
        in_dim: int,
        num_images: int,
        /,
        *,
        out_dim: Annotated[
            int,
            Field(
                ge=1,
                description="Number of prototypes K. SwAV: 3,000; DINO: 65,536. For small data "
                "sets a few per expected class.",
            ),
        ] = 3000,
        weight_norm: Annotated[
            bool,
            Field(
                description="Divide prototypes by their norm in every forward pass, so gradients "
                "are orthogonal to them (DINO). false: the method normalises after each step "
                "(SwAV)."
            ),
        ] = False,
    ) -> None:
        super().__init__()
        self.out_dim = min(out_dim, num_images)
        if self.out_dim < out_dim:
            self.notes = (
                f"out_dim has {out_dim:,} prototypes, more than the {num_images:,} images, so "
                f"{self.out_dim:,} are used; set a few per expected class",
            )
        self.weight_norm = weight_norm
        self.weight = nn.Parameter(torch.empty(self.out_dim, in_dim))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        self.normalise()

    @torch.no_grad()
    def normalise(self) -> None:
        """Set the norm of every prototype to 1."""
        self.weight.copy_(F.normalize(self.weight, dim=-1))

    def forward(self, features: Tensor) -> Tensor:
        """[…,in_dim] → […,K] cosines in float32, or in float64 for float64 features."""
        with torch.autocast(features.device.type, enabled=False):
            unit = F.normalize(at_least_float32(features), dim=-1)
            weight = F.normalize(self.weight, dim=-1) if self.weight_norm else self.weight
            return unit @ weight.to(unit.dtype).T


class ConcatPatches(Head):
    """Project each patch, concatenate the projections in the given order, project again.

    g of PIRL (Misra & van der Maaten 2020, arXiv:1912.01991). All patches share one projection,
    which the image head does not use.
    """

    roles = ()
    joins_crops = True

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
