"""Object detection by fine-tuning Faster R-CNN."""

import dataclasses
import functools
import importlib.util
import math
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import nn

from sslkit.draws import Draws
from sslkit.errors import Fault, RecipeError, SslkitError, counted
from sslkit.evaluation import bootstrap, combine
from sslkit.interfaces import (
    Candidate,
    Curves,
    Encoder,
    Entry,
    Estimate,
    Evaluation,
    Figure,
    Interval,
    Metric,
    Outcome,
    Probe,
    Result,
    Score,
    Work,
)
from sslkit_plugins.evaluations import box_cost, step_cost
from sslkit_plugins.evaluations.box_cost import BoxCost
from sslkit_plugins.evaluations.box_precision import (
    CHOSEN,
    LEVELS,
    Detections,
    Ranking,
    coco_precision,
    mean_curve,
    precision,
    rank,
)
from sslkit_plugins.evaluations.box_training import Schedule, Training
from sslkit_plugins.evaluations.detector import Detector, Neck, Scale, build
from sslkit_plugins.evaluations.random_state import seeded

METRICS = [Metric(name, "%", low=0, high=1) for name in CHOSEN]
Rankings = Sequence[list[Ranking]]
"""For each seed, the ranked detections of each class."""
IMAGES = 16
"""Images per step in the presets."""
EXAMPLE = 224
"""Side of the image that shows the channels of each stage, px."""
RULES = {
    "voc07": "VOC 2007: 11 levels of recall, overlap > threshold, difficult objects ignored",
    "coco": "COCO: 101 levels of recall, overlap ≥ threshold, difficult objects as crowds",
}
"""Description of each rule in a protocol."""


class Preset(NamedTuple):
    """A published schedule for 16 images per step, and the treatment of batch norms."""

    steps: int
    drops: tuple[int, ...]
    lr: float
    warm_up: int
    frozen_stages: int
    trains_norms: bool
    extra_norm: bool
    source: str


PRESETS = {
    "pirl": Preset(
        25000, (17000,), 0.002, 1000, 2, False, False,
        "VISSL, detectron2 voc0712 pirl_npid; the paper (arXiv:1912.01991) has lr 0.003",
    ),
    "moco": Preset(
        24000, (18000, 22000), 0.02, 100, 0, True, True,
        "MoCo, detection/configs/pascal_voc_R_50_C4_24k_moco.yaml",
    ),
    "detectron2": Preset(
        18000, (12000, 16000), 0.02, 100, 2, False, False,
        "Detectron2, configs/PascalVOC-Detection/faster_rcnn_R_50_C4.yaml",
    ),
}  # fmt: skip


