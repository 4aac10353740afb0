"""The encoder `timm`: any timm model without classifier."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import timm
from pydantic import Field
from timm.models import ResNet
from torch import Tensor, nn

from sslkit.errors import Fault, RecipeError, SslkitError
from sslkit.interfaces import Encoder, Normalisation
from sslkit_plugins.encoders import (
    formats,
    initial,
    norms,
    timm_changes,
    timm_stages,
    timm_tokens,
)
from sslkit_plugins.encoders.fit import create, first_line, fit
from sslkit_plugins.encoders.strided import guard_strided
from sslkit_plugins.encoders.timm_changes import Norm

Rate = Annotated[float, Field(ge=0, lt=1)]
Side = Annotated[int, Field(ge=1)]


class Timm(Encoder):
    """Any timm model by name, without classifier; features are timm's pooled output.

    A trial on empty images finds the options for the recipe's image sizes and the feature length.
    ResNets have the layers conv1 (after its ReLU) and res2 … res5, as in papers. Layers of other
    models are stage1, stage2, ….
    """

    roles = ("tokens",)
    initial_options: ClassVar[tuple[str, ...]] = ("weights", "pretrained")
    paths: ClassVar[dict[str, tuple[str, ...]]] = {"weights": ("timm",)}
    pretrained: ClassVar[str] = "timm"
    libraries: ClassVar[tuple[str, ...]] = ("timm", "torchvision")

    def __init__(
        self,
        sizes: tuple[int, ...],
        channels: int,
        /,
        *,
        model: Annotated[
            str,
            Field(
                description="Model name from timm.list_models(), such as resnet50 (PIRL's encoder)."
            ),
        ] = "resnet50",
        weights: Annotated[
            str | None,
            Field(
                description="Initial weights: timm (timm's pretrained weights, downloaded), a "
                ".safetensors file, a run folder or an exported folder. null: random."
            ),
        ] = None,
        pretrained: Annotated[
            bool, Field(description="Deprecated: same as `weights: timm`.")
        ] = False,
        stem: Annotated[
            Literal["model", "small", "imagenet", "cifar"],
            Field(
                description="First layers of a ResNet. small: a 3×3 convolution with stride 1 and "
                "no max-pooling, usual at 32 px (He et al. 2016, arXiv:1512.03385, "
                "section 4.2). model: timm's. Deprecated names: cifar, imagenet."
            ),
        ] = "model",
        conv_init: Annotated[
            Literal["timm", "uniform"],
            Field(
                description="Initialisation of convolutions. uniform: PyTorch's default, with "
                "scale 1 in every batch norm (VISSL's ResNet-50). timm: timm's."
            ),
        ] = "timm",
        norm: Annotated[
            Norm,
            Field(
                description="Replacement for batch norm. group, layer: statistics of one image. "
                "split: statistics of slices of the batch, as on several devices "
                "(MoCo). frozen: fixed statistics and scales from the initial "
                "weights. model: none."
            ),
        ] = "model",
        norm_groups: Annotated[
            int,
            Field(
                ge=1,
                description="Largest number of groups with `norm: group`. Wu & He 2018 "
                "(arXiv:1803.08494): 32.",
            ),
        ] = 32,
        norm_splits: Annotated[
            int,
            Field(
                ge=2,
                description="Slices of the batch with `norm: split`. MoCo's demo: 8. "
                "train.sync_batchnorm disables the split.",
            ),
        ] = 2,
        img_size: Annotated[
            Literal["auto"] | Side | None,
            Field(
                description="Value of timm's img_size, px. auto: the largest view, if the model "
                "needs a size. null: the model's default."
            ),
        ] = "auto",
        drop_path_rate: Annotated[
            Rate | None,
            Field(
                description="Rate of stochastic depth, usually 0 to 0.3. null: the model's default."
            ),
        ] = None,
        positions: Annotated[
            Literal["model", "fixed"],
            Field(
                description="Position embeddings of a vision transformer. fixed: sines and "
                "cosines, not trained (MAE, MoCo v3). model: timm's, trained."
            ),
        ] = "model",
        global_pool: Annotated[
            str | None,
            Field(
                description="Global pooling of timm, such as avg, max or token. null: the model's "
                "default."
            ),
        ] = None,
        mean: Annotated[
            tuple[float, ...] | None,
            Field(description="Mean of each channel, for pixels in 0 … 1. null: the model's."),
        ] = None,
        std: Annotated[
            tuple[float, ...] | None,
            Field(
                description="Standard deviation of each channel, for pixels in 0 … 1. null: the "
                "model's."
            ),
        ] = None,
        options: Annotated[
            dict[str, Any], Field(description="Further arguments of timm.create_model.")
        ] = {},  # noqa: B006  (read, never written)
    ) -> None:
        super().__init__()
        chosen = dict(options)
        for name, value in {"drop_path_rate": drop_path_rate, "global_pool": global_pool}.items():
            if value is not None:
                chosen[name] = value
        self.name, self.channels, self.norm = model, channels, norm
        self.norm_groups = 1 if norm == "layer" else norm_groups
        self.small_stem = stem in ("small", "cifar")
        self.options, self.dim = fit(model, chosen, sizes, channels, img_size)
        self.normalisation = self._normalisation(mean, std)
        self.model: Any = self._create("timm" if pretrained else weights, conv_init, norm_splits)
        self.prefix_tokens = getattr(self.model, "num_prefix_tokens", 0)
        if positions == "fixed":
            source = "timm" if pretrained else weights
            timm_changes.fix_positions(self.model, model, initialised=source is not None)

    def _create(self, source: str | None, conv_init: str, splits: int) -> nn.Module:
        """Create the model with its initial weights."""
        if source is not None and conv_init != "timm":
            message = f"'{conv_init}' would overwrite the pretrained weights; keep 'timm'"
            raise RecipeError(Fault("encoder.conv_init", message))
        found = None
        more: dict[str, Any] = {}
        if source == "timm":
            timm_changes.check_trained_norms(self.norm)
            more = initial.downloaded(self.name)
        elif source is not None:
            found = self._checked(initial.find(source))
        try:
            model: Any = create(self.name, self.options, self.channels, **more)
        except (RuntimeError, OSError) as error:
            message = f"timm cannot create '{self.name}': {first_line(error)}"
            raise RecipeError(Fault("encoder", message)) from error
        if self.small_stem:
            timm_changes.shrink_stem(model, self.name)
        if conv_init == "uniform":
            for module in model.modules():
                if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
                    module.reset_parameters()
        if self.norm != "model":
            timm_changes.replace_norms(model, self.name, self.norm, self.norm_groups, splits)
        if found is not None:
            initial.load(model, found.file)
        guard_strided(model)
        return model

    def _normalisation(
        self, mean: tuple[float, ...] | None, std: tuple[float, ...] | None
    ) -> Normalisation:
        """Return the recipe's mean and std, else those of timm's configuration."""
        preset = timm.get_pretrained_cfg(self.name)
        own = Normalisation() if preset is None else Normalisation(mean=preset.mean, std=preset.std)
        found = Normalisation(mean=tuple(mean or own.mean), std=tuple(std or own.std))
        for name, values in (("mean", found.mean), ("std", found.std)):
            if len(values) != self.channels:
                message = (
                    f"the images have {self.channels} channels; set encoder.mean and encoder.std "
                    f"to {self.channels} numbers"
                )
                raise RecipeError(Fault(f"encoder.{name}", message))
        if min(found.std) <= 0:
            raise RecipeError(Fault("encoder.std", f"{min(found.std)} is not greater than 0"))
        return found

    def _checked(self, source: initial.Source) -> initial.Source:
        """Raise RecipeError if a folder's weights are for another model or normalisation."""
        if source.model is not None and _plain_name(source.model) != _plain_name(self.name):
            message = f"these weights are of '{source.model}'; name that model"
            raise RecipeError(Fault("encoder.weights", message))
        for name in ("mean", "std"):
            stated, own = getattr(source, name), getattr(self.normalisation, name)
            if stated is not None and stated != own:
                values = list(stated)
                message = f"the weights were trained with {values}; set {name}: {values}"
                raise RecipeError(Fault(f"encoder.{name}", message))
        return source

    def train(self, mode: bool = True) -> Self:
        """Set training mode; frozen batch norms stay in evaluation mode."""
        super().train(mode)
        if self.norm == "frozen":
            for module in norms.batch_norms(self):
                module.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """float [N,C,H,W] → [N,dim]."""
        return self.model(images)

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """float [N,C,H,W] → {layer: [N,c,h,w]}, shallow to deep."""
        if not hasattr(self.model, "forward_intermediates"):
            raise SslkitError(f"timm provides no layers of '{self.name}'")
        layers: list[Tensor] = self.model.forward_intermediates(images, intermediates_only=True)
        names = [f"stage{number}" for number in range(1, len(layers) + 1)]
        if isinstance(self.model, ResNet):
            names = ["conv1", "res2", "res3", "res4", "res5"]
        return dict(zip(names, layers, strict=True))

    def sequence(self) -> dict[str, nn.Module]:
        """Return conv1, res2 … res5 of a ResNet. Raises SslkitError for other models."""
        model: Any = self.model
        if not isinstance(self.model, ResNet):
            raise SslkitError(f"'{self.name}' is not a sequence of stages; use a ResNet")
        return {
            "conv1": nn.Sequential(model.conv1, model.bn1, model.act1),
            "res2": nn.Sequential(model.maxpool, model.layer1),
            "res3": model.layer2,
            "res4": model.layer3,
            "res5": model.layer4,
        }

    def stages(self) -> dict[str, list[nn.Module]]:
        """Return conv1, res2 … res5 of a ResNet; stem, stage1, … of other models.

        Raises SslkitError if timm defines no groups of layers.
        """
        if isinstance(self.model, ResNet):
            return super().stages()
        return timm_stages.stages(self.model, self.name)

    def tokens(self, images: Tensor, kept: Tensor | None = None) -> Tensor:
        """float [N,C,H,W] → normalised [N,prefix_tokens+L,width] of a vision transformer.

        `kept` int64 [N,k] are the patches that enter the transformer, numbered row by row. The
        class token and registers always enter (He et al. 2022, arXiv:2111.06377, section 3).
        Raises SslkitError if the model has no tokens.
        """
        return timm_tokens.tokens(self.model, self.name, images, kept)

    def blocks(self, images: Tensor, count: int) -> list[Tensor]:
        """Return the normalised tokens after the last `count` blocks of a vision transformer."""
        return timm_tokens.blocks(self.model, self.name, images, count)

    def weights(self) -> dict[str, Tensor]:
        """Return the tensors by timm's names, which for ResNets are also torchvision's."""
        return self.model.state_dict()

    @classmethod
    def opens(cls, folder: Path) -> dict[str, Any] | None:
        """Return the options that load a folder written by `export` or by timm."""
        stated = initial.exported(folder)
        if stated is None or not any((folder / name).is_file() for name in initial.FILES):
            return None
        stated.pop("size", None)
        return {**stated, "weights": str(folder)}

    @classmethod
    def own_size(cls, options: Mapping[str, Any]) -> int | None:
        """Return the image size that a folder or timm states for the model, px."""
        source = options.get("weights")
        stated = initial.exported(Path(source)) if source else None
        if stated is not None:
            return stated["size"]
        preset = timm.get_pretrained_cfg(options["model"])
        return None if preset is None else preset.input_size[-1]

    def export(self, library: str, folder: Path, size: int) -> str:
        """Export the encoder to timm, or to torchvision if it has the same architecture."""
        if library == "timm":
            return formats.to_timm(self, folder, size)
        if library == "torchvision":
            return formats.to_torchvision(self, folder, size)
        return super().export(library, folder, size)


def _plain_name(model: str) -> str:
    """Return a model's name without the weights tag."""
    return model.partition(".")[0]
