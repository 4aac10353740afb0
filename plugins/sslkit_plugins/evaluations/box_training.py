"""Trains and applies a detector. A killed training continues from its file."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from sslkit.draws import Draws
from sslkit.errors import DataError, SslkitError
from sslkit.evaluation import load_state, save_state
from sslkit.interfaces import Boxes, ImageSource
from sslkit_plugins.evaluations.box_precision import Detections
from sslkit_plugins.evaluations.detector import Detector

SAVE_SECONDS = 60.0
"""Least time between two saves of an unfinished training, s."""
MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4
"""Options of SGD in Detectron2. Norms have no weight decay."""
STATISTICS_BATCHES = 200
"""Largest number of batches for the statistics of trained batch norms (Detectron2's precise BN)."""

Read = Callable[[ImageSource, Iterable[int]], Iterator[Tensor]]
"""Source and rows → images, integer [C,H,W]."""


@dataclass(frozen=True)
class Schedule:
    """Number of steps, images per step and learning rates.

    The rate rises linearly from `lr`/1000 during `warm_up` steps, and is divided by 10 at each of
    `drops`.
    """

    steps: int
    batch_size: int
    lr: float
    warm_up: int
    drops: tuple[int, ...]

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        rising = min(1.0, step / self.warm_up) if self.warm_up else 1.0
        dropped = sum(step >= drop for drop in self.drops)
        return self.lr * (rising + (1 - rising) / 1000) * 0.1**dropped


def order(count: int, first: int, last: int, seed: int) -> Iterator[int]:
    """Yield the rows at places first … last−1 of an endless sequence of shuffled epochs."""
    shuffled, rows = -1, np.arange(0)
    for place in range(first, last):
        epoch, within = divmod(place, count)
        if epoch != shuffled:
            shuffled, rows = epoch, np.random.default_rng((seed, epoch)).permutation(count)
        yield int(rows[within])


class Training:
    """The training of a detector on a data set with boxes, difficult ones included.

    Everything random is a function of seed and step. `normalise` takes integer images [N,C,H,W] to
    the detector's input.
    """

    def __init__(
        self,
        detector: Detector,
        normalise: Callable[[Tensor], Tensor],
        schedule: Schedule,
        source: ImageSource,
        *,
        seed: int,
        device: torch.device,
    ) -> None:
        self.detector, self.normalise = detector.to(device), normalise
        self.schedule, self.source, self.seed, self.device = schedule, source, seed, device
        self.step = 0
        self.diverged = False
        """True after a loss that is not finite, which ends the training."""
        norms, others = _parameters(detector)
        groups: list[dict[str, Any]] = [{"params": norms, "weight_decay": 0.0}, {"params": others}]
        self.optimizer = torch.optim.SGD(
            groups, lr=schedule.lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
        )

    def run(self, read: Read, file: Path | None, advance: Callable[[int, int], None]) -> None:
        """Train to the end, from the state in `file` if there is one.

        Saves the state every SAVE_SECONDS and at the end. `advance` receives the newly completed
        and all steps.
        """
        steps, saved = self.schedule.steps, time.monotonic()
        if file is not None:
            self.load(file)
        advance(self.step, steps)
        start = self.step
        for images in self._batches(read, start, steps):
            if self.diverged:
                break
            self._train(images)
            advance(1, steps)
            if file is not None and time.monotonic() - saved >= SAVE_SECONDS:
                self.save(file)
                saved = time.monotonic()
        if file is not None and self.step > start:
            self.save(file)
        if not self.diverged:
            self._estimate_statistics(read)

    def detect(
        self, source: ImageSource, read: Read, advance: Callable[[int, int], None]
    ) -> list[Detections]:
        """Return the detections of every image of a source."""
        self.detector.eval()
        found = []
        for image in read(source, range(len(source))):
            with torch.no_grad():
                (given,) = self.detector([self._normalised(image)])
            values = [given[name].cpu().numpy() for name in ("boxes", "labels", "scores")]
            corners, labels, scores = values
            found.append(Detections(corners, labels - 1, scores))
            advance(1, len(source))
        return found

    def save(self, file: Path) -> None:
        """Write weights, momentum and step."""
        tensors = {f"model.{name}": value for name, value in self.detector.state_dict().items()}
        for name, value in self._momenta().items():
            tensors[f"momentum.{name}"] = value
        save_state(file, tensors, {"step": str(self.step), "diverged": str(self.diverged)})

    def load(self, file: Path) -> None:
        """Continue from a file that `save` wrote; does nothing without one."""
        found = load_state(file)
        if found is None:
            return
        tensors, notes = found
        names = self.detector.state_dict()
        self.detector.load_state_dict({name: tensors[f"model.{name}"] for name in names})
        for name, parameter in self.detector.named_parameters():
            momentum = tensors.get(f"momentum.{name}")
            if momentum is not None:
                self.optimizer.state[parameter]["momentum_buffer"] = momentum.to(self.device)
        self.step, self.diverged = int(notes["step"]), notes["diverged"] == "True"

    def _momenta(self) -> dict[str, Tensor]:
        """Return the momentum of each trained parameter."""
        state = self.optimizer.state
        found = {}
        for name, parameter in self.detector.named_parameters():
            momentum = state[parameter].get("momentum_buffer") if parameter in state else None
            if momentum is not None:
                found[name] = momentum
        return found

    def _batches(self, read: Read, first: int, last: int) -> Iterator[list[tuple[int, Tensor]]]:
        """Yield rows and images of the steps first … last−1."""
        size, count = self.schedule.batch_size, len(self.source)
        rows = list(order(count, first * size, last * size, self.seed))
        batch = []
        for row, image in zip(rows, read(self.source, rows), strict=True):
            batch.append((row, image))
            if len(batch) == size:
                yield batch
                batch = []

    def _train(self, batch: list[tuple[int, Tensor]]) -> None:
        """Take one step."""
        self.detector.train()
        losses = self._losses(batch, self.step)
        loss = torch.stack(list(losses.values())).sum()
        self.diverged = not math.isfinite(loss.item())
        if self.diverged:
            return
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.rate(self.step)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.step += 1

    def _losses(self, batch: list[tuple[int, Tensor]], step: int) -> dict[str, Tensor]:
        """Return the losses of a batch, half of it flipped; `step` is the key of the draws."""
        draws = Draws(self.seed, step)
        flips = draws.uniform(len(batch)) < 0.5
        torch.manual_seed(draws.seed)
        images, targets = [], []
        for (row, image), flip in zip(batch, flips.tolist(), strict=True):
            boxes = self._boxes(row, image)
            corners = torch.from_numpy(boxes.corners).float()
            if flip:
                image, corners = flipped(image, corners)
            images.append(self._normalised(image))
            labels = torch.from_numpy(boxes.labels) + 1  # 0 is the background
            targets.append({"boxes": corners.to(self.device), "labels": labels.to(self.device)})
        try:
            return self.detector(images, targets)
        except torch.OutOfMemoryError as error:
            raise SslkitError(
                f"{len(batch)} images do not fit into the memory of {self.device.type}; use a "
                "smaller --batch-size or --size"
            ) from error

    def _boxes(self, row: int, image: Tensor) -> Boxes:
        """Return the boxes of an image. Raises DataError if one ends outside."""
        assert self.source.boxes is not None
        boxes = self.source.boxes[row]
        height, width = image.shape[1:]
        right, bottom = boxes.corners[:, 2:].max(0, initial=0)
        if right > width or bottom > height:
            raise DataError(
                f"{self.source.names[row]} is {width}×{height} px, but a box of it ends at "
                f"{right:g}, {bottom:g}; correct the size in its annotation, or its boxes"
            )
        return boxes

    @torch.no_grad()
    def _estimate_statistics(self, read: Read) -> None:
        """Set the statistics of trained batch norms to the mean over batches after the training."""
        self.detector.train()
        norms = [one for one in self.detector.modules() if isinstance(one, _BatchNorm)]
        trained = [norm for norm in norms if norm.training]
        if not trained:
            return
        for norm in trained:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
        steps = self.schedule.steps
        last = steps + min(STATISTICS_BATCHES, steps)
        for step, batch in enumerate(self._batches(read, steps, last), steps):
            self._losses(batch, step)

    def _normalised(self, image: Tensor) -> Tensor:
        return self.normalise(image.unsqueeze(0).to(self.device))[0]


def flipped(image: Tensor, corners: Tensor) -> tuple[Tensor, Tensor]:
    """Mirror an image [C,H,W] and the corners [n,4] of its boxes."""
    width = image.shape[-1]
    left, top, right, bottom = corners.unbind(1)
    return image.flip(-1), torch.stack([width - right, top, width - left, bottom], 1)


def _parameters(detector: Detector) -> tuple[list[Tensor], list[Tensor]]:
    """Return the trained parameters of norms, and the others."""
    kinds = (_BatchNorm, torch.nn.GroupNorm, torch.nn.LayerNorm)
    norms: list[Tensor] = []
    others: list[Tensor] = []
    for module in detector.modules():
        own = [one for one in module.parameters(recurse=False) if one.requires_grad]
        (norms if isinstance(module, kinds) else others).extend(own)
    return norms, others
