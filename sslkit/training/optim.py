"""Optimizers and schedules by name, from torch and timm, which do the work."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from timm.optim import get_optimizer_class
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from sslkit import recipe
from sslkit.errors import Fault, RecipeError

NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


def parameter_groups(
    module: nn.Module, weight_decay: float, exempt_norms_and_biases: bool
) -> list[dict]:
    """One group that decays and one that does not: biases and the scales of normalisation layers, if they are exempt."""
    exempt = set()
    if exempt_norms_and_biases:
        for part in module.modules():
            own = part.named_parameters(recurse=False)
            exempt |= {
                id(value) for name, value in own if name == "bias" or isinstance(part, NORMS)
            }
    trained = [value for value in module.parameters() if value.requires_grad]
    groups = [
        {
            "params": [value for value in trained if id(value) not in exempt],
            "weight_decay": weight_decay,
        },
        {"params": [value for value in trained if id(value) in exempt], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(module: nn.Module, chosen: "recipe.Optimizer") -> Optimizer:
    """The optimizer of that name; an option that it does not know is a fault, one left at null is left to it."""
    try:
        cls = get_optimizer_class(chosen.use, bind_defaults=False)
    except (AssertionError, ImportError, KeyError, ValueError) as error:
        raise RecipeError(
            Fault("optimizer.use", f"timm has no optimizer '{chosen.use}' here: {error}")
        ) from error
    known = inspect.signature(cls).parameters
    options: dict = {"lr": chosen.lr}
    for name in ("momentum", "nesterov", "betas", "eps"):
        value = getattr(chosen, name)
        if name in known and value is not None:
            options[name] = tuple(value) if name == "betas" else value
        elif value:
            raise RecipeError(
                Fault(
                    f"optimizer.{name}",
                    f"the optimizer '{chosen.use}' has no such option; it has {', '.join(known)}",
                )
            )
    try:
        _try_out(cls, options, next(module.parameters()).device)
        return cls(
            parameter_groups(module, chosen.weight_decay, chosen.exempt_norms_and_biases), **options
        )
    except (AssertionError, ImportError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise RecipeError(
            Fault("optimizer.use", f"'{chosen.use}' cannot be used with these options: {reason}")
        ) from error


def _try_out(cls: Callable[..., Optimizer], options: dict, device: torch.device) -> None:
    """One step with one weight, so that an optimizer that cannot step or cannot be saved is refused before anything is trained."""
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
    optimizer: Optimizer, chosen: "recipe.Schedule", epochs: int, steps_per_epoch: int
) -> Callable[[int], float]:
    """A function that sets and returns the learning rate of a step; a pure function of the step, so nothing needs saving.

    `per: epoch` holds the rate of an epoch's first step for the whole epoch, as VISSL does for PIRL.
    """
    warmup: dict[str, Any] = {
        "warmup_t": round(chosen.warmup_epochs * steps_per_epoch),
        "warmup_lr_init": chosen.warmup_lr,
        "t_in_epochs": False,
    }
    if chosen.use == "cosine":
        schedule: Scheduler = CosineLRScheduler(
            optimizer, t_initial=epochs * steps_per_epoch, lr_min=chosen.final_lr, **warmup
        )
    else:
        drops = {
            "constant": [],
            "step": list(range(chosen.step_epochs, epochs, chosen.step_epochs)),
            "multistep": chosen.milestones,
        }[chosen.use]
        # timm drops at the step before the one named.
        steps = [epoch * steps_per_epoch + 1 for epoch in drops]
        schedule = MultiStepLRScheduler(
            optimizer, decay_t=steps, decay_rate=chosen.factor, **warmup
        )

    # Positions, not groups: loading an optimizer's state replaces its groups.
    decayed = [place for place, group in enumerate(optimizer.param_groups) if group["weight_decay"]]
    steps_in_all, decay = epochs * steps_per_epoch, optimizer.param_groups[0]["weight_decay"]

    def set_rate(step: int) -> float:
        schedule.step_update(
            step if chosen.per == "step" else step // steps_per_epoch * steps_per_epoch
        )
        if chosen.final_weight_decay is not None:
            fraction = (1 + math.cos(math.pi * step / steps_in_all)) / 2
            for place in decayed:
                optimizer.param_groups[place]["weight_decay"] = (
                    chosen.final_weight_decay + (decay - chosen.final_weight_decay) * fraction
                )
        return optimizer.param_groups[0]["lr"]

    return set_rate
