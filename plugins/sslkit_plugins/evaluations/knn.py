"""k-nearest-neighbour classification of frozen features."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from sslkit.interfaces import Estimate, Evaluation, Features, Metric, Outcome, Probe, Result, Work
from sslkit_plugins.evaluations import accuracy, effort

BLOCK_BYTES = 2**28
"""Memory of one block of cosines (queries × training images), bytes."""


@dataclass(frozen=True)
class Setting:
    """A published setting. `k` are the numbers of neighbours; the first one is the headline."""

    source: str
    k: tuple[int, ...]
    temperature: float
    differs: tuple[str, ...] = ()


PRESETS = {
    "dino": Setting(
        "dino: eval_knn.py", (20, 10, 100, 200), 0.07, ("bilinear resizing; DINO uses bicubic",)
    ),
    "moco": Setting("moco: CIFAR demo", (200,), 0.1),
    "lightly": Setting("lightly: benchmarks", (200,), 0.1),
    "mmselfsup": Setting("mmselfsup: benchmarks", (20, 10, 100, 200), 0.07),
    "solo-learn": Setting("solo-learn", (20,), 0.07),
    "vissl": Setting(
        "vissl: nearest_neighbor/eval_resnet_8gpu_in1k_kNN.yaml",
        (200,),
        0.1,
        ("features of the encoder by cosine; VISSL's file takes the head's, not normalised",),
    ),
}


class Knn(Evaluation):
    """Vote of the k nearest training images by cosine, with weights exp(cosine/τ).

    Wu et al. 2018, arXiv:1805.01978, section 3.4, with k = 200 and τ = 0.07 on ImageNet. Ties
    at the k-th neighbour are resolved arbitrarily. A preset with several k reports top-1 of each;
    its headline is the first.
    """

    def __init__(
        self,
        *,
        preset: Annotated[
            Literal["dino", "moco", "lightly", "mmselfsup", "solo-learn", "vissl"] | None,
            Field(
                description="Published setting of k and temperature. dino: k = 20, 10, 100, 200 "
                "at 0.07."
            ),
        ] = None,
        k: Annotated[
            PositiveInt | None,
            Field(
                description="Number of neighbours, usually 20 to 200. Wu et al.: 200 on ImageNet. "
                "By default the preset's, or 20.",
            ),
        ] = None,
        temperature: Annotated[
            PositiveFloat | None,
            Field(
                description="τ, the temperature of a vote. Wu et al.: 0.07. By default the "
                "preset's, or 0.07.",
            ),
        ] = None,
        layers: Annotated[
            Literal["last", "all"],
            Field(
                description="Layers to score. last: the features. all: also the pooled map of "
                "every layer."
            ),
        ] = "last",
    ) -> None:
        self.preset, self.layers = preset, layers
        self.setting = Setting("", (20,), 0.07) if preset is None else PRESETS[preset]
        self.ks = self.setting.k if k is None else (k,)
        self.temperature = self.setting.temperature if temperature is None else temperature
        given = {"k": k, "temperature": temperature}
        self.replaced = [name for name, value in given.items() if value is not None]

    def measure(self, probe: Probe) -> Result:
        """Score every candidate by its votes."""
        metrics = accuracy.metrics(probe.classes)
        chance = accuracy.chance(probe.val, probe.classes)
        for k in self.ks[1:]:
            metrics.append(Metric(_name(k), "%", low=0, high=1))
            chance[_name(k)] = chance["top-1"]

        def score(features: Features, seed: int) -> dict[str, Outcome]:
            return self.hits(features, probe.classes)

        return probe.compare(
            score,
            metrics,
            layers=self.layers == "all",
            chance=chance,
            protocol=self._stated(len(probe.train)),
            chunked=True,
        )

    def _stated(self, count: int) -> dict[str, Any]:
        """Return the protocol of the JSON, with notes."""
        first = self.ks[0]
        stated: dict[str, Any] = {
            "k": min(first, count),
            "temperature": self.temperature,
            "similarity": "cosine",
        }
        notes = []
        if len(self.ks) > 1:
            stated["ks"] = [min(k, count) for k in self.ks]
            notes.append(f"top-1 is that of k = {first}")
        if self.preset is not None:
            stated |= {"preset": self.preset, "source": self.setting.source}
            stated |= {"differs": list(self.setting.differs), "replaced": self.replaced}
        more = [k for k in self.ks if k > count]
        if more:
            few = f"all {count} training images vote, fewer than "
            notes.append(f"{few}{', '.join(map(str, sorted(more)))} (--k)")
        return {**stated, "notes": notes} if notes else stated

    def hits(self, features: Features, classes: Sequence[str]) -> dict[str, Outcome]:
        """Return the hits of every metric: bool [N]."""
        found: dict[str, list[np.ndarray]] = {}
        done = 0
        for cosines, voters in self.neighbours(features):
            labels = features.val_labels[done : done + len(cosines)].cpu()
            done += len(cosines)
            for k in self.ks:
                votes = self.count(cosines[:, :k], voters[:, :k], len(classes))
                hits: dict[str, Any] = dict(accuracy.hits(votes, labels, classes))
                if k != self.ks[0]:
                    hits = {_name(k): hits["top-1"]}
                for name, values in hits.items():
                    found.setdefault(name, []).append(values)
        return {name: np.concatenate(values) for name, values in found.items()}

    def vote(self, features: Features, classes: int) -> Tensor:
        """Return each class's fraction of the votes for the validation images: float64 [N,C]."""
        k = self.ks[0]
        blocks = [
            self.count(cosines[:, :k], voters[:, :k], classes)
            for cosines, voters in self.neighbours(features)
        ]
        return torch.cat(blocks)

    def count(self, cosines: Tensor, voters: Tensor, classes: int) -> Tensor:
        """Sum the votes of neighbours, cosines and labels [n,k] → fractions float64 [n,C]."""
        weights = (cosines.double() / self.temperature).softmax(1)
        return weights.new_zeros(len(voters), classes).scatter_add_(1, voters, weights)

    def neighbours(self, features: Features) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield cosines and labels [n,k] of the nearest training images, for blocks of queries.

        Most similar first, for the largest k. Reads queries and training images in blocks, so that
        a block of cosines takes at most BLOCK_BYTES.
        """
        device, count = features.train_labels.device, len(features.train)
        k = min(max(self.ks), count)
        wide = min(count, max(1, math.isqrt(BLOCK_BYTES // 4)))
        rows = max(1, BLOCK_BYTES // (4 * wide))
        for first in range(0, len(features.val), rows):
            queries = _unit(features.val[first : first + rows], device)
            best = queries.new_empty(len(queries), 0)
            places = torch.empty(len(queries), 0, dtype=torch.int64, device=device)
            for start in range(0, count, wide):
                cosines = queries @ _unit(features.train[start : start + wide], device).T
                near, near_places = cosines.topk(min(k, cosines.shape[1]))
                best = torch.cat([best, near], 1)
                places = torch.cat([places, near_places + start], 1)
                best, order = best.topk(min(k, best.shape[1]))
                places = places.gather(1, order)
            yield best.cpu(), features.train_labels[places].cpu()

    def estimate(self, work: Work) -> Estimate:
        """Estimate the search from one block of cosines of each width."""
        total, measured = 0.0, {}
        for width in work.widths(self.layers == "all").values():
            if width not in measured:
                measured[width] = self._seconds(width, work)
            total += measured[width] * work.train * work.val
        block = min(BLOCK_BYTES, 4 * work.train * work.val)
        return Estimate(layers=self.layers == "all", seconds=total, bytes=3 * block)

    def _seconds(self, width: int, work: Work) -> float:
        """Return the time of a search per query and training image, s."""
        count, queries = min(work.train, 4096), min(work.val, 1024)
        labels = torch.zeros(count, dtype=torch.int64, device=work.device)
        train, val = torch.randn(count, width), torch.randn(queries, width)
        given = Features(train.to(work.device), labels, val.to(work.device), labels[:queries])
        took = effort.seconds(lambda: list(self.neighbours(given)), work.device)
        return took / (count * queries)


def _name(k: int) -> str:
    """Return the name of top-1 for a further k."""
    return f"top-1, k = {k}"


def _unit(rows: Tensor, device: torch.device) -> Tensor:
    """Return rows of length 1, float32 on the device."""
    return F.normalize(rows.to(device, torch.float32), dim=1)
