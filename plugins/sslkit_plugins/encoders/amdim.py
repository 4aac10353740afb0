"""The encoder of AMDIM: a residual network without padding. Letters: N images, r output width."""

import math
from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sslkit.errors import Fault, RecipeError
from sslkit.interfaces import Encoder, Normalisation


class Stage(NamedTuple):
    """A residual block: its width in units of `base_width`, kernel and stride."""

    width: int
    kernel: int
    stride: int


SMALL = (Stage(2, 4, 2), Stage(4, 2, 2), Stage(4, 3, 1), Stage(4, 3, 1))
LARGE = (Stage(2, 4, 2), Stage(4, 4, 2), Stage(8, 2, 2), Stage(8, 3, 1), Stage(8, 3, 1))
STAGES = {32: SMALL, 64: LARGE, 128: LARGE}
"""Side of the images → residual blocks. Their last maps have sides of 7, 5 and 3."""


class Residual(nn.Module):
    """A convolution and a 1×1 convolution that starts at 0, beside an average pooling."""

    def __init__(self, width_in: int, width: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel, self.stride, self.more = kernel, stride, width - width_in
        self.conv1 = nn.Conv2d(width_in, width, kernel, stride, bias=False)
        self.conv2 = nn.Conv2d(width, width, 1, bias=False)
        nn.init.kaiming_uniform_(self.conv1.weight, a=math.sqrt(5))
        nn.init.zeros_(self.conv2.weight)
        self.shortcut = nn.Conv2d(width_in, width, kernel, stride) if self.more < 0 else None

    def forward(self, maps: Tensor) -> Tensor:
        """[N,c,h,w] → [N,width,h',w']."""
        added = self.conv2(self.conv1(maps).relu())
        if self.shortcut is not None:
            return added + self.shortcut(maps)
        pooled = F.avg_pool2d(maps, self.kernel, self.stride)
        return added + F.pad(pooled, (0, 0, 0, 0, 0, self.more))


class Embedding(nn.Module):
    """A 1×1 residual block to the space in which locations are compared."""

    def __init__(self, width: int, out_dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, out_dim, 1, bias=False)
        self.conv2 = nn.Conv2d(out_dim, out_dim, 1, bias=False)
        self.shortcut = nn.Conv2d(width, out_dim, 1)
        nn.init.kaiming_uniform_(self.conv1.weight, a=math.sqrt(5))
        nn.init.zeros_(self.conv2.weight)
        if out_dim >= width:
            nn.init.uniform_(self.shortcut.weight, -0.01, 0.01)
            with torch.no_grad():
                self.shortcut.weight[:width, :, 0, 0].fill_diagonal_(1.0)

    def forward(self, maps: Tensor) -> Tensor:
        """[N,width,h,w] → [N,r,h,w]."""
        return self.conv2(self.conv1(maps).relu()) + self.shortcut(maps)


class AmdimEncoder(Encoder):
    """The network of AMDIM (Bachman, Hjelm & Buchwalter 2019, arXiv:1906.00910).

    Convolutions have no padding, so a location sees only a part of the image. Images have 32, 64 or
    128 px. The features are the single location of the last map (`model.py` of amdim-public).
    """

    roles = ("locations",)

    def __init__(
        self,
        sizes: tuple[int, ...],
        channels: int,
        /,
        *,
        base_width: Annotated[
            int,
            Field(
                ge=1,
                description="Width of the first layer (ndf); the largest map has 4 or 8 times as "
                "many channels. AMDIM: 192 on ImageNet, 256 on CIFAR.",
            ),
        ] = 192,
        out_dim: Annotated[
            int,
            Field(ge=1, description="Length of the features (n_rkhs). AMDIM: 1536; CIFAR: 2048."),
        ] = 1536,
        depth: Annotated[
            int,
            Field(ge=1, le=100, description="Residual blocks per stage. AMDIM: 8; CIFAR: 10."),
        ] = 8,
        batch_norm: Annotated[
            bool,
            Field(
                description="Apply batch norm to the three compared maps, the only one of the "
                "network. AMDIM: true."
            ),
        ] = True,
    ) -> None:
        super().__init__()
        if len(sizes) > 1 or sizes[0] not in STAGES:
            message = (
                f"'amdim' takes images of one size, 32, 64 or 128 px, not "
                f"{' and '.join(map(str, sizes))}; change the sizes in transform"
            )
            raise RecipeError(Fault("encoder", message))
        (side,) = sizes
        self.dim, self.batch_norm = out_dim, batch_norm
        if channels != 3:
            self.normalisation = Normalisation(mean=(0.5,) * channels, std=(0.25,) * channels)
        self.layers = nn.ModuleList([_stem(side, channels, base_width)])
        width = base_width
        for stage in STAGES[side]:
            last, width = width, stage.width * base_width
            first = Residual(last, width, stage.kernel, stage.stride)
            more = [Residual(width, width, 1, 1) for _ in range(depth - 1)]
            self.layers.append(nn.Sequential(first, *more))
        self.layers.append(Residual(width, out_dim, 3, 1))
        self.embed7, self.embed5 = Embedding(width, out_dim), Embedding(width, out_dim)
        self.norms = nn.ModuleList()
        for _ in range(3):
            self.norms.append(nn.BatchNorm2d(out_dim) if batch_norm else nn.Identity())

    def _maps(self, images: Tensor) -> list[Tensor]:
        found = [images]
        for layer in self.layers:
            found.append(layer(found[-1]))
        return found[1:]

    def forward(self, images: Tensor) -> Tensor:
        """float [N,C,S,S] → [N,r]."""
        return self.norms[0](self._maps(images)[-1]).flatten(1)

    def locations(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """float [N,C,S,S] → [N,r], [N,25,r], [N,49,r]: maps of 1×1, 5×5 and 7×7 locations."""
        *_, seven, five, _, one = self._maps(images)
        found = [
            self.norms[0](one),
            self.norms[1](self.embed5(five)),
            self.norms[2](self.embed7(seven)),
        ]
        single, fives, sevens = [maps.flatten(2).transpose(1, 2) for maps in found]
        return single[:, 0], fives, sevens

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """float [N,C,S,S] → {layer: [N,c,h,w]}, stage1 … with decreasing sides."""
        return {f"stage{i}": maps for i, maps in enumerate(self._maps(images), 1)}

    def sequence(self) -> dict[str, nn.Module]:
        """Return the modules whose sequential outputs are `maps`."""
        return {f"stage{i}": layer for i, layer in enumerate(self.layers, 1)}

    def stages(self) -> dict[str, list[nn.Module]]:
        """Return the layers; the last one with the norms and the embeddings of larger maps."""
        found = super().stages()
        found[f"stage{len(found)}"] += [self.norms, self.embed7, self.embed5]
        return found


def _stem(side: int, channels: int, width: int) -> nn.Sequential:
    """Return the first layers, to a map of 62×62 (30×30 for 32 px)."""
    if side == 128:
        return nn.Sequential(
            nn.Conv2d(channels, width, 5, 2, 2, padding_mode="reflect"),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3),
            nn.ReLU(inplace=True),
        )
    stem = [nn.Conv2d(channels, width, 3), nn.ReLU(inplace=True)]
    return nn.Sequential(*stem, *([Residual(width, width, 1, 1)] if side == 32 else []))
