"""An encoder with a linear head, and its training."""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2

from sslkit.draws import Draws
from sslkit.evaluation import ResumableTraining
from sslkit.interfaces import Encoder
from sslkit_plugins.evaluations.finetune_presets import Preset

MIXUP, CUTMIX = 0.8, 1.0
"""α of the beta distributions of mixing (MAE)."""


class Classifier(nn.Module):
    """An encoder with a linear head. `frozen` modules stay in evaluation mode.

    `head_std` is the standard deviation of the head's initial weights, None for PyTorch's default.
    `normalise` converts integer images [N,C,S,S] to pixels, float [N,C,S,S].
    """

    def __init__(
        self,
        encoder: Encoder,
        normalise: Callable[[Tensor], Tensor],
        classes: int,
        frozen: list[nn.Module],
        head_std: float | None = 0.01,
    ) -> None:
        super().__init__()
        self.encoder, self.normalise, self.frozen = encoder, normalise, frozen
        self.head = nn.Linear(encoder.dim, classes)
        if head_std is not None:
            nn.init.normal_(self.head.weight, std=head_std)
            nn.init.zeros_(self.head.bias)

    def forward(self, pixels: Tensor) -> Tensor:
        """float [N,C,S,S] → logits [N,classes]."""
        return self.head(self.encoder(pixels.contiguous(memory_format=torch.channels_last)))

    def train(self, mode: bool = True) -> "Classifier":
        """Set training mode, except of the frozen modules."""
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    def fit(
        self,
        batches: Callable[[int], Iterable[tuple[Tensor, Tensor]]],
        optimizer: torch.optim.Optimizer,
        plan: Preset,
        steps: int,
        advance: Callable[[int, int], None],
        *,
        seed: int,
        file: Path | None = None,
    ) -> None:
        """Train on the batches of `steps` steps, from the state in `file` if there is one.

        `batches(first)` returns integer images [B,C,S,S] and labels [B] of the steps from `first`
        on. The learning rates of `optimizer` are the highest of each group. Ends in evaluation
        mode.
        """
        peaks = [group["lr"] for group in optimizer.param_groups]
        training = ResumableTraining(self, optimizer, file)
        self.train()
        for step, (images, labels) in training.steps(steps, batches, advance):
            torch.manual_seed(Draws(seed, step).seed)
            factor = plan.factor(step * plan.epochs / steps)
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            self.step(images, labels, optimizer, plan)
        self.eval()

    def step(
        self, images: Tensor, labels: Tensor, optimizer: torch.optim.Optimizer, plan: Preset
    ) -> None:
        """Take a step on integer images [B,C,S,S] and labels [B]."""
        pixels, targets = self.normalise(images), labels
        if plan.mixing:
            pixels, targets = _mixing(self.head.out_features)(pixels, targets)
        loss = F.cross_entropy(self(pixels), targets, label_smoothing=plan.smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def predict(self, batches: Iterable[Tensor]) -> Tensor:
        """Return the logits [N,classes] of batches of integer images [B,C,S,S]."""
        return torch.cat([self(self.normalise(images)) for images in batches])


def _mixing(classes: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return Mixup or CutMix, drawn for every batch (Zhang et al. 2018; Yun et al. 2019)."""
    mixup = v2.MixUp(num_classes=classes, alpha=MIXUP)
    return v2.RandomChoice([mixup, v2.CutMix(num_classes=classes, alpha=CUTMIX)])
