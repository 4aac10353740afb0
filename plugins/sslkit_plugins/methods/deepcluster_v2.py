"""DeepCluster v2 (Caron, Misra, Mairal, Goyal, Bojanowski & Joulin 2020, arXiv:2006.09882).

"Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", appendix D, improves
DeepCluster (Caron et al. 2018, arXiv:1807.05520) for comparison with SwAV. The official code is
facebookresearch/swav, `main_deepclusterv2.py`. Letters: N images, B images of a batch, V global
crops, C crops in total, H clusterings of K clusters each, D features.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from sslkit import distributed
from sslkit.interfaces import Batch, Epoch, Method, Output, Parts, Progress
from sslkit_plugins.clusters import k_means
from sslkit_plugins.methods.swav import global_crops, project_crops
from sslkit_plugins.momentum import feature_std
from sslkit_plugins.precision import at_least_float32


class DeepClusterV2(Method):
    """Predict the cluster of an image, found before each epoch in the projections of the last one.

    Clusterings take the crops' projections in turn: the first uses those of the first global crop.
    The centres are fixed during an epoch.
    """

    crops: ClassVar = {"global+local": (1, None)}
    reads: ClassVar = {"projector": "global"}

    def __init__(
        self,
        parts: Parts,
        /,
        *,
        clusters: Annotated[
            tuple[PositiveInt, ...],
            Field(
                min_length=1,
                description="Number of clusters K of each clustering. DeepCluster v2: three times "
                "3,000. For small data sets a few per expected class.",
            ),
        ] = (3000, 3000, 3000),
        iterations: Annotated[
            int, Field(ge=0, le=1000, description="Iterations of k-means. DeepCluster v2: 10.")
        ] = 10,
    ) -> None:
        super().__init__(parts)
        self.iterations = iterations
        self.clusters, self.notes = capped(clusters, parts.images, "method.clusters")
        crops, dim = global_crops(parts, at_least=1), self.head("projector").out_dim
        self.bank: Tensor
        self.assigned: Tensor
        self.register_buffer("bank", torch.zeros(crops, parts.images, dim))
        assigned = [torch.arange(parts.images) % count for count in self.clusters]
        self.register_buffer("assigned", torch.stack(assigned))
        for number, count in enumerate(self.clusters):
            centres = F.normalize(torch.randn(count, dim), dim=-1)
            self.register_buffer(f"centres_{number}", centres)

    def begin_epoch(self, epoch: Epoch) -> None:
        """Fill the bank before the first step, then cluster it by spherical k-means."""
        if epoch.progress.step == 0:
            self._fill(epoch)
        for number, count in enumerate(self.clusters):
            rows = self.bank[number % len(self.bank)]
            known = rows.any(1).nonzero().flatten()
            found = k_means(
                rows[known],
                min(count, len(known)),
                self.iterations,
                epoch.progress.draws,
                spherical=True,
            )
            self.get_buffer(f"centres_{number}")[: len(found.centres)] = found.centres
            self.assigned[number, known] = found.assigned

    def _fill(self, epoch: Epoch) -> None:
        """Store the projections of augmented views of all images."""
        for batch in epoch.views():
            crops = Batch({"global": batch.views["global"]}, {}, batch.index)
            unit = F.normalize(project_crops(self, crops).float(), dim=-1)
            self._store(distributed.gather(batch.index), distributed.gather(unit))

    def forward(self, batch: Batch, progress: Progress) -> Output:
        """Compare all crops [B,C,D] with the centres of every clustering."""
        projections = at_least_float32(project_crops(self, batch))
        unit = F.normalize(projections, dim=-1)
        loss, accuracy = self.cluster_prediction(unit, batch.index)
        own = unit[:, : len(self.bank)].detach()
        deviation = feature_std(own.flatten(0, 1))
        return Output(
            loss, {"accuracy": accuracy}, {"projector": deviation}, keep={"projections": own}
        )

    def cluster_prediction(self, unit: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean loss and accuracy of unit projections [B,C,D] of the images `index` [B]."""
        terms, hits = [], []
        for number, count in enumerate(self.clusters):
            with torch.autocast(unit.device.type, enabled=False):
                scores = unit @ self.get_buffer(f"centres_{number}").to(unit.dtype).T
            truth = self.assigned[number, index].unsqueeze(1)
            target = F.one_hot(truth, count).to(unit.dtype).expand_as(scores)
            hits.append((scores.detach().argmax(-1) == truth).float().mean())
            terms.append(self.loss(scores.flatten(0, 1), target.flatten(0, 1)))
        return torch.stack(terms).mean(), torch.stack(hits).mean()

    def after_step(self, index: Tensor, kept: dict[str, Tensor], progress: Progress) -> None:
        """Store the projections for the next epoch."""
        self._store(index, kept["projections"])

    def _store(self, index: Tensor, unit: Tensor) -> None:
        """Write unit projections [B,V,D] of the images `index` [B] to the bank."""
        self.bank.index_copy_(1, index, unit.transpose(0, 1).to(self.bank.dtype))

    def at_chance(self, images: int) -> dict[str, float]:
        """Return the mean of 1/K over clusterings, the accuracy of random predictions.

        The loss has no such level: it may exceed log K while the clusters improve.
        """
        return {"accuracy": sum(1 / count for count in self.clusters) / len(self.clusters)}


def capped(
    clusters: tuple[int, ...], images: int, option: str
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Limit numbers of clusters to the number of images; return notes for what was limited.

    `option` is the recipe key of the numbers.
    """
    notes = []
    for count in sorted(set(clusters)):
        if count > images:
            notes.append(
                f"{option} has {count:,} clusters, more than the {images:,} images, so {images:,} "
                "are used; set a few per expected class"
            )
    return tuple(min(count, images) for count in clusters), tuple(notes)
