"""k nearest neighbours: no training at all."""

from typing import Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch.nn import functional as F

from sslkit.evaluation.probe import Features, Probe, measure, topk
from sslkit.interfaces import Evaluation


class Knn(Evaluation):
    """Weighted vote of the k nearest training images by cosine, each weighing exp(cosine/τ) (Wu et al. 2018, arXiv:1805.01978,
    section 3.4, who take k = 200 and τ = 0.07 on ImageNet).

    `temperature` is τ. `layers: all` votes with every layer's pooled map as well.
    """

    def __init__(
        self,
        *,
        k: PositiveInt = 20,
        temperature: PositiveFloat = 0.07,
        layers: Literal["last", "all"] = "last",
    ) -> None:
        self.k, self.temperature, self.layers = k, temperature, layers

    def vote(self, features: Features, seed: int = 0) -> tuple[float, float]:
        """Top-1 and top-5 in per cent; nothing is drawn, so the seed does not matter."""
        train, val = F.normalize(features.train, dim=1), F.normalize(features.val, dim=1)
        classes = int(torch.max(features.train_labels.max(), features.val_labels.max())) + 1
        votes = []
        for rows in val.split(512):
            cosine, nearest = (rows @ train.T).topk(min(self.k, len(train)), dim=1)
            weight = (cosine / self.temperature).softmax(1)
            votes.append(
                torch.zeros(len(rows), classes, device=rows.device).scatter_add_(
                    1, features.train_labels[nearest], weight
                )
            )
        return topk(torch.cat(votes), features.val_labels)

    def measure(self, probe: Probe) -> dict:
        return measure(
            probe,
            "knn",
            self.vote,
            seeds=1,
            layers=self.layers == "all",
            protocol={
                "k": self.k,
                "temperature": self.temperature,
                "similarity": "cosine",
                "layers": self.layers,
            },
        )
