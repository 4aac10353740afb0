"""Heads: what stands between the encoder and the loss while training, and is thrown away afterwards."""

from typing import Literal

from pydantic import PositiveInt
from torch import Tensor, nn

from sslkit.interfaces import Head

OutDim = PositiveInt | Literal["auto"]
"""`auto`: the number of classes of the target that the head predicts; resolved by the toolkit."""


def resolved(out_dim: OutDim) -> int:
    """Return `out_dim`, which the toolkit has replaced where the recipe says `auto`."""
    assert out_dim != "auto", "the toolkit resolves auto"
    return out_dim


def flat_batch_norm(norm: nn.BatchNorm1d | None, features: Tensor) -> Tensor:
    """[…,D] → […,D], the statistics taken over all leading dimensions; unchanged where there is no `norm`."""
    return (
        features
        if norm is None
        else norm(features.flatten(0, -2)).unflatten(0, features.shape[:-1])
    )


class Linear(Head):
    """One linear layer (f of PIRL: Misra & van der Maaten 2020, arXiv:1912.01991).

    `batch_norm` normalises the outputs over the batch, without scale and shift: not the paper's, but it learns sooner on small sets.
    """

    def __init__(self, in_dim: int, /, *, out_dim: OutDim = 128, batch_norm: bool = False) -> None:
        super().__init__()
        self.out_dim = resolved(out_dim)
        self.project = nn.Linear(in_dim, self.out_dim)
        self.norm = nn.BatchNorm1d(self.out_dim, affine=False) if batch_norm else None

    def forward(self, features: Tensor) -> Tensor:
        """[…,in_dim] → […,out_dim]."""
        return flat_batch_norm(self.norm, self.project(features))


class Mlp(Head):
    """Linear, ReLU, linear: the image head of PIRL's MLP models (VISSL, `resnet50_mlphead.yaml`), and SimCLR's projection.

    `batch_norm` as in `linear`.
    """

    def __init__(
        self,
        in_dim: int,
        /,
        *,
        hidden_dim: PositiveInt = 2048,
        out_dim: OutDim = 128,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.out_dim = resolved(out_dim)
        self.project = nn.Sequential(
            nn.Linear(in_dim, hidden_dim),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_dim, self.out_dim),
        )
        self.norm = nn.BatchNorm1d(self.out_dim, affine=False) if batch_norm else None

    def forward(self, features: Tensor) -> Tensor:
        """[…,in_dim] → […,out_dim]."""
        return flat_batch_norm(self.norm, self.project(features))


class ConcatPatches(Head):
    """Project each patch, concatenate in the order given, project again (g of PIRL, arXiv:1912.01991).

    One projection is shared by all patches and separate from the image head's. `hidden_dim` puts a linear layer and a ReLU before
    the patch projection and a ReLU after it, as in the MLP models (VISSL, `resnet50_mlphead.yaml`). `batch_norm` as in `linear`.
    """

    def __init__(
        self,
        in_dim: int,
        crops: int,
        /,
        *,
        patch_dim: PositiveInt = 128,
        out_dim: OutDim = 128,
        hidden_dim: PositiveInt | None = None,
        batch_norm: bool = False,
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
        self.join = nn.Linear(crops * patch_dim, self.out_dim)
        self.norm = nn.BatchNorm1d(self.out_dim, affine=False) if batch_norm else None

    def forward(self, features: Tensor) -> Tensor:
        """[…,K,in_dim] → […,out_dim]."""
        return flat_batch_norm(self.norm, self.join(self.patch(features).flatten(-2)))
