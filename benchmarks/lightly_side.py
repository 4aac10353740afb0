"""Eight methods from lightly's modules, wired as in lightly's examples/pytorch, for parity.py.

Every class has the numbers that `parity.py` also gives to sslkit. Needs lightly 1.5 or later.
"""

import copy
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from lightly.data import LightlyDataset
from lightly.loss import (
    BarlowTwinsLoss,
    NegativeCosineSimilarity,
    NTXentLoss,
    SwaVLoss,
    VICRegLoss,
)
from lightly.models.modules import NNMemoryBankModule, SwaVPrototypes
from lightly.models.modules.heads import (
    BarlowTwinsProjectionHead,
    BYOLPredictionHead,
    BYOLProjectionHead,
    MoCoProjectionHead,
    NNCLRPredictionHead,
    NNCLRProjectionHead,
    SimCLRProjectionHead,
    SimSiamPredictionHead,
    SimSiamProjectionHead,
    SwaVProjectionHead,
)
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms import (
    BYOLTransform,
    BYOLView1Transform,
    BYOLView2Transform,
    MoCoV2Transform,
    SimCLRTransform,
    SimSiamTransform,
    SwaVTransform,
    VICRegTransform,
)
from lightly.utils.scheduler import cosine_schedule
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

SIZE = 64
"""Side of the images, px."""
MIN_AREA = 0.2
"""Smallest area of a crop, as a fraction of the image; SwAV has lightly's default areas."""
BYOL_TRANSFORM = BYOLTransform(
    BYOLView1Transform(SIZE, min_scale=MIN_AREA), BYOLView2Transform(SIZE, min_scale=MIN_AREA)
)


class Peer(nn.Module):
    """A method of lightly: its transform, heads and loss around an encoder."""

    def __init__(self, encoder: nn.Module, precision: torch.dtype) -> None:
        super().__init__()
        self.backbone, self.precision = encoder, precision
        self.dim = encoder.num_features

    def features(self, view: Tensor, backbone: nn.Module | None = None) -> Tensor:
        """Return float32 features; only the encoder runs in the lower precision."""
        backbone = self.backbone if backbone is None else backbone
        view = view.to(memory_format=torch.channels_last)
        enabled = self.precision == torch.bfloat16
        with torch.autocast(view.device.type, torch.bfloat16, enabled=enabled):
            features = backbone(view)
        return features.float()

    def before_step(self, step: int, steps: int) -> None:
        """Do what the example does at the start of a step."""


class SimCLR(Peer):
    transform = SimCLRTransform(input_size=SIZE, min_scale=MIN_AREA)

    def __init__(self, encoder: nn.Module, precision: torch.dtype) -> None:
        super().__init__(encoder, precision)
        self.projection_head = SimCLRProjectionHead(self.dim, 512, 128)
        self.criterion = NTXentLoss(temperature=0.2)

    def forward(self, views: list[Tensor]) -> Tensor:
        first, second = (self.projection_head(self.features(view)) for view in views)
        return self.criterion(first, second)


class MoCo(Peer):
    transform = MoCoV2Transform(input_size=SIZE, min_scale=MIN_AREA)

    def __init__(self, encoder: nn.Module, precision: torch.dtype) -> None:
        super().__init__(encoder, precision)
        self.projection_head = MoCoProjectionHead(self.dim, 512, 128)
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.projection_head_momentum = copy.deepcopy(self.projection_head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.projection_head_momentum)
        self.criterion = NTXentLoss(temperature=0.2, memory_bank_size=(512, 128))

    def before_step(self, step: int, steps: int) -> None:
        update_momentum(self.backbone, self.backbone_momentum, m=0.99)
        update_momentum(self.projection_head, self.projection_head_momentum, m=0.99)

    def forward(self, views: list[Tensor]) -> Tensor:
        query = self.projection_head(self.features(views[0]))
        with torch.no_grad():
            key = self.projection_head_momentum(self.features(views[1], self.backbone_momentum))
        return self.criterion(query, key)


class BYOL(Peer):
    transform = BYOL_TRANSFORM

    def __init__(self, encoder: nn.Module, precision: torch.dtype) -> None:
        super().__init__(encoder, precision)
        self.projection_head = BYOLProjectionHead(self.dim, 1024, 256)
        self.prediction_head = BYOLPredictionHead(256, 1024, 256)
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.projection_head_momentum = copy.deepcopy(self.projection_head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.projection_head_momentum)
        self.criterion = NegativeCosineSimilarity()

    def before_step(self, step: int, steps: int) -> None:
        momentum = cosine_schedule(step, steps, 0.99, 1)
        update_momentum(self.backbone, self.backbone_momentum, m=momentum)
        update_momentum(self.projection_head, self.projection_head_momentum, m=momentum)

    def target(self, view: Tensor) -> Tensor:
        with torch.no_grad():
            return self.projection_head_momentum(self.features(view, self.backbone_momentum))

    def forward(self, views: list[Tensor]) -> Tensor:
        projected = [self.projection_head(self.features(view)) for view in views]
        first, second = (self.prediction_head(rows) for rows in projected)
        targets = [self.target(view) for view in views]
        loss = 0.5 * (self.criterion(first, targets[1]) + self.criterion(second, targets[0]))
        return 4 * loss  # the gradient of the paper's sum of squared distances, as in sslkit


