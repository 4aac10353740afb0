"""Layers of an encoder to freeze, and groups of parameters with their learning rates."""

import difflib
from typing import Any

from torch import nn

from sslkit.errors import Fault, RecipeError
from sslkit.interfaces import Encoder

TOKENS = ("cls_token", "dist_token", "pos_embed", "reg_token")
"""Parameters of transformers without weight decay, as in MAE."""


def find_stage(encoder: Encoder, name: str) -> str:
    """Return the stage that a user names, as in `encoder.stages()` or as a module of the library.

    timm's `layer1` is `res2`, for example. Raises RecipeError with the stages if there is none.
    """
    stages = encoder.stages()
    if name in stages:
        return name
    sizes = {stage: _identities(modules) for stage, modules in stages.items()}
    for path, module in encoder.named_modules():
        if path == name or path.endswith(f".{name}"):
            for stage, parameters in sizes.items():
                if parameters and parameters == _identities([module]):
                    return stage
    near = difflib.get_close_matches(name, stages, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    message = f"there is no stage '{name}'; {hint}the stages are {', '.join(stages)}"
    raise RecipeError(Fault("--freeze", message))


def _identities(modules: list[nn.Module]) -> set[int]:
    found: set[int] = set()
    for module in modules:
        found.update(map(id, module.parameters()))
    return found


def freeze(encoder: Encoder, last: str) -> list[nn.Module]:
    """Disable gradients of all stages up to `last`, and return their modules."""
    frozen: list[nn.Module] = []
    for stage, modules in encoder.stages().items():
        frozen += modules
        if stage == last:
            break
    for module in frozen:
        module.requires_grad_(False)
    return frozen


def groups(
    encoder: Encoder,
    head: nn.Module,
    rates: tuple[float, float],
    *,
    layer_decay: float = 1.0,
    weight_decay: float = 0.0,
) -> list[dict[str, Any]]:
    """Return disjoint groups of all trained parameters, for an optimizer of torch.

    `rates` are the learning rates of encoder and head. The stages of the encoder are layers
    0 … L - 1, and the head is layer L. Layer i has its rate times layer_decay^(L - i) (MAE,
    `util/lr_decay.py`). Vectors and tokens have no weight decay.
    """
    stages: dict[str, list[nn.Module]] = {"encoder": [encoder]}
    if layer_decay != 1:
        stages = encoder.stages()
    layers: dict[int, int] = {}
    for layer, modules in enumerate(stages.values()):
        layers |= dict.fromkeys(_identities(modules), layer)
    names = [*stages, "head"]
    layers |= dict.fromkeys(_identities([head]), len(stages))
    found: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, value in [*encoder.named_parameters(), *head.named_parameters()]:
        if not value.requires_grad:
            continue
        layer = layers.get(id(value), len(stages) - 1)
        rate = rates[1] if layer == len(stages) else rates[0]
        decays = value.ndim > 1 and name.rpartition(".")[2] not in TOKENS
        group = {
            "stage": names[layer],
            "params": [],
            "lr": rate * layer_decay ** (len(stages) - layer),
            "weight_decay": weight_decay if decays else 0.0,
        }
        found.setdefault((layer, decays), group)["params"].append(value)
    return list(found.values())
