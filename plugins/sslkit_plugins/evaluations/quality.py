"""Measures of features that need no labels: RankMe, alpha-ReQ, alignment, uniformity, LiDAR.

Each measure is a function of features, for use outside the evaluation. Letters: N images, Q views
of each, D features.
"""

import functools
import math
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from sslkit.errors import counted
from sslkit.evaluation import combine
from sslkit.interfaces import (
    Candidate,
    Curves,
    Estimate,
    Evaluation,
    ImageSource,
    Metric,
    Outcome,
    Probe,
    Result,
    Work,
)
from sslkit_plugins.evaluations import effort
from sslkit_plugins.evaluations.transforms import some

EPSILON = 1e-7
"""Added to every normalised singular value or eigenvalue by `rankme` and `lidar`."""
RIDGE = 1e-4
"""δ of LiDAR, added to the diagonal of the within-image covariance."""
SLOPE = (3, 100)
"""Indices of the first and last eigenvalue of alpha-ReQ's fit, counted from 1."""
BLOCK = 2**24
"""Similarities per block of `uniformity`."""
ROWS = 25_600
"""Largest number of rows of each measure (RankMe, section 3)."""
SAMPLE = 256
"""Largest number of rows of a measured decomposition."""
POINTS = 200
"""Largest number of eigenvalues in the figure."""

METRICS = (
    Metric("RankMe", low=0),
    Metric("alpha-ReQ", better="neither"),
    Metric("alignment", better="lower", low=0, high=4),
    Metric("uniformity", better="lower", low=-8, high=0),
    Metric("LiDAR", low=0),
)
WITHIN = "compare these values within one method and architecture only"


def rankme(features: Tensor) -> float:
    """Return the effective rank of features [N,D], exp of the entropy of the singular values.

    The features are not centred. NaN if all are 0. Garrido et al. 2023, arXiv:2210.02885,
    equation 1; ε = 1e-7 is added to every normalised singular value.
    """
    return _effective_rank(torch.linalg.svdvals(features.double()))


def alpha_req(features: Tensor) -> float:
    """Return the exponent α of the eigenvalues of the covariance, λ_i ∝ i^-α, of features [N,D].

    Fits log λ_i to log i with weights 1/i for i = 3 … 100. NaN for fewer than two non-zero
    eigenvalues in this range. Agrawal et al. 2022, "α-ReQ", NeurIPS.
    """
    return _slope(spectrum(features))


def alignment(views: Tensor) -> Tensor:
    """Return the mean squared distance between unit-norm views of each image, float64 [N].

    `views` [N,Q,D]. Wang & Isola 2020, arXiv:2005.10242, section 4.1 (α = 2), over all pairs of
    views. The squared lengths of the views and of their mean give the mean over pairs. A view of
    zeros stays at 0.
    """
    count = views.shape[1]
    unit = F.normalize(views.double(), dim=-1)
    lengths, mean = unit.square().sum(-1).mean(1), unit.mean(1).square().sum(1)
    return (2 * count / (count - 1) * (lengths - mean)).clamp_min(0)


