"""Copy detection: find the original of a transformed image."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from sslkit.evaluation import combine
from sslkit.interfaces import Evaluation, Metric, Outcome, Probe, Result
from sslkit_plugins.evaluations import transforms
from sslkit_plugins.evaluations.retrieval import similarities

NAMES = ["crop", "jpeg", "blur", "rotation", "colour", "flip", "jigsaw"]
BLOCK = 2**24
"""Similarities per block."""
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

    def score(self, queries: Tensor, originals: Tensor) -> dict[str, Outcome]:
        """Return average precision and hit of every query; NaN if a feature is not finite."""
        if not (queries.isfinite().all() and originals.isfinite().all()):
            return dict.fromkeys(("mAP", "P@1"), torch.nan)
        rank = ranks(queries, originals)
        return {"mAP": trapezoid_ap(rank.unsqueeze(1)), "P@1": rank == 0}