class SimSiam(Peer):
    transform = SimSiamTransform(input_size=SIZE, min_scale=MIN_AREA)

    def __init__(self, encoder: nn.Module, precision: torch.dtype) -> None:
        super().__init__(encoder, precision)
        self.projection_head = SimSiamProjectionHead(self.dim, 512, 128)
        self.prediction_head = SimSiamPredictionHead(128, 64, 128)
        self.criterion = NegativeCosineSimilarity()

    def forward(self, views: list[Tensor]) -> Tensor:
        projected = [self.projection_head(self.features(view)) for view in views]
        first, second = (self.prediction_head(rows) for rows in projected)
        targets = [rows.detach() for rows in projected]
        return 0.5 * (self.criterion(targets[0], second) + self.criterion(targets[1], first))


class BarlowTwins(Peer):
    transform = BYOL_TRANSFORM

    def __init__(self, encoder: nn.Module, precision: torch.dtype) -> None:
        super().__init__(encoder, precision)
        self.projection_head = BarlowTwinsProjectionHead(self.dim, 512, 512)
        self.criterion = BarlowTwinsLoss()

    def forward(self, views: list[Tensor]) -> Tensor:
        first, second = (self.projection_head(self.features(view)) for view in views)
        return self.criterion(first, second)


class VICReg(BarlowTwins):
    transform = VICRegTransform(input_size=SIZE, min_scale=MIN_AREA)

    def __init__(self, encoder: nn.Module, precision: torch.dtype) -> None:
        super().__init__(encoder, precision)
        self.criterion = VICRegLoss()


class NNCLR(Peer):
    transform = SimCLRTransform(input_size=SIZE, min_scale=MIN_AREA)

    def __init__(self, encoder: nn.Module, precision: torch.dtype) -> None:
        super().__init__(encoder, precision)
        self.projection_head = NNCLRProjectionHead(self.dim, 512, 128)
        self.prediction_head = NNCLRPredictionHead(128, 512, 128)
        self.memory_bank = NNMemoryBankModule(size=(512, 128))
        self.criterion = NTXentLoss(temperature=0.2)

    def forward(self, views: list[Tensor]) -> Tensor:
        projected = [self.projection_head(self.features(view)) for view in views]
        first, second = (self.prediction_head(rows) for rows in projected)
        nearest = self.memory_bank(projected[0].detach(), update=False)
        other = self.memory_bank(projected[1].detach(), update=True)
        return 0.5 * (self.criterion(nearest, second) + self.criterion(other, first))


class SwAV(Peer):
    transform = SwaVTransform(crop_sizes=(SIZE, SIZE // 2))

    def __init__(self, encoder: nn.Module, precision: torch.dtype) -> None:
        super().__init__(encoder, precision)
        self.projection_head = SwaVProjectionHead(self.dim, 512, 128)
        self.prototypes = SwaVPrototypes(128, n_prototypes=64)
        self.criterion = SwaVLoss()

    def before_step(self, step: int, steps: int) -> None:
        self.prototypes.normalize()

    def scores(self, view: Tensor) -> Tensor:
        return self.prototypes(F.normalize(self.projection_head(self.features(view)), dim=1))

    def forward(self, views: list[Tensor]) -> Tensor:
        scores = [self.scores(view) for view in views]
        return self.criterion(scores[:2], scores[2:])


METHODS: dict[str, type[Peer]] = {
    "simclr": SimCLR,
    "moco": MoCo,
    "byol": BYOL,
    "swav": SwAV,
    "simsiam": SimSiam,
    "barlow_twins": BarlowTwins,
    "vicreg": VICReg,
    "nnclr": NNCLR,
}


@dataclass(frozen=True)
class Job:
    """A training: method, folder of images, initial weights, seed, and the common numbers."""

    method: str
    data: Path
    initial: Path
    seed: int
    epochs: int
    warmup_epochs: float
    batch_size: int
    optimizer: str
    lr: float
    weight_decay: float
    precision: torch.dtype
    workers: int = 0


def rate(step: int, warm: int, steps: int) -> float:
    """Return the learning rate's factor: a linear warm-up, then half a cosine to 0."""
    if step < warm:
        return step / warm
    return (1 + math.cos(math.pi * (step - warm) / (steps - warm))) / 2


class Training:
    """lightly's side of one training, step by step."""

    def __init__(self, job: Job) -> None:
        self.job = job
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(job.seed)
        encoder = timm.create_model("resnet18", num_classes=0)
        encoder.load_state_dict(load_file(job.initial))
        cls = METHODS[job.method]
        self.model = cls(encoder, job.precision)
        self.model.backbone.to(memory_format=torch.channels_last)
        data = LightlyDataset(str(job.data), transform=cls.transform)
        self.loader = DataLoader(
            data, job.batch_size, shuffle=True, drop_last=True, num_workers=job.workers
        )
        weights = [value for value in self.model.parameters() if value.requires_grad]
        options = {"lr": job.lr, "weight_decay": job.weight_decay}
        if job.optimizer == "sgd":
            self.optimizer: torch.optim.Optimizer = torch.optim.SGD(
                weights, momentum=0.9, **options
            )
        else:
            self.optimizer = torch.optim.Adam(weights, **options)

    def steps(self) -> Iterator[float]:
        """Train, and yield the loss of every step."""
        job, step = self.job, 0
        steps = job.epochs * len(self.loader)
        warm = round(job.warmup_epochs * len(self.loader))
        for _ in range(job.epochs):
            for views, _labels, _names in self.loader:
                for group in self.optimizer.param_groups:
                    group["lr"] = job.lr * rate(step, warm, steps)
                self.model.before_step(step, steps)
                loss = self.model(views)
                loss.backward()
                self.optimizer.step()
                self.optimizer.zero_grad()
                step += 1
                yield loss.item()

    def save(self, path: Path) -> None:
        """Write the encoder by timm's names."""
        weights = self.model.backbone.state_dict()
        save_file({name: value.contiguous() for name, value in weights.items()}, path)
