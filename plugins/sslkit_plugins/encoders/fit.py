"""Finds the options with which a timm model accepts given image sizes, and its feature length."""

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import timm
import torch
from torch import Tensor, nn

from sslkit.errors import Fault, RecipeError

RESERVED = {
    "cache_dir",
    "checkpoint_path",
    "features_only",
    "in_chans",
    "num_classes",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
}
"""Arguments of timm.create_model that the encoder sets itself."""


class Fitted(NamedTuple):
    """Options for timm.create_model, and the length of the feature vectors."""

    options: dict[str, Any]
    dim: int


def create(model: str, options: dict[str, Any], channels: int, **more: Any) -> Any:
    """Create a timm model without classifier, for images of `channels` channels."""
    if channels != 3:
        more["in_chans"] = channels
    return timm.create_model(model, num_classes=0, **options, **more)


def fit(
    model: str,
    options: dict[str, Any],
    sizes: Sequence[int],
    channels: int,
    img_size: int | Literal["auto"] | None = "auto",
) -> Fitted:
    """Run the model on empty images of every size, on PyTorch's meta device.

    `sizes` are the sides of square images, px, largest first. Returns the first options that work:
    the given ones, then with `img_size` and `dynamic_img_size` if the model has them. Does not
    change torch's random state. Raises RecipeError if no options work.
    """
    _check_names(model, options)
    reason = "no reason given"
    for attempt in _attempts(sizes, img_size):
        chosen = {**attempt, **options}
        try:
            with torch.random.fork_rng(devices=[]), torch.device("meta"), torch.no_grad():
                trial = create(model, chosen, channels).eval()
                outputs = [trial(torch.empty(2, channels, side, side)) for side in sizes]
        except Exception as error:
            unknown = _unknown_option(error)
            required = unknown == "img_size" and isinstance(img_size, int)
            if unknown is not None and (unknown in options or required):
                message = f"'{model}' has no option '{unknown}'; remove it"
                raise RecipeError(Fault(_key(unknown), message)) from error
            if unknown not in attempt:
                reason = first_line(error)
            continue
        return Fitted(chosen, _width(model, outputs))
    sides = " and ".join(f"{side} px" for side in sizes)
    raise RecipeError(
        Fault(
            "encoder.model",
            f"'{model}' does not accept images of {sides} ({reason}); change the sizes in "
            "transform, or use another model, such as a ResNet",
        )
    )


def _attempts(
    sizes: Sequence[int], img_size: int | Literal["auto"] | None
) -> Iterator[dict[str, Any]]:
    """Yield additions to the given options, smallest first."""
    if img_size is None:
        yield {}
        yield {"dynamic_img_size": True}
        return
    side = img_size
    if side == "auto":
        yield {}
        side = sizes[0]
        yield {"img_size": side, "dynamic_img_size": True}
        yield {"img_size": side}
        yield {"dynamic_img_size": True}
        return
    yield {"img_size": side}
    yield {"img_size": side, "dynamic_img_size": True}


def _check_names(model: str, options: dict[str, Any]) -> None:
    for name in options:
        if name in RESERVED:
            message = f"'{name}' is set by the encoder itself; remove it"
            raise RecipeError(Fault("encoder.options", message))
    if not timm.is_model(model):
        names = difflib.get_close_matches(model, timm.list_models(), n=3)
        near = "timm.list_models() lists them"
        if names:
            near = f"did you mean {' or '.join(names)}?"
        raise RecipeError(Fault("encoder.model", f"timm has no model '{model}'; {near}"))


def _unknown_option(error: Exception) -> str | None:
    """Return the name of the argument that a constructor rejects, or None."""
    if not isinstance(error, TypeError):
        return None
    found = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    return None if found is None else found[1]


def _key(option: str) -> str:
    """Return the recipe key of an argument of timm.create_model."""
    named = option in ("drop_path_rate", "global_pool", "img_size")
    return f"encoder.{option}" if named else "encoder.options"


def first_line(error: Exception) -> str:
    """Return the first line of an error message, or the name of the error's class."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _width(model: str, outputs: Sequence[object]) -> int:
    """Return the feature length. Raises RecipeError if an output is not one vector per image."""
    for output in outputs:
        if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != 2:
            shape = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
            message = (
                f"'{model}' with these options returns {shape} for 2 images, not one vector per "
                "image; remove encoder.global_pool and encoder.options"
            )
            raise RecipeError(Fault("encoder.global_pool", message))
    first = outputs[0]
    assert isinstance(first, Tensor)
    return first.shape[1]


def is_resnet(model: nn.Module) -> bool:
    """Tell whether a model is a timm ResNet with a single first convolution."""
    return isinstance(model, timm.models.ResNet) and isinstance(model.conv1, nn.Conv2d)
