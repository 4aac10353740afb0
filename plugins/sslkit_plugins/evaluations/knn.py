"""k-nearest-neighbour classification of frozen features."""

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from sslkit.interfaces import Evaluation, Features, Outcome, Probe, Result
from sslkit_plugins.evaluations import accuracy

BLOCK_BYTES = 2**28
"""Memory of one block of cosines (queries × training images), bytes."""


class Knn(Evaluation):
    """Vote of the k nearest training images by cosine, with weights exp(cosine/τ).

    Wu et al. 2018, arXiv:1805.01978, section 3.4, with k = 200 and τ = 0.07 on ImageNet. Ties
    at the k-th neighbour are resolved arbitrarily.
    """

    def __init__(
        self,
        *,
        k: Annotated[
            int,
            Field(
                ge=1,
                description="Number of neighbours, usually 20 to 200. Wu et al.: 200 on ImageNet.",
            ),
        ] = 20,
        temperature: Annotated[
            float, Field(gt=0, description="τ, the temperature of a vote. Wu et al.: 0.07.")
        ] = 0.07,
        layers: Annotated[
            Literal["last", "all"],
            Field(
                description="Layers to score. last: the features. all: also the pooled map of "
                "every layer."
            ),
        ] = "last",
    ) -> None:
        self.k, self.temperature, self.layers = k, temperature, layers

    def measure(self, probe: Probe) -> Result:
        """Score every candidate by its votes."""

        def score(features: Features, seed: int) -> dict[str, Outcome]:
            votes = self.vote(features, len(probe.classes))
            return accuracy.hits(votes, features.val_labels, probe.classes)

        protocol = {
            "k": min(self.k, len(probe.train)),
            "temperature": self.temperature,
            "similarity": "cosine",
        }
        if self.k > len(probe.train):
            note = f"all {len(probe.train)} training images vote, fewer than {self.k} (--k)"
            protocol["notes"] = [note]
        return probe.compare(
            score,
            accuracy.metrics(probe.classes),
            layers=self.layers == "all",
            chance=accuracy.chance(probe.val, probe.classes),
            protocol=protocol,
        )

    def vote(self, features: Features, classes: int) -> Tensor:
        """Return each class's fraction of the votes for the validation images: float32 [N,C]."""
        train, val = F.normalize(features.train, dim=1), F.normalize(features.val, dim=1)
        votes = val.new_zeros(len(val), classes)
        rows = max(1, BLOCK_BYTES // (train.element_size() * len(train)))
        for start in range(0, len(val), rows):
            cosine, nearest = (val[start : start + rows] @ train.T).topk(min(self.k, len(train)))
            weight = (cosine / self.temperature).softmax(1)
            voters = features.train_labels[nearest]
            votes[start : start + rows].scatter_add_(1, voters, weight)
        return votes
