"""Measures time and memory of training steps."""

from collections.abc import Callable, Hashable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sslkit.evaluation import activations
from sslkit.interfaces import Candidate
from sslkit_plugins.evaluations import effort


class StepCost(NamedTuple):
    """Time and memory of a training step as functions of its number of images."""

    update: float
    """Time of the optimizer, s."""
    image: float
    """Time of forward and backward per image, s."""
    weights: int
    """Weights, gradients and state of the optimizer, bytes."""
    activations: float
    """Tensors kept for the backward pass per image, bytes."""

    def seconds(self, steps: int, images: int) -> float:
        """Return the time of `steps` steps of `images` images without decoding, s."""
        return steps * (self.update + images * self.image)

    def bytes(self, images: int) -> int:
        """Return the memory of steps of `images` images."""
        return self.weights + round(images * self.activations)


def architecture(candidate: Candidate) -> Hashable:
    """Return a key that is equal for candidates whose steps cost the same."""
    network = candidate.network()
    assert network is not None
    tensors = network[0].state_dict()
    return candidate.size, tuple((name, value.shape) for name, value in tensors.items())


def measure(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: Callable[[], object],
    images: int,
    device: torch.device,
) -> StepCost:
    """Measure `step`, a full training step of `images` images. Changes the module."""
    with activations(module) as sizes:
        step()
    took = effort.seconds(step, device, warm=True)
    update = min(took, effort.seconds(optimizer.step, device, warm=True))
    weights = sum(value.nbytes for value in module.state_dict().values())
    for parameter in module.parameters():
        weights += 0 if parameter.grad is None else parameter.grad.nbytes
    for values in optimizer.state.values():
        tensors = [value for value in values.values() if isinstance(value, Tensor)]
        weights += sum(value.nbytes for value in tensors)
    return StepCost(update, (took - update) / images, weights, sum(sizes.values()) / images)
