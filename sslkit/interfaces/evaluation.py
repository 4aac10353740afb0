"""Evaluations: what they measure, and what they return."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sslkit.interfaces.images import ImageSource
from sslkit.interfaces.networks import Encoder


@dataclass(frozen=True)
class Metric:
    """A number that an evaluation reports.

    `better` is its direction; `low` and `high` are the ends of its axis. Values with the unit "%"
    are given as fractions and shown times 100.
    """

    name: str
    unit: str = ""
    better: Literal["higher", "lower", "neither"] = "higher"
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Interval:
    """A 95 % interval. `of` names what varies: "3 probe seeds", "200 images"."""

    low: float
    high: float
    of: str


@dataclass(frozen=True)
class Score:
    """The values of one metric, one per probe seed, and their intervals."""

    values: tuple[float, ...]
    intervals: tuple[Interval, ...] = ()

    @property
    def value(self) -> float:
        """The mean over seeds."""
        return fmean(self.values)


@dataclass(frozen=True)
class Entry:
    """The scores of one candidate in one row: a layer, a transform, a number of shots.

    `row` None holds for all rows, as chance does. `differences` are the paired differences to
    another candidate of the same row, by that candidate's name and the metric's.
    """

    row: str | None
    candidate: str
    scores: dict[str, Score]
    differences: dict[str, dict[str, Interval]] = field(default_factory=dict)


@dataclass(frozen=True)
class Histogram:
    """Counts [bins] of each candidate between `edges` [bins+1]."""

    title: str
    x: str
    edges: list[float]
    counts: dict[str, list[int]]


@dataclass(frozen=True)
class Curves:
    """Lines (x, y) by name; `log` scales the x axis logarithmically."""

    title: str
    x: str
    y: str
    lines: dict[str, tuple[list[float], list[float]]]
    log: bool = False


Figure = Histogram | Curves


@dataclass(frozen=True)
class Result:
    """A tidy list of scores. The first metric is the headline."""

    metrics: tuple[Metric, ...]
    entries: list[Entry]
    protocol: dict[str, Any]
    figures: list[Figure] = field(default_factory=list)


Outcome = float | np.ndarray | Tensor | Score
"""What a scoring function returns for one metric.

A bool array [n] holds hits, one per validation image; a float array [n] holds values whose mean is
the metric. The type decides, never the values. Both give intervals and paired differences. A float
gives none; a Score has its own.
"""


class Features(NamedTuple):
    """Features float32 [N,D] of both splits, with labels int64 [N] or tags int8 [N,classes]."""

    train: Tensor
    train_labels: Tensor
    val: Tensor
    val_labels: Tensor
    val_groups: Tensor | None = None


class Candidate(ABC):
    """Something that turns images into features: an encoder, its untrained twin, raw pixels."""

    name: str
    baseline: bool
    """True for what a candidate is compared with: untrained, pixels."""
    size: int
    """Side of the images that it takes, px."""
    has_layers: ClassVar[bool] = True
    """False for pixels: their one score stands beside every layer."""

    @abstractmethod
    def embed(self, images: Tensor, *, layers: bool = False) -> dict[str, Tensor]:
        """integer [N,C,S,S] → {"features": float32 [N,D]}, and each layer pooled if `layers`.

        Runs in evaluation mode and changes nothing.
        """

    def network(self) -> tuple[Encoder, Callable[[Tensor], Tensor]] | None:
        """Return a copy of the encoder to train, and its normalisation; None for pixels."""
        return None


class Probe(ABC):
    """The images of an evaluation, and the candidates to measure on them."""

    train: ImageSource
    val: ImageSource
    classes: Sequence[str]
    candidates: Sequence[Candidate]
    size: int
    """Side of the images of `images`, `augmented` and `views` unless they are given another, px."""
    device: torch.device

    @abstractmethod
    def images(
        self,
        source: ImageSource,
        *,
        view: Literal["crop", "squash"] = "crop",
        size: int | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every image once, in order: integer [N,C,S,S] on the device, index [N]."""

    @abstractmethod
    def augmented(
        self,
        source: ImageSource,
        *,
        batch_size: int,
        steps: int,
        seed: int,
        size: int | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield `steps` shuffled batches of random crops and flips: integer [B,C,S,S], index
        [B].
        """

    @abstractmethod
    def views(
        self, source: ImageSource, *, count: int, seed: int = 0, size: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield `count` random crops of every image once, in order: [N,count,C,S,S], index [N]."""

    @abstractmethod
    def compare(
        self,
        score: "Callable[[Features, int], dict[str, Outcome]]",
        metrics: Sequence[Metric],
        *,
        seeds: int = 1,
        layers: bool = False,
        view: Literal["crop", "squash"] = "crop",
        chance: dict[str, float] | None = None,
        protocol: dict[str, Any] | None = None,
    ) -> Result:
        """Score every candidate with `score(features, seed)` and return the result.

        `layers` scores every layer beside the same layer of the baselines. `chance` are the
        metrics of a guess.
        """

    @abstractmethod
    def protocol(self) -> dict[str, Any]:
        """Return data and fingerprint, splits, classes and counts, size, view, checkpoint, step."""


class Evaluation(ABC):
    """Measures candidates on a data set. Options come from the constructor."""

    needs: ClassVar[Literal["labels", "tags", "boxes", ""]] = "labels"
    """What the data set must have, checked before weights are loaded."""

    @abstractmethod
    def measure(self, probe: Probe) -> Result:
        """Return the scores of every candidate of `probe`."""
