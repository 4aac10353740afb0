"""Clusters of all images, assigned before each epoch. Letters: N images, K clusters, D features."""

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from sslkit import distributed
from sslkit.interfaces import Batch, Epoch, Method, Output, Parts, Progress


class Clusters(Method):
    """Predict to which of K random rows an image is nearest, with a head that begins anew."""

    reads: ClassVar = {"cluster": "image"}

    def __init__(self, parts: Parts, /) -> None:
        super().__init__(parts)
        self.clusters = self.head("cluster").out_dim
        self.assigned: Tensor
        self.register_buffer("assigned", torch.arange(parts.images) % self.clusters)

    def begin_epoch(self, epoch: Epoch) -> None:
        """Take K images as centres, assign every image, begin the head anew."""
        self.eval()
        features = torch.zeros(len(self.assigned), self.encoder.dim)
        for images, index in epoch.plain():
            rows = distributed.gather(self.encode(images).float())
            features[distributed.gather(index)] = F.normalize(rows, dim=1)
        order = epoch.progress.draws.uniform(len(features)).argsort()
        centres = features[order[: self.clusters]]
        self.assigned.copy_((features @ centres.T).argmax(1))
        self.heads["cluster"].project.reset_parameters()
        epoch.forget(self.heads["cluster"])

    def forward(self, batch: Batch, progress: Progress) -> Output:
        logits = self.heads["cluster"](self.encode(batch.views["image"]))
        target = self.assigned[batch.index]
        accuracy = (logits.detach().argmax(1) == target).float().mean()
        return Output(self.loss(logits, target), {"accuracy": accuracy})

    def at_start(self, images: int) -> float | None:
        return self.loss.at_start(dim=self.clusters, negatives=1)
