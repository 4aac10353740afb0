"""AlexNet, the encoder of RotNet, DeepCluster and of learning from a single image.

Krizhevsky 2014, arXiv:1404.5997 (torchvision's `alexnet`). Letters: N images, C×H×W pixels.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
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

STATED, WEIGHTS = "alexnet.json", "alexnet.safetensors"
"""Files of an exported folder."""

LINES = """\
from collections import OrderedDict
import torch
from safetensors.torch import load_file
from torch import nn
model = nn.Sequential(OrderedDict([
{layers}
]))
model.load_state_dict(load_file(f"{{folder}}/{weights}"))
model.eval()"""
"""Code that loads an exported folder."""


class AlexNet(Encoder):
    """AlexNet with the layers conv1 … conv5, each taken after its ReLU.

    Features are the mean of the last map, or fc7 with `fc`. Max-pooling is skipped where a map is
    smaller than its window, so images of any size work.
    """

    initial_options: ClassVar[tuple[str, ...]] = ("weights",)
    paths: ClassVar[dict[str, tuple[str, ...]]] = {"weights": ()}
    libraries: ClassVar[tuple[str, ...]] = ("torch",)

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
            float,
            Field(gt=0, le=1, description="Factor of the channels of every layer. 0.5: half."),
        ] = 1.0,
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
        weights: Annotated[
            str | None,
            Field(description="A folder that `sslkit export` wrote. null: random weights."),
        ] = None,
        mean: Mean = None,
        std: Std = None,
    ) -> None:
        super().__init__()
        self.normalisation = normalisation(channels, mean, std)
        self.options = {
            "filters": filters,
            "width": width,
            "batch_norm": batch_norm,
            "sobel": sobel,
            "fc": fc,
            "mean": list(self.normalisation.mean),
            "std": list(self.normalisation.std),
        }
        self.sobel = _Sobel(channels) if sobel else nn.Identity()
        inputs = 2 if sobel else channels
        for number, kernel in enumerate(KERNELS):
            outputs = max(1, round(width * FILTERS[filters][number]))
            layers: list[nn.Module] = [_Pool()] if number in POOLED else []
            stride = 4 if number == 0 else 1
            padding = 2 if number == 0 else kernel // 2
            layers.append(nn.Conv2d(inputs, outputs, kernel, stride, padding))
            if batch_norm:
                layers.append(nn.BatchNorm2d(outputs))
            self.add_module(f"conv{number + 1}", nn.Sequential(*layers, nn.ReLU()))
            inputs = outputs
        self.pool = _Pool()
        self.fc: nn.Sequential | None = None
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
        if weights is not None:
            self._load(Path(weights).expanduser() / WEIGHTS)

    def _load(self, file: Path) -> None:
        """Load exported weights. Raises RecipeError if they are missing or do not fit."""
        try:
            self.load_state_dict(load_file(file))
        except (OSError, RuntimeError, SafetensorError) as error:
            reason = str(error).strip().splitlines()[0]
            message = f"cannot load {file}: {reason}; name a folder that sslkit export wrote"
            raise RecipeError(Fault("encoder.weights", message)) from error

    def _initialise(self) -> None:
        """Draw weights as RotNet and DeepCluster do."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
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

    def stages(self) -> dict[str, list[nn.Module]]:
        """Return conv1 … conv5, and fc6 and fc7 if there are any."""
        found = super().stages()
        if self.fc is not None:
            found |= {"fc6": [*self.fc[:5]], "fc7": [*self.fc[5:]]}
        return found

    @classmethod
    def opens(cls, folder: Path) -> dict[str, Any] | None:
        """Return the options that load a folder written by `export`."""
        stated = _stated(folder)
        if stated is None or not (folder / WEIGHTS).is_file():
            return None
        stated.pop("size", None)
        return {**stated, "weights": str(folder)}

    @classmethod
    def own_size(cls, options: Mapping[str, Any]) -> int | None:
        """Return the image size that an exported folder states, px."""
        source = options.get("weights")
        stated = _stated(Path(source)) if source else None
        return None if stated is None else stated.get("size")

    def export(self, library: str, folder: Path, size: int) -> str:
        """Write weights, options and size, and return torch code that loads them."""
        if library != "torch":
            return super().export(library, folder, size)
        weights = {name: value.contiguous() for name, value in self.state_dict().items()}
        save_file(weights, folder / WEIGHTS)
        text = json.dumps({**self.options, "size": size}, indent=2)
        (folder / STATED).write_text(f"{text}\n", encoding="utf-8")
        layers = "\n".join(f'    ("{name}", {code}),' for name, code in self._code(size))
        return LINES.format(layers=layers, weights=WEIGHTS)

    def _code(self, size: int) -> list[tuple[str, str]]:
        """Return names and code of the modules for images of `size` px."""
        found = []
        device = next(self.parameters()).device
        channels = len(self.normalisation.mean)
        with torch.no_grad():
            values = torch.zeros(1, channels, size, size, device=device)
            if isinstance(self.sobel, _Sobel):
                conv = "nn.Conv2d(3, 2, 3, padding=1, bias=False)"
                found.append(("sobel", conv))
                values = self.sobel(values)
            for name, layer in self._layers().items():
                parts = []
                for module in layer:
                    parts.append(_code_of(module, values))
                    values = module(values)
                found.append((name, f"nn.Sequential({', '.join(parts)})"))
            found.append(("pool", _code_of(self.pool, values)))
        if self.fc is None:
            return [*found, ("mean", "nn.AdaptiveAvgPool2d(1)"), ("flat", "nn.Flatten()")]
        parts = [f"nn.{module!r}" for module in self.fc]
        return [*found, ("fc", f"nn.Sequential({', '.join(parts)})")]

    def _layers(self) -> dict[str, nn.Sequential]:
        return {f"conv{number}": getattr(self, f"conv{number}") for number in range(1, 6)}


def _stated(folder: Path) -> dict[str, Any] | None:
    """Return the options and size of an exported folder; None for other folders."""
    try:
        return dict(json.loads((folder / STATED).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _code_of(module: nn.Module, values: Tensor) -> str:
    """Return the code of a module that reads maps of the size of `values`."""
    if not isinstance(module, _Pool):
        return f"nn.{module!r}"
    return "nn.Identity()" if min(values.shape[-2:]) < 3 else "nn.MaxPool2d(3, 2)"


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
        filters = torch.stack([across, across.T]).unsqueeze(1).expand(-1, 3, -1, -1)
        self.weight: Tensor
        self.register_buffer("weight", filters / 3)

    def forward(self, images: Tensor) -> Tensor:
        """[N,3,H,W] → [N,2,H,W]."""
        return F.conv2d(images, self.weight.to(images.dtype), padding=1)
