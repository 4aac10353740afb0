"""Published settings of fine-tuning, by name."""

import math
from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class Preset:
    """Optimisation of encoder and head. The defaults are those of `small`."""

    source: str
    epochs: int = 50
    batch_size: int = 16
    optimizer: Literal["momentum", "nesterov", "adamw", "lars"] = "nesterov"
    """Names of timm. Momentum is 0.9; AdamW has β = 0.9, 0.999."""
    lr: float = 0.2
    """Rate of the encoder, before scaling."""
    head_lr: float | None = None
    """Rate of the head; None: that of the encoder."""
    scaling: Literal["linear", "sqrt", "none"] = "linear"
    """Factor of the rates: batch / 256, √batch, or 1."""
    schedule: Literal["cosine", "epoch cosine", "drops"] = "cosine"
    """`cosine` changes at every step, `epoch cosine` after every epoch."""
    drops: tuple[float, ...] = ()
    """Times of the drops, as fractions of all epochs."""
    drop_factor: float = 0.1
    warmup: float = 0.0
    """Fraction of all epochs in which the rates rise from 0."""
    weight_decay: float = 0.0
    layer_decay: float = 1.0
    drop_path: float = 0.0
    mixing: bool = False
    """Mixup (α = 0.8) or CutMix (α = 1), one of them for every batch."""
    smoothing: float = 0.0
    """Label smoothing."""
    head_std: float | None = 0.01
    """Standard deviation of the head's initial weights; None: PyTorch's default."""

    def rates(self, batch_size: int) -> tuple[float, float]:
        """Return the highest learning rates of encoder and head for a batch size."""
        factors = {"linear": batch_size / 256, "sqrt": math.sqrt(batch_size), "none": 1.0}
        factor = factors[self.scaling]
        head_lr = self.lr if self.head_lr is None else self.head_lr
        return self.lr * factor, head_lr * factor

    def factor(self, epoch: float) -> float:
        """Return the factor of the learning rates after `epoch` epochs, which may be a fraction."""
        if epoch < self.warmup * self.epochs:
            return epoch / (self.warmup * self.epochs)
        if self.schedule == "drops":
            passed = sum(epoch / self.epochs >= drop for drop in self.drops)
            return self.drop_factor**passed
        if self.schedule == "epoch cosine":
            epoch = math.floor(epoch)
        progress = (epoch / self.epochs - self.warmup) / (1 - self.warmup)
        return (1 + math.cos(math.pi * progress)) / 2


SWAV = Preset(
    "SwAV, README.md and eval_semisup.py, 10 % of the labels",
    epochs=20,
    batch_size=256,
    optimizer="momentum",
    lr=0.01,
    head_lr=0.2,
    scaling="none",
    schedule="drops",
    drops=(12 / 20, 16 / 20),
    drop_factor=0.2,
    head_std=None,
)
VICREG = Preset(
    "VICReg, README.md and evaluate.py, 10 % of the labels",
    epochs=20,
    batch_size=256,
    optimizer="momentum",
    lr=0.01,
    head_lr=0.1,
    scaling="none",
    schedule="epoch cosine",
)
PRESETS = {
    "small": Preset("sslkit, for folders of hundreds to thousands of images"),
    "pirl": Preset(
        "PIRL in VISSL, semi_supervised/imagenet1k; VISSL's base configuration has lr 0.05",
        epochs=70,
        batch_size=256,
        lr=0.01,
        schedule="drops",
        drops=(30 / 70,),
        head_std=None,
    ),
    "vissl": Preset(
        "VISSL, fulltune/imagenet1k, all labels",
        epochs=105,
        batch_size=256,
        lr=0.1,
        schedule="drops",
        drops=(30 / 105, 60 / 105, 90 / 105, 100 / 105),
        head_std=None,
    ),
    "swav-1%": replace(
        SWAV, source="SwAV, README.md and eval_semisup.py, 1 % of the labels", lr=0.02, head_lr=5.0
    ),
    "swav-10%": SWAV,
    "simclr_v2": Preset(
        "SimCLR v2, README.md, 1 % of the labels",
        epochs=60,
        batch_size=1024,
        optimizer="lars",
        lr=0.005,
        scaling="sqrt",
        head_std=0.0,
    ),
    "barlow": replace(
        VICREG,
        source="Barlow Twins, README.md and evaluate.py, 1 % and 10 % of the labels",
        lr=0.005,
        head_lr=0.5,
    ),
    "vicreg-1%": replace(
        VICREG,
        source="VICReg, README.md and evaluate.py, 1 % of the labels",
        lr=0.03,
        head_lr=0.08,
    ),
    "vicreg-10%": VICREG,
    "mae": Preset(
        "MAE, FINETUNE.md, ViT-B, all labels",
        epochs=100,
        batch_size=1024,
        optimizer="adamw",
        lr=5e-4,
        warmup=5 / 100,
        weight_decay=0.05,
        layer_decay=0.65,
        drop_path=0.1,
        mixing=True,
        smoothing=0.1,
        head_std=2e-5,
    ),
}
