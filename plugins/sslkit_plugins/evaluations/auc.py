"""Area under the ROC curve and balanced accuracy of a logistic regression."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from sslkit.errors import DataError, counted, printable
from sslkit.evaluation import percentiles, resample, split, too_few
from sslkit.interfaces import (
    Curves,
    Estimate,
    Evaluation,
    Features,
    Figure,
    Interval,
    Metric,
    Outcome,
    Probe,
    Result,
    Score,
    Work,
)
from sslkit_plugins.evaluations import effort
from sslkit_plugins.evaluations.logistic import (
    STRENGTHS,
    Standardised,
    logistic_regression,
    standardise,
)

AUC = Metric("AUC", low=0, high=1)
BALANCED = Metric("balanced accuracy", "%", low=0, high=1)
METRICS = (AUC, BALANCED)
LINES, POINTS = 8, 200
"""Largest number of lines in the figure, and of points on a line."""


class Ranking:
    """One-vs-rest scores float64 [n,C] of n images with labels int64 [n].

    Two classes have one AUC, that of the second class.
    """

    def __init__(self, scores: np.ndarray, labels: np.ndarray) -> None:
        self.labels, self.classes = labels, scores.shape[1]
        self.hits = scores.argmax(1) == labels
        self.measured = [1] if self.classes == 2 else list(range(self.classes))
        self.ranks = [np.unique(scores[:, c], return_inverse=True)[1] for c in self.measured]

    def aucs(self, counts: np.ndarray) -> np.ndarray:
        """Return the AUC of each class, float64 [C] or [1]; NaN without positives or negatives.

        AUC is the fraction of pairs (positive, negative) in which the positive has the higher
        score; equal scores count half. `counts` [n] is the number of times each image counts.
        """
        found = []
        for label, ranks in zip(self.measured, self.ranks, strict=True):
            positive = np.bincount(ranks, np.where(self.labels == label, counts, 0))
            negative = np.bincount(ranks, counts) - positive
            below = np.cumsum(negative) - negative
            pairs = positive.sum() * negative.sum()
            found.append(positive @ (below + negative / 2) / pairs if pairs else math.nan)
        return np.array(found)

    def auc(self, counts: np.ndarray) -> float:
        """Return the mean AUC of the classes that have positives and negatives."""
        return _mean(self.aucs(counts))

    def balanced_accuracy(self, counts: np.ndarray) -> float:
        """Return the mean recall of the classes that have images."""
        images = np.bincount(self.labels, counts, self.classes)
        hits = np.bincount(self.labels, counts * self.hits, self.classes)
        with np.errstate(invalid="ignore"):
            return _mean(hits / images)

    def curve(self, place: int) -> tuple[list[float], list[float]]:
        """Return false and true positive rates of the class `measured[place]`."""
        positive = self.labels == self.measured[place]
        totals = [np.bincount(self.ranks[place], chosen)[::-1] for chosen in (~positive, positive)]
        rates = [np.concatenate([[0.0], np.cumsum(one) / one.sum()]) for one in totals]
        kept = np.unique(np.linspace(0, len(rates[0]) - 1, POINTS).round().astype(int))
        return rates[0][kept].tolist(), rates[1][kept].tolist()


def _mean(values: np.ndarray) -> float:
    """Return the mean of the values that are not NaN."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def standard_error(positives: int, negatives: int) -> float:
    """Return the standard error of the AUC of random scores (Mann & Whitney 1947)."""
    return math.sqrt((positives + negatives + 1) / (12 * positives * negatives))


class Measured:
    """The ranking of one candidate, and its metrics on resampled images, float64 [draws,2].

    `drawn` names the resampled unit, images or groups; "" if there are fewer than ten.
    """

    def __init__(self, ranking: Ranking, groups: Sequence[object] | None) -> None:
        self.ranking, count = ranking, len(ranking.labels)
        self.values = self.metrics(np.ones(count))
        found = resample(
            lambda rows: self.metrics(np.bincount(rows, minlength=count)), count, groups=groups
        )
        self.draws: np.ndarray = np.empty((0, len(METRICS)))
        self.drawn = ""
        if found is not None:
            self.draws, self.drawn = found

    def metrics(self, counts: np.ndarray) -> np.ndarray:
        """Return AUC and balanced accuracy, float64 [2]."""
        return np.array([self.ranking.auc(counts), self.ranking.balanced_accuracy(counts)])

    def scores(self) -> dict[str, Outcome]:
        """Return both metrics with intervals from the resampled images."""
        found: dict[str, Outcome] = {}
        for place, metric in enumerate(METRICS):
            interval = percentiles(self.draws[:, place], self.drawn)
            intervals = () if interval is None else (interval,)
            found[metric.name] = Score((float(self.values[place]),), intervals)
        return found

    def differences(self, other: "Measured") -> dict[str, Interval]:
        """Return the paired differences to `other`, which saw the same resampled images."""
        change, found = self.draws - other.draws, {}
        for place, metric in enumerate(METRICS):
            interval = percentiles(change[:, place], f"{self.drawn}, paired")
            if interval is not None:
                found[metric.name] = interval
        return found


