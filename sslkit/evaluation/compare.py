"""Scores the candidates of a probe: features in one pass, outcomes by row, then a Result."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sslkit.errors import PluginError
from sslkit.evaluation.features import FeatureStore, Row, is_finite
from sslkit.evaluation.images import Progress, View
from sslkit.evaluation.intervals import too_few
from sslkit.evaluation.result import array, difference, outcome_fault, score
from sslkit.interfaces import (
    Candidate,
    Entry,
    Features,
    ImageSource,
    Interval,
    Metric,
    Outcome,
    Probe,
    Result,
    Score,
)

CHANCE = "chance"

Outcomes = Mapping[Row, Sequence[Mapping[str, Outcome]]]
"""Outcomes of all metrics for each probe seed, by row and candidate."""
Scorer = Callable[[Features, int], dict[str, Outcome]]


class Embedder(Protocol):
    """What embedding and scoring read of a probe."""

    train: ImageSource
    val: ImageSource
    candidates: Sequence[Candidate]
    device: torch.device
    home: Path | None

    @property
    def progress(self) -> Progress: ...

    def passes(
        self, source: ImageSource, view: View
    ) -> Iterator[tuple[dict[int, Tensor], Tensor]]: ...


def embed(probe: Embedder, *, layers: bool, view: View) -> FeatureStore:
    """Return the features of both splits by row and candidate.

    They are float32 in CPU memory, or float16 on disk if they exceed a quarter of the memory.
    """
    sources = (probe.train, probe.val)
    kept = FeatureStore((len(probe.train), len(probe.val)), probe.home)
    for number, source in enumerate(sources):
        with probe.progress("embedding") as advance:
            for images, index in probe.passes(source, view):
                found = embed_batch(probe, images, layers=layers)
                kept.write(number, index, found)
                advance(len(index), len(source))
    return kept


def embed_batch(
    probe: Embedder,
    images: Mapping[int, Tensor],
    *,
    layers: bool,
    candidates: Sequence[Candidate] | None = None,
) -> dict[Row, Tensor]:
    """Return the features of a batch of images by row and candidate, by default of all."""
    found: dict[Row, Tensor] = {}
    for candidate in probe.candidates if candidates is None else candidates:
        given = candidate.embed(images[candidate.size].to(probe.device), layers=layers)
        for layer, rows in given.items():
            row = layer if candidate.has_layers else None
            found[row, candidate.name] = rows.cpu()
    return found


def score_all(
    probe: Embedder,
    features: FeatureStore,
    scorer: Scorer,
    metrics: Sequence[Metric],
    seeds: int,
    *,
    chunked: bool = False,
) -> dict[Row, list[dict[str, Outcome]]]:
    """Return the outcomes of every row and candidate; frees their features after use.

    Metrics of non-finite features are NaN. `chunked`: the scorer takes features that are float16 or
    not on the device, if they exceed its memory.
    """
    names = [metric.name for metric in metrics]
    targets = [_targets(source, probe.device) for source in (probe.train, probe.val)]
    groups = _groups(probe.val, probe.device)
    outcomes: dict[Row, list[dict[str, Outcome]]] = {}
    total = len(features) * seeds
    with probe.progress("scoring") as advance:
        for key in list(features):
            train, val = features.take(key, probe.device, chunked=chunked)
            given = Features(train, targets[0], val, targets[1], groups)
            outcomes[key] = []
            finite = is_finite(train) and is_finite(val)
            for seed in range(seeds):
                found: dict[str, Outcome] = {name: math.nan for name in names}
                if finite:
                    found = scorer(given, seed)
                wrong = outcome_fault(found, names, len(val))
                if wrong is not None:
                    raise PluginError(wrong)
                outcomes[key].append(found)
                advance(1, total)
            del train, val, given
    return outcomes


def _targets(source: ImageSource, device: torch.device) -> Tensor:
    """Return labels int64 [N], or tags int8 [N,C]; empty if there are neither."""
    values = source.labels if source.labels is not None else source.tags
    if values is None:
        return torch.empty(0, dtype=torch.int64, device=device)
    return torch.as_tensor(values, device=device)


def _groups(source: ImageSource, device: torch.device) -> Tensor | None:
    """Return the group number of each image, int64 [N], or None."""
    if source.groups is None:
        return None
    numbers = np.unique(np.asarray(source.groups), return_inverse=True)[1].ravel()
    return torch.as_tensor(numbers, device=device)


def combine(
    probe: Probe,
    outcomes: Outcomes,
    metrics: Sequence[Metric],
    *,
    chance: dict[str, float] | None = None,
    protocol: dict[str, Any] | None = None,
    images: ImageSource | None = None,
) -> Result:
    """Build the result from outcomes by row and candidate.

    The first candidate that is not a baseline is compared, paired by image, with the others of its
    row and of row None. `chance` has the metrics at chance level. `images` are those of the
    outcomes per image, by default the validation images.
    """
    images = probe.val if images is None else images
    groups, alone = images.groups, False
    subject = next((one.name for one in probe.candidates if not one.baseline), None)
    entries = []
    for (row, name), found in outcomes.items():
        scores = {metric.name: _score(found, metric, groups) for metric in metrics}
        alone = alone or any(_lacks_interval(found[0], scores))
        differences = {}
        if name == subject:
            for (other_row, other), others in outcomes.items():
                if other != subject and other_row in (row, None):
                    differences[other] = _differences(found, others, metrics, groups)
        entries.append(Entry(row, name, scores, differences))
    if chance:
        guess = {name: Score((value,)) for name, value in chance.items()}
        entries.append(Entry(None, CHANCE, guess))
    stated = {**probe.protocol(), **(protocol or {})}
    if alone:
        stated["notes"] = [*stated.get("notes", []), *too_few(len(images), groups)]
    return Result(tuple(metrics), entries, stated)


def _score(
    found: Sequence[Mapping[str, Outcome]], metric: Metric, groups: Sequence[str] | None
) -> Score:
    return score([seed[metric.name] for seed in found], metric, groups)


def _lacks_interval(found: Mapping[str, Outcome], scores: Mapping[str, Score]) -> Iterator[bool]:
    """Yield for each metric whether it has outcomes per image, but no interval."""
    for name, outcome in found.items():
        yield array(outcome) is not None and not scores[name].intervals


def _differences(
    found: Sequence[Mapping[str, Outcome]],
    others: Sequence[Mapping[str, Outcome]],
    metrics: Sequence[Metric],
    groups: Sequence[str] | None,
) -> dict[str, Interval]:
    """Return the paired differences of two candidates by metric, if there are any."""
    differences = {}
    for metric in metrics:
        ours = [seed[metric.name] for seed in found]
        theirs = [seed[metric.name] for seed in others]
        interval = difference(ours, theirs, groups)
        if interval is not None:
            differences[metric.name] = interval
    return differences
