"""Settings of training: optimizer, schedule, length, device."""

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from sslkit.errors import Fault, RecipeError


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Any optimizer of torch or timm, by timm's name (default `sgd`).

    Its own options stand beside these: `sslkit plugins show lars` lists those of `lars`. An option
    that is left out, or null, has the optimizer's default. `nesterov` of `sgd` is off unless the
    recipe turns it on, as in torch.
    """

    use: str = "sgd"
    lr: Annotated[
        PositiveFloat,
        Field(
            description="Peak learning rate of the whole batch, never scaled. PIRL: 0.12 at "
            "1,024 images."
        ),
    ]
    weight_decay: Annotated[
        NonNegativeFloat,
        Field(
            description="Weight decay, usually 1e-6 to 1e-4, with AdamW 0.01 to 0.5. PIRL: 1e-4."
        ),
    ] = 0.0
    exempt_norms_and_biases: Annotated[
        bool,
        Field(
            description="Exempt one-dimensional parameters (biases, scales), normalisation "
            "layers and timm's `no_weight_decay` (position embeddings) from "
            "weight decay."
        ),
    ] = True
    options: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for a recipe, with only the options that were set."""
        common = asdict(self)
        options = common.pop("options")
        return common | options


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate over time: a linear warm-up, then as `use` says."""

    use: ClassVar[str]
    warmup_epochs: Annotated[
        NonNegativeFloat,
        Field(
            description="Epochs of linear warm-up, usually 0 to 10. The step after the warm- "
            "up has the full rate."
        ),
    ] = 0.0
    warmup_lr: Annotated[
        NonNegativeFloat, Field(description="Learning rate at the first step of the warm-up.")
    ] = 0.0
    per: Annotated[
        Literal["step", "epoch"],
        Field(
            description="When the rate changes. epoch: at the first step of each epoch. The "
            "warm-up changes it at every step."
        ),
    ] = "step"
    final_weight_decay: Annotated[
        NonNegativeFloat | None,
        Field(
            description="Weight decay at the end, reached along half a cosine from "
            "optimizer.weight_decay (DINO: 0.04 to 0.4). null: constant."
        ),
    ] = None
    constant: Annotated[
        tuple[str, ...],
        Field(
            description="Heads whose learning rate stays optimizer.lr. SimSiam: [predictor] "
            "(`--fix-pred-lr`)."
        ),
    ] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return plain data as a recipe holds it."""
        return {"use": self.use, **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """Half a cosine to `final_lr` (Loshchilov & Hutter 2017, arXiv:1608.03983), no restarts.

    It begins where the warm-up ends.
    """

    use: ClassVar[str] = "cosine"
    final_lr: Annotated[
        NonNegativeFloat, Field(description="Learning rate at the end. PIRL: 1.2e-4.")
    ] = 0.0


@dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """The learning rate stays as it is."""

    use: ClassVar[str] = "constant"


@dataclass(frozen=True, kw_only=True)
class Step(Schedule):
    """The learning rate is multiplied by `factor` every `step_epochs` epochs."""

    use: ClassVar[str] = "step"
    step_epochs: Annotated[
        PositiveInt, Field(description="Epochs between two drops of the rate.")
    ] = 30
    factor: Annotated[PositiveFloat, Field(description="Factor of a drop, usually 0.1.")] = 0.1

    def drops(self, epochs: int) -> list[int]:
        """Return the epochs at which the learning rate drops."""
        return list(range(self.step_epochs, epochs, self.step_epochs))


@dataclass(frozen=True, kw_only=True)
class Multistep(Schedule):
    """The learning rate is multiplied by `factor` at each of `milestones`."""

    use: ClassVar[str] = "multistep"
    milestones: Annotated[
        tuple[PositiveInt, ...],
        Field(description="Epochs at whose start the rate drops. MoCo: [120, 160] of 200."),
    ]
    factor: Annotated[PositiveFloat, Field(description="Factor of a drop, usually 0.1.")] = 0.1

    def drops(self, epochs: int) -> list[int]:
        """Return the epochs at which the learning rate drops."""
        return list(self.milestones)


SCHEDULES: dict[str, type[Schedule]] = {
    schedule.use: schedule for schedule in (Cosine, Constant, Step, Multistep)
}


@dataclass(frozen=True, kw_only=True)
class Repeat:
    """An evaluation while training: how often, and on which images."""

    every_epochs: Annotated[
        PositiveInt,
        Field(
            description="Epochs between two evaluations, usually 10. The end of the training is "
            "also evaluated."
        ),
    ] = 10
    data: Annotated[
        str | None,
        Field(
            description="Folder of labelled images, packed set or .npz file. null: the images of "
            "the recipe."
        ),
    ] = None
    labels: Annotated[
        str | None,
        Field(description="CSV file with the columns name and label, as `sslkit eval --labels`."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Train:
    """Length, global batch size, micro-batches, device, checkpointing."""

    epochs: Annotated[
        PositiveInt, Field(description="Passes over the data, usually 100 to 800. PIRL: 800.")
    ]
    batch_size: Annotated[
        PositiveInt, Field(description="Images per step, over all devices. PIRL: 1,024.")
    ]
    accumulate: Annotated[
        PositiveInt, Field(description="Micro-batches that each device computes one after another.")
    ] = 1
    seed: Annotated[
        NonNegativeInt,
        Field(description="Seed of weights, views, negatives and the order of images."),
    ] = 0
    precision: Annotated[
        Literal["auto", "fp32", "bf16"],
        Field(
            description="Number format of forward and backward. auto: bf16 where the hardware "
            "multiplies it, else fp32."
        ),
    ] = "auto"
    device: Annotated[
        Literal["auto", "cpu", "cuda", "mps"],
        Field(description="Device to train on. auto: the GPU if there is one."),
    ] = "auto"
    workers: Annotated[
        NonNegativeInt | Literal["auto"],
        Field(
            description="Processes that decode images, per device. auto: chosen from the "
            "number of cores."
        ),
    ] = "auto"
    compile: Annotated[bool, Field(description="Compile the encoder with torch.compile.")] = False
    channels_last: Annotated[
        bool,
        Field(description="Store images channels last, which makes convolutions faster on GPUs."),
    ] = True
    sync_batchnorm: Annotated[
        bool, Field(description="Compute batch-norm statistics over all GPUs. PIRL: false.")
    ] = False
    clip_grad: Annotated[
        PositiveFloat | None, Field(description="Largest norm of the gradient. null: no clipping.")
    ] = None
    on_nan: Annotated[
        Literal["stop", "skip"],
        Field(
            description="Reaction to a loss or gradient that is not finite: stop the run, or "
            "skip the step."
        ),
    ] = "stop"
    log_every: Annotated[
        PositiveInt, Field(description="Steps between two rows of metrics.jsonl.")
    ] = 10
    save_minutes: Annotated[
        NonNegativeFloat, Field(description="Minutes between two checkpoints.")
    ] = 5.0
    keep: Annotated[PositiveInt, Field(description="Number of checkpoints to keep.")] = 2
    unreadable: Annotated[
        NonNegativeInt,
        Field(description="Number of unreadable images to replace before the run stops."),
    ] = 10
    deterministic: Annotated[
        bool, Field(description="Use deterministic kernels only, which may be slower.")
    ] = False
    evaluate: Annotated[
        dict[str, Any] | None,
        Field(
            description="Evaluations while training, by name: {knn: {every_epochs: 10, data: "
            "DIR}}. Beside every_epochs, data and labels stand the options of the evaluation."
        ),
    ] = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain data as a recipe holds it."""
        return asdict(self)

    def per_rank_batch(self, ranks: int) -> int:
        """Return the number of images in one micro-batch of one rank.

        Raises RecipeError if the batch is not divisible.
        """
        shares = ranks * self.accumulate
        if self.batch_size % shares:
            parts = f" in {self.accumulate} parts" if self.accumulate > 1 else ""
            message = (
                f"{self.batch_size} images cannot be shared by {ranks} processes{parts}; take a "
                f"multiple of {shares}"
            )
            raise RecipeError(Fault("train.batch_size", message))
        return self.batch_size // shares


SETTINGS: dict[str, type] = {"optimizer": Optimizer, "schedule": Schedule, "train": Train}
"""Class of each section of settings."""
