"""Exports an encoder to timm or torchvision, with Python code that loads it."""

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
"""Entries of timm's configuration that depend on the architecture, not on the weights."""


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
    """Write a folder for timm's loader, and return the Python code that loads it.

    timm's `config.json` cannot describe a replaced stem or norm. For such encoders, the code builds
    the model step by step, and the folder has `encoder.json` instead of `config.json`.
    """
    save_file(unshared(encoder.weights()), folder / "model.safetensors")
    if encoder.small_stem or encoder.norm in ("group", "layer"):
        _write(folder / "encoder.json", _stated(encoder, size))
        return "\n".join(
            [
                "# timm's loader cannot replace a stem or norms; this code does.",
                "import timm",
                "import torch",
                "from safetensors.torch import load_file",
                *construction(encoder),
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


def construction(encoder: TimmModel) -> list[str]:
    """Return Python code that sets `model` to a timm model with the encoder's architecture."""
    return [
        f"model = timm.create_model({encoder.name!r}, num_classes=0{_arguments(encoder)})",
        *_stem(encoder),
        *_norms(encoder),
    ]


def to_torchvision(encoder: TimmModel, folder: Path, size: int) -> str:
    """Write the weights for torchvision's model of that name, and return code that loads them.

    Raises SslkitError if torchvision has no model of that name with the same tensors.
    """
    if not _is_torchvision(encoder):
        raise SslkitError(
            f"torchvision has no model '{encoder.name}' with these parameters; export --to timm"
        )
    save_file(unshared(encoder.weights()), folder / "encoder.safetensors")
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
    """Return timm's config.json: the model's arguments and its input format."""
    arguments = dict(encoder.options)
    if encoder.channels != 3:
        arguments["in_chans"] = encoder.channels
    own = encoder.model.pretrained_cfg
    preset = {name: own[name] for name in KEPT if own.get(name) is not None}
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
    """Return the encoder's options without weights, and the image size, px."""
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
    """Return the options as Python code of one argument."""
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
    """Return the source of the function that replaces batch norms, and a call to it."""
    if encoder.norm not in ("group", "layer"):
        return []
    return [
        "from timm.layers import GroupNormAct",
        "from torch import nn",
        inspect.getsource(norms.replace_by_group_norm).rstrip(),
        f"replace_by_group_norm(model, {encoder.norm_groups})",
    ]


def _is_torchvision(encoder: TimmModel) -> bool:
    """Tell whether torchvision's model of that name has the same tensors, classifier aside."""
    if encoder.name not in torchvision.models.list_models(module=torchvision.models):
        return False
    if encoder.norm in ("group", "layer") or encoder.channels != 3:
        return False
    other = torchvision.models.get_model(encoder.name).state_dict()
    own = encoder.weights()
    if {name for name in other if not name.startswith("fc.")} != set(own):
        return False
    return all(own[n].shape == other[n].shape for n in own if not n.startswith("conv1."))


def unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return copies of the tensors that share no memory, as safetensors requires."""
    return {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
