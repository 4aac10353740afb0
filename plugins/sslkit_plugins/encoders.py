"""Encoders: images in, one vector per image out."""

from typing import Any, Literal

import timm
import torchvision
from torch import Tensor, nn

from sslkit.errors import Fault, RecipeError, SslkitError
from sslkit.interfaces import Encoder


class Timm(Encoder):
    """Any model of timm by its name, without its classifier; features are what timm pools before the classifier.

    `stem: cifar` makes the first convolution of a ResNet 3×3 with stride 1 and drops the max-pooling, the customary change for
    32-px images (He et al. 2016, arXiv:1512.03385, section 4.2). `conv_init: uniform` gives convolutions PyTorch's default
    initialisation and every batch norm the scale 1, with which the released PIRL models were trained (VISSL builds its trunk that way);
    `timm` leaves timm's, where the last scale of a residual block is 0. `pretrained` downloads timm's weights.
    """

    def __init__(
        self,
        *,
        model: str = "resnet50",
        pretrained: bool = False,
        stem: Literal["imagenet", "cifar"] = "imagenet",
        conv_init: Literal["timm", "uniform"] = "timm",
    ) -> None:
        super().__init__()
        if not timm.is_model(model):
            near = ", ".join(timm.list_models(f"*{model}*")[:3]) or "see `timm.list_models()`"
            raise RecipeError(Fault("encoder.model", f"timm has no model '{model}'; near: {near}"))
        if pretrained and conv_init != "timm":
            raise RecipeError(
                Fault(
                    "encoder.conv_init",
                    f"'{conv_init}' would overwrite the pretrained weights; leave 'timm'",
                )
            )
        self.model: Any
        try:
            self.model = timm.create_model(model, pretrained=pretrained, num_classes=0)
        except (RuntimeError, OSError) as error:
            raise RecipeError(Fault("encoder", f"timm cannot make '{model}': {error}")) from error
        if stem == "cifar":
            if not self._is_plain_resnet():
                raise RecipeError(
                    Fault(
                        "encoder.stem",
                        f"'cifar' is a stem for timm's ResNets; '{model}' is none, so leave 'imagenet'",
                    )
                )
            self.model.conv1 = nn.Conv2d(3, self.model.conv1.out_channels, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(self.model.conv1.weight, mode="fan_out", nonlinearity="relu")
            self.model.maxpool = nn.Identity()
        if conv_init == "uniform":
            for module in self.model.modules():
                if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
                    module.reset_parameters()
        self.dim = self.model.num_features
        self.name, self.stem = model, stem

    def _is_plain_resnet(self) -> bool:
        return isinstance(self.model, timm.models.ResNet) and isinstance(
            self.model.conv1, nn.Conv2d
        )

    def forward(self, images: Tensor) -> Tensor:
        """float [N,3,H,W] → [N,dim]."""
        return self.model(images)

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """float [N,3,H,W] → {layer: [N,c,h,w]}; for ResNets conv1 (after its ReLU), res2 … res5, as the paper names them."""
        layers: list[Tensor] = self.model.forward_intermediates(images, intermediates_only=True)
        of_resnets = ["conv1", "res2", "res3", "res4", "res5"]
        names = (
            of_resnets
            if isinstance(self.model, timm.models.ResNet)
            else [f"stage{i + 1}" for i in range(len(layers))]
        )
        return dict(zip(names, layers, strict=True))

    def weights(self) -> dict[str, Tensor]:
        """timm's own names; for ResNets they are torchvision's as well."""
        return self.model.state_dict()

    def loading(self, library: str, file: str) -> str:
        """Lines of Python for `timm`, or for `torchvision` where it has a model of that name with the same parameters."""
        if library == "timm":
            make = ["import timm", f"model = timm.create_model({self.name!r}, num_classes=0)"]
        elif library == "torchvision":
            if not self._is_torchvision():
                raise SslkitError(
                    f"torchvision has no model '{self.name}' with these parameters; export --to timm instead"
                )
            make = [
                "import torchvision",
                f"model = torchvision.models.{self.name}()",
                "model.fc = torch.nn.Identity()",
            ]
        else:
            raise SslkitError(f"cannot export to '{library}'; choose timm or torchvision")
        if self.stem == "cifar":
            width = self.model.conv1.out_channels
            make += [
                f"model.conv1 = torch.nn.Conv2d(3, {width}, 3, padding=1, bias=False)",
                "model.maxpool = torch.nn.Identity()",
            ]
        return "\n".join(
            [
                "import torch",
                *make,
                "from safetensors.torch import load_file",
                f"model.load_state_dict(load_file({file!r}))",
                "model.eval()",
            ]
        )

    def _is_torchvision(self) -> bool:
        if self.name not in torchvision.models.list_models(module=torchvision.models):
            return False
        other = torchvision.models.get_model(self.name).state_dict()
        own = self.model.state_dict()
        return {n for n in other if not n.startswith("fc.")} == set(own) and all(
            own[n].shape == other[n].shape for n in own if not n.startswith("conv1.")
        )
