"""The encoder `channel_groups`: one timm model per group of channels, side by side."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import timm
import torch
from pydantic import Field
from safetensors.torch import save_file
from timm.models import ResNet
from torch import Tensor, nn

from sslkit.errors import Fault, RecipeError
from sslkit.interfaces import Encoder, Normalisation
from sslkit_plugins.encoders import formats
from sslkit_plugins.encoders.timm_encoder import Timm

Channels = Annotated[int, Field(ge=1)]

LINES = """\
class ChannelGroups(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.networks = torch.nn.ModuleList(networks)
    def forward(self, images):
        groups = images.split(channels, 1)
        pairs = zip(self.networks, groups)
        return torch.cat([network(group) for network, group in pairs], 1)
model = ChannelGroups().eval()"""


class ChannelGroups(Encoder):
    """One timm model for each group of channels; the features are concatenated.

    The two halves of CMC (Tian et al. 2020, arXiv:1906.05849, section 4.1), for lightness and for
    colour. Heads read the features of a group as the segment of its name. The transform scales the
    channels, so the encoder's normalisation changes nothing.
    """

    roles = ("segments",)
    libraries: ClassVar[tuple[str, ...]] = ("timm",)

    def __init__(
        self,
        sizes: tuple[int, ...],
        channels: int,
        /,
        *,
        model: Annotated[
            str, Field(description="Model name from timm.list_models(), such as resnet50 (CMC).")
        ] = "resnet50",
        groups: Annotated[
            dict[str, Channels],
            Field(
                description="Names of the groups and their numbers of channels, in the order of "
                "the channels. CMC: {l: 1, ab: 2}; three views: {l: 1, a: 1, b: 1}."
            ),
        ] = {"l": 1, "ab": 2},  # noqa: B006  (read, never written)
        width: Annotated[
            float,
            Field(
                gt=0,
                le=1,
                description="Width of res2 … res5 of each ResNet, relative to the model. 0.5: the "
                "halves of CMC, whose widths add up to the model's. 1: full models.",
            ),
        ] = 0.5,
        stem: Annotated[
            Literal["model", "small"],
            Field(
                description="First layers of a ResNet. small: a 3×3 convolution with stride 1 and "
                "no max-pooling, usual at 32 px. model: timm's."
            ),
        ] = "model",
        norm: Annotated[
            Literal["model", "group", "layer", "split"],
            Field(description="Replacement for batch norm, as in the encoder `timm`."),
        ] = "model",
    ) -> None:
        super().__init__()
        _check_groups(groups, channels)
        self.groups = dict(groups)
        options = _narrow(model, width)
        networks: dict[str, nn.Module] = {}
        for name, count in groups.items():
            networks[name] = Timm(
                sizes,
                count,
                model=model,
                stem=stem,
                norm=norm,
                mean=(0.0,) * count,
                std=(1.0,) * count,
                options=options,
            )
        self.networks = nn.ModuleDict(networks)
        self.dims = {name: network.dim for name, network in self._named()}
        self.dim = sum(self.dims.values())
        self.normalisation = Normalisation(mean=(0.0,) * channels, std=(1.0,) * channels)

    def _named(self) -> list[tuple[str, Timm]]:
        """Return the networks with the names of their groups."""
        found = []
        for name, network in self.networks.items():
            assert isinstance(network, Timm)
            found.append((name, network))
        return found

    def split(self, images: Tensor) -> dict[str, Tensor]:
        """float [N,C,H,W] → {group: [N,c,H,W]}."""
        parts = images.split(list(self.groups.values()), 1)
        return dict(zip(self.groups, parts, strict=True))

    def forward(self, images: Tensor) -> Tensor:
        """float [N,C,H,W] → [N,dim], the features of all groups in order."""
        parts = self.split(images)
        return torch.cat([network(parts[name]) for name, network in self._named()], 1)

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """float [N,C,H,W] → {layer: [N,c,h,w]}, the channels of all groups in order."""
        parts = self.split(images)
        every = [network.maps(parts[name]) for name, network in self._named()]
        joined = {}
        for layer in every[0]:
            joined[layer] = torch.cat([maps[layer] for maps in every], 1)
        return joined

    def stages(self) -> dict[str, list[nn.Module]]:
        """Return the modules of all groups by stage, shallow to deep."""
        found: dict[str, list[nn.Module]] = {}
        for _, network in self._named():
            for stage, modules in network.stages().items():
                found.setdefault(stage, []).extend(modules)
        return found

    def weights(self) -> dict[str, Tensor]:
        """Return the tensors by group and timm's names, such as `ab.conv1.weight`."""
        found: dict[str, Tensor] = {}
        for name, network in self._named():
            found |= {f"{name}.{key}": value for key, value in network.weights().items()}
        return found

    def export(self, library: str, folder: Path, size: int) -> str:
        """Export each group's timm model, and return code that loads and joins them."""
        if library != "timm":
            return super().export(library, folder, size)
        lines = [
            "import timm",
            "import torch",
            "from safetensors.torch import load_file",
            f"channels, networks = {list(self.groups.values())}, []",
        ]
        for name, network in self._named():
            save_file(formats.unshared(network.weights()), folder / f"{name}.safetensors")
            lines += formats.construction(network)
            lines.append(f'model.load_state_dict(load_file(f"{{folder}}/{name}.safetensors"))')
            lines.append("networks.append(model)")
        return "\n".join([*lines, LINES])


def _check_groups(groups: dict[str, int], channels: int) -> None:
    """Raise RecipeError if the groups do not name all channels, or have unusable names."""
    for name in groups:
        if not name.isidentifier() or hasattr(nn.ModuleDict, name):
            message = f"'{name}' cannot name a group; use another word of letters, such as ab"
            raise RecipeError(Fault("encoder.groups", message))
    if sum(groups.values()) != channels:
        message = (
            f"these groups have {sum(groups.values())} channels, the images have {channels}; "
            f"divide {channels} channels among the groups"
        )
        raise RecipeError(Fault("encoder.groups", message))


def _narrow(model: str, width: float) -> dict[str, Any]:
    """Return timm's options for a ResNet whose stages have a fraction of the model's width."""
    if width == 1 or not timm.is_model(model):
        return {}
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        full: Any = timm.create_model(model, num_classes=0)
    if not issubclass(type(full), ResNet):
        message = (
            f"a fraction requires a ResNet such as resnet50; '{model}' is none, so set it to 1"
        )
        raise RecipeError(Fault("encoder.width", message))
    expansion = full.layer1[0].expansion
    widths = [int(width * stage["num_chs"]) // expansion for stage in full.feature_info[1:]]
    return {"channels": tuple(max(1, value) for value in widths)}
