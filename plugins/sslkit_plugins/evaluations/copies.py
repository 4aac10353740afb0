"""Copy detection: find the original of a transformed image."""

import functools
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from sslkit.errors import counted
from sslkit.evaluation import combine
from sslkit.interfaces import Estimate, Evaluation, Metric, Outcome, Probe, Result, Work
from sslkit_plugins.evaluations import effort, transforms
from sslkit_plugins.evaluations.retrieval import similarities

NAMES = ["crop", "jpeg", "blur", "rotation", "colour", "flip", "jigsaw"]
BLOCK = 2**24
"""Similarities per block."""
SAMPLE = 1024
"""Largest number of images of a measured ranking."""
METRICS = (Metric("mAP", "%", low=0, high=1), Metric("P@1", "%", low=0, high=1))


def trapezoid_ap(ranks: Tensor) -> Tensor:
    """Return the average precision of each query, float64 [Q], for ranks [Q,P] of its P positives.

    Ranks ascend and count from 0. The area under the precision-recall curve by trapezoids, as in
    the Holidays package and DINO's `eval_copy_detection.py`.
    """
    before = torch.arange(ranks.shape[1], dtype=torch.float64, device=ranks.device)
    left = torch.where(ranks == 0, 1.0, before / ranks.clamp_min(1))
    right = (before + 1) / (ranks + 1)
    return (left + right).mean(1) / 2


def ranks(queries: Tensor, originals: Tensor) -> Tensor:
    """Return the rank, from 0, of each query's original among all originals [N,D]: int64 [N].

    Originals that are as similar as the query's own rank before it.
    """
    queries, originals = F.normalize(queries, dim=1), F.normalize(originals, dim=1)
    found, rows = [], max(1, BLOCK // len(originals))
    for start in range(0, len(queries), rows):
        similarity = similarities(queries[start : start + rows], originals)
        own = similarity.diagonal(start).unsqueeze(1)
        found.append((similarity >= own).sum(1) - 1)
    return torch.cat(found)


class Copies(Evaluation):
    """Copy detection: rank validation images by cosine to a transformed copy of one of them.

    Each row is a transform, as in Copydays (Douze et al. 2009; Caron et al. 2021, arXiv:2104.14294,
    section 4.2): queries are the transformed images, the base has the originals. mAP is the mean
    over queries of the average precision by trapezoids. P@1: the share of queries whose nearest
    image is their original.
    """

    needs = ""

    def __init__(
        self,
        *,
        images: Annotated[
            int, Field(ge=2, description="Largest number of images. Copydays: 157.")
        ] = 2000,
    ) -> None:
        self.images = images

    def measure(self, probe: Probe) -> Result:
        """Rank the originals for every transformed image and candidate."""
        source = transforms.some(probe.val, self.images)
        names = transforms.fitting(NAMES, source)
        originals = transforms.embed(probe, source)
        outcomes: dict[tuple[str | None, str], list[dict[str, Outcome]]] = {}
        for name in names:
            for candidate, queries in transforms.embed(probe, source, name).items():
                outcomes[name, candidate] = [self.score(queries, originals[candidate])]
        count = len(source)
        rank = torch.arange(count).unsqueeze(1)
        chance = {"mAP": trapezoid_ap(rank).mean().item(), "P@1": 1 / count}
        protocol = {
            "base_images": count,
            "similarity": "cosine",
            "average_precision": "trapezoids, full ranking",
            "transforms": {name: transforms.SHOWN[name] for name in names},
        }
        return combine(probe, outcomes, METRICS, chance=chance, protocol=protocol, images=source)

    def estimate(self, work: Work) -> Estimate:
        """Estimate the embedding of every transform, and the ranking from a few images."""
        source = transforms.some(work.probe.val, self.images)
        names, count = transforms.fitting(NAMES, source), len(source)
        seconds = count * transforms.seconds(work.probe, source, names)
        few = min(count, SAMPLE)
        for width in work.widths(layers=False).values():
            rows = torch.randn(few, width, device=work.device)
            took = effort.seconds(functools.partial(ranks, rows, rows), work.device)
            seconds += len(names) * took * (count / few) ** 2
        return Estimate(
            features=False,
            val_passes=(1 + len(names)) * count / work.val,
            seconds=seconds,
            bytes=12 * min(BLOCK, count * count) + 4 * 2 * count * max(work.dims.values()),
            how=f"{counted(len(names), 'transform')} of {counted(count, 'image')}",
        )

    def score(self, queries: Tensor, originals: Tensor) -> dict[str, Outcome]:
        """Return average precision and hit of every query; NaN if a feature is not finite."""
        if not (queries.isfinite().all() and originals.isfinite().all()):
            return dict.fromkeys(("mAP", "P@1"), torch.nan)
        rank = ranks(queries, originals)
        return {"mAP": trapezoid_ap(rank.unsqueeze(1)), "P@1": rank == 0}
