"""A loss that looks across the batch."""

from typing import ClassVar

from torch.nn import functional as F

from sslkit.interfaces import Batch, Method, Output, Progress
from sslkit_plugins.momentum import feature_std
from sslkit_plugins.samplers import in_batch


class Joined(Method):
    """Tell two crops of an image from all other crops of the batch."""

    reads: ClassVar = {"projector": "global"}
    contrasts = True
    joins = True

    def forward(self, batch: Batch, progress: Progress) -> Output:
        projected = self.heads["projector"](self.encode(batch.views["global"]))
        pairs = F.normalize(projected.float(), dim=-1)
        rows, partners = pairs.flatten(0, 1), pairs.flip(1).flatten(0, 1)
        loss = self.loss(rows, partners, in_batch(rows))
        return Output(loss, feature_std={"projector": feature_std(rows.detach())})

    def at_start(self, images: int) -> float | None:
        dim = self.head("projector").out_dim
        return self.loss.at_start(dim=dim, negatives=2 * images - 2)
