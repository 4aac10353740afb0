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
    """Everything that training needs, and where it stands. `step` counts the steps taken."""

    recipe: Recipe
    source: ImageSource
    data: DataFormat
    fingerprint: str
    transform: PretextTransform
    method: Method
    model: nn.Module
    """`method`, wrapped for several ranks or compiled: what training calls."""
    loader: Loader
    optimizer: torch.optim.Optimizer
    set_rate: Callable[[int], float]
    device: torch.device
    precision: torch.dtype
    step: int = 0
    skipped: int = 0
    """Steps that `train.on_nan: skip` undid."""
    unreadable: dict[str, str] = field(default_factory=dict)
    samples: list[Sample] | None = None
    """Images by which a resumed run knows its data set; taken at the first save."""

    @property
    def steps(self) -> int:
        """Steps of the complete training."""
        return self.recipe.train.epochs * self.loader.steps_per_epoch

    @property
    def mostly_skipped(self) -> bool:
        """True where `train.on_nan: skip` undid more than half of the steps."""
        return 2 * self.skipped > self.step

    @property
    def weights(self) -> list[nn.Parameter]:
        """The parameters that are trained."""
        return [value for value in self.method.parameters() if value.requires_grad]

    def autocast(self) -> torch.autocast:
        """Compute in bfloat16 where the recipe says so."""
        enabled = self.precision == torch.bfloat16
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def statistics(self) -> list[Tensor]:
        """Return what a forward pass changes: running means of batch norm and the like.

        Memories of samplers and the method's own buffers are not among them: `forward` never
        writes these.
        """
        found = []
        for module in self.method.modules():
            if module is not self.method and not isinstance(module, NegativeSampler):
                found += list(module.buffers(recurse=False))
        return found

    def restore_statistics(self, before: list[Tensor]) -> None:
        """Put back copies of `statistics`."""
        for value, earlier in zip(self.statistics(), before, strict=True):
            value.copy_(earlier)

    def note_unreadable(self, batch: Batch) -> None:
        """Remember images that could not be read. DataError where they are too many."""
        self.unreadable.update(batch.unreadable)
        limit = self.recipe.train.unreadable
        if len(self.unreadable) > limit:
            lines = [f"  {name}: {reason}" for name, reason in sorted(self.unreadable.items())]
            names = "\n".join(lines)
            raise DataError(
                f"{len(self.unreadable)} images cannot be read, more than train.unreadable = "
                f"{limit} allows; repair or remove them, or raise the limit:\n{names}"
            )