class Auc(Evaluation):
    """One-vs-rest AUC and balanced accuracy, for imbalanced classes such as diagnoses.

    Fits the logistic regression of `linear` on standardised frozen features. Classes are ranked by
    their probability. The headline is the mean AUC over classes; two classes have one AUC. A
    held-out fifth of the training split, of its groups if there are any, selects the strength of
    the regulariser by AUC. Intervals resample validation images, or groups.
    """

    def __init__(
        self,
        *,
        class_weights: Annotated[
            Literal["balanced", "none"],
            Field(
                description="Weights of the classes in the fit. balanced: every class has the same "
                "weight. none: every image has the same weight."
            ),
        ] = "balanced",
        layers: Annotated[
            Literal["last", "all"],
            Field(
                description="Layers to score. last: the features. all: also the pooled map of "
                "every layer."
            ),
        ] = "last",
    ) -> None:
        self.class_weights, self.layers = class_weights, layers

    def measure(self, probe: Probe) -> Result:
        """Score every candidate. Raises DataError for a class without validation images."""
        labels = np.asarray(probe.val.labels)
        _check_classes(labels, probe.classes)
        fit, held_out, _ = split(probe.train, 0)
        chosen_on = (torch.as_tensor(fit.rows), torch.as_tensor(held_out.rows))
        measured: list[Measured] = []

        def score(features: Features, seed: int) -> dict[str, Outcome]:
            scores = self.fit(features, chosen_on, len(probe.classes))
            found = Measured(Ranking(scores, labels), probe.val.groups)
            measured.append(found)
            return found.scores()

        result = probe.compare(
            score,
            METRICS,
            layers=self.layers == "all",
            chance={AUC.name: 0.5, BALANCED.name: 1 / len(probe.classes)},
            protocol=self._stated(probe, labels),
            chunked=True,
        )
        return _compared(result, measured, probe)

    def fit(self, features: Features, chosen_on: tuple[Tensor, Tensor], classes: int) -> np.ndarray:
        """Return the log-probabilities of the validation images, float64 [n,C].

        `chosen_on` are the training rows that are fitted and held out to select the strength.
        """
        labels = features.train_labels
        train, val = standardise(features.train, features.val, labels.device)
        strength = self._strength(train, labels, chosen_on, classes)
        fitted = logistic_regression(
            train, labels, classes, strength, class_weights=self._weights(labels, classes)
        )
        return log_probabilities(val, fitted)

    def _strength(
        self,
        train: Standardised,
        labels: Tensor,
        chosen_on: tuple[Tensor, Tensor],
        classes: int,
    ) -> float:
        """Return the strength with the best AUC on held-out images."""
        fit, held_out = (rows.to(labels.device) for rows in chosen_on)
        weights = self._weights(labels[fit], classes)
        some, rest = train.some(fit), train.some(held_out)
        truth = labels[held_out].cpu().numpy()
        best, chosen, fitted = -1.0, STRENGTHS[0], None
        for strength in STRENGTHS:
            fitted = logistic_regression(
                some, labels[fit], classes, strength, fitted, class_weights=weights
            )
            score = Ranking(log_probabilities(rest, fitted), truth).auc(np.ones(len(truth)))
            if score > best:
                best, chosen = score, strength
        return chosen

    def _weights(self, labels: Tensor, classes: int) -> Tensor | None:
        """Return n / (C · images of the class), float32 [C]; None if images weigh the same."""
        if self.class_weights == "none":
            return None
        counts = labels.bincount(minlength=classes).clamp_min(1)
        return len(labels) / (classes * counts.float())

    def _stated(self, probe: Probe, labels: np.ndarray) -> dict[str, Any]:
        counts = np.bincount(labels, minlength=len(probe.classes))
        rarest = int(counts.argmin())
        error = standard_error(int(counts[rarest]), len(labels) - int(counts[rarest]))
        note = (
            f"the rarest class, {printable(str(probe.classes[rarest]))}, has {counts[rarest]:,} of "
            f"{len(labels):,} validation images: at chance, its AUC has a standard error of "
            f"{error:.3f}"
        )
        kind = "images" if probe.train.groups is None else "groups"
        return {
            "auc": "one class against the rest, mean over classes",
            "class_weights": self.class_weights,
            "strengths": STRENGTHS,
            "chosen_on": f"AUC on a fifth of the {kind} of the training split",
            "notes": [note, *too_few(len(labels), probe.val.groups)],
        }

    def estimate(self, work: Work) -> Estimate:
        """Estimate the fits from one closure, without the resampling."""
        return effort.regression(work, layers=self.layers == "all")


