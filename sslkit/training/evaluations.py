"""Evaluations while training: measures copies of the encoder, and adds the values to rows."""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from sslkit import distributed
from sslkit import recipe as recipes
from sslkit.errors import DataError, Fault, RecipeError, counted
from sslkit.evaluation import store
from sslkit.evaluation.candidates import Network
from sslkit.evaluation.data import Splits, class_names, open_splits
from sslkit.evaluation.labelled import open_labelled
from sslkit.evaluation.probe import ImageProbe
from sslkit.interfaces import Candidate
from sslkit.parts import DataFormat, make
from sslkit.recipe import Recipe
from sslkit.recipe.evaluations import Repeated, repeated
from sslkit.runs.metrics import UNTRAINED, Row
from sslkit.runs.run import Run

LAST = (None, "features")
"""Rows of a result that are not those of a layer."""


class Sharded(Network):
    """A network on several ranks: each embeds a part of every batch, and gets all features.

    All ranks call `embed` with the same images.
    """

    def embed(self, images: Tensor, *, layers: bool = False) -> dict[str, Tensor]:
        """integer [N,C,S,S] → features float32 [N,D] by layer, as `Network.embed`."""
        world = distributed.world()
        count = len(images)
        part = -(-count // world)
        # The last parts overlap, because collectives need parts of equal size.
        starts = [min(number * part, count - part) for number in range(world)]
        first = starts[distributed.rank()]
        found = {}
        for name, rows in super().embed(images[first : first + part], layers=layers).items():
            blocks = distributed.gather(rows).split(part)
            kept = [
                block[number * part - start :]
                for number, (block, start) in enumerate(zip(blocks, starts, strict=True))
            ]
            found[name] = torch.cat(kept)
        return found


@dataclass(frozen=True)
class Opened:
    """An evaluation of `train.evaluate` and its images."""

    repeated: Repeated
    splits: Splits
    epochs: int
    """Epochs of the training."""

    @property
    def line(self) -> str:
        """Describe how often the evaluation runs, and on which images."""
        repeat = self.repeated.repeat
        often = "epoch" if repeat.every_epochs == 1 else f"{repeat.every_epochs} epochs"
        images = self.splits.summary.removeprefix("data: ")
        return f"{self.repeated.choice.use} every {often} and at the end: {images}"

    @property
    def times(self) -> str:
        """Describe how often the evaluation runs in the full training."""
        count = math.ceil(self.epochs / self.repeated.repeat.every_epochs)
        return f"untrained and then {counted(count, 'time')}"


def opened(recipe: Recipe, data: DataFormat) -> Iterator[Opened]:
    """Open the images of each evaluation. Reads no image.

    Raises RecipeError if an evaluation cannot use its images or options.
    """
    for one in repeated(recipe.train):
        try:
            make(one.choice)
            splits = _splits(one, recipe)
            given = splits.train
            if (given.channels, given.bits) != (data.channels, data.bits):
                raise DataError(
                    f"{splits.where} has images of {given.channels} channels and {given.bits} "
                    f"bits, but the run trains on {data.channels} and {data.bits}"
                )
        except DataError as error:
            message = (
                f"{error}; while training, --set {one.key}.data=DIR names other images and --set "
                f"{one.key}.labels=FILE a file of labels"
            )
            raise RecipeError(Fault(one.key, message)) from error
        except RecipeError as error:
            raise RecipeError(*[_below(one.key, fault) for fault in error.faults]) from error
        yield Opened(one, splits, recipe.train.epochs)


def _below(key: str, fault: Fault) -> Fault:
    """Return a fault of an evaluation's option, such as --epochs, with its key in the recipe."""
    if fault.file is not None:
        return fault
    option = fault.key.removeprefix("--").replace("-", "_")
    return Fault(f"{key}.{option}", fault.message)


def _splits(one: Repeated, recipe: Recipe) -> Splits:
    """Open the splits of an evaluation's images."""
    data = recipe.data
    if one.repeat.data is not None:
        data = recipes.read_data(one.repeat.data, place=f"{one.key}.data")
    needs = one.choice.part.signature().attributes.get("needs", "labels")
    if one.repeat.labels is not None:
        return open_labelled(data, Path(one.repeat.labels), needs, None)
    return open_splits(data, needs, None)


class Evaluations:
    """The evaluations of a training run.

    Measures after an optimizer step and before its row and checkpoint are written, so a resumed
    run measures the same. Works on copies and restores torch's random state, so training does not
    change. All ranks measure together.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.opened = list(opened(run.recipe, run.data))
        self.probes = [self._probe(one.splits) for one in self.opened]
        self.untrained: dict[str, float] = {}
        """Values of the untrained encoder, for the first row."""

    def _probe(self, splits: Splits) -> ImageProbe:
        run = self.run
        return ImageProbe(
            splits.train,
            splits.val,
            class_names(splits.train),
            [],
            run.transform.size,
            run.device,
            workers=run.loader.workers,
            skippable=False,
        )

    def begin(self) -> None:
        """Measure the untrained encoder before the first step, with fitted batch norms."""
        if self.run.step == 0:
            for number in range(len(self.opened)):
                found = self._measure(number, trained=False)
                self.untrained |= {f"{name}{UNTRAINED}": value for name, value in found.items()}

    def due(self) -> bool:
        """Tell whether an evaluation follows the completed step."""
        return bool(self._due())

    def _due(self) -> list[int]:
        step, per_epoch = self.run.step, self.run.loader.steps_per_epoch
        if step == self.run.steps:
            return list(range(len(self.opened)))
        found = []
        for number, one in enumerate(self.opened):
            if step % (one.repeated.repeat.every_epochs * per_epoch) == 0:
                found.append(number)
        return found

    def add(self, rows: list[Row]) -> None:
        """Measure what is due, and add the values to the rows of the completed steps."""
        if not rows:
            return
        rows[0].metrics.update(self.untrained)
        self.untrained = {}
        if rows[-1].step == self.run.step:  # It differs if the last step was skipped.
            for number in self._due():
                rows[-1].metrics.update(self._measure(number, trained=True))

    def _measure(self, number: int, *, trained: bool) -> dict[str, float]:
        """Return the finite metrics of the encoder by name, such as "knn top-1"."""
        one, run = self.opened[number].repeated, self.run
        generators = [torch.cuda.current_device()] if run.device.type == "cuda" else []
        with torch.random.fork_rng(generators):
            candidate = self._candidate(trained=trained)
            probe = replace(self.probes[number], candidates=[candidate])
            try:
                probe.fit_statistics()
                result = store.measure(one.choice, probe)
            except DataError as error:
                raise DataError(f"{one.key}: {error}") from error
        found = {}
        for entry in result.entries:
            if entry.candidate != candidate.name:
                continue
            layer = "" if entry.row in LAST else f"{entry.row} "
            for name, score in entry.scores.items():
                if math.isfinite(score.value):
                    found[f"{one.choice.use} {layer}{name}"] = score.value
        return found

    def _candidate(self, *, trained: bool) -> Candidate:
        """Return a copy of the exported encoder; all ranks get that of rank 0."""
        run = self.run
        encoder = copy.deepcopy(run.method.exported)
        distributed.broadcast([*encoder.parameters(), *encoder.buffers()])
        kind = Network if distributed.world() == 1 else Sharded
        return kind(
            "trained",
            encoder,
            run.transform.plain,
            size=run.transform.size,
            device=run.device,
            fits=not trained,
        )