def uniformity(features: Tensor) -> float:
    """Return log mean exp(-2·squared distance) over all pairs of unit-norm features [N,D].

    0 if all features are equal, also if all are 0; about -4 if they are spread over the sphere. NaN
    for one row. Wang & Isola 2020, arXiv:2005.10242, section 4.1 (t = 2). Holds blocks of
    similarities only.
    """
    unit, count = F.normalize(features.float(), dim=1), len(features)
    if count < 2:
        return math.nan
    half = 2 * unit.square().sum(1)
    total, rows = 0.0, max(1, BLOCK // count)
    for start in range(0, count, rows):
        block = unit[start : start + rows]
        products = (block @ unit[start:].T).mul_(4)
        products.sub_(half[start : start + rows, None]).sub_(half[start:])
        later = products.exp_().triu_(1)
        total += later.sum(dtype=torch.float64).item()
    return math.log(total / (count * (count - 1) / 2))


def lidar(views: Tensor) -> float:
    """Return the effective rank of the differences between images relative to those between views.

    `views` [N,Q,D]. The value is the effective rank of the eigenvalues of Σw^-½ Σb Σw^-½: Σb is the
    covariance of the images' mean views, Σw that of views around their image's mean, plus δ = 1e-4
    on the diagonal. At most min(D, N-1). NaN for one image or equal features. Thilak et al. 2023,
    arXiv:2312.04000, section 4. If D exceeds the N·Q rows, computes in the span of the rows, where
    Σb lies.
    """
    count, per_image, dim = views.shape
    rows = views.double().flatten(0, 1)
    centred = rows - rows.mean(0)
    if count < 2 or _negligible(centred, rows):
        return math.nan
    if dim > len(rows):
        centred = torch.linalg.qr(centred.T, mode="r").R.T
    centred = centred.unflatten(0, (count, per_image))
    means = centred.mean(1)
    deviations = (centred - means.unsqueeze(1)).flatten(0, 1)
    within = deviations.T @ deviations / (count * (per_image - 1))
    within.diagonal().add_(RIDGE)
    root = torch.linalg.cholesky(within)
    whitened = torch.linalg.solve_triangular(root, means.T, upper=False)
    eigenvalues = torch.linalg.svdvals(whitened).square()
    return _effective_rank(F.pad(eigenvalues, (0, dim - len(eigenvalues))))


def spectrum(features: Tensor) -> Tensor:
    """Return the non-zero eigenvalues of the covariance of features [N,D], float64, descending."""
    rows = features.double()
    centred = rows - rows.mean(0)
    if _negligible(centred, rows):
        return rows.new_empty(0)
    values = torch.linalg.svdvals(centred).square() / max(1, len(rows) - 1)
    return values[values > 1e-14 * values[0]]


def _negligible(centred: Tensor, rows: Tensor) -> bool:
    """Return whether float32 rows [N,D] differ by rounding only."""
    return bool(centred.norm() <= 1e-6 * rows.norm())


def _effective_rank(values: Tensor) -> float:
    shares = values / values.sum() + EPSILON
    return math.exp(-(shares * shares.log()).sum().item()) if values.sum() > 0 else math.nan


def _slope(eigenvalues: Tensor) -> float:
    """Return α of `alpha_req` for descending eigenvalues."""
    first, last = SLOPE
    values = eigenvalues[first - 1 : last].log()
    if len(values) < 2:
        return math.nan
    index = torch.arange(first, first + len(values), dtype=torch.float64, device=values.device)
    weights, x = 1 / index, index.log()
    x = x - (weights * x).sum() / weights.sum()
    return -((weights * x * values).sum() / (weights * x * x).sum()).item()


class Quality(Evaluation):
    """Quality of features without labels: RankMe, alpha-ReQ, alignment, uniformity, LiDAR.

    RankMe, alpha-ReQ and uniformity use the training images, at most 25,600. Alignment and LiDAR
    use random crops with flips of training images, at most 25,600 crops. All values belong to the
    encoder's features; values of a projection head differ.
    """

    needs = ""

    def __init__(
        self,
        *,
        views: Annotated[
            int,
            Field(
                ge=2,
                description="Random crops of each image, for alignment and LiDAR. LiDAR: 10.",
            ),
        ] = 10,
    ) -> None:
        self.views = views

    def measure(self, probe: Probe) -> Result:
        """Compute every measure for every candidate."""
        images = some(probe.train, ROWS)
        viewed = some(probe.train, max(2, ROWS // self.views))
        outcomes: dict[tuple[str | None, str], list[dict[str, Outcome]]] = {}
        lines, notes = {}, [WITHIN]
        for candidate in probe.candidates:
            features = self.features(probe, candidate, images)
            views = self.crops(probe, candidate, viewed)
            row = "features" if candidate.has_layers else None
            if not (features.isfinite().all() and views.isfinite().all()):
                found: dict[str, Outcome] = {metric.name: math.nan for metric in METRICS}
            else:
                found, eigenvalues = _of_features(features)
                found |= _of_views(views)
                lines[candidate.name] = _line(eigenvalues)
            outcomes[row, candidate.name] = [found]
            if len(images) <= features.shape[1]:
                notes.append(
                    f"{candidate.name}: {len(images):,} images limit the ranks of "
                    f"{features.shape[1]:,} features; use more images: --data DIR"
                )
        protocol = {
            "rows": len(images),
            "views": self.views,
            "viewed_images": len(viewed),
            "epsilon": EPSILON,
            "ridge": RIDGE,
            "slope_over": list(SLOPE),
            "notes": notes,
        }
        result = combine(probe, outcomes, METRICS, protocol=protocol, images=viewed)
        result.figures.append(
            Curves(
                "Eigenvalues of the covariance; the slope is −alpha-ReQ",
                "index",
                "log10 (eigenvalue / largest)",
                lines,
                log=True,
            )
        )
        return result

    def estimate(self, work: Work) -> Estimate:
        """Estimate the passes and the measures, on random features of a few images."""
        rows = min(ROWS, work.train)
        viewed = min(max(2, ROWS // self.views), work.train)
        crops, seconds = viewed * self.views, 0.0
        widths = work.widths(layers=False).values()
        for width in widths:
            few = min(viewed, max(2, SAMPLE // self.views))
            views = torch.randn(few, self.views, width, device=work.device)
            features = torch.randn(min(rows, SAMPLE), width, device=work.device)
            took = effort.seconds(functools.partial(_of_features, features), work.device)
            seconds += took * _growth(len(features), rows, width)
            took = effort.seconds(functools.partial(_of_views, views), work.device)
            seconds += took * _growth(few * self.views, crops, width)
        return Estimate(
            features=False,
            passes=(rows + crops) / work.train,
            seconds=seconds,
            bytes=3 * 8 * crops * max(widths),
            how=f"{counted(rows, 'image')} and {counted(crops, 'crop')}",
        )

    def features(self, probe: Probe, candidate: Candidate, images: ImageSource) -> Tensor:
        """Return the features of un-augmented images, float32 [N,D]."""
        passed = probe.images(images, size=candidate.size)
        return torch.cat([candidate.embed(batch)["features"] for batch, _ in passed])

    def crops(self, probe: Probe, candidate: Candidate, images: ImageSource) -> Tensor:
        """Return the features of random crops, float32 [N,Q,D]."""
        rows = []
        for crops, _ in probe.views(images, count=self.views, size=candidate.size):
            features = candidate.embed(crops.flatten(0, 1))["features"]
            rows.append(features.unflatten(0, crops.shape[:2]))
        return torch.cat(rows)


def _of_features(features: Tensor) -> tuple[dict[str, Outcome], Tensor]:
    """Return the measures of features [N,D], and the eigenvalues of their covariance."""
    eigenvalues = spectrum(features)
    found: dict[str, Outcome] = {
        "RankMe": rankme(features),
        "alpha-ReQ": _slope(eigenvalues),
        "uniformity": uniformity(features),
    }
    return found, eigenvalues


def _of_views(views: Tensor) -> dict[str, Outcome]:
    """Return the measures of views [N,Q,D]."""
    return {"alignment": alignment(views), "LiDAR": lidar(views)}


def _growth(few: int, rows: int, width: int) -> float:
    """Return how many times longer a decomposition of `rows` rows takes than that of `few`."""
    return rows * min(rows, width) / (few * min(few, width))


def _line(eigenvalues: Tensor) -> tuple[list[float], list[float]]:
    """Return indices, spaced evenly on a log axis, and log10 of the relative eigenvalues."""
    count = len(eigenvalues)
    index = np.unique(np.geomspace(1, max(1, count), POINTS).round().astype(int))[:count]
    relative = (eigenvalues / eigenvalues.max()).log10() if count else eigenvalues
    return index.tolist(), relative[index - 1].tolist()
