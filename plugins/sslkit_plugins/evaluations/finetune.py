"""Fine-tuning of encoders with all labels or with a share of them."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, PositiveFloat, PositiveInt
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2

from sslkit.errors import Fault, RecipeError
from sslkit.evaluation import Rows, combine
from sslkit.interfaces import Candidate, Encoder, Evaluation, Outcome, Probe, Result
from sslkit_plugins.evaluations import accuracy, image_lists, layer_groups
from sslkit_plugins.evaluations.drop_path import set_drop_path
from sslkit_plugins.evaluations.finetune_presets import PRESETS
from sslkit_plugins.evaluations.linear import choose_strength, logistic_regression, standardise

HEAD_STD = 0.01
"""Standard deviation of the head's initial weights (SwAV, Barlow Twins)."""
MIXUP, CUTMIX = 0.8, 1.0
"""α of the beta distributions of mixing (MAE)."""


class Classifier(nn.Module):
    """An encoder with a linear head. `frozen` modules stay in evaluation mode."""

    def __init__(self, encoder: Encoder, classes: int, frozen: list[nn.Module]) -> None:
        super().__init__()
        self.encoder, self.frozen = encoder, frozen
        self.head = nn.Linear(encoder.dim, classes)
        nn.init.normal_(self.head.weight, std=HEAD_STD)
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


