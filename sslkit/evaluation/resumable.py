"""Trains a module in an evaluation. A killed training continues from its file."""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from sslkit.evaluation.state import load_state, save_state
from sslkit.runs import optimizer_state

SAVE_SECONDS = 60.0
"""Least time between two saves of an unfinished training, s."""
MODULE, OPTIMIZER = "module.", "optimizer."
"""Prefixes of the names of tensors in a file."""

Batch = TypeVar("Batch")


class ResumableTraining:
    """A module and its optimizer in training, with a file from which a killed training continues.

    The file has weights, buffers, optimizer state and step, but nothing random. So batches and
    random numbers must be functions of the step: call `torch.manual_seed(Draws(seed, step).seed)`
    in every step. `file` is a path in the folder of `Probe.unfinished`; None saves nothing.
    """

    def __init__(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, file: Path | None
    ) -> None:
        self.module, self.optimizer, self.file = module, optimizer, file
        self.step = 0
        """Completed steps."""

    def steps(
        self,
        total: int,
        batches: Callable[[int], Iterable[Batch]],
        advance: Callable[[int, int], None],
    ) -> Iterator[tuple[int, Batch]]:
        """Yield number and batch of each step up to `total`, from the state in `file` on.

        `batches(first)` returns the batches of the steps first … total−1. Saves every SAVE_SECONDS
        and at the end. `advance` receives the newly completed and all steps.
        """
        self.load()
        advance(self.step, total)
        if self.step == total:
            return
        saved = time.monotonic()
        for batch in batches(self.step):
            yield self.step, batch
            self.step += 1
            advance(1, total)
            if time.monotonic() - saved >= SAVE_SECONDS:
                self.save()
                saved = time.monotonic()
        self.save()

    def save(self) -> None:
        """Write the state. Raises CheckpointError if the file cannot be written."""
        if self.file is None:
            return
        moments, numbers = optimizer_state.flatten(self.optimizer)
        tensors = {f"{MODULE}{name}": value for name, value in self.module.state_dict().items()}
        tensors |= {f"{OPTIMIZER}{name}": value for name, value in moments.items()}
        save_state(self.file, tensors, {"step": str(self.step), "numbers": json.dumps(numbers)})

    def load(self) -> None:
        """Restore the state of `file`; does nothing without one, or if it is damaged."""
        found = None if self.file is None else load_state(self.file)
        if found is None:
            return
        tensors, notes = found
        self.module.load_state_dict(_below(MODULE, tensors))
        moments, numbers = _below(OPTIMIZER, tensors), json.loads(notes["numbers"])
        optimizer_state.restore(self.optimizer, moments, numbers)
        self.step = int(notes["step"])


def _below(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors with a prefix, by their names without it."""
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
