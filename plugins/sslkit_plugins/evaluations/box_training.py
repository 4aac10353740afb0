"""Trains and applies a detector."""

import math
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
from sslkit.evaluation import ResumableTraining
from sslkit.interfaces import Boxes, ImageSource
from sslkit_plugins.evaluations.box_precision import Detections
from sslkit_plugins.evaluations.detector import Detector

MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4
"""Options of SGD in Detectron2. Norms have no weight decay."""
STATISTICS_BATCHES = 200
"""Largest number of batches for the statistics of trained batch norms (Detectron2's precise BN)."""

Read = Callable[[ImageSource, Iterable[int]], Iterator[Tensor]]
"""Source and rows → images, integer [C,H,W]."""
Images = list[tuple[int, Tensor]]
"""Rows and images, integer [C,H,W]."""


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
        self.diverged = False
        """True after a loss that is not finite, which ends the training."""
        norms, others = _parameters(detector)
        groups: list[dict[str, Any]] = [{"params": norms, "weight_decay": 0.0}, {"params": others}]
        self.optimizer = torch.optim.SGD(
            groups, lr=schedule.lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
        )

    def run(self, read: Read, file: Path | None, advance: Callable[[int, int], None]) -> None:
        """Train to the end, from the state in `file` if there is one."""
        steps = self.schedule.steps
        training = ResumableTraining(self.detector, self.optimizer, file)

        def batches(first: int) -> Iterator[Images]:
            return self.batches(read, first, steps)

        for step, batch in training.steps(steps, batches, advance):
            self.take(batch, step)
            if self.diverged:
                return
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

    def batches(self, read: Read, first: int, last: int) -> Iterator[Images]:
        """Yield rows and images of the steps first … last−1."""
        size, count = self.schedule.batch_size, len(self.source)
        rows = list(order(count, first * size, last * size, self.seed))
        batch = []
        for row, image in zip(rows, read(self.source, rows), strict=True):
            batch.append((row, image))
            if len(batch) == size:
                yield batch
                batch = []

    def take(self, batch: Images, step: int) -> None:
        """Take a step; sets `diverged` instead if the loss is not finite."""
        self.detector.train()
        loss = torch.stack(list(self.losses(batch, step).values())).sum()
        self.diverged = not math.isfinite(loss.item())
        if self.diverged:
            return
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.rate(step)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def losses(self, batch: Images, step: int) -> dict[str, Tensor]:
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

    @property
    def statistics_batches(self) -> int:
        """Number of batches for the statistics of batch norms; 0 if none is trained."""
        self.detector.train()
        norms = [one for one in self.detector.modules() if isinstance(one, _BatchNorm)]
        trained = any(norm.training for norm in norms)
        return min(STATISTICS_BATCHES, self.schedule.steps) if trained else 0

    @torch.no_grad()
    def _estimate_statistics(self, read: Read) -> None:
        """Set the statistics of trained batch norms to the mean over batches after the training."""
        self.detector.train()
        norms = [one for one in self.detector.modules() if isinstance(one, _BatchNorm)]
        trained = [norm for norm in norms if norm.training]
        for norm in trained:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
        steps = self.schedule.steps
        last = steps + self.statistics_batches
        for step, batch in enumerate(self.batches(read, steps, last), steps):
            self.losses(batch, step)

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