class Detect(Evaluation):
    """Average precision of Faster R-CNN that is trained from the encoder (PIRL, table 1).

    A detector is built from the stages of every encoder and trained on the boxes of the training
    split: C4 or a feature pyramid, short side 480 to 800 px, or `--size`. It is tested on the
    validation split. The headline is AP50 by the 11-point rule of VOC 2007, which the tables of
    PIRL and MoCo use. A killed evaluation goes on when the same command runs again.
    """

    needs: ClassVar = "boxes"

    def __init__(
        self,
        *,
        preset: Annotated[
            Literal["pirl", "moco", "detectron2"],
            Field(
                description="Schedule and batch norms. pirl: frozen batch norms, small learning "
                "rate. moco: trained batch norms. detectron2: its own schedule for VOC."
            ),
        ] = "pirl",
        neck: Annotated[
            Neck,
            Field(
                description="Detector. c4: the last stage is the box head, as in the tables. fpn: "
                "a feature pyramid on the last four stages."
            ),
        ] = "c4",
        steps: Annotated[
            PositiveInt | None,
            Field(
                description="Training steps, by default the preset's. Warm-up and drops of the "
                "learning rate move in proportion."
            ),
        ] = None,
        batch_size: Annotated[
            PositiveInt, Field(description="Images per step. The presets are for 16.")
        ] = IMAGES,
        lr: Annotated[
            PositiveFloat | None,
            Field(
                description="Learning rate for 16 images per step, scaled in proportion to "
                "--batch-size. By default the preset's: 0.002 for pirl, 0.02 for the others."
            ),
        ] = None,
        rule: Annotated[
            Literal["voc07", "coco"],
            Field(
                description="Rule of average precision. voc07: 11 levels of recall. coco: 101 "
                "levels, with the package faster-coco-eval (sslkit[coco])."
            ),
        ] = "voc07",
        seeds: Annotated[
            PositiveInt,
            Field(description="Independent trainings of each encoder. MoCo: 5."),
        ] = 1,
    ) -> None:
        if rule == "coco" and importlib.util.find_spec("faster_coco_eval") is None:
            message = "'coco' needs faster-coco-eval, which is not installed: pip install "
            raise RecipeError(Fault("--rule", f"{message}'sslkit[coco]'; or use voc07"))
        self.preset, self.neck, self.rule, self.seeds = PRESETS[preset], neck, rule, seeds
        self.name = preset
        self.schedule = scaled(self.preset, steps, batch_size, lr)
        given = {
            "batch_size": batch_size != IMAGES,
            "lr": lr is not None,
            "steps": steps is not None,
        }
        self.replaced = [name for name, is_given in given.items() if is_given]

    def measure(self, probe: Probe) -> Result:
        """Train and test a detector of every candidate but raw pixels."""
        scale = Scale.of(probe.chosen_size)
        candidates = _networks(probe)
        for candidate in candidates:  # refuses before anything is trained
            self.detector(candidate, probe, scale)
        protocol = self.protocol(probe, scale)
        folder = probe.unfinished("detect", protocol)
        found: dict[str, list[list[Detections] | None]] = {}
        for number, candidate in enumerate(candidates):
            found[candidate.name] = []
            for seed in range(self.seeds):
                file = None if folder is None else folder / f"{number}-{seed}.safetensors"
                detections = self.detect(candidate, probe, scale, seed, file)
                found[candidate.name].append(detections)
        return self.result(probe, found, protocol)

    def detector(self, candidate: Candidate, probe: Probe, scale: Scale) -> tuple[Detector, Any]:
        """Return a new detector of a candidate, and the normalisation of its images.

        Raises SslkitError if the encoder is not a sequence of stages.
        """
        network = candidate.network()
        assert network is not None
        encoder, normalise = network
        stages = stages_of(encoder, candidate.name)
        kind = torch.uint8 if probe.train.bits == 8 else torch.uint16
        blank = torch.zeros(1, probe.train.channels, EXAMPLE, EXAMPLE, dtype=kind)
        detector = build(
            stages,
            normalise(blank.to(probe.device)),
            len(probe.classes),
            scale,
            neck=self.neck,
            frozen_stages=self.preset.frozen_stages,
            trains_norms=self.preset.trains_norms,
            extra_norm=self.preset.extra_norm,
        )
        return detector, normalise

    def detect(
        self, candidate: Candidate, probe: Probe, scale: Scale, seed: int, file: Path | None
    ) -> list[Detections] | None:
        """Return the detections of the validation images; None if the training diverged.

        The training continues from `file`, if it exists.
        """
        with seeded(probe.device, Draws(seed).seed):
            training = self.training(candidate, probe, scale, seed)
            with probe.progress(f"training, {candidate.name}") as advance:
                training.run(probe.pictures, file, advance)
            if training.diverged:
                return None
            with probe.progress(f"detecting, {candidate.name}") as advance:
                return training.detect(probe.val, probe.pictures, advance)

    def training(self, candidate: Candidate, probe: Probe, scale: Scale, seed: int) -> Training:
        """Return the training of a new detector. Raises SslkitError as `detector`."""
        detector, normalise = self.detector(candidate, probe, scale)
        return Training(
            detector, normalise, self.schedule, probe.train, seed=seed, device=probe.device
        )

    def estimate(self, work: Work) -> Estimate:
        """Estimate trainings and tests from a few of their steps for each candidate."""
        probe, scale = work.probe, Scale.of(work.probe.chosen_size)
        schedule, candidates = self.schedule, _networks(work.probe)
        seconds, memory, reads = 0.0, 0, 0
        costs: dict[Hashable, BoxCost] = {}
        for candidate in candidates:
            kind = step_cost.architecture(candidate)
            with seeded(probe.device, 0):
                training = self.training(candidate, probe, scale, 0)
                cost = costs.get(kind) or box_cost.measure(training, probe)
            costs[kind] = cost
            seconds += self.seeds * cost.seconds(training, work.val)
            memory = max(memory, cost.step.bytes(schedule.batch_size))
            batches = schedule.steps + training.statistics_batches
            reads += self.seeds * (batches * schedule.batch_size + work.val)
        trainings = f"{counted(self.seeds, 'seed')} of {counted(schedule.steps, 'step')}"
        return Estimate(
            features=False,
            reads=reads,
            seconds=seconds,
            bytes=memory,
            how=f"{trainings} of {counted(schedule.batch_size, 'image')} for each encoder, without "
            "the resampling of the scores",
        )

    def protocol(self, probe: Probe, scale: Scale) -> dict[str, Any]:
        """Return the conditions of the training and of the test."""
        found = {
            "view": "the full image; in training, half of them flipped",
            "preset": self.name,
            "replaced": self.replaced,
            "source": self.preset.source,
            "detector": f"Faster R-CNN of torchvision, {self.neck.upper()}",
            **dataclasses.asdict(self.schedule),
            "optimizer": "SGD, momentum 0.9, weight decay 1e-4 except on norms",
            "batch_norms": "trained" if self.preset.trains_norms else "frozen",
            "frozen_stages": self.preset.frozen_stages,
            "extra_norm": self.preset.extra_norm and self.neck == "c4",
            **scale._asdict(),
            "rule": RULES[self.rule],
            "seeds": self.seeds,
        }
        left_out = [one.name for one in probe.candidates if one.network() is None]
        if left_out:
            found["notes"] = [f"{', '.join(left_out)}: left out, no network to train"]
        return found

    def result(
        self,
        probe: Probe,
        found: dict[str, list[list[Detections] | None]],
        protocol: dict[str, Any],
    ) -> Result:
        """Score the detections of each candidate, one list per seed."""
        truth, classes = probe.val.boxes, len(probe.classes)
        assert truth is not None
        outcomes: dict[tuple[str | None, str], list[dict[str, Outcome]]] = {}
        rankings: dict[str, Rankings] = {}
        notes = protocol.pop("notes", [])
        for name, seeds in found.items():
            done = [detections for detections in seeds if detections is not None]
            if len(done) < len(seeds):
                notes.append(f"{name}: the loss was not finite; use a smaller --lr")
                done = []
            rankings[name] = [rank(detections, truth, classes) for detections in done]
            if not done:
                scores: list[dict[str, Outcome]] = [dict.fromkeys(CHOSEN, math.nan)] * len(seeds)
            elif self.rule == "coco":
                scores = [dict(coco_precision(one, truth, classes)) for one in done]
            else:
                scores = voc_scores(rankings[name], probe)
            outcomes[self.neck.upper(), name] = scores
        chance = dict.fromkeys(CHOSEN, 0.0)
        protocol = {**protocol, "notes": notes} if notes else protocol
        result = combine(probe, outcomes, METRICS, chance=chance, protocol=protocol)
        if self.rule == "coco":
            return result
        entries = [with_differences(entry, rankings, probe) for entry in result.entries]
        lines = {name: lines_of(seeds) for name, seeds in rankings.items() if seeds}
        figures: list[Figure] = []
        if lines:
            figures.append(Curves("Overlap 0.5", "recall", "highest precision", lines))
        return dataclasses.replace(result, entries=entries, figures=figures)


