"""DINO (Caron, Touvron, Misra, Jégou, Mairal, Bojanowski & Joulin 2021, arXiv:2104.14294).

"Emerging Properties in Self-Supervised Vision Transformers". The official code is
facebookresearch/dino. Letters: B images, K prototypes, D features.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from timm.layers import DropPath
from torch import Tensor
from torch.nn import functional as F

from sslkit.errors import Fault, RecipeError
from sslkit.interfaces import Batch, Encoder, Method, Output, Parts, Progress
from sslkit_plugins.momentum import Momentum, TeacherMomentum, feature_std, frozen
from sslkit_plugins.precision import at_least_float32

CENTRE_MOMENTUM = 0.9
"""Momentum of the centre (`main_dino.py`)."""


class Dino(Method):
    """Match a student's distributions over prototypes to those of a momentum teacher.

    The student sees all crops, the teacher the large crops only. The teacher's distribution is
    centred and sharpened. The exported encoder is the teacher's.
    """

    crops: ClassVar = {"global+local": (2, None)}
    reads: ClassVar = {"projector": "global", "prototypes": "projector"}
    uses_every_parameter = False

    def __init__(
        self,
        parts: Parts,
        /,
        *,
        momentum: TeacherMomentum = 0.996,
        teacher_temperature: Annotated[
            float,
            Field(gt=0, description="Temperature of the teacher. DINO: 0.04 to 0.07."),
        ] = 0.04,
        warm_temperature: Annotated[
            float,
            Field(gt=0, description="Temperature of the teacher in the first epoch. DINO: 0.04."),
        ] = 0.04,
        warm_epochs: Annotated[
            int,
            Field(
                ge=0,
                description="Epochs in which the temperature changes linearly from "
                "warm_temperature to teacher_temperature. DINO: 0 or 30.",
            ),
        ] = 0,
        freeze_epochs: Annotated[
            int,
            Field(ge=0, description="First epochs in which prototypes do not change. DINO: 1."),
        ] = 1,
    ) -> None:
        super().__init__(parts)
        self.momentum = momentum
        self.teacher_temperature = teacher_temperature
        self.warm_temperature = warm_temperature
        self.warm_epochs = warm_epochs
        self.freeze_epochs = freeze_epochs
        self.teacher = Momentum(encoder=self.encoder, **dict(self.heads.items()))
        for module in self.teacher.modules():
            if isinstance(module, DropPath):
                module.drop_prob = 0.0
        self.centre: Tensor
        self.register_buffer("centre", torch.zeros(1, self.head("prototypes").out_dim))

    @property
    def exported(self) -> Encoder:
        """The teacher's encoder, which is better than the student's (section 5.1)."""
        encoder = self.teacher["encoder"]
        assert isinstance(encoder, Encoder)
        return encoder

    def forward(self, batch: Batch, progress: Progress) -> Output:
        """Compare each student crop with the teacher's other large crops (equation 3)."""
        views = [batch.views[name] for name in ("global", "local") if name in batch.views]
        projections = torch.cat([self.heads["projector"](self.encode(view)) for view in views], 1)
        with self.frozen_prototypes(progress):
            scores = self.heads["prototypes"](projections)
        if scores.shape[1] < 2:
            message = "the student and the teacher need different crops; set it to 2"
            raise RecipeError(Fault("transform.count", message))
        teacher_scores = self.teacher_scores(batch.views["global"])
        targets = self.sharpened(teacher_scores, progress)
        terms = []
        for teacher_crop in range(targets.shape[1]):
            for crop in range(scores.shape[1]):
                if crop != teacher_crop:
                    terms.append(self.loss(scores[:, crop], targets[:, teacher_crop]))
        entropy = torch.special.entr(targets).sum(-1).mean()
        unit = F.normalize(projections.detach().float().flatten(0, 1), dim=-1)
        return Output(
            torch.stack(terms).mean(),
            {"teacher_entropy": entropy},
            {"projector": feature_std(unit), "prototypes": prototype_use(targets)},
            keep={"centre": teacher_scores.mean((0, 1)).unsqueeze(0)},
        )

    @torch.no_grad()
    def teacher_scores(self, view: Tensor) -> Tensor:
        """Return the teacher's scores [B,V,K] of the V crops of a view."""
        projections = self.teacher["projector"](self.encode(view, self.teacher["encoder"]))
        return self.teacher["prototypes"](projections)

    def sharpened(self, scores: Tensor, progress: Progress) -> Tensor:
        """Return softmax((scores - centre)/τ) of teacher scores […,K]."""
        centred = at_least_float32(scores) - self.centre
        return F.softmax(centred / self.temperature(progress.epoch), dim=-1)

    def temperature(self, epoch: int) -> float:
        """Return the teacher's temperature, linear over the first `warm_epochs` epochs."""
        if epoch >= self.warm_epochs:
            return self.teacher_temperature
        fraction = epoch / max(self.warm_epochs - 1, 1)
        return self.warm_temperature + fraction * (self.teacher_temperature - self.warm_temperature)

    def frozen_prototypes(self, progress: Progress) -> AbstractContextManager:
        """Return a context in which prototypes have no gradient, in the first epochs."""
        if progress.epoch < self.freeze_epochs:
            return frozen(self.heads["prototypes"])
        return nullcontext()

    def after_step(self, index: Tensor, kept: dict[str, Tensor], progress: Progress) -> None:
        """Move the centre (equation 4) and the teacher."""
        self.centre.lerp_(kept["centre"].mean(0, keepdim=True), 1 - CENTRE_MOMENTUM)
        momentum = progress.cosine(self.momentum, 1.0)
        self.teacher.follow(momentum, encoder=self.encoder, **dict(self.heads.items()))

    def at_start(self, images: int) -> float | None:
        """Return the loss of uniform distributions."""
        return self.loss.at_start(dim=self.head("prototypes").out_dim, negatives=0)

    def at_chance(self, images: int) -> dict[str, float]:
        """Return log K, the loss of uniform distributions."""
        chance = self.loss.at_chance(dim=self.head("prototypes").out_dim, negatives=0)
        return {} if chance is None else {"loss": chance}


def prototype_use(targets: Tensor) -> Tensor:
    """Return the entropy of the mean of distributions […,K], divided by log K.

    1 if all prototypes are used equally, 0 if all images have the same prototype.
    """
    mean = targets.flatten(0, -2).mean(0)
    return torch.special.entr(mean).sum() / math.log(max(len(mean), 2))
