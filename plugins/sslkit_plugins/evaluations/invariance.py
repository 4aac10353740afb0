"""Distance between the features of an image and of its transformed copy."""

import functools
import math
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from sslkit.errors import counted
from sslkit.evaluation import Rows, combine
from sslkit.interfaces import (
    Candidate,
    Estimate,
    Evaluation,
    Histogram,
    ImageSource,
    Metric,
    Outcome,
    Probe,
    Result,
    Work,
)
from sslkit_plugins.evaluations import effort, transforms
from sslkit_plugins.evaluations.pretext import embed_views

NAMES = ["jigsaw", "rotation", "crop", "colour", "blur", "flip"]
SAME, DIFFERENT = "same image", "different images"
RELATIVE, ABSOLUTE = "relative distance", "distance"
METRICS = (
    Metric(RELATIVE, "(1: different images)", better="neither", low=0),
    Metric(ABSOLUTE, better="neither", low=0, high=2),
)
PARTNERS = 16
"""Other images that each image is compared with for the distance between images."""
SAMPLE = 16
"""Largest number of images whose views are timed."""
BINS = 30
LIMIT = 2.0
"""Largest relative distance of the histograms; the last bin has larger ones too."""


def distances(one: Tensor, other: Tensor) -> Tensor:
    """Return the distances √(2 - 2 cos) between unit-norm rows of two [N,D]: float64 [N]."""
    one, other = one.double(), other.double()
    return (F.normalize(one, dim=1) - F.normalize(other, dim=1)).norm(dim=1)


def between(features: Tensor, others: Tensor | None = None) -> Tensor:
    """Return the mean distance of each image to 16 random others, float64 [N]; NaN for N = 1.

    `features` [N,D]; `others` [N,D] are those of the other images, by default the same.
    """
    count = len(features)
    order = torch.from_numpy(np.random.default_rng(0).permutation(count))
    one = features[order]
    other = one if others is None else others[order]
    shifts = range(1, min(count - 1, PARTNERS) + 1)
    if not shifts:
        return features.new_full((count,), math.nan, dtype=torch.float64)
    found = torch.stack([distances(one, other.roll(shift, 0)) for shift in shifts]).mean(0)
    result = torch.empty_like(found)
    result[order] = found
    return result


def embed_again(probe: Probe, candidate: Candidate, source: ImageSource) -> Tensor:
    """Embed every image again, in a batch whose other images are black: float32 [N,D].

    A network in evaluation mode gives exactly the same features. Batch norm in training mode does
    not.
    """
    side, rows = max(one.size for one in probe.candidates), []
    for images, _ in probe.images(source, size=side):
        shown = transforms.resized(images, candidate.size)
        even = torch.arange(len(shown), device=shown.device).remainder(2).eq(0)
        halves = []
        for kept in (even, ~even):
            partly = shown.float() * kept.view(-1, 1, 1, 1)
            halves.append(candidate.embed(partly.to(shown.dtype))["features"])
        first, second = halves
        rows.append(torch.where(even.unsqueeze(1), first, second))
    return torch.cat(rows)


