"""Optimizers by name, from torch and timm; schedules of the learning rate and the weight decay."""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from timm.optim import get_optimizer_class, get_optimizer_info
from torch import Tensor, nn
from torch.optim import Optimizer

from sslkit import recipe
from sslkit.errors import Fault, RecipeError
from sslkit.recipe import optimizers

NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


def parameter_groups(
    module: nn.Module, weight_decay: float, exempt_norms_and_biases: bool
) -> list[dict[str, Any]]:
    """Return one group that decays and one that does not (`_exempt`)."""
    exempt = _exempt(module) if exempt_norms_and_biases else set()
    trained = [value for value in module.parameters() if value.requires_grad]
    decaying = [value for value in trained if value not in exempt]
    others = [value for value in trained if value in exempt]
    groups = [
        {"params": decaying, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _exempt(module: nn.Module) -> set[nn.Parameter]:
    """Return the parameters that do not decay unless the recipe says so.

    These are all parameters of at most one dimension (biases, scales), all of normalisation layers,
    and those that a model of timm names in `no_weight_decay` (position embeddings, class tokens).
    """
    found = {value for value in module.parameters() if value.dim() <= 1}
    for part in module.modules():
        if isinstance(part, NORMS):
            found.update(part.parameters(recurse=False))
        named = getattr(part, "no_weight_decay", None)
        if callable(named):
            names = named()
            found |= {value for name, value in part.named_parameters() if name in names}
    return found


def make_optimizer(module: nn.Module, chosen: recipe.Optimizer) -> Optimizer:
    """Make the optimizer of that name. Raises RecipeError for what it does not take."""
    try:
        cls = get_optimizer_class(chosen.use, bind_defaults=False)
        defaults = optimizers.defaults(chosen.use, get_optimizer_info(chosen.use).defaults)
    except (AssertionError, ImportError, KeyError, ValueError) as error:
        message = f"timm has no optimizer '{chosen.use}' here: {error}"
        raise RecipeError(Fault("optimizer.use", message)) from error
    options = {"lr": chosen.lr, **defaults, **_options(cls, chosen)}
    groups = parameter_groups(module, chosen.weight_decay, chosen.exempt_norms_and_biases)
    try:
        _try_out(cls, options, next(module.parameters()).device)
        return cls(groups, **options)
    except (AssertionError, ImportError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        message = f"'{chosen.use}' cannot be used with these options: {reason}"
        raise RecipeError(Fault("optimizer.use", message)) from error


def _options(cls: Callable[..., Optimizer], chosen: recipe.Optimizer) -> dict[str, Any]:
    """Return the optimizer's own options as its constructor takes them."""
    known = inspect.signature(cls).parameters
    options = {}
    for name, value in chosen.options.items():
        if name not in known:
            has = ", ".join(known)
            message = f"the optimizer '{chosen.use}' has no such option; it has {has}"
            raise RecipeError(Fault(f"optimizer.{name}", message))
        options[name] = tuple(value) if isinstance(value, list) else value
    return options


def _try_out(
    cls: Callable[..., Optimizer], options: Mapping[str, Any], device: torch.device
) -> None:
    """Take one step with one weight.

    An optimizer that cannot step or cannot be saved is refused before anything is trained.
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
    """Return a function that sets the learning rate and the weight decay of a step.

    It returns the learning rate. It is a pure function of the step, so nothing needs saving.
    `per: epoch` holds the rate of an epoch's first step for the whole epoch, as VISSL does for
    PIRL; the warm-up and the weight decay change at every step.
    """
    steps, peak = epochs * steps_per_epoch, optimizer.param_groups[0]["lr"]
    final = chosen.final_weight_decay
    decays = {}
    if final is not None:
        # Places, not groups: loading an optimizer's state replaces its groups.
        for place, group in enumerate(optimizer.param_groups):
            if group["weight_decay"] > 0:
                decays[place] = group["weight_decay"]

    def set_rate(step: int) -> float:
        rate = learning_rate(step, peak, chosen, epochs, steps_per_epoch)
        for group in optimizer.param_groups:
            group["lr"] = rate
        for place, start in decays.items():
            assert final is not None
            optimizer.param_groups[place]["weight_decay"] = _cosine(start, final, step / steps)
        return rate

    return set_rate


def learning_rate(
    step: int, peak: float, chosen: recipe.Schedule, epochs: int, steps_per_epoch: int
) -> float:
    """Return the learning rate of a step, which counts from 0."""
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
    """Return `start` at 0 and `end` at 1, along half a cosine."""
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * fraction))