def log_probabilities(rows: Standardised, fitted: tuple[Tensor, Tensor]) -> np.ndarray:
    """Return the log-probabilities of a fitted classifier, float64 [n,C]."""
    return rows.predicted(*fitted).double().log_softmax(1).cpu().numpy()


def _check_classes(labels: np.ndarray, classes: Sequence[str]) -> None:
    """Raise DataError for classes without validation images, whose AUC is undefined."""
    missing = [str(name) for number, name in enumerate(classes) if not (labels == number).any()]
    if missing:
        shown = f"{printable(missing[0])}"
        if len(missing) > 1:
            shown += f" and {counted(len(missing) - 1, 'more class', 'more classes')}"
        raise DataError(
            f"no validation image shows {shown}, so there is no AUC; add validation images, remove "
            "the training images, or, if the split is random, choose another: --split-seed N"
        )


def _compared(result: Result, measured: Sequence[Measured], probe: Probe) -> Result:
    """Add paired differences, the AUC of each class and the ROC curves to a result."""
    known = iter(measured)
    found: dict[tuple[str | None, str], Measured] = {}
    for entry in result.entries:
        # Candidates with non-finite features are not scored.
        if entry.candidate != "chance" and not math.isnan(entry.scores[AUC.name].value):
            found[entry.row, entry.candidate] = next(known)
    subject = next((one.name for one in probe.candidates if not one.baseline), None)
    entries = []
    for entry in result.entries:
        own = found.get((entry.row, entry.candidate))
        if own is not None and entry.candidate == subject:
            differences = {
                name: own.differences(other)
                for (row, name), other in found.items()
                if name != subject and row in (entry.row, None)
            }
            entry = replace(entry, differences=differences)
        entries.append(entry)
    last = {name: one for (row, name), one in found.items() if row in ("features", None)}
    by_class = {name: _by_class(one, probe.classes) for name, one in last.items()}
    protocol = {**result.protocol, "auc_by_class": by_class}
    return replace(result, entries=entries, protocol=protocol, figures=_figures(last, probe))


def _by_class(measured: Measured, classes: Sequence[str]) -> dict[str, float]:
    """Return the AUC of each class by name."""
    ranking = measured.ranking
    values = ranking.aucs(np.ones(len(ranking.labels))).tolist()
    return {str(classes[c]): auc for c, auc in zip(ranking.measured, values, strict=True)}


def _figures(measured: dict[str, Measured], probe: Probe) -> list[Figure]:
    """Return the ROC curves: of all candidates for two classes, else of the classes."""
    if not measured:
        return []
    title, lines = "ROC", {}
    if len(probe.classes) == 2:
        lines = {name: one.ranking.curve(0) for name, one in measured.items()}
    else:
        name, first = next(iter(measured.items()))
        aucs = first.ranking.aucs(np.ones(len(first.ranking.labels)))
        worst = np.argsort(aucs, kind="stable")[:LINES].tolist()
        for place in worst:
            label = printable(str(probe.classes[place]))
            lines[f"{label}, AUC {aucs[place]:.3f}"] = first.ranking.curve(place)
        title = f"ROC of {name}, one class against the rest"
        if len(aucs) > LINES:
            title += f": the {LINES} lowest AUCs of {len(aucs)}"
    return [Curves(title, "false positive rate", "true positive rate", lines)]
