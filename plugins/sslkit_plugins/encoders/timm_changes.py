"""Changes to a timm model: a small stem, other norms, fixed position embeddings."""

from typing import Any, Literal

from timm.layers import build_sincos2d_pos_embed
from timm.models import VisionTransformer
from torch import nn

from sslkit.errors import Fault, RecipeError
from sslkit_plugins.encoders import norms
from sslkit_plugins.encoders.fit import is_resnet

Norm = Literal["model", "group", "layer", "split", "frozen"]


def shrink_stem(model: Any, name: str) -> None:
    """Replace the stem of a ResNet by a 3×3 convolution. Raises RecipeError for other models."""
    if not is_resnet(model):
        message = (
            f"'small' requires a plain ResNet such as resnet50; '{name}' is none, so keep 'model'"
        )
        raise RecipeError(Fault("encoder.stem", message))
    old = model.conv1
    model.conv1 = nn.Conv2d(old.in_channels, old.out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()


def replace_norms(model: nn.Module, name: str, norm: Norm, groups: int, splits: int) -> None:
    """Replace every batch norm, or freeze it. Raises RecipeError if the model has none.

    `groups` is the largest number of groups of a group norm, `splits` the number of slices.
    """
    found = norms.batch_norms(model)
    if not found:
        message = f"'{name}' has no batch norm, so there is nothing to replace; keep 'model'"
        raise RecipeError(Fault("encoder.norm", message))
    if norm == "frozen":
        for module in found:
            module.requires_grad_(False).eval()
    elif norm == "split":
        norms.split_batch_norms(model, splits)
    else:
        norms.replace_by_group_norm(model, groups)


def check_trained_norms(norm: Norm) -> None:
    """Raise RecipeError for norms that do not fit timm's pretrained weights."""
    if norm in ("group", "layer"):
        message = (
            f"timm's weights belong to batch norms, which '{norm}' replaces; use 'model' or "
            "'frozen', or train without initial weights"
        )
        raise RecipeError(Fault("encoder.norm", message))


def fix_positions(model: Any, name: str, *, initialised: bool) -> None:
    """Set position embeddings to sines and cosines, 0 for prefix tokens, without training.

    Raises RecipeError if the model has none, or if it is `initialised` with trained ones.
    """
    if not isinstance(model, VisionTransformer) or model.pos_embed is None:
        message = f"'{name}' has no position embeddings; keep 'model'"
        raise RecipeError(Fault("encoder.positions", message))
    if initialised:
        message = "'fixed' would overwrite the pretrained embeddings; keep 'model'"
        raise RecipeError(Fault("encoder.positions", message))
    rows = build_sincos2d_pos_embed(list(model.patch_embed.grid_size), model.embed_dim)
    embeddings = model.pos_embed.requires_grad_(False).zero_()
    embeddings[:, -len(rows) :] = rows
