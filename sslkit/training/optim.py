"""Creates optimizers by name, from torch and timm, and schedules of rate and weight decay."""

import inspect
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from timm.optim import get_optimizer_class, get_optimizer_info
from torch import Tensor, nn
from torch.optim import Optimizer

from sslkit import recipe
from sslkit.errors import Fault, RecipeError
from sslkit.recipe import optimizers

NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


SCHEDULED = "follows_schedule"
"""Key of parameter groups whose learning rate is constant, with the value False."""


def parameter_groups(
    module: nn.Module,
    weight_decay: float,
    exempt_norms_and_biases: bool,
    constant: Collection[nn.Parameter] = (),
) -> list[dict[str, Any]]:
    """Return a group with weight decay and one without (`_exempt`).

    Parameters in `constant` have two further groups, whose learning rate does not change.
    """
    exempt = _exempt(module) if exempt_norms_and_biases else set()
    trained = [value for value in module.parameters() if value.requires_grad]
    changing = [value for value in trained if value not in constant]
    others = [value for value in trained if value in constant]
    groups = _by_decay(changing, weight_decay, exempt)
    for group in _by_decay(others, weight_decay, exempt):
        groups.append({**group, SCHEDULED: False})
    return groups


def _by_decay(
    parameters: list[nn.Parameter], weight_decay: float, exempt: set[nn.Parameter]
) -> list[dict[str, Any]]:
    decaying = [value for value in parameters if value not in exempt]
    others = [value for value in parameters if value in exempt]
    groups = [
        {"params": decaying, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _exempt(module: nn.Module) -> set[nn.Parameter]:
    """Return the parameters that are exempt from weight decay.

    These are parameters of at most one dimension (biases, scales), parameters of normalisation
    layers, and those that timm lists in `no_weight_decay` (position embeddings, class tokens).
    """
    found = {value for value in module.parameters() if value.dim() <= 1}
    for child in module.modules():
        if isinstance(child, NORMS):
            found.update(child.parameters(recurse=False))
        listed = getattr(child, "no_weight_decay", None)
        if callable(listed):
            names = listed()
            found |= {value for name, value in child.named_parameters() if name in names}
    return found


def make_optimizer(
    module: nn.Module, chosen: recipe.Optimizer, constant: Iterable[nn.Module] = ()
) -> Optimizer:
    """Create the recipe's optimizer. Raises RecipeError for options that it does not accept.

    `constant` are modules within `module` whose learning rate does not follow the schedule.
    """
    try:
        cls = get_optimizer_class(chosen.use, bind_defaults=False)
        defaults = optimizers.defaults(chosen.use, get_optimizer_info(chosen.use).defaults)
    except (AssertionError, ImportError, KeyError, ValueError) as error:
        message = f"timm has no optimizer '{chosen.use}' here: {error}"
        raise RecipeError(Fault("optimizer.use", message)) from error
    options = {"lr": chosen.lr, **defaults, **_options(cls, chosen)}
    held: set[nn.Parameter] = set()
    for part in constant:
        held.update(part.parameters())
    groups = parameter_groups(module, chosen.weight_decay, chosen.exempt_norms_and_biases, held)
    try:
        _try_out(cls, options, next(module.parameters()).device)
        return cls(groups, **options)
    except (AssertionError, ImportError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        message = f"'{chosen.use}' cannot be used with these options: {reason}"
        raise RecipeError(Fault("optimizer.use", message)) from error


def _options(cls: Callable[..., Optimizer], chosen: recipe.Optimizer) -> dict[str, Any]:
    """Return the optimizer's own options as constructor arguments."""
    parameters = inspect.signature(cls).parameters
    options = {}
    for name, value in chosen.options.items():
        if name not in parameters:
            names = ", ".join(parameters)
            message = f"the optimizer '{chosen.use}' has no such option; it has {names}"
            raise RecipeError(Fault(f"optimizer.{name}", message))
        options[name] = tuple(value) if isinstance(value, list) else value
    return options


def _try_out(
    cls: Callable[..., Optimizer], options: Mapping[str, Any], device: torch.device
) -> None:
    """Take one step with one weight.

    Detects optimizers that cannot step or cannot be saved before training.
    """
    weight = nn.Parameter(torch.ones(2, 2, device=device))
    optimizer = cls([weight], **options)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    for name, value in optimizer.state[weight].items():
        if not isinstance(value, Tensor | int | float | None):
            raise TypeError(
                f"it keeps '{name}' as a {type(value).__name__}, which a checkpoint cannot hold"
            )


def make_schedule(
    optimizer: Optimizer, chosen: recipe.Schedule, epochs: int, steps_per_epoch: int
) -> Callable[[int], float]:
    """Return a function that sets learning rate and weight decay of a step, and returns the rate.

    The rate is a pure function of the step, so checkpoints store no schedule. With `per: epoch`,
    the rate is constant during an epoch, as in VISSL's PIRL. The warm-up and the weight decay
    change at every step.
    """
    steps, peak = epochs * steps_per_epoch, optimizer.param_groups[0]["lr"]
    final = chosen.final_weight_decay
    decays = {}
    # Stores indices, because loading an optimizer's state replaces its groups.
    followers = []
    for place, group in enumerate(optimizer.param_groups):
        if group.get(SCHEDULED, True):
            followers.append(place)
    if final is not None:
        for place, group in enumerate(optimizer.param_groups):
            if group["weight_decay"] > 0:
                decays[place] = group["weight_decay"]

    def set_rate(step: int) -> float:
        rate = learning_rate(step, peak, chosen, epochs, steps_per_epoch)
        for place in followers:
            optimizer.param_groups[place]["lr"] = rate
        for place, start in decays.items():
            assert final is not None
            optimizer.param_groups[place]["weight_decay"] = _cosine(start, final, step / steps)
        return rate

    return set_rate


def learning_rate(
    step: int, peak: float, chosen: recipe.Schedule, epochs: int, steps_per_epoch: int
) -> float:
    """Return the learning rate of a step, counted from 0."""
    warm = round(chosen.warmup_epochs * steps_per_epoch)
    if step < warm:
        return chosen.warmup_lr + step * ((peak - chosen.warmup_lr) / warm)
    if chosen.per == "epoch":
        step = max(warm, step // steps_per_epoch * steps_per_epoch)
    if isinstance(chosen, recipe.Cosine):
        steps = epochs * steps_per_epoch
        return _cosine(peak, chosen.final_lr, (step - warm) / max(1, steps - warm))
    if isinstance(chosen, recipe.Step | recipe.Multistep):
        passed = [drop for drop in chosen.drops(epochs) if drop * steps_per_epoch <= step]
        return peak * chosen.factor ** len(passed)
    return peak


def _cosine(start: float, end: float, fraction: float) -> float:
    """Interpolate from `start` at 0 to `end` at 1 along half a cosine period."""
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * fraction))
