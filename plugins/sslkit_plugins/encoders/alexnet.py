"""AlexNet, the encoder of RotNet, DeepCluster and of learning from a single image.

Krizhevsky 2014, arXiv:1404.5997 (torchvision's `alexnet`). Letters: N images, C×H×W pixels.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sslkit.errors import Fault, RecipeError
from sslkit.interfaces import Encoder
from sslkit_plugins.encoders.constants import Mean, Std, normalisation

FILTERS = {
    "torchvision": (64, 192, 384, 256, 256),
    "deepcluster": (96, 256, 384, 384, 256),
}
"""Channels of conv1 … conv5."""

KERNELS = (11, 5, 3, 3, 3)
"""Sides of the filters of conv1 … conv5, px."""

POOLED = (1, 2)
"""Convolutions that follow a max-pooling, counted from 0: conv2 and conv3."""


class AlexNet(Encoder):
    """AlexNet with the layers conv1 … conv5, each taken after its ReLU.

    Features are the mean of the last map, or fc7 with `fc`. Max-pooling is skipped where a map is
    smaller than its window, so images of any size work.
    """

    def __init__(
        self,
        channels: int,
        /,
        *,
        filters: Annotated[
            Literal["torchvision", "deepcluster"],
            Field(
                description="Channels of conv1 … conv5. torchvision: 64, 192, 384, 256, 256, also "
                "RotNet's. deepcluster: 96, 256, 384, 384, 256."
            ),
        ] = "torchvision",
        width: Annotated[
            Literal["full", "half"], Field(description="half: half the channels of every layer.")
        ] = "full",
        batch_norm: Annotated[
            bool,
            Field(
                description="Apply batch norm before each ReLU of conv1 … conv5. RotNet, "
                "DeepCluster: true; torchvision: false."
            ),
        ] = True,
        sobel: Annotated[
            bool,
            Field(
                description="Replace the colours by the gradients of their mean, with fixed Sobel "
                "filters. DeepCluster: true."
            ),
        ] = False,
        fc: Annotated[
            int,
            Field(
                ge=0,
                description="Width of the fully connected layers fc6 and fc7, usually 4096. 0: "
                "none.",
            ),
        ] = 0,
        dropout: Annotated[
            float, Field(ge=0, lt=1, description="Dropout before fc6 and fc7, usually 0.5.")
        ] = 0.5,
        mean: Mean = None,
        std: Std = None,
    ) -> None:
        super().__init__()
        self.normalisation = normalisation(channels, mean, std)
        self.sobel = _Sobel(channels) if sobel else nn.Identity()
        divisor = 2 if width == "half" else 1
        inputs = 2 if sobel else channels
        for number, kernel in enumerate(KERNELS):
            outputs = FILTERS[filters][number] // divisor
            layers: list[nn.Module] = [_Pool()] if number in POOLED else []
            stride = 4 if number == 0 else 1
            padding = 2 if number == 0 else kernel // 2
            layers.append(nn.Conv2d(inputs, outputs, kernel, stride, padding))
            if batch_norm:
                layers.append(nn.BatchNorm2d(outputs))
            self.add_module(f"conv{number + 1}", nn.Sequential(*layers, nn.ReLU()))
            inputs = outputs
        self.pool = _Pool()
        self.fc: nn.Module | None = None
        self.dim = inputs
        if fc:
            self.dim = fc
            self.fc = nn.Sequential(
                nn.AdaptiveAvgPool2d(6),
                nn.Flatten(),
                nn.Dropout(dropout),
                nn.Linear(36 * inputs, fc),
                nn.ReLU(),
                nn.Dropout(dropout),
                nn.Linear(fc, fc),
                nn.ReLU(),
            )
        self._initialise()

    def _initialise(self) -> None:
        """Draw weights as RotNet and DeepCluster do."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """float [N,C,H,W] → [N,dim]."""
        last = self.pool(list(self.maps(images).values())[-1])
        return last.mean((2, 3)) if self.fc is None else self.fc(last)

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """float [N,C,H,W] → {conv1 … conv5: [N,c,h,w]}."""
        found, values = {}, self.sobel(images)
        for name, layer in self._layers().items():
            found[name] = values = layer(values)
        return found

    def sequence(self) -> dict[str, nn.Module]:
        """Return conv1 … conv5, each with what precedes it."""
        layers = self._layers()
        return {**layers, "conv1": nn.Sequential(self.sobel, layers["conv1"])}

    def _layers(self) -> dict[str, nn.Module]:
        return {f"conv{number}": getattr(self, f"conv{number}") for number in range(1, 6)}


class _Pool(nn.Module):
    """Max-pooling over 3×3 with stride 2, skipped for smaller maps."""

    def forward(self, maps: Tensor) -> Tensor:
        """[N,c,h,w] → [N,c,h',w']."""
        return maps if min(maps.shape[-2:]) < 3 else F.max_pool2d(maps, 3, 2)


class _Sobel(nn.Module):
    """Horizontal and vertical gradient of the mean colour, with fixed filters.

    Caron et al. 2018 (DeepCluster), arXiv:1807.05520, section 4.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels != 3:
            message = f"sobel needs RGB images; these have {channels} channels; set it to false"
            raise RecipeError(Fault("encoder.sobel", message))
        across = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])
        self.filters: Tensor
        self.register_buffer("filters", torch.stack([across, across.T]).unsqueeze(1))

    def forward(self, images: Tensor) -> Tensor:
        """[N,3,H,W] → [N,2,H,W]."""
        return F.conv2d(images.mean(1, keepdim=True), self.filters.to(images.dtype), padding=1)
