"""Linear support vector machines on images with several classes (the VOC07 protocol)."""

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt

from sslkit.errors import DataError, Fault, RecipeError, counted, printable
from sslkit.evaluation import combine, percentiles, resample, too_few
from sslkit.interfaces import (
    Entry,
    Estimate,
    Evaluation,
    Features,
    Figure,
    ImageSource,
    Metric,
    Outcome,
    Probe,
    Result,
    Score,
    Work,
)
from sslkit_plugins.evaluations import few_shots, svm_cost
from sslkit_plugins.evaluations.average_precision import (
    Rule,
    average_precisions,
    mean_over_classes,
    prevalence,
)
from sslkit_plugins.evaluations.few_shots import CHANCE
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
DRAWS = 1000
"""Resamples of the validation images."""
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
        self.low_shot, self.shots = low_shot, sorted(set(shots or few_shots.SHOTS))
        self.samples = samples or few_shots.SAMPLES

    def measure(self, probe: Probe) -> Result:
        """Score every candidate. Raises DataError for a class without positives or negatives."""
        train, val = _tags(probe)
        _check_classes(train, val, probe.classes)
        machines = Machines(self.costs, probe.train.groups)
        if self.low_shot:
            result = self._by_shots(probe, machines)
        else:
            result = self._by_class(probe, machines)
        notes = [*result.protocol.get("notes", []), *machines.notes()]
        protocol = {**result.protocol, **self._conditions(), "notes": notes}
        return replace(result, protocol=protocol)

    def estimate(self, work: Work) -> Estimate:
        """Estimate the fits, and the resampling of the APs, from a few images."""
        machines, layers = Machines(self.costs), self.layers == "all"
        seconds, memory = 0.0, 0
        train, val = _tags(work.probe)
        _check_classes(train, val, work.probe.classes)
        found = svm_cost.measure(work.probe, machines, layers=layers)
        if self.low_shot:
            shots, _ = few_shots.possible(self.shots, train, work.probe.classes)
            negatives = (train == 0).sum(0)
            sizes = {k: k + few_shots.negatives(k, negatives) for k in shots}
        else:
            sizes = {FOLDS: work.train}
            seconds += (len(found) + 1) * _resampling(work.probe.val, self.rule)
        for cost in found.values():
            for k, rows in sizes.items():
                fits = cost.seconds(rows, min(FOLDS, k))
                seconds += work.classes * (self.samples if self.low_shot else 1) * fits
            memory = max(memory, svm_cost.memory(max(sizes.values()), work.val, cost.width))
        classes = counted(work.classes, "class", "classes")
        if self.low_shot:
            classes += (
                f", {counted(self.samples, 'sample')} and {counted(len(sizes), 'number')} of shots"
            )
        images = counted(min(svm_cost.SAMPLE, work.train), "image")
        return Estimate(
            layers=layers,
            seconds=seconds,
            bytes=memory,
            how=f"{counted(len(self.costs), 'cost')} for each of {classes}, timed on {images}",
        )

    def _conditions(self) -> dict[str, Any]:
        """Return the recorded conditions of the fits and of the metric."""
        return {
            "classifier": "LinearSVC: squared hinge, L2, dual; positives count twice",
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
        decided: list[np.ndarray] = []

        def score(features: Features, seed: int) -> dict[str, Outcome]:
            decided.append(self._decide(features, train, machines))
            values = average_precisions(decided[-1], val, self.rule)(None)
            return {MAP.name: float(values.mean())}

        result = probe.compare(
            score,
            [MAP],
            layers=self.layers == "all",
            view="squash",
            chance={MAP.name: float(prevalence(val).mean())},
            protocol={"notes": _few(train, probe.classes) + too_few(len(val), probe.val.groups)},
        )
        scored, chosen = {}, {}
        costs = np.array(machines.chosen).reshape(-1, len(probe.classes)).tolist()
        for key, scores, of_classes in zip(_finite(result), decided, costs, strict=True):
            scored[key] = Precisions.of(scores, probe.val, self.rule)
            chosen[" ".join(filter(None, key))] = dict(zip(probe.classes, of_classes, strict=True))
        result.protocol["chosen_costs"] = chosen
        scored[None, CHANCE] = Precisions.of(np.zeros(val.shape), probe.val, self.rule)
        subject = next((one.name for one in probe.candidates if not one.baseline), None)
        mean = _entries(result.entries, scored, subject, None)
        if self.layers == "all":
            return replace(result, entries=mean)
        entries = [replace(entry, row=ALL) for entry in mean]
        for number, name in enumerate(probe.classes):
            of_class = _entries(result.entries, scored, subject, number)
            entries += [replace(entry, row=name) for entry in of_class]
        return replace(result, entries=entries)

    def _decide(self, features: Features, tags: np.ndarray, machines: Machines) -> np.ndarray:
        """Return the decision values of the validation images, [M,C]."""
        train, val = normalised(features.train), normalised(features.val)
        decided = []
        for tag in tags.T:
            rows = np.flatnonzero(tag != -1) if self.difficult == "ignore" else slice(None)
            decided.append(machines.decide(train[rows], tag[rows] == 1, val, rows))
        return np.stack(decided, 1)

    # --------------------------------------------------------------------------- low-shot

    def _by_shots(self, probe: Probe, machines: Machines) -> Result:
        """Train on samples of k positives and 19·k negatives: the mean over classes by k."""
        train, val = _tags(probe)
        shots, notes = few_shots.possible(self.shots, train, probe.classes)
        found: list[dict[int, float]] = []

        def score(features: Features, seed: int) -> dict[str, Outcome]:
            values = {}
            for k in shots:
                decided = self._decide_few(features, train, k, seed, machines)
                values[k] = float(average_precisions(decided, val, self.rule)(None).mean())
            found.append(values)
            return {MAP.name: values[shots[-1]]}

        protocol = {"shots": shots, "negatives_per_positive": few_shots.NEGATIVES, "notes": notes}
        result = probe.compare(score, [MAP], seeds=self.samples, view="squash", protocol=protocol)
        sampled = iter(found)
        values: dict[str, few_shots.BySample] = {}
        for _, name in _finite(result):
            values[name] = [next(sampled) for _ in range(self.samples)]
        for candidate in probe.candidates:
            values.setdefault(candidate.name, few_shots.not_finite(shots, self.samples))
        outcomes: dict[Key, list[dict[str, Outcome]]] = {}
        for k, (name, samples) in product(shots, values.items()):
            outcomes[f"k = {k}", name] = [{MAP.name: one[k]} for one in samples]
        chance = float(prevalence(val).mean())
        result = combine(
            probe, outcomes, [MAP], chance={MAP.name: chance}, protocol=result.protocol
        )
        entries = result.entries
        paired = [few_shots.over_samples(entry, entries, MAP.name) for entry in entries]
        figures: list[Figure] = [few_shots.curves(shots, values, chance)]
        return replace(result, entries=paired, figures=figures)

    def _decide_few(
        self, features: Features, tags: np.ndarray, k: int, sample: int, machines: Machines
    ) -> np.ndarray:
        """Return the decision values of the validation images after k shots, [M,C]."""
        train, val = normalised(features.train), normalised(features.val)
        decided = []
        for number, tag in enumerate(tags.T):
            rows = few_shots.draw_few(tag, k, [sample, number])
            decided.append(machines.decide(train[rows], tag[rows] == 1, val, rows))
        return np.stack(decided, 1)


def _resampling(val: ImageSource, rule: Rule) -> float:
    """Return the time of the APs of all resamples for one row and candidate, s."""
    assert val.tags is not None
    scores = np.random.default_rng(0).random(val.tags.shape)
    compute = average_precisions(scores, val.tags, rule)
    start = time.perf_counter()
    resample(compute, len(val), groups=val.groups, draws=DRAWS // 50)
    return 50 * (time.perf_counter() - start)


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
                    "AP needs positives; add such images, choose another --split-seed if there is "
                    "no list of test images, or remove the class from the annotations"
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


def _finite(result: Result) -> list[Key]:
    """Return the scored rows and candidates in order; those with non-finite features are not."""
    return [
        (entry.row, entry.candidate)
        for entry in result.entries
        if entry.candidate != CHANCE and math.isfinite(entry.scores[MAP.name].value)
    ]


class Precisions(NamedTuple):
    """The AP of every class, [C], and its values on resampled images, [draws,C]."""

    values: np.ndarray
    draws: np.ndarray
    drawn: str
    """What was resampled; "" if there are too few images, and `draws` is empty."""

    @classmethod
    def of(cls, scores: np.ndarray, val: ImageSource, rule: Rule) -> "Precisions":
        """Rank the validation images by their scores, [N,C]."""
        assert val.tags is not None
        compute = average_precisions(scores, val.tags, rule)
        values = compute(None)
        found = resample(compute, len(val), groups=val.groups, draws=DRAWS)
        if found is None:
            return cls(values, np.empty((0, len(values))), "")
        return cls(values, *found)

    def some(self, number: int | None) -> "Precisions":
        """Return one class, or the mean over classes, as [1] and [draws,1]."""
        if number is not None:
            return self._replace(values=self.values[[number]], draws=self.draws[:, [number]])
        draws = mean_over_classes(self.draws)[:, None]
        return self._replace(values=self.values.mean(keepdims=True), draws=draws)


def _entries(
    entries: Sequence[Entry],
    scored: dict[Key, Precisions],
    subject: str | None,
    number: int | None,
) -> list[Entry]:
    """Return entries with the AP of class `number`, or the mean over classes.

    Intervals come from resampled images. The same draws give the paired differences of `subject`.
    """
    chosen = {key: precisions.some(number) for key, precisions in scored.items()}
    made = []
    for entry in entries:
        ours = chosen.get((entry.row, entry.candidate))
        if ours is None:
            made.append(entry)
            continue
        differences = {}
        if entry.candidate == subject:
            for (row, other), theirs in chosen.items():
                if other != subject and row in (entry.row, None):
                    found = percentiles(ours.draws - theirs.draws, f"{ours.drawn}, paired")
                    differences[other] = {} if found is None else {MAP.name: found}
        found = percentiles(ours.draws, ours.drawn)
        score = Score((float(ours.values[0]),), () if found is None else (found,))
        made.append(replace(entry, scores={MAP.name: score}, differences=differences))
    return made
