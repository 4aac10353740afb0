"""Writes an encoder for timm or torchvision, with the lines of Python that load it there."""

import inspect
import json
from pathlib import Path
from typing import Any, Literal, Protocol

import torchvision
from safetensors.torch import save_file
from torch import Tensor

from sslkit.errors import SslkitError
from sslkit.interfaces import Normalisation
from sslkit_plugins.encoders import norms

KEPT = ("classifier", "first_conv", "pool_size", "min_input_size")
"""What is kept of timm's configuration: facts of the architecture, not of its weights."""


class TimmModel(Protocol):
    """What an export reads of the encoder `timm`."""

    name: str
    model: Any
    dim: int
    channels: int
    options: dict[str, Any]
    norm: Literal["model", "group", "layer", "split", "frozen"]
    norm_groups: int
    small_stem: bool
    normalisation: Normalisation

    def weights(self) -> dict[str, Tensor]: ...


def to_timm(encoder: TimmModel, folder: Path, size: int) -> str:
    """Write a folder that timm opens by itself, and return the lines that do it.

    timm's folder cannot say that a stem or norms were replaced. Such encoders get lines which build
    the model step by step, and `encoder.json` instead of timm's `config.json`.
    """
    save_file(_unshared(encoder.weights()), folder / "model.safetensors")
    if encoder.small_stem or encoder.norm in ("group", "layer"):
        _write(folder / "encoder.json", _stated(encoder, size))
        return "\n".join(
            [
                "# timm's own loader cannot replace a stem or norms: these lines do",
                "import timm",
                "import torch",
                "from safetensors.torch import load_file",
                f"model = timm.create_model({encoder.name!r}, num_classes=0{_arguments(encoder)})",
                *_stem(encoder),
                *_norms(encoder),
                'model.load_state_dict(load_file(f"{folder}/model.safetensors"))',
                "model.eval()",
            ]
        )
    _write(folder / "config.json", _config(encoder, size))
    return "\n".join(
        [
            "import timm",
            'model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()',
        ]
    )


def to_torchvision(encoder: TimmModel, folder: Path, size: int) -> str:
    """Write the weights of a torchvision model of that name, and return the lines that load them.

    Raises SslkitError where torchvision has no such model with the same tensors.
    """
    if not _is_torchvision(encoder):
        raise SslkitError(
            f"torchvision has no model '{encoder.name}' with these parameters; export --to timm"
        )
    save_file(_unshared(encoder.weights()), folder / "encoder.safetensors")
    _write(folder / "encoder.json", _stated(encoder, size))
    return "\n".join(
        [
            "import torch",
            "import torchvision",
            "from safetensors.torch import load_file",
            f"model = torchvision.models.{encoder.name}()",
            "model.fc = torch.nn.Identity()",
            *_stem(encoder),
            'model.load_state_dict(load_file(f"{folder}/encoder.safetensors"))',
            "model.eval()",
        ]
    )


def _config(encoder: TimmModel, size: int) -> dict[str, Any]:
    """Return timm's config.json: how to build the model, and which images it expects."""
    arguments = dict(encoder.options)
    if encoder.channels != 3:
        arguments["in_chans"] = encoder.channels
    known = encoder.model.pretrained_cfg
    preset = {name: known[name] for name in KEPT if known.get(name) is not None}
    preset |= {
        "num_classes": 0,
        "input_size": [encoder.channels, size, size],
        "mean": list(encoder.normalisation.mean),
        "std": list(encoder.normalisation.std),
        "interpolation": "bilinear",
        "crop_pct": 0.875,
        "crop_mode": "center",
    }
    return {
        "architecture": encoder.name.partition(".")[0],
        "num_classes": 0,
        "num_features": encoder.dim,
        "model_args": arguments,
        "pretrained_cfg": preset,
    }


def _stated(encoder: TimmModel, size: int) -> dict[str, Any]:
    """Return the options of the encoder as it is, without its weights, and the size of images."""
    return {
        "model": encoder.name.partition(".")[0],
        "stem": "small" if encoder.small_stem else "model",
        "norm": "group" if encoder.norm in ("group", "layer") else "model",
        "norm_groups": encoder.norm_groups,
        "mean": list(encoder.normalisation.mean),
        "std": list(encoder.normalisation.std),
        "options": encoder.options,
        "size": size,
    }


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _arguments(encoder: TimmModel) -> str:
    """Return the options as one argument, quoted as Python writes them."""
    options = dict(encoder.options)
    if encoder.channels != 3:
        options["in_chans"] = encoder.channels
    return f", **{options!r}" if options else ""


def _stem(encoder: TimmModel) -> list[str]:
    if not encoder.small_stem:
        return []
    channels, width = encoder.channels, encoder.model.conv1.out_channels
    return [
        f"model.conv1 = torch.nn.Conv2d({channels}, {width}, 3, padding=1, bias=False)",
        "model.maxpool = torch.nn.Identity()",
    ]


def _norms(encoder: TimmModel) -> list[str]:
    """Return the source of the function that replaces batch norms, and its call."""
    if encoder.norm not in ("group", "layer"):
        return []
    return [
        "from timm.layers import GroupNormAct",
        "from torch import nn",
        inspect.getsource(norms.replace_by_group_norm).rstrip(),
        f"replace_by_group_norm(model, {encoder.norm_groups})",
    ]


def _is_torchvision(encoder: TimmModel) -> bool:
    """True where torchvision's model of that name has the same tensors but for the classifier."""
    if encoder.name not in torchvision.models.list_models(module=torchvision.models):
        return False
    if encoder.norm in ("group", "layer") or encoder.channels != 3:
        return False
    other = torchvision.models.get_model(encoder.name).state_dict()
    own = encoder.weights()
    if {name for name in other if not name.startswith("fc.")} != set(own):
        return False
    return all(own[n].shape == other[n].shape for n in own if not n.startswith("conv1."))


def _unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors, each in memory of its own, as safetensors requires."""
    return {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
