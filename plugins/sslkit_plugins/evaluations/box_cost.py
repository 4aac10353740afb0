"""Measures training and testing of a detector on a few images."""

import dataclasses
from collections.abc import Iterable, Iterator
from itertools import count, cycle
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sslkit.evaluation import Rows
from sslkit.interfaces import ImageSource, Probe
from sslkit_plugins.evaluations import effort, step_cost
from sslkit_plugins.evaluations.box_training import Images, Training
from sslkit_plugins.evaluations.step_cost import StepCost

SAMPLE, SAMPLE_CPU = 8, 2
"""Largest number of images of a measured step, and on a CPU."""
BATCHES = 3
"""Number of measured batches, whose images have other sizes."""


class BoxCost(NamedTuple):
    """Time and memory of a detector."""

    step: StepCost
    forward: float
    """Time of the losses without gradient, s per image."""
    test: float
    """Time of a detection, s per image."""

    def seconds(self, training: Training, tested: int) -> float:
        """Return the time of a training and of the detection in `tested` images, s."""
        schedule = training.schedule
        passed = training.statistics_batches * schedule.batch_size
        trained = self.step.seconds(schedule.steps, schedule.batch_size)
        return trained + passed * self.forward + tested * self.test


def measure(training: Training, probe: Probe) -> BoxCost:
    """Measure steps, losses and detections of `training`, whose detector is changed."""
    largest = SAMPLE_CPU if probe.device.type == "cpu" else SAMPLE
    images = min(largest, training.schedule.batch_size)
    small = dataclasses.replace(training.schedule, batch_size=images)
    sampled = Training(
        training.detector, training.normalise, small, probe.train, seed=0, device=probe.device
    )
    batches = cycle(list(sampled.batches(probe.pictures, 0, BATCHES)))
    steps = count()

    def step() -> None:
        sampled.take(next(batches), next(steps))

    cost = step_cost.measure(sampled.detector, sampled.optimizer, step, images, probe.device)
    forward = 0.0
    if training.statistics_batches:
        forward = effort.seconds(lambda: _losses(sampled, next(batches)), probe.device, warm=True)
        forward /= images
    some = Rows(probe.val, np.arange(min(largest, len(probe.val))))
    shown = list(probe.pictures(some, range(len(some))))

    def read(source: ImageSource, rows: Iterable[int]) -> Iterator[Tensor]:
        return iter(shown)

    def test() -> None:
        sampled.detect(some, read, lambda done, total: None)

    return BoxCost(cost, forward, effort.seconds(test, probe.device, warm=True) / len(some))


@torch.no_grad()
def _losses(training: Training, batch: Images) -> None:
    training.detector.train()
    training.losses(batch, 0)
