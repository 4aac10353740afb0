"""Heads that take turns: some steps leave weights without gradient."""

from typing import ClassVar

from sslkit.interfaces import Batch, Method, Output, Progress
from sslkit_plugins.momentum import frozen


class Turns(Method):
    """Predict the rotation with one head at even steps, with the other at odd steps.

    At odd steps the encoder is frozen.
    """

    reads: ClassVar = {"even": "rotated", "odd": "rotated"}
    predicts: ClassVar = {"even": "rotation", "odd": "rotation"}
    uses_every_parameter = False

    def forward(self, batch: Batch, progress: Progress) -> Output:
        if progress.step % 2 == 0:
            features, name = self.encode(batch.views["rotated"]), "even"
        else:
            with frozen(self.encoder):
                features, name = self.encode(batch.views["rotated"]), "odd"
        logits = self.heads[name](features).flatten(0, -2)
        return Output(self.loss(logits, batch.targets["rotation"].flatten()))

    def at_start(self, images: int) -> float | None:
        return self.loss.at_start(dim=4, negatives=1)


class Claims(Turns):
    """The same, but says that every step uses every weight."""

    uses_every_parameter = True
