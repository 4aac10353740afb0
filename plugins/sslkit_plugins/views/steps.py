"""Draws augmentations of a batch on the host and applies them on the device.

Letters: B images, K crops per image, N = B·K rows. All random numbers are drawn on the host, so
grouping rows does not synchronise with the device.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sslkit.interfaces import Draws
from sslkit_plugins.views import operations
from sslkit_plugins.views.colours import Colours

PARCEL = 5 * 224 * 224
"""Values per group of rows on a CPU: one image, or twenty patches.

Smaller groups need more calls; larger groups exceed the cache.
"""

JITTER = (
    operations.adjust_brightness,
    operations.adjust_contrast,
    operations.adjust_saturation,
    operations.adjust_hue,
)
ORDERS = torch.tensor(list(itertools.permutations(range(4))))
NUMBERS = 13
"""Random numbers per row."""
MORE = 5
"""Additional random numbers per row, if `Colours.needs_more`."""

Shared = Literal["none", "flip", "all"]
"""Draws that the crops of one image share."""

Encoding = Callable[[Tensor, Tensor | None], Tensor]
"""float32 [N,C,H,W] in 0 … 255 → the encoder's input, in the second tensor or in place."""


class Step(NamedTuple):
    """An operation with its rows, bool [N], and parameters, float32 [N], on the host."""

    operation: Callable[[Tensor, Tensor], None]
    chosen: Tensor
    parameter: Tensor


def merged(lists: Sequence[Colours], batch: int) -> Colours:
    """Merge one or K colour augmentations into one for all rows of `batch` images.

    A number that differs between crops becomes a tensor, float32 [B·K].
    """

    def number(values: Sequence[float]) -> Any:
        if len(set(values)) == 1:
            return values[0]
        return torch.tensor(values, dtype=torch.float32).repeat(batch)

    numbers: dict[str, Any] = {}
    for field in fields(Colours):
        values = [getattr(colours, field.name) for colours in lists]
        if isinstance(values[0], tuple | list):
            numbers[field.name] = tuple(map(number, zip(*values, strict=True)))
        else:
            numbers[field.name] = number(values)
    return Colours(**numbers)


def draw_steps(
    uniform: Tensor, colours: Colours, flip: float = 0.5, more: Tensor | None = None
) -> list[Step]:
    """Return the operations on N rows, in order, for random numbers in 0 … 1.

    `uniform` is float32 [N,NUMBERS], `more` float32 [N,MORE] or None, `flip` the probability of a
    flip. Each jitter operation appears once for each of the four positions in a row's order.
    """
    numbers, zeros = uniform.unbind(1), torch.zeros(len(uniform))
    listed = numbers[6] < colours.photometric
    low, high = colours.blur_sigma
    sigma = numbers[9] if more is None else more[:, 4]
    steps = [
        *_jitter(numbers, colours),
        Step(operations.posterize, listed, 4 + (numbers[9] * 5).floor()),
        Step(operations.adjust_sharpness, listed, 0.1 + 1.8 * numbers[10]),
        Step(operations.solarize, listed, (numbers[11] * 257).floor()),
        Step(operations.autocontrast, listed, zeros),
        Step(operations.adjust_saturation, numbers[7] < colours.gray, zeros),
        Step(operations.gaussian_blur, numbers[8] < colours.blur, low + (high - low) * sigma),
    ]
    if more is not None:
        bits = _integer(more[:, 1], colours.posterize_bits)
        steps.append(Step(operations.posterize, more[:, 0] < colours.posterize, bits))
        level = _integer(more[:, 3], colours.solarize_from)
        steps.append(Step(operations.solarize, more[:, 2] < colours.solarize, level))
    steps.append(Step(operations.flip, numbers[12] < flip, zeros))
    return steps


def _jitter(numbers: Sequence[Tensor], colours: Colours) -> list[Step]:
    """Return brightness, contrast, saturation and hue at each of the four positions."""
    jittered = numbers[0] < colours.jitter_chance
    order = ORDERS[(numbers[1] * 24).long()]
    steps = []
    for place in range(4):
        for kind in range(4):
            strength = colours.jitter[kind]
            chosen = jittered & (order[:, place] == kind) & (strength > 0)
            change = strength * (2 * numbers[2 + kind] - 1)
            parameter = change if kind == 3 else 1 + change
            steps.append(Step(JITTER[kind], chosen, parameter))
    return steps


