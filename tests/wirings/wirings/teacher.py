"""A teacher, which is what the method exports."""

from typing import Annotated, ClassVar

import torch
from pydantic import Field

from sslkit.interfaces import Batch, Encoder, Method, Output, Parts, Progress
from sslkit_plugins.momentum import Momentum


class Teacher(Method):
    """Predict what a slow copy of the encoder sees in the other crop."""

    reads: ClassVar = {"student": "global"}

    def __init__(
        self, parts: Parts, /, *, momentum: Annotated[float, Field(ge=0, le=1)] = 0.5
    ) -> None:
        super().__init__(parts)
        self.momentum = momentum
        self.teacher = Momentum(encoder=self.encoder)

    @property
    def exported(self) -> Encoder:
        encoder = self.teacher["encoder"]
        assert isinstance(encoder, Encoder)
        return encoder

    def forward(self, batch: Batch, progress: Progress) -> Output:
        view = batch.views["global"]
        with torch.no_grad():
            target = self.encode(view, self.exported).flip(1)
        student = self.heads["student"](self.encode(view))
        return Output(self.loss(student.flatten(0, 1), target.flatten(0, 1)))

    def after_step(self, index, kept, progress):
        self.teacher.follow(self.momentum, encoder=self.encoder)

    def at_start(self, images: int) -> float | None:
        return self.loss.at_start(dim=self.head("student").out_dim, negatives=0)
