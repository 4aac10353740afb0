"""Linear support vector machines on images with several classes (the VOC07 protocol)."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt

from sslkit.errors import DataError, Fault, RecipeError, counted, printable
from sslkit.evaluation import bootstrap, combine
from sslkit.interfaces import (
    Curves,
    Entry,
    Evaluation,
    Features,
    Interval,
    Metric,
    Outcome,
    Probe,
    Result,
    Score,
)
from sslkit_plugins.evaluations.average_precision import Rankings, Rule, prevalence
from sslkit_plugins.evaluations.support_vectors import (
    COSTS,
    FOLDS,
    ITERATIONS,
    TOLERANCE,
    Machines,
    normalised,
)

MAP = Metric("mAP", "%", low=0, high=1)
ALL = "all classes"
"""Row of the mean over classes. The other rows are classes."""
SHOTS = [1, 2, 4, 8, 16, 32, 64, 96]
SAMPLES = 5
NEGATIVES = 19
"""Low-shot negatives per positive."""

CHANCE = "chance"

Key = tuple[str | None, str]
"""Row and candidate."""


class Svm(Evaluation):
    """Linear SVM of every class on frozen features, mAP (the VOC07 protocol of VISSL and PIRL).

    Goyal et al. 2019, arXiv:1905.01235, section 6.2, in VISSL's version. Images are resized to a
    square without a crop. Features are divided by their length + 1e-5. Each class has a LinearSVC
    against all others, whose cost is chosen by 3-fold cross-validation on the training split.

    `low_shot` trains on k positives and 19·k negatives per class, for several k and samples.
    VISSL chooses its cost on the test set; here cross-validation within the sample chooses it.
    Images with only difficult objects are never in a sample.
    """

    needs: ClassVar[Literal["labels", "tags", "boxes", ""]] = "tags"

    def __init__(
        self,
        *,
        layers: Annotated[
            Literal["last", "all"],
            Field(
                description="Layers to score. last: the features, and the AP of every class. all: "
                "also the pooled map of every layer, as in VISSL."
            ),
        ] = "last",
        costs: Annotated[
            list[PositiveFloat],
            Field(min_length=1, description="Costs C to choose from, by default VISSL's."),
        ] = COSTS,
        difficult: Annotated[
            Literal["negative", "ignore"],
            Field(
                description="Training images whose objects of a class are all difficult. negative: "
                "as in VISSL and the published numbers. ignore: left out. Validation leaves them "
                "out in both cases."
            ),
        ] = "negative",
        ap: Annotated[
            Rule,
            Field(
                description="Rule of the average precision. envelope: area below the monotone "
                "precision, as in VISSL and VOC since 2010. 11-point: VOC 2007. step: scikit-learn."
            ),
        ] = "envelope",
        low_shot: Annotated[
            bool, Field(description="Train on a few positives per class, for several numbers.")
        ] = False,
        shots: Annotated[
            list[PositiveInt] | None,
            Field(
                min_length=1,
                description="Positives per class with low_shot, by default 1, 2, 4, … 64, 96.",
            ),
        ] = None,
        samples: Annotated[
            PositiveInt | None,
            Field(description="Samples of each number of shots with low_shot, by default 5."),
        ] = None,
    ) -> None:
        given = {"--shots": shots, "--samples": samples}
        wrong = [name for name, value in given.items() if value is not None]
        if wrong and not low_shot:
            raise RecipeError(*(Fault(name, "is an option of --low-shot only") for name in wrong))
        if low_shot and layers == "all":
            raise RecipeError(
                Fault("--layers", "--low-shot scores the last layer only; remove one of them")
            )
        self.layers, self.costs, self.difficult, self.rule = layers, costs, difficult, ap
        self.low_shot, self.shots = low_shot, sorted(set(shots or SHOTS))
        self.samples = samples or SAMPLES

    def measure(self, probe: Probe) -> Result:
        """Score every candidate. Raises DataError for a class without positives or negatives."""
        train, val = _tags(probe)
        _check_classes(train, val, probe.classes)
        machines = Machines(self.costs)
        if self.low_shot:
            result = self._by_shots(probe, machines)
        else:
            result = self._by_class(probe, machines)
        notes = [*result.protocol.get("notes", []), *machines.notes()]
        protocol = {**result.protocol, **self._conditions(), "notes": notes}
        return replace(result, protocol=protocol)

    def _conditions(self) -> dict[str, Any]:
        """Return the recorded conditions of the fits and of the metric."""
        return {
            "classifier": "scikit-learn's LinearSVC, squared hinge, L2, dual; positives weigh 2, others 1",
            "normalisation": "x / (|x| + 1e-5)",
            "fit_precision": "float64",
            "costs": self.costs,
            "cost_chosen_by": f"{FOLDS}-fold cross-validation of the AP (step) of each class",
            "tolerance": TOLERANCE,
            "iterations": ITERATIONS,
            "difficult_in_training": "ignore" if self.low_shot else self.difficult,
            "difficult_in_validation": "ignore",
            "average_precision": self.rule,
        }

    # ------------------------------------------------------------------------ all images

    def _by_class(self, probe: Probe, machines: Machines) -> Result:
        """Train on all images: the mean over classes, and the AP of every class."""
        train, val = _tags(probe)
        found: list[Rankings] = []

        def score(features: Features, seed: int) -> dict[str, Outcome]:
            ranking = Rankings(self._decide(features, train, machines), val, self.rule)
            found.append(ranking)
            return {MAP.name: ranking.value()}

        result = probe.compare(
            score,
            [MAP],
            layers=self.layers == "all",
            view="squash",
            chance={MAP.name: float(prevalence(val).mean())},
            protocol={"notes": _few(train, probe.classes)},
        )
        rankings = dict(zip(_finite(result), found, strict=True))
        rankings[None, CHANCE] = Rankings(np.zeros(val.shape), val, self.rule)
        mean = _resampled(result.entries, rankings, probe, None)
        if self.layers == "all":
            return replace(result, entries=mean)
        entries = [replace(entry, row=ALL) for entry in mean]
        for number, name in enumerate(probe.classes):
            of_class = _resampled(result.entries, rankings, probe, number)
            entries += [replace(entry, row=name) for entry in of_class]
        return replace(result, entries=entries)

    def _decide(self, features: Features, tags: np.ndarray, machines: Machines) -> np.ndarray:
        """Return the decision values of the validation images, [M,C]."""
        train, val = normalised(features.train), normalised(features.val)
        decided = []
        for tag in tags.T:
            rows = np.flatnonzero(tag != -1) if self.difficult == "ignore" else slice(None)
            decided.append(machines.decide(train[rows], tag[rows] == 1, val))
        return np.stack(decided, 1)

    # --------------------------------------------------------------------------- low-shot

    def _by_shots(self, probe: Probe, machines: Machines) -> Result:
        """Train on samples of k positives and 19·k negatives: the mean over classes by k."""
        train, val = _tags(probe)
        shots, notes = _possible(self.shots, train, probe.classes)
        found: list[dict[int, float]] = []

        def score(features: Features, seed: int) -> dict[str, Outcome]:
            values = {}
            for k in shots:
                decided = self._decide_few(features, train, k, seed, machines)
                values[k] = Rankings(decided, val, self.rule).value()
            found.append(values)
            return {MAP.name: values[shots[-1]]}

        chance = {MAP.name: float(prevalence(val).mean())}
        result = probe.compare(
            score, [MAP], seeds=self.samples, view="squash", chance=chance, protocol={}
        )
        sampled = iter(found)
        outcomes: dict[Key, list[dict[str, Outcome]]] = {}
        lines: dict[str, tuple[list[float], list[float]]] = {}
        by_candidate = {}
        for _, name in _finite(result):
            by_candidate[name] = [next(sampled) for _ in range(self.samples)]
        for k in shots:
            for candidate in probe.candidates:
                values = by_candidate.get(candidate.name, [{k: math.nan}] * self.samples)
                outcomes[f"k = {k}", candidate.name] = [{MAP.name: one[k]} for one in values]
                xs, ys = lines.setdefault(candidate.name, ([], []))
                xs.append(k)
                ys.append(100 * float(np.mean([one[k] for one in values])))
        lines["chance"] = [float(k) for k in shots], [100 * chance[MAP.name]] * len(shots)
        protocol = {"shots": shots, "negatives_per_positive": NEGATIVES, "notes": notes}
        combined = combine(
            probe, outcomes, [MAP], chance=chance, protocol={**result.protocol, **protocol}
        )
        figure = Curves("mAP by positives per class", "positives per class", "mAP %", lines, True)
        return replace(combined, figures=[figure])

    def _decide_few(
        self, features: Features, tags: np.ndarray, k: int, sample: int, machines: Machines
    ) -> np.ndarray:
        """Return the decision values of the validation images after k shots, [M,C]."""
        train, val = normalised(features.train), normalised(features.val)
        decided = []
        for number, tag in enumerate(tags.T):
            rows = draw_few(tag, k, [sample, number])
            decided.append(machines.decide(train[rows], tag[rows] == 1, val))
        return np.stack(decided, 1)


def draw_few(tag: np.ndarray, k: int, seed: Sequence[int]) -> np.ndarray:
    """Return k positives and 19·k negatives, or all negatives if there are fewer, ascending.

    The sample of a seed for a larger k contains those for smaller ones.
    """
    rng = np.random.default_rng(seed)
    positives = rng.permutation(np.flatnonzero(tag == 1))[:k]
    negatives = rng.permutation(np.flatnonzero(tag == 0))[: NEGATIVES * k]
    return np.sort(np.concatenate([positives, negatives]))


def _tags(probe: Probe) -> tuple[np.ndarray, np.ndarray]:
    """Return the tags of both splits, int8 [N,C]."""
    assert probe.train.tags is not None and probe.val.tags is not None
    return probe.train.tags, probe.val.tags


def _check_classes(train: np.ndarray, val: np.ndarray, classes: Sequence[str]) -> None:
    """Raise DataError for a class without positives, or without training negatives."""
    for number, name in enumerate(map(printable, classes)):
        for split, tags in {"training": train, "validation": val}.items():
            if not (tags[:, number] == 1).any():
                raise DataError(
                    f"no {split} image shows the class {name} (other than as difficult), but its "
                    "AP needs positives; add such images, or remove the class from the annotations"
                )
        if not (train[:, number] == 0).any():
            raise DataError(
                f"every training image shows the class {name}, but its classifier needs negatives; "
                "add images without it, or remove the class from the annotations"
            )


def _few(tags: np.ndarray, classes: Sequence[str]) -> list[str]:
    """Return a sentence about classes with too few images for three folds, if there are any."""
    fewest = np.minimum((tags == 1).sum(0), (tags == 0).sum(0))
    few = [
        f"{printable(classes[number])} ({fewest[number]})"
        for number in range(len(fewest))
        if fewest[number] < FOLDS
    ]
    if not few:
        return []
    return [
        f"fewer than {FOLDS} positives or negatives, so their cost is chosen with as many folds, "
        f"or is the median if there is one: {', '.join(few)}"
    ]


def _possible(
    shots: Sequence[int], tags: np.ndarray, classes: Sequence[str]
) -> tuple[list[int], list[str]]:
    """Return the numbers of shots that every class allows, and sentences about the others.

    Raises DataError if there are none.
    """
    positives, negatives = (tags == 1).sum(0), (tags == 0).sum(0)
    rarest, most = printable(classes[int(positives.argmin())]), int(positives.min())
    possible = [k for k in shots if k <= most]
    shown = f"the class {rarest} has only {counted(most, 'positive')}"
    if not possible:
        raise DataError(f"{shown}; choose fewer --shots, such as --shots '[1]'")
    notes = []
    if len(possible) < len(shots):
        left_out = ", ".join(str(k) for k in shots if k > most)
        notes.append(f"not measured: k = {left_out}, for {shown}")
    if negatives.min() < NEGATIVES * possible[-1]:
        common = printable(classes[int(negatives.argmin())])
        notes.append(
            f"the class {common} has only {counted(int(negatives.min()), 'negative')}, which are "
            f"all used where a sample needs {NEGATIVES}·k"
        )
    if possible[0] == 1:
        notes.append("k = 1: a single positive allows no folds, so the cost is the median")
    return possible, notes


def _finite(result: Result) -> list[Key]:
    """Return the scored rows and candidates in order; those with non-finite features are not."""
    return [
        (entry.row, entry.candidate)
        for entry in result.entries
        if entry.candidate != CHANCE and math.isfinite(entry.scores[MAP.name].value)
    ]


def _resampled(
    entries: Sequence[Entry], rankings: dict[Key, Rankings], probe: Probe, number: int | None
) -> list[Entry]:
    """Return entries with the AP of class `number`, or the mean over classes.

    Intervals and differences come from resampled validation images.
    """
    subject = next((one.name for one in probe.candidates if not one.baseline), None)
    made = []
    for entry in entries:
        ours = rankings.get((entry.row, entry.candidate))
        if ours is None:
            made.append(entry)
            continue
        differences = {}
        if entry.candidate == subject:
            for (row, other), theirs in rankings.items():
                if other != subject and row in (entry.row, None):
                    differences[other] = _differences(probe, number, ours, theirs)
        found = _interval(probe, number, ours)
        score = Score((ours.value(number),), () if found is None else (found,))
        made.append(replace(entry, scores={MAP.name: score}, differences=differences))
    return made


def _interval(
    probe: Probe, number: int | None, ours: Rankings, theirs: Rankings | None = None
) -> Interval | None:
    """Return the bootstrap interval of a value, or of its difference to another's."""

    def statistic(rows: np.ndarray) -> float:
        value = ours.value(number, rows)
        return value if theirs is None else value - theirs.value(number, rows)

    return bootstrap(statistic, len(probe.val), groups=probe.val.groups)


def _differences(
    probe: Probe, number: int | None, ours: Rankings, theirs: Rankings
) -> dict[str, Interval]:
    """Return the paired difference of two candidates on the same resampled images, if any."""
    found = _interval(probe, number, ours, theirs)
    return {} if found is None else {MAP.name: replace(found, of=f"{found.of}, paired")}
