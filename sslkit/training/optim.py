"""Optimizers and schedules by name, from torch and timm, which do the work."""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from timm.optim import get_optimizer_class, get_optimizer_info
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from sslkit import recipe
from sslkit.errors import Fault, RecipeError
from sslkit.recipe import optimizers

NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


def parameter_groups(
    module: nn.Module, weight_decay: float, exempt_norms_and_biases: bool
) -> list[dict[str, Any]]:
    """Return one group that decays and one that does not.

    Biases and the scales of normalisation layers do not decay if they are exempt.
    """
    exempt = set()
    if exempt_norms_and_biases:
        for part in module.modules():
            for name, value in part.named_parameters(recurse=False):
                if name == "bias" or isinstance(part, NORMS):
                    exempt.add(id(value))
    trained = [value for value in module.parameters() if value.requires_grad]
    decaying = [value for value in trained if id(value) not in exempt]
    others = [value for value in trained if id(value) in exempt]
    groups = [
        {"params": decaying, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


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
    PIRL; the weight decay changes at every step.
    """
    schedule = _schedule(optimizer, chosen, epochs, steps_per_epoch)
    steps = epochs * steps_per_epoch
    final = chosen.final_weight_decay
    decays = {}
    if final is not None:
        # Places, not groups: loading an optimizer's state replaces its groups.
        for place, group in enumerate(optimizer.param_groups):
            if group["weight_decay"] > 0:
                decays[place] = group["weight_decay"]

    def set_rate(step: int) -> float:
        first = step // steps_per_epoch * steps_per_epoch
        schedule.step_update(step if chosen.per == "step" else first)
        for place, start in decays.items():
            assert final is not None
            now = final + (start - final) * (1 + math.cos(math.pi * step / steps)) / 2
            optimizer.param_groups[place]["weight_decay"] = now
        return optimizer.param_groups[0]["lr"]

    return set_rate


def _schedule(
    optimizer: Optimizer, chosen: recipe.Schedule, epochs: int, steps_per_epoch: int
) -> Scheduler:
    """Return timm's scheduler, counting steps."""
    warmup: dict[str, Any] = {
        "warmup_t": round(chosen.warmup_epochs * steps_per_epoch),
        "warmup_lr_init": chosen.warmup_lr,
        "t_in_epochs": False,
    }
    if isinstance(chosen, recipe.Cosine):
        steps = epochs * steps_per_epoch
        return CosineLRScheduler(optimizer, t_initial=steps, lr_min=chosen.final_lr, **warmup)
    drops: list[int] = []
    factor = 1.0
    if isinstance(chosen, recipe.Step | recipe.Multistep):
        drops, factor = chosen.drops(epochs), chosen.factor
    # timm drops at the step before the one named.
    places = [epoch * steps_per_epoch + 1 for epoch in drops]
    return MultiStepLRScheduler(optimizer, decay_t=places, decay_rate=factor, **warmup)
