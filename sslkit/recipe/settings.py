"""Settings of training: optimizer, schedule, length, device."""

import functools
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from sslkit.errors import Fault, RecipeError
from sslkit.recipe.signature import (
    Signature,
    read_class,
)

Momentum = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Any optimizer of torch or timm by the name that timm gives it. The learning rate is that of the whole batch."""

    use: str = "sgd"
    lr: PositiveFloat
    weight_decay: NonNegativeFloat = 0.0
    momentum: Momentum | None = None
    nesterov: bool = False
    betas: tuple[Momentum, Momentum] | None = None
    eps: PositiveFloat | None = None
    exempt_norms_and_biases: bool = True


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate over time: a linear warm-up, then `cosine`, `constant`, `step` or `multistep`."""

    use: Literal["cosine", "constant", "step", "multistep"] = "cosine"
    final_lr: NonNegativeFloat = 0.0
    final_weight_decay: NonNegativeFloat | None = None
    warmup_epochs: NonNegativeFloat = 0.0
    warmup_lr: NonNegativeFloat = 0.0
    per: Literal["step", "epoch"] = "step"
    milestones: tuple[PositiveInt, ...] = ()
    factor: PositiveFloat = 0.1
    step_epochs: PositiveInt = 30


@dataclass(frozen=True, kw_only=True)
class Train:
    """How long, how much at once (`batch_size` counts all devices; `accumulate` computes it in so many parts), on what, and how often it
    is written down."""

    epochs: PositiveInt
    batch_size: PositiveInt
    accumulate: PositiveInt = 1
    seed: NonNegativeInt = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    workers: NonNegativeInt | Literal["auto"] = "auto"
    compile: bool = False
    channels_last: bool = True
    sync_batchnorm: bool = False
    clip_grad: PositiveFloat | None = None
    on_nan: Literal["stop", "skip"] = "stop"
    log_every: PositiveInt = 10
    save_minutes: NonNegativeFloat = 5.0
    keep: PositiveInt = 2
    unreadable: NonNegativeInt = 10
    deterministic: bool = False

    def per_rank_batch(self, processes: int) -> int:
        """How many images one process computes at once. RecipeError where the batch does not divide."""
        shares = processes * self.accumulate
        if self.batch_size % shares:
            parts = f" in {self.accumulate} parts" if self.accumulate > 1 else ""
            fault = f"{self.batch_size} images cannot be shared by {processes} processes{parts}; take a multiple of {shares}"
            raise RecipeError(Fault("train.batch_size", fault))
        return self.batch_size // shares


SETTINGS: dict[str, type] = {"optimizer": Optimizer, "schedule": Schedule, "train": Train}


@functools.cache
def optimizers() -> tuple[str, ...]:
    """The names that timm knows torch's and its own optimizers by, read from its source; empty where that cannot be found."""
    spec = importlib.util.find_spec("timm")
    try:
        source = Path(
            *(spec.submodule_search_locations or ())[:1], "optim", "_optim_factory.py"
        ).read_text("utf-8")  # type: ignore[union-attr]
    except (OSError, AttributeError):
        return ()
    return tuple(
        dict.fromkeys(
            re.findall(r"(?:OptimInfo\(\s*name=|register_alias\(|(?='bnb))'(\w+)'", source)
        )
    )


@functools.cache
def settings_signature(settings: type) -> Signature:
    return read_class(settings, settings.__name__.lower())