def scaled(preset: Preset, steps: int | None, batch_size: int, lr: float | None) -> Schedule:
    """Return a preset's schedule for another number of steps, batch size and learning rate."""
    total = preset.steps if steps is None else steps
    share = total / preset.steps
    return Schedule(
        total,
        batch_size,
        (preset.lr if lr is None else lr) * batch_size / IMAGES,
        round(preset.warm_up * share),
        tuple(round(drop * share) for drop in preset.drops),
    )


def _networks(probe: Probe) -> list[Candidate]:
    """Return the candidates with a network to train."""
    return [one for one in probe.candidates if one.network() is not None]


def stages_of(encoder: Encoder, name: str) -> list[nn.Module]:
    """Return the stages of an encoder. Raises SslkitError if it has none."""
    try:
        stages = list(encoder.sequence().values())
    except SslkitError as error:
        raise SslkitError(f"{name} cannot become a detector: {error}") from error
    if len(stages) < 2:
        raise SslkitError(f"{name} cannot become a detector: it has one stage; use a ResNet")
    return stages


def voc_scores(rankings: Rankings, probe: Probe) -> list[dict[str, Outcome]]:
    """Return the scores of each seed, with a bootstrap interval over images."""
    scores: list[dict[str, Outcome]] = [{} for _ in rankings]
    for metric in CHOSEN:
        statistic = functools.partial(_mean, rankings, metric)
        interval = _bootstrap(statistic, probe)
        intervals = () if interval is None else (interval,)
        for one, found in zip(rankings, scores, strict=True):
            found[metric] = Score((precision(one, metric),), intervals)
    return scores


def with_differences(entry: Entry, rankings: dict[str, Rankings], probe: Probe) -> Entry:
    """Add the paired differences of the compared candidate: both see the same resampled images."""
    ours = rankings.get(entry.candidate)
    differences = {}
    for other in entry.differences:
        theirs = rankings.get(other)
        if ours and theirs:
            differences[other] = _changes(ours, theirs, probe)
    return dataclasses.replace(entry, differences=differences)


def _changes(ours: Rankings, theirs: Rankings, probe: Probe) -> dict[str, Interval]:
    """Return the intervals of ours − theirs by metric."""
    found = {}
    for metric in CHOSEN:

        def change(weights: np.ndarray, metric: str = metric) -> float:
            return _mean(ours, metric, weights) - _mean(theirs, metric, weights)

        interval = _bootstrap(change, probe)
        if interval is not None:
            found[metric] = dataclasses.replace(interval, of=f"{interval.of}, paired")
    return found


def _mean(rankings: Rankings, metric: str, weights: np.ndarray) -> float:
    """Return a metric, averaged over seeds, with the images weighted."""
    return float(np.mean([precision(one, metric, weights) for one in rankings]))


def _bootstrap(statistic: Callable[[np.ndarray], float], probe: Probe) -> Interval | None:
    """Return the interval of a statistic of the weights [images] over resampled images."""
    count = len(probe.val)

    def of_rows(rows: np.ndarray) -> float:
        return statistic(np.bincount(rows, minlength=count))

    return bootstrap(of_rows, count, groups=probe.val.groups)


def lines_of(rankings: Rankings) -> tuple[list[float], list[float]]:
    """Return the eleven points whose mean is AP50, averaged over seeds."""
    points = np.mean([mean_curve(one, CHOSEN["AP50"]) for one in rankings], 0)
    return LEVELS.tolist(), points.tolist()
