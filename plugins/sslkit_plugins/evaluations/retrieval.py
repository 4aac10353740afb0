"""Retrieval of images of the same class by cosine similarity."""

import functools
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from sslkit.errors import DataError
from sslkit.interfaces import (
    Estimate,
    Evaluation,
    Features,
    Metric,
    Outcome,
    Probe,
    Result,
    Work,
)
from sslkit_plugins.evaluations import effort

BLOCK_BYTES = 2**28
"""Memory of one block (queries × base images), bytes."""
CELL = 48
"""Bytes per query and base image: similarity, order, relevance and their running sums."""
SAMPLE = 512
"""Largest number of queries and of base images of a measured ranking."""
TIE = 2.0**-20
"""Similarities are rounded to multiples of this number, so rounding errors do not break ties."""

METRICS = (Metric("mAP", "%", low=0, high=1), Metric("P@1", "%", low=0, high=1))


def similarities(queries: Tensor, base: Tensor) -> Tensor:
    """Return the cosine of unit-norm queries [Q,D] and base [N,D], rounded to ties: [Q,N]."""
    return (queries @ base.T).div_(TIE).round_().mul_(TIE)


def step_ap(similarity: Tensor, relevant: Tensor) -> Tensor:
    """Return the average precision of each query, float64 [Q].

    `similarity` [Q,N] and `relevant` bool [Q,N], with at least one relevant image per row. The mean
    over relevant images of the precision at their rank, without interpolation. Equal similarities
    share the last rank among them. Equals scikit-learn's `average_precision_score`.
    """
    ordered, order = similarity.sort(dim=1, descending=True)
    hits = relevant.gather(1, order)
    found = hits.cumsum(1)
    rank = torch.arange(1, similarity.shape[1] + 1, device=similarity.device).expand_as(order)
    last = F.pad(ordered[:, 1:] != ordered[:, :-1], (0, 1), value=True)
    end = rank.masked_fill(~last, similarity.shape[1]).flip(1).cummin(1).values.flip(1)
    precision = found.gather(1, end - 1).double() / end
    return (precision * hits).sum(1) / hits.sum(1)


def first_precision(similarity: Tensor, relevant: Tensor) -> Tensor:
    """Return the share of relevant images among the nearest of each query, float64 [Q].

    `similarity` [Q,N] and `relevant` bool [Q,N]. It is 0 or 1, except for ties.
    """
    nearest = similarity == similarity.amax(1, keepdim=True)
    return (nearest & relevant).sum(1).double() / nearest.sum(1)


def chance_ap(relevant: int, count: int) -> float:
    """Return the expected average precision of a random order of `count` images.

    Bestgen 2015, "Exact expected average precision of the random baseline for system evaluation",
    equation 3.
    """
    if count == 1:
        return 1.0
    harmonic = sum(1 / rank for rank in range(1, count + 1))
    return (relevant - 1) / (count - 1) + (count - relevant) * harmonic / (count * (count - 1))


class Retrieval(Evaluation):
    """Mean average precision of images of the query's class, ranked by cosine.

    Every validation image is a query. The base is the training split, as in image hashing (Lai et
    al. 2015, arXiv:1504.03410), or the other validation images, as in metric learning (Musgrave et
    al. 2020, arXiv:2003.08505). mAP is the mean over queries of the average precision over the full
    ranking, without interpolation. P@1 is recall@1: the share of queries whose nearest image is of
    their class. Ties are averaged: of several nearest images, P@1 is the share of the class, so
    equal features score at chance whatever the order of the files.
    """

    def __init__(
        self,
        *,
        base: Annotated[
            Literal["train", "val"],
            Field(
                description="Images that are ranked. train: the training split. val: the "
                "validation images except for the query."
            ),
        ] = "train",
        layers: Annotated[
            Literal["last", "all"],
            Field(
                description="Layers to score. last: the features. all: also the pooled map of "
                "every layer."
            ),
        ] = "last",
    ) -> None:
        self.base, self.layers = base, layers

    def measure(self, probe: Probe) -> Result:
        """Score every candidate by the ranking of the base for each query."""
        own = torch.as_tensor(probe.val.labels).bincount(minlength=len(probe.classes))
        if self.base == "val":
            self.check(probe, own)
            counts, size = own - 1, len(probe.val) - 1
        else:
            counts = torch.as_tensor(probe.train.labels).bincount(minlength=len(probe.classes))
            size = len(probe.train)
        weights = own.double() / own.sum()
        expected = [chance_ap(int(count), size) if count > 0 else 0.0 for count in counts]
        chance = {
            "mAP": (weights * torch.tensor(expected, dtype=torch.float64)).sum().item(),
            "P@1": (weights * counts).sum().item() / size,
        }
        protocol = {
            "base": "training images" if self.base == "train" else "other validation images",
            "base_images": size,
            "similarity": "cosine",
            "average_precision": "mean of the precision at each relevant rank, full ranking",
        }
        return probe.compare(
            lambda features, seed: self.rank(features),
            METRICS,
            layers=self.layers == "all",
            chance=chance,
            protocol=protocol,
        )

    def check(self, probe: Probe, counts: Tensor) -> None:
        """Raise DataError if a class has a single validation image."""
        single = (counts == 1).nonzero().flatten().tolist()
        if single:
            raise DataError(
                f"'{probe.classes[single[0]]}' has a single validation image, so a query of this "
                "class has none to find; add images, or rank the training images: --base train"
            )

    def estimate(self, work: Work) -> Estimate:
        """Estimate the ranking from random features of a few images of each width."""
        seconds, layers = 0.0, self.layers == "all"
        base = work.train if self.base == "train" else work.val
        for width in work.widths(layers).values():
            count, queries = min(base, SAMPLE), min(work.val, SAMPLE)
            labels = torch.arange(SAMPLE, device=work.device) % 2
            rows = torch.randn(SAMPLE, width, device=work.device)
            given = Features(rows[:count], labels[:count], rows[:queries], labels[:queries])
            took = effort.seconds(functools.partial(self.rank, given), work.device)
            seconds += took * base * work.val / (count * queries)
        block = min(BLOCK_BYTES, CELL * base * work.val)
        return Estimate(layers=layers, seconds=seconds, bytes=block)

    def rank(self, features: Features) -> dict[str, Outcome]:
        """Return the average precision and the hit at rank 1 of every query."""
        queries, labels = F.normalize(features.val, dim=1), features.val_labels
        base, base_labels = queries, labels
        if self.base == "train":
            base, base_labels = F.normalize(features.train, dim=1), features.train_labels
        precisions, hits = [], []
        rows = max(1, BLOCK_BYTES // (CELL * len(base)))
        for start in range(0, len(queries), rows):
            similarity = similarities(queries[start : start + rows], base)
            relevant = labels[start : start + rows].unsqueeze(1) == base_labels
            if self.base == "val":  # The query is ranked last and is never a hit.
                similarity.diagonal(start).fill_(-torch.inf)
                relevant.diagonal(start).fill_(False)
            precisions.append(step_ap(similarity, relevant))
            hits.append(first_precision(similarity, relevant))
        nearest = torch.cat(hits)
        if (nearest == nearest.round()).all():
            nearest = nearest.bool()  # Hits, whose interval is Wilson's.
        return {"mAP": torch.cat(precisions), "P@1": nearest}
