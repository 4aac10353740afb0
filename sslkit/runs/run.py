"""The state of a training run."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sslkit.data.loader import Loader
from sslkit.errors import DataError
from sslkit.interfaces import Batch, ImageSource, Method, NegativeSampler, PretextTransform
from sslkit.parts import DataFormat
from sslkit.recipe import Recipe
from sslkit.runs.samples import Sample


@dataclass
class Run:
    """The objects and the state of a training run; `step` is the number of completed steps."""

    recipe: Recipe
    source: ImageSource
    data: DataFormat
    fingerprint: str
    transform: PretextTransform
    method: Method
    model: nn.Module
    """The module that training calls: `method`, wrapped for several ranks."""
    loader: Loader
    optimizer: torch.optim.Optimizer
    set_rate: Callable[[int], float]
    device: torch.device
    precision: torch.dtype
    step: int = 0
    skipped: int = 0
    """Number of steps that `train.on_nan: skip` discarded."""
    unreadable: dict[str, str] = field(default_factory=dict)
    samples: list[Sample] | None = None
    """Images that identify the data set of a resumed run, taken at the first save."""

    @property
    def steps(self) -> int:
        """Steps of the complete training."""
        return self.recipe.train.epochs * self.loader.steps_per_epoch

    @property
    def mostly_skipped(self) -> bool:
        """True if `train.on_nan: skip` discarded more than half of the steps."""
        return 2 * self.skipped > self.step

    @property
    def weights(self) -> list[nn.Parameter]:
        """The trained parameters."""
        return [value for value in self.method.parameters() if value.requires_grad]

    def autocast(self) -> torch.autocast:
        """Return an autocast context, which is enabled for bfloat16."""
        enabled = self.precision == torch.bfloat16
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def statistics(self) -> list[Tensor]:
        """Return the buffers that a forward pass changes, such as running means of batch norms.

        Excludes buffers of samplers and of the method itself, which `forward` does not change.
        """
        found = []
        for module in self.method.modules():
            if module is not self.method and not isinstance(module, NegativeSampler):
                found += list(module.buffers(recurse=False))
        return found

    def restore_statistics(self, before: list[Tensor]) -> None:
        """Restore copies of `statistics`."""
        for value, earlier in zip(self.statistics(), before, strict=True):
            value.copy_(earlier)

    def note_unreadable(self, batch: Batch) -> None:
        """Record unreadable images. Raises DataError if there are too many."""
        self.unreadable.update(batch.unreadable)
        limit = self.recipe.train.unreadable
        if len(self.unreadable) > limit:
            lines = [f"  {name}: {reason}" for name, reason in sorted(self.unreadable.items())]
            names = "\n".join(lines)
            raise DataError(
                f"{len(self.unreadable)} images cannot be read, more than train.unreadable = "
                f"{limit} allows; repair or remove them, or raise the limit:\n{names}"
            )
