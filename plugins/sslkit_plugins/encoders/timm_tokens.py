"""Tokens of a timm vision transformer."""

from typing import Any

from timm.models import VisionTransformer
from torch import Tensor, cat

from sslkit.errors import SslkitError


def tokens(model: Any, name: str, images: Tensor, kept: Tensor | None = None) -> Tensor:
    """Return normalised tokens [N,P+L,width]; P class tokens and registers come first.

    `kept` int64 [N,k] are the patches that enter the transformer, numbered row by row. Raises
    SslkitError if the model has no tokens.
    """
    if kept is None:
        rows = model.forward_features(images) if hasattr(model, "num_prefix_tokens") else None
        if not isinstance(rows, Tensor) or rows.dim() != 3:
            raise _without_tokens(name, "has no tokens")
        return rows
    if not isinstance(model, VisionTransformer):
        raise _without_tokens(name, "cannot leave out patches")
    rows = model._pos_embed(model.patch_embed(images))
    prefix, patches = rows[:, : model.num_prefix_tokens], rows[:, model.num_prefix_tokens :]
    patches = patches.gather(1, kept.unsqueeze(-1).expand(-1, -1, patches.shape[-1]))
    return model.norm(model.blocks(model.norm_pre(cat([prefix, patches], 1))))


def blocks(model: Any, name: str, images: Tensor, count: int) -> list[Tensor]:
    """Return the normalised tokens after the last `count` blocks, shallow to deep.

    Raises SslkitError if the model has none.
    """
    if not isinstance(model, VisionTransformer):
        raise _without_tokens(name, "has no blocks of tokens")
    found: Any = model.forward_intermediates(
        images,
        indices=min(count, len(model.blocks)),
        return_prefix_tokens=True,
        norm=True,
        output_fmt="NLC",
        intermediates_only=True,
    )
    if not model.num_prefix_tokens:
        return list(found)
    return [cat([prefix, patches], 1) for patches, prefix in found]


def _without_tokens(name: str, what: str) -> SslkitError:
    return SslkitError(f"'{name}' {what}; use a vision transformer, such as vit_small_patch16_224")
