"""Settings of parity.py: what both sides have in common, and sslkit's recipe of each method."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SIZE = 64
"""Side of the images, px."""

SGD = {"use": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 1e-4}
ADAM = {"use": "adam", "lr": 1e-3, "weight_decay": 1e-6}

VICREG = {
    "jitter": [0.4, 0.4, 0.2, 0.1],
    "jitter_chance": 0.8,
    "gray": 0.2,
    "blur": 0.5,
    "solarize": 0.1,
}
"""lightly's VICRegTransform; no preset has these numbers."""


def mlp(hidden: int, out: int, **options: Any) -> dict[str, Any]:
    """Return a head of sslkit with batch norm in its hidden layers."""
    return {"use": "mlp", "hidden_dim": hidden, "out_dim": out, "hidden_norm": True} | options


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What sslkit's recipe of one method holds, beside the common settings."""

    method: dict[str, Any]
    colours: Any
    heads: dict[str, Any]
    loss: dict[str, Any]
    sampler: dict[str, Any] | None = None
    optimizer: dict[str, Any] = field(default_factory=lambda: SGD)
    transform: dict[str, Any] = field(default_factory=dict)


METHODS = {
    "simclr": Chosen(
        method={"use": "simclr"},
        colours="simclr",
        heads={"projector": mlp(512, 128, batch_norm=True, bias=False)},
        loss={"use": "info_nce", "temperature": 0.2},
    ),
    "moco": Chosen(
        method={"use": "moco", "momentum": 0.99, "shuffle": False},
        colours="moco_v2",
        heads={"projector": mlp(512, 128, hidden_norm=False)},
        sampler={"use": "queue", "size": 512, "exclude_own": False},
        loss={"use": "info_nce", "temperature": 0.2},
    ),
    "byol": Chosen(
        method={"use": "byol", "momentum": 0.99},
        colours=["byol_first", "byol_second"],
        heads={"projector": mlp(1024, 256), "predictor": mlp(1024, 256)},
        loss={"use": "cosine"},
    ),
    "swav": Chosen(
        method={"use": "swav", "epsilon": 0.05, "freeze_steps": 0, "queue": 0},
        transform={
            "use": "multi_crop",
            "min_area": 0.14,
            "local": {"count": 6, "size": 32, "min_area": 0.05, "max_area": 0.14},
        },
        colours="swav",
        heads={
            "projector": mlp(512, 128),
            "prototypes": {"use": "prototypes", "out_dim": 64},
        },
        loss={"use": "soft_cross_entropy", "temperature": 0.1},
        optimizer=ADAM,
    ),
    "simsiam": Chosen(
        method={"use": "simsiam"},
        colours="moco_v2",
        heads={
            "projector": mlp(512, 128, layers=3, batch_norm=True, bias=False),
            "predictor": mlp(64, 128),
        },
        loss={"use": "negative_cosine"},
    ),
    "barlow_twins": Chosen(
        method={"use": "barlow_twins"},
        colours=["byol_first", "byol_second"],
        heads={"projector": mlp(512, 512, layers=3)},
        loss={"use": "cross_correlation", "off_diagonal": 0.005},
        optimizer=ADAM,
    ),
    "vicreg": Chosen(
        method={"use": "vicreg"},
        colours=VICREG,
        heads={"projector": mlp(512, 512, layers=3)},
        loss={"use": "variance_covariance"},
        optimizer=ADAM,
    ),
    "nnclr": Chosen(
        method={"use": "nnclr"},
        colours="simclr",
        heads={
            "projector": mlp(512, 128, layers=3, batch_norm=True, bias=False),
            "predictor": mlp(512, 128),
        },
        sampler={"use": "queue", "size": 512, "exclude_own": False},
        loss={"use": "info_nce", "temperature": 0.2},
    ),
}
"""sslkit's side. Numbers are those of `lightly_side.py`."""


@dataclass(frozen=True)
class Settings:
    """Budget of a training, on both sides."""

    epochs: int
    batch_size: int

    @property
    def warmup_epochs(self) -> float:
        """A tenth of the epochs."""
        return self.epochs / 10

    def recipe(self, method: str, data: Path, initial: Path, seed: int) -> dict[str, Any]:
        """Return sslkit's recipe of a method, as plain data."""
        chosen = METHODS[method]
        common = {"use": "crops", "size": SIZE, "min_area": 0.2, "colours": chosen.colours}
        transform = common | chosen.transform
        if "local" in transform:
            transform["local"] = {**transform["local"], "colours": chosen.colours}
        sections = {
            "name": f"parity-{method}",
            "method": chosen.method,
            "data": {"use": "image_folder", "root": str(data)},
            "transform": transform,
            "encoder": {"use": "timm", "model": "resnet18", "weights": str(initial)},
            "heads": chosen.heads,
            "sampler": chosen.sampler,
            "loss": chosen.loss,
            "optimizer": chosen.optimizer | {"exempt_norms_and_biases": False},
            "schedule": {"use": "cosine", "warmup_epochs": self.warmup_epochs},
            "train": {
                "epochs": self.epochs,
                "batch_size": self.batch_size,
                "seed": seed,
                "device": "cpu",
                "workers": 0,
            },
        }
        return {name: value for name, value in sections.items() if value is not None}
