"""DeepCluster (Caron, Bojanowski, Joulin & Douze 2018, arXiv:1807.05520).

"Deep Clustering for Unsupervised Learning of Visual Features". The official code is
facebookresearch/deepcluster. Letters: N images, B images of a batch, K clusters, D features.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sslkit import distributed
from sslkit.interfaces import Batch, Epoch, Method, Output, Parts, Progress
from sslkit_plugins.clusters import k_means, whiten
from sslkit_plugins.methods.deepcluster_v2 import capped
from sslkit_plugins.momentum import feature_std


class DeepCluster(Method):
    """Predict the cluster of an image, found before each epoch in the encoder's features.

    Each clustering re-initialises the head `classifier`. Its `out_dim` is the number of clusters,
    at most that of images. The official code draws images evenly over clusters. Here every epoch
    has all images, and the loss of an image is divided by the size of its cluster, so clusters
    count equally.
    """

    crops: ClassVar = {}
    reads: ClassVar = {"classifier": "image"}

    def __init__(
        self,
        parts: Parts,
        /,
        *,
        components: Annotated[
            int,
            Field(
                ge=1,
                description="Principal components of the clustered features. DeepCluster: 256.",
            ),
        ] = 256,
        iterations: Annotated[
            int, Field(ge=0, le=1000, description="Iterations of k-means. DeepCluster: 20.")
        ] = 20,
    ) -> None:
        super().__init__(parts)
        self.components, self.iterations = components, iterations
        clusters = (self.head("classifier").out_dim,)
        option = "heads.classifier.out_dim"
        (self.clusters,), self.notes = capped(clusters, parts.images, option)
        self.assigned: Tensor
        self.weights: Tensor
        self.register_buffer("assigned", torch.arange(parts.images) % self.clusters)
        self.register_buffer("weights", cluster_weights(self.assigned, self.clusters))

    def begin_epoch(self, epoch: Epoch) -> None:
        """Cluster the features of all images, un-augmented, and re-initialise the classifier."""
        features, index = self._features(epoch)
        rows = F.normalize(whiten(features, self.components), dim=-1)
        clusters = min(self.clusters, len(rows))
        found = k_means(rows, clusters, self.iterations, epoch.progress.draws)
        self.assigned[index] = found.assigned
        self.weights.copy_(cluster_weights(self.assigned, self.clusters))
        reinitialise(self.head("classifier"))
        epoch.forget(self.head("classifier"))

    def _features(self, epoch: Epoch) -> tuple[Tensor, Tensor]:
        """Return the features [N,D] of a pass in evaluation mode, and the images, int64 [N]."""
        self.eval()
        features = self.assigned.new_zeros(
            len(self.assigned), self.encoder.dim, dtype=torch.float32
        )
        seen = torch.zeros_like(self.assigned, dtype=torch.bool)
        for images, index in epoch.plain():
            rows, places = (
                distributed.gather(self.encode(images).float()),
                distributed.gather(index),
            )
            features[places] = rows
            seen[places] = True
        self.train()
        if seen.all():
            return features, torch.arange(len(features), device=features.device)
        return features[seen], seen.nonzero().flatten()

    def forward(self, batch: Batch, progress: Progress) -> Output:
        """Compare logits [B,K] with the clusters of the images."""
        features = self.encode(batch.views["image"])
        logits = self.heads["classifier"](features)[:, : self.clusters]
        target = self.assigned[batch.index]
        one_hot = F.one_hot(target, self.clusters) * self.weights[target].unsqueeze(1)
        unit = F.normalize(features.detach().float(), dim=-1)
        return Output(self.loss(logits, one_hot), {}, {"encoder": feature_std(unit)})

    def at_start(self, images: int) -> float | None:
        """Return log K, the loss of a classifier with small weights."""
        return self.loss.at_start(dim=self.clusters, negatives=0)

    def at_chance(self, images: int) -> dict[str, float]:
        """Return log K, from where the loss begins again in each epoch."""
        chance = self.loss.at_chance(dim=self.clusters, negatives=0)
        return {} if chance is None else {"loss": chance}


def cluster_weights(assigned: Tensor, clusters: int) -> Tensor:
    """Return N/(K·size) of each cluster, float32 [K], for the clusters of N images, int64 [N].

    The weights of all images sum to N/K in each of the K clusters. Empty clusters have weight 0.
    """
    sizes = torch.bincount(assigned, minlength=clusters)
    filled = sizes > 0
    return torch.where(filled, len(assigned) / (filled.sum() * sizes.clamp_min(1)), 0.0)


def reinitialise(head: nn.Module) -> None:
    """Initialise linear layers like the official code, and reset other layers, in place."""
    for layer in head.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.01)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.reset_parameters()