class Invariance(Evaluation):
    """Distance between an image and its transformed copy, as in figure 4 of PIRL.

    The distance is √(2 - 2 cos) of unit-norm features, divided by the mean distance between
    different images. An invariant encoder has 0. At 1, a transform changes an image as much as
    another image would. Features after a ReLU are never negative, so absolute distances of two
    encoders are not comparable. Rows are the views of the run's recipe, standard transforms, and
    two references: the same image, and different images. PIRL's views are compared by its heads,
    f(image) and g(view) (Misra & van der Maaten 2020, arXiv:1912.01991, section 4.4).
    """

    needs = ""

    def __init__(
        self,
        *,
        images: Annotated[
            int,
            Field(
                ge=2,
                description="Largest number of validation images. The paper does not say its own.",
            ),
        ] = 2000,
    ) -> None:
        self.images = images

    def measure(self, probe: Probe) -> Result:
        """Measure every view and every transform for every candidate."""
        source = transforms.some(probe.val, self.images)
        plain = transforms.embed(probe, source)
        apart = {name: between(features) for name, features in plain.items()}
        found: dict[tuple[str, str], tuple[Tensor, Tensor]] = {}
        shown = {}
        for candidate in probe.candidates:
            own = plain[candidate.name]
            for row, (image, rows) in embed_views(probe, candidate, source).items():
                shown[row] = (
                    "outputs of both heads" if image is not None else "features of image and view"
                )
                scale = apart[candidate.name] if image is None else between(image, rows)
                values = distances(own if image is None else image, rows)
                found[row, candidate.name] = values, scale
        for name in NAMES:
            for candidate_name, rows in transforms.embed(probe, source, name).items():
                own = plain[candidate_name]
                found[name, candidate_name] = distances(own, rows), apart[candidate_name]
        for candidate in probe.candidates:
            name = candidate.name
            again = embed_again(probe, candidate, source)
            found[SAME, name] = distances(plain[name], again), apart[name]
        for name, scale in apart.items():
            found[DIFFERENT, name] = scale, scale
        return self.result(probe, source, found, shown)

    def estimate(self, work: Work) -> Estimate:
        """Estimate the embedding of every transform, and the recipe's views from a few images."""
        probe = work.probe
        source = transforms.some(probe.val, self.images)
        seconds = transforms.seconds(probe, source, NAMES)
        few = Rows(source, np.arange(min(SAMPLE, len(source))))
        for candidate in probe.candidates:
            views = functools.partial(embed_views, probe, candidate, few)
            seconds += effort.seconds(views, work.device) / len(few)
        passes = (
            1 + len(NAMES) + 2
        )  # The images, each transform, and `embed_again`, which takes two.
        return Estimate(
            features=False,
            val_passes=passes * len(source) / work.val,
            seconds=len(source) * seconds,
            bytes=4 * len(source) * (4 + PARTNERS) * max(work.dims.values()),
            how=f"views and {len(NAMES)} transforms of {counted(len(source), 'image')}",
        )

    def result(
        self,
        probe: Probe,
        source: ImageSource,
        found: dict[tuple[str, str], tuple[Tensor, Tensor]],
        shown: dict[str, str],
    ) -> Result:
        """Build the result from distances and distances between images, by row and candidate."""
        outcomes: dict[tuple[str | None, str], list[dict[str, Outcome]]] = {}
        relative: dict[str, dict[str, np.ndarray]] = {}
        for (row, candidate), (values, scale) in found.items():
            mean = scale.mean()
            shares = values / mean.masked_fill(mean == 0, math.nan)
            outcomes[row, candidate] = [{RELATIVE: shares, ABSOLUTE: values}]
            relative.setdefault(row, {})[candidate] = shares.cpu().numpy()
        described = {name: transforms.SHOWN[name] for name in NAMES}
        protocol = {
            "images": len(source),
            "transforms": {**shown, **described},
            "distance": "√(2 − 2 cos), relative to the mean distance between different images",
        }
        result = combine(probe, outcomes, METRICS, protocol=protocol, images=source)
        edges = np.linspace(0, _end(relative), BINS + 1)
        for row, candidates in relative.items():
            if row == SAME:
                continue
            counts = {}
            for candidate, share in candidates.items():
                finite = share[np.isfinite(share)].clip(0, edges[-1])
                counts[candidate] = np.histogram(finite, edges)[0].tolist()
            title = f"{row}: {described[row]}" if row in described else row
            x = "relative distance (1: different images)"
            result.figures.append(Histogram(title, x, edges.tolist(), counts))
        return result


def _end(relative: dict[str, dict[str, np.ndarray]]) -> float:
    """Return the end of the histograms, a multiple of 0.25 that nearly all distances are below."""
    parts = []
    for candidates in relative.values():
        parts += list(candidates.values())
    values = np.concatenate(parts)
    values = values[np.isfinite(values)]
    largest = np.quantile(values, 0.995) if len(values) else 1.0
    return float(min(LIMIT, max(1.0, math.ceil(largest * 4) / 4)))
