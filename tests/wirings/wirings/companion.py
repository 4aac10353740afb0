"""A classifier beside two projections that are compared."""

from typing import ClassVar

import torch
from torch.nn import functional as F

from sslkit.interfaces import Batch, Method, Output, Progress


class Companion(Method):
    """Compare an image and its patches with a memory, and predict the order of the patches."""

    reads: ClassVar = {"image": "image", "pretext": "patches", "order": "patches"}
    predicts: ClassVar = {"order": "order"}
    compares = None
    stores = ("image",)
    recalls = True
    contrasts = True

    def forward(self, batch: Batch, progress: Progress) -> Output:
        patches, image = (self.encode(batch.views[name]) for name in ("patches", "image"))
        both = torch.stack([self.heads["pretext"](patches), self.heads["image"](image)])
        memory = self.sampler.recall(batch.index)
        negatives = self.sampler.draw(batch.index, progress.draws, terms=2)
        logits = self.heads["order"](patches)
        answer = F.cross_entropy(logits.float(), batch.targets["order"])
        loss = self.loss(both, memory, negatives)
        metrics = {"loss_order": answer.detach()}
        return Output(loss + 0.1 * answer, metrics, keep={"image": both[1].detach()})

    def after_step(self, index, kept, progress):
        self.sampler.update(index, kept["image"])
