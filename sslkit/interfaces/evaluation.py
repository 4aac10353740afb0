"""Evaluations, their inputs and their results."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sslkit.interfaces.images import Batch, ImageSource
from sslkit.interfaces.method import Method
from sslkit.interfaces.networks import Encoder
from sslkit.interfaces.views import PretextTransform


@dataclass(frozen=True)
class Metric:
    """A number that an evaluation reports.

    `better` is its direction; `low` and `high` are the ends of its axis. Values with the unit "%"
    are fractions, which tables and figures show times 100.
    """

    name: str
    unit: str = ""
    better: Literal["higher", "lower", "neither"] = "higher"
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Interval:
    """A 95 % interval; `of` names what varies, such as "3 probe seeds" or "200 images"."""

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
    """The scores of one candidate in one row, such as a layer or a number of shots.

    `row` None applies to all rows, as for chance. `differences` are the paired differences to other
    candidates of the same row, by candidate and metric.
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
    """All scores of an evaluation; the first metric is the headline."""

    metrics: tuple[Metric, ...]
    entries: list[Entry]
    protocol: dict[str, Any]
    figures: list[Figure] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    """Text files to write beside the result, name → content."""


Outcome = float | np.ndarray | Tensor | Score
"""Return value of a scoring function for one metric.

A bool array [n] has one hit per validation image; a float array [n] has values whose mean is the
metric. The dtype decides, never the values. Both yield intervals and paired differences. A float or
a tensor without dimensions yields none; a Score has its own.
"""


class Features(NamedTuple):
    """Features float32 [N,D] of both splits, with labels int64 [N] or tags int8 [N,classes].

    With `compare(chunked=True)`, features that exceed the memory are float16 or not on the device.
    """

    train: Tensor
    train_labels: Tensor
    val: Tensor
    val_labels: Tensor
    val_groups: Tensor | None = None


class Candidate(ABC):
    """A source of features: a trained encoder, an untrained encoder, or raw pixels."""

    name: str
    baseline: bool
    """True for baselines, such as the untrained encoder and raw pixels."""
    size: int
    """Side of the input images, px."""
    has_layers: ClassVar[bool] = True
    """False for raw pixels, whose single score applies to every layer."""

    @abstractmethod
    def embed(self, images: Tensor, *, layers: bool = False) -> dict[str, Tensor]:
        """integer [N,C,S,S] → {"features": float32 [N,D]}; `layers` adds each pooled layer.

        Runs in evaluation mode and does not change the network.
        """

    def network(self) -> tuple[Encoder, Callable[[Tensor], Tensor]] | None:
        """Return a copy of the encoder to train, and its normalisation; None for pixels."""
        return None

    def pretext(self) -> tuple[Method, PretextTransform] | None:
        """Return the method of a run in evaluation mode, and its transform; None without a run.

        The method has a copy of this encoder, and heads with weights of the same time.
        """
        return None


class Probe(ABC):
    """The images of an evaluation and its candidates."""

    train: ImageSource
    val: ImageSource
    classes: Sequence[str]
    candidates: Sequence[Candidate]
    size: int
    """Default side of the images of `images`, `augmented` and `views`, px."""
    chosen_size: int | None = None
    """The user's `--size`, px; None without it. For evaluations that read entire images."""
    device: torch.device
    progress: Callable[[str], AbstractContextManager[Callable[[int, int], None]]]
    """title → context manager of a function of the newly completed number and the total."""

    @abstractmethod
    def images(
        self,
        source: ImageSource,
        *,
        view: Literal["crop", "squash", "square"] = "crop",
        size: int | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every image once, in order: integer [N,C,S,S] on the device, index [N].

        crop: the usual central crop. square: the central square. squash: the full image.
        """

    @abstractmethod
    def augmented(
        self,
        source: ImageSource,
        *,
        batch_size: int,
        steps: int,
        seed: int,
        size: int | None = None,
        first: int = 0,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield shuffled batches of random crops and flips: integer [B,C,S,S], index [B].

        They are those of the steps first … steps−1, functions of `seed` and the step.
        """

    @abstractmethod
    def views(
        self, source: ImageSource, *, count: int, seed: int = 0, size: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield `count` random crops of every image once, in order: [N,count,C,S,S], index [N]."""

    @abstractmethod
    def pictures(self, source: ImageSource, rows: Iterable[int]) -> Iterator[Tensor]:
        """Yield entire decoded images in the order of `rows`: integer [C,h,w] in CPU memory."""

    @abstractmethod
    def unfinished(self, name: str, conditions: Mapping[str, Any]) -> Path | None:
        """Return a folder for the state of evaluation `name` until its result is written.

        Equal conditions, `protocol`, images, weights and versions give the same folder, so the same
        command continues after a kill. The evaluation creates the folder; sslkit removes it.
        Returns None if nothing may be written.
        """

    @abstractmethod
    def pretext(
        self, source: ImageSource, transform: PretextTransform, *, seed: int = 0
    ) -> Iterator[Batch]:
        """Yield the augmented views of `transform` for every image once, in order, on the device.

        The last batch is padded with the first images.
        """

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
        chunked: bool = False,
    ) -> Result:
        """Score every candidate with `score(features, seed)` and return the result.

        `layers` scores every layer against the same layer of the baselines. `chance` has the
        metrics at chance level. `chunked`: `score` reads features in chunks of rows, so they need
        not fit into memory.
        """

    @abstractmethod
    def protocol(self) -> dict[str, Any]:
        """Return data, fingerprint, splits, classes, counts, size, view, checkpoint and step."""


class Work(NamedTuple):
    """Size of an evaluation, for `Evaluation.estimate`."""

    train: int
    """Number of training images."""
    val: int
    classes: int
    dims: Mapping[tuple[str | None, str], int]
    """Length of the features by row and candidate; includes every layer."""
    device: torch.device
    probe: Probe
    """Images and candidates, to time a few real steps."""

    def widths(self, layers: bool) -> dict[tuple[str | None, str], int]:
        """Return the lengths that are scored: of all layers, or of the last one."""
        return {key: dim for key, dim in self.dims.items() if layers or key[0] in (None, LAST)}


LAST = "features"
"""Row of the features, beside those of layers."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What an evaluation needs, for `--plan`.

    `features`: it keeps the features of all images, of all layers with `layers`. `passes` and
    `val_passes` are further passes of every candidate over the training and validation images.
    `reads` is the number of images that are decoded again besides. `seconds` and `bytes` are the
    time without decoding and the memory of what the evaluation fits or trains; None if unknown.
    `how` tells what was assumed.
    """

    features: bool = True
    layers: bool = False
    passes: float = 0.0
    val_passes: float = 0.0
    reads: int = 0
    seconds: float | None = None
    bytes: int = 0
    how: str = ""
    notes: tuple[str, ...] = ()
    """Sentences for the user, such as a faster alternative."""


class Evaluation(ABC):
    """Measures candidates on a data set; the constructor takes its options."""

    needs: ClassVar[Literal["labels", "tags", "boxes", ""]] = "labels"
    """Required annotation of the data set, checked before weights are loaded."""

    @abstractmethod
    def measure(self, probe: Probe) -> Result:
        """Return the scores of every candidate of `probe`."""

    def estimate(self, work: Work) -> Estimate:
        """Return what `measure` needs; may time a small sample, and writes nothing."""
        return Estimate(layers=getattr(self, "layers", "last") == "all")
