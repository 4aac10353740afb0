"""Prediction of a target, the base of RotNet, Jigsaw and supervised training."""

from typing import ClassVar

from sslkit.interfaces import Batch, Method, Output, Progress


class Predict(Method):
    """Predict a target of a view with one head; subclasses define `reads` and `predicts`."""

    needs: ClassVar = {"loss": "classes"}

    def forward(self, batch: Batch, progress: Progress) -> Output:
        """Compare logits [B,C] or [B,K,C] with targets [B] or [B,K]."""
        assert self.reads is not None
        ((name, target),) = self.predicts.items()
        features = self.encode(batch.views[self.reads[name]])
        logits = self.heads[name](features).flatten(0, -2)
        truth = batch.targets[target].flatten()
        accuracy = (logits.detach().argmax(1) == truth).float().mean()
        return Output(self.loss(logits, truth), {"accuracy": accuracy})

    def at_start(self, images: int) -> float | None:
        """Return the loss of equally likely classes."""
        (name,) = self.heads
        return self.loss.at_start(dim=self.head(name).out_dim, negatives=1)

    def at_chance(self, images: int) -> dict[str, float]:
        """Return loss and accuracy of equally likely classes."""
        (name,) = self.heads
        classes = self.head(name).out_dim
        chance = self.loss.at_chance(dim=classes, negatives=1)
        loss = {} if chance is None else {"loss": chance}
        return {**loss, "accuracy": 1 / classes}