def _integer(number: Tensor, ends: tuple[int, int]) -> Tensor:
    """Scale numbers in 0 … 1 to integers between both `ends`, inclusive."""
    low, high = ends
    return low + (number * (high - low + 1)).floor()


def finish(
    view: Tensor,
    draws: Draws,
    lists: Sequence[Colours],
    encode: Encoding,
    *,
    flip: float = 0.5,
    shared: Shared = "none",
) -> Tensor:
    """Augment, flip and encode: integer [B,C,H,W] or [B,K,C,H,W] → float32 of the same shape.

    `lists` has one colour augmentation for all crops, or K. Every row has separate draws, except
    for those that `shared` names.
    """
    batch, crops = len(view), view.shape[1] if view.dim() == 5 else 1
    own = 1 if shared == "all" else crops
    uniform = draws.uniform(batch, own, NUMBERS).expand(batch, crops, NUMBERS)
    more = None
    if any(colours.needs_more for colours in lists):
        more = draws.uniform(batch, own, MORE).expand(batch, crops, MORE).flatten(0, 1)
    if shared == "flip":
        uniform = torch.cat([uniform[..., :-1], uniform[:, :1, -1:].expand(batch, crops, 1)], -1)
    steps = draw_steps(uniform.flatten(0, 1), merged(lists, batch), flip, more)
    return apply(steps, view.reshape(-1, *view.shape[-3:]), encode).reshape(view.shape)


def apply(steps: list[Step], images: Tensor, encode: Encoding) -> Tensor:
    """Apply the steps to each row and encode: integer [N,C,H,W] → float32 [N,C,H,W].

    Sorts the rows by their steps, so that a step changes adjacent rows. On a CPU, small groups of
    rows go through all steps while they are in the cache.
    """
    device = images.device
    chosen = torch.stack([step.chosen for step in steps], 1).numpy()
    order = np.lexsort(chosen.T[::-1])
    chosen = chosen[order]
    parameters = torch.stack([step.parameter for step in steps], 1)[order]
    parameters = parameters.to(device, non_blocking=True)
    done = torch.empty(images.shape, device=device)
    size = max(1, PARCEL // images[0].numel()) if device.type == "cpu" else len(order)
    for start in range(0, len(order), size):
        parcel = slice(start, start + size)
        rows, here, given = order[parcel], chosen[parcel], parameters[parcel]
        pixels = to_floats(images.index_select(0, _at(rows, device)))
        for number in np.flatnonzero(here.any(0)).tolist():
            parameter = given[:, number].view(-1, 1, 1, 1)
            _change(pixels, np.flatnonzero(here[:, number]), steps[number].operation, parameter)
        if len(rows) == 1:  # Saves a copy.
            encode(pixels, done[rows[0] : rows[0] + 1])
        else:
            _put(done, rows, encode(pixels, None))
    return done


def to_floats(images: Tensor) -> Tensor:
    """uint8 or uint16 [N,C,H,W] → float32 in 0 … 255."""
    if images.dtype == torch.uint16:
        return images.float().div_(257)
    return images.float()


def _change(
    pixels: Tensor, rows: np.ndarray, operation: Callable[[Tensor, Tensor], None], parameter: Tensor
) -> None:
    """Apply `operation` to the ascending `rows` of `pixels`, in place if they are adjacent."""
    first, last = int(rows[0]), int(rows[-1]) + 1
    if last - first == len(rows):
        operation(pixels[first:last], parameter[first:last])
        return
    here = _at(rows, pixels.device)
    selected = pixels.index_select(0, here)
    operation(selected, parameter.index_select(0, here))
    _put(pixels, rows, selected)


def _at(rows: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(rows).to(device, non_blocking=True)


def _put(target: Tensor, rows: np.ndarray, values: Tensor) -> None:
    """Set target[rows] to values; on a CPU, NumPy is five times as fast as `index_copy_`."""
    if target.device.type == "cpu":
        target.numpy()[rows] = values.numpy()
    else:
        target.index_copy_(0, _at(rows, target.device), values)