class Finetune(Evaluation):
    """Fine-tuning with all labels or a share of them, and a new linear head.

    The encoder, or its layers after `freeze`, trains on random crops and flips with batch norms in
    training mode. Every candidate trains on the same images for the same number of steps, the
    untrained encoder too ("from scratch"). Candidates without weights, such as raw pixels, get a
    logistic regression on the same images. The last epoch is scored; nothing is chosen by
    validation images.
    """

    def __init__(
        self,
        *,
        share: Annotated[
            str | float,
            Field(
                description="Share of the training images of every class, such as 1%, 10% or 0.1. "
                "A smaller share is inside a larger one."
            ),
        ] = "100%",
        share_seed: Annotated[int, Field(ge=0, description="Seed that draws the share.")] = 0,
        list_: Annotated[
            Path | None,
            Field(
                description="File with the names of the training images, one per line, such as "
                "SimCLR's lists of ImageNet. Replaces `share`."
            ),
        ] = None,
        freeze: Annotated[
            str | None,
            Field(
                description="Last stage of the encoder to freeze with all stages before it, such "
                "as res2 or conv2. null: none."
            ),
        ] = None,
        preset: Annotated[
            Literal[
                "small",
                "pirl",
                "vissl",
                "swav-1%",
                "swav-10%",
                "simclr_v2",
                "barlow",
                "vicreg-1%",
                "vicreg-10%",
                "mae",
            ],
            Field(
                description="Published settings. Other options replace its values. small: for "
                "folders of hundreds to thousands of images."
            ),
        ] = "small",
        seeds: Annotated[
            PositiveInt,
            Field(
                description="Independent trainings of each candidate, usually 1 to 5. All use the "
                "same images."
            ),
        ] = 1,
        epochs: Annotated[
            int | None,
            Field(
                ge=0,
                description="Epochs, 20 to 105 in the presets. Drops of the learning rate scale "
                "along. 0: the untrained head.",
            ),
        ] = None,
        batch_size: Annotated[
            int | None,
            Field(ge=2, description="Images per step, at most all. 256 or 1024 in publications."),
        ] = None,
        lr: Annotated[
            PositiveFloat | None,
            Field(
                description="Learning rate of the encoder, scaled by the batch size as in the "
                "preset: per 256 images in small, pirl, vissl and mae."
            ),
        ] = None,
        head_lr: Annotated[
            PositiveFloat | None,
            Field(description="Learning rate of the head, scaled like `lr`. 0.08 to 5 in SwAV, "
                "Barlow Twins and VICReg; otherwise that of the encoder."),
        ] = None,
        weight_decay: Annotated[
            float | None,
            Field(ge=0, description="Weight decay, except of vectors. 0 in most presets, MAE: 0.05."),
        ] = None,
        layer_decay: Annotated[
            float | None,
            Field(
                gt=0,
                le=1,
                description="Factor of the learning rate from each stage to the one before it. "
                "MAE: 0.65; 1: none.",
            ),
        ] = None,
        drop_path: Annotated[
            float | None,
            Field(
                ge=0,
                lt=1,
                description="Rate of stochastic depth in the last block, for encoders of timm that "
                "have it. MAE: 0.1; 0: none.",
            ),
        ] = None,
    ) -> None:
        self.share = image_lists.read_share(share)
        if list_ is not None and self.share < 1:
            raise RecipeError(Fault("--share", "--list names the images already; keep one of them"))
        self.share_seed, self.list, self.freeze, self.seeds = share_seed, list_, freeze, seeds
        given = {
            "epochs": epochs,
            "batch_size": batch_size,
            "lr": lr,
            "head_lr": head_lr,
            "weight_decay": weight_decay,
            "layer_decay": layer_decay,
            "drop_path": drop_path,
        }
        self.given = {name: value for name, value in given.items() if value is not None}
        self.preset, self.plan = preset, replace(PRESETS[preset], **self.given)

    def measure(self, probe: Probe) -> Result:
        """Fine-tune and score every candidate."""
        rows = self._rows(probe)
        images = Rows(probe.train, rows)
        notes: list[str] = []
        for candidate in probe.candidates:
            notes += self._check(probe, candidate)
        batch_size = min(self.plan.batch_size, len(images))
        steps = self.plan.epochs * (len(images) // batch_size)
        row = "all layers" if self.freeze is None else f"layers after {self.freeze}"
        outcomes: dict[tuple[str | None, str], list[dict[str, Outcome]]] = {}
        for candidate in probe.candidates:
            if _encoder(candidate) is None:
                outcomes[None, candidate.name] = [self._regress(probe, candidate, images)] * self.seeds
                continue
            found = outcomes.setdefault((row, candidate.name), [])
            for seed in range(self.seeds):
                with probe.progress(f"fine-tuning {candidate.name}, seed {seed}") as advance:
                    model = self.train(probe, candidate, images, steps, seed, advance)
                found.append(_hits(probe, candidate, model))
        return combine(
            probe,
            outcomes,
            accuracy.metrics(probe.classes),
            chance=accuracy.chance(probe.val, probe.classes),
            protocol=self._protocol(probe, images, batch_size, steps, notes),
        )

    def _rows(self, probe: Probe) -> np.ndarray:
        """Return the rows of the training images to use, int64 [n]."""
        labels = np.asarray(probe.train.labels)
        if self.list is not None:
            return image_lists.read(self.list, probe.train, list(probe.classes))
        if self.share == 1:
            return np.arange(len(labels))
        return image_lists.draw(labels, self.share, self.share_seed)

    def _check(self, probe: Probe, candidate: Candidate) -> list[str]:
        """Return notes on a candidate. Raises SslkitError if it cannot be trained as required."""
        images, _ = next(iter(probe.images(probe.val, size=candidate.size)))
        candidate.embed(images[:2])
        encoder = _encoder(candidate)
        if encoder is None:
            return [f"{candidate.name}: no weights to train, logistic regression instead"]
        if self.freeze is not None:
            layer_groups.find_stage(encoder, self.freeze)
        if self.plan.layer_decay != 1:
            encoder.stages()
        if self.plan.drop_path and not set_drop_path(encoder, self.plan.drop_path):
            return [f"{candidate.name}: no blocks with stochastic depth, --drop-path has no effect"]
        return []

    def train(
        self,
        probe: Probe,
        candidate: Candidate,
        images: Rows,
        steps: int,
        seed: int,
        advance: Callable[[int, int], None],
    ) -> Classifier:
        """Return a fine-tuned copy of a candidate's encoder with its head, in evaluation mode."""
        plan, classes = self.plan, len(probe.classes)
        torch.manual_seed(seed)
        network = candidate.network()
        assert network is not None
        encoder, normalise = network
        model = self.classifier(encoder, classes).to(probe.device)
        optimizer = self.optimizer(model, min(plan.batch_size, len(images)))
        peaks = [group["lr"] for group in optimizer.param_groups]
        labels = torch.as_tensor(images.labels, device=probe.device)
        mix = v2.RandomChoice(
            [v2.MixUp(num_classes=classes, alpha=MIXUP), v2.CutMix(num_classes=classes, alpha=CUTMIX)]
        )
        batches = probe.augmented(
            images, batch_size=plan.batch_size, steps=steps, seed=seed, size=candidate.size
        )
        model.train()
        for step, (pixels, index) in enumerate(batches):
            factor = plan.factor(step * plan.epochs / steps)
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            values, targets = normalise(pixels), labels[index.to(probe.device)]
            if plan.mixing:
                values, targets = mix(values, targets)
            loss = F.cross_entropy(model(values), targets, label_smoothing=plan.smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            advance(1, steps)
        return model.eval()

    def classifier(self, encoder: Encoder, classes: int) -> Classifier:
        """Return the encoder with a new head, stages frozen and stochastic depth set."""
        if not any(value.requires_grad for value in encoder.parameters()):
            encoder.requires_grad_(True)  # a momentum encoder, such as DINO's teacher
        frozen = []
        if self.freeze is not None:
            stage = layer_groups.find_stage(encoder, self.freeze)
            frozen = layer_groups.freeze(encoder, stage)
        if self.plan.drop_path:
            set_drop_path(encoder, self.plan.drop_path)
        return Classifier(encoder, classes, frozen)

    def optimizer(self, model: Classifier, batch_size: int) -> torch.optim.Optimizer:
        """Return the preset's optimizer with the highest learning rates of all groups."""
        groups = layer_groups.groups(
            model.encoder,
            model.head,
            self.plan.rates(batch_size),
            layer_decay=self.plan.layer_decay,
            weight_decay=self.plan.weight_decay,
        )
        if self.plan.optimizer == "lars":
            for group in groups:
                group["always_adapt"] = group["params"][0].ndim > 1
        return create_optimizer_v2(groups, self.plan.optimizer, lr=self.plan.lr)

    def _regress(self, probe: Probe, candidate: Candidate, images: Rows) -> dict[str, Outcome]:
        """Return the hits of a logistic regression on a candidate's features."""
        train = _features(probe, candidate, images)
        val = _features(probe, candidate, probe.val)
        if not (train.isfinite().all() and val.isfinite().all()):
            return {metric.name: float("nan") for metric in accuracy.metrics(probe.classes)}
        labels, classes = torch.as_tensor(images.labels, device=train.device), len(probe.classes)
        rows, others = standardise(train, val)
        strength = choose_strength(rows, labels, classes)
        logits = others.logits(*logistic_regression(rows, labels, classes, strength))
        return accuracy.hits(logits, torch.as_tensor(probe.val.labels), probe.classes)

    def _protocol(
        self, probe: Probe, images: Rows, batch_size: int, steps: int, notes: list[str]
    ) -> dict[str, Any]:
        text, digest = image_lists.written(images, np.arange(len(images)))
        rates = self.plan.rates(batch_size)
        return {
            "preset": self.preset,
            "replaced": sorted(self.given),
            **asdict(self.plan),
            "images_per_step": batch_size,
            "steps": steps,
            "highest_lr": {"encoder": rates[0], "head": rates[1]},
            "seeds": self.seeds,
            "freeze": self.freeze,
            "share": self.share,
            "list_images": len(images),
            "list_sha256": digest,
            "scored": "after the last epoch",
            "precision": "float32",
            "notes": notes,
        }


def _encoder(candidate: Candidate) -> Encoder | None:
    """Return a copy of a candidate's encoder; None if it has no weights."""
    network = candidate.network()
    if network is None or next(network[0].parameters(), None) is None:
        return None
    return network[0]


def _features(probe: Probe, candidate: Candidate, images: Any) -> Tensor:
    """Return the features of all images, float32 [N,D]."""
    found = []
    for pixels, _ in probe.images(images, size=candidate.size):
        found.append(candidate.embed(pixels)["features"].clone())
    return torch.cat(found)


@torch.no_grad()
def _hits(probe: Probe, candidate: Candidate, model: Classifier) -> dict[str, Outcome]:
    """Return the hits on the validation images."""
    network = candidate.network()
    assert network is not None
    logits = []
    for pixels, _ in probe.images(probe.val, size=candidate.size):
        logits.append(model(network[1](pixels)))
    return accuracy.hits(torch.cat(logits), torch.as_tensor(probe.val.labels), probe.classes)
