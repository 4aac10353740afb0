"""Fine-tuning of encoders with all labels or with a share of them."""

import functools
from collections.abc import Callable, Hashable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from sslkit.errors import Fault, RecipeError, counted
from sslkit.evaluation import Rows, combine
from sslkit.interfaces import (
    Candidate,
    Encoder,
    Estimate,
    Evaluation,
    ImageSource,
    Outcome,
    Probe,
    Result,
    Work,
)
from sslkit_plugins.evaluations import (
    accuracy,
    effort,
    frozen,
    image_lists,
    layer_groups,
    step_cost,
)
from sslkit_plugins.evaluations.classifier import Classifier
from sslkit_plugins.evaluations.drop_path import set_drop_path
from sslkit_plugins.evaluations.finetune_presets import PRESETS
from sslkit_plugins.evaluations.random_state import seeded
from sslkit_plugins.evaluations.step_cost import StepCost

SAMPLE, SAMPLE_CPU = 128, 32
"""Largest number of images of a measured step, and on a CPU."""
Epochs = Annotated[int, Field(ge=0)]
BatchSize = Annotated[int, Field(ge=2)]
Decay = Annotated[float, Field(gt=0, le=1)]
Rate = Annotated[float, Field(ge=0, lt=1)]


class Finetune(Evaluation):
    """Fine-tuning with all labels or a share of them, and a new linear head.

    The encoder, or its layers after `freeze`, trains on random crops and flips with batch norms in
    training mode. Every candidate trains on the same images for the same number of steps, the
    untrained encoder too ("from scratch"). Candidates without weights, such as raw pixels, get a
    logistic regression on the same images. The last epoch is scored; nothing is chosen by
    validation images. A killed evaluation goes on when the same command runs again.
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
            Epochs | None,
            Field(
                description="Epochs, 20 to 105 in the presets. Drops of the learning rate scale "
                "along. 0: the untrained head."
            ),
        ] = None,
        batch_size: Annotated[
            BatchSize | None,
            Field(description="Images per step, at most all. 256 or 1024 in publications."),
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
            Field(
                description="Learning rate of the head, scaled like `lr`. 0.08 to 5 in SwAV, "
                "Barlow Twins and VICReg; otherwise that of the encoder."
            ),
        ] = None,
        weight_decay: Annotated[
            NonNegativeFloat | None,
            Field(description="Weight decay, except of vectors. 0 in most presets, MAE: 0.05."),
        ] = None,
        layer_decay: Annotated[
            Decay | None,
            Field(
                description="Factor of the learning rate from each stage to the one before it. "
                "MAE: 0.65; 1: none."
            ),
        ] = None,
        drop_path: Annotated[
            Rate | None,
            Field(
                description="Rate of stochastic depth in the last block, for encoders of timm that "
                "have it. MAE: 0.1; 0: none."
            ),
        ] = None,
    ) -> None:
        self.share = image_lists.read_share(share)
        if list_ is not None and self.share < 1:
            raise RecipeError(Fault("--share", "--list names the images already; keep one of them"))
        self.share_seed, self.list, self.freeze, self.seeds = share_seed, list_, freeze, seeds
        given: dict[str, Any] = {
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
        protocol = self._protocol(len(images))
        protocol |= {"available_images": len(probe.train), "val_images": len(probe.val)}
        text, protocol["list_sha256"] = image_lists.written(probe.train, rows)
        folder = probe.unfinished("finetune", protocol)
        row = "all layers" if self.freeze is None else f"layers after {self.freeze}"
        outcomes: dict[tuple[str | None, str], list[dict[str, Outcome]]] = {}
        for number, candidate in enumerate(probe.candidates):
            if _encoder(candidate) is None:
                hits = _hits(frozen.regress(probe, candidate, images), probe)
                outcomes[None, candidate.name] = [hits] * self.seeds
                continue
            found = outcomes.setdefault((row, candidate.name), [])
            for seed in range(self.seeds):
                file = None if folder is None else folder / f"{number}-{seed}.safetensors"
                model = self.train(probe, candidate, images, seed, file)
                shown = probe.images(probe.val, size=candidate.size)
                logits = model.predict(batch for batch, _ in shown)
                found.append(_hits(logits, probe))
        files = {}
        if len(images) < len(probe.train):
            name = f"finetune-{len(images)}-images-{protocol['list_sha256'][:8]}.txt"
            protocol["list"], files[name] = name, text
        result = combine(
            probe,
            outcomes,
            accuracy.metrics(probe.classes),
            chance=accuracy.chance(probe.val, probe.classes),
            protocol={**protocol, "notes": notes},
        )
        return replace(result, files=files)

    def estimate(self, work: Work) -> Estimate:
        """Estimate the trainings from a few steps of each candidate on training images."""
        probe = work.probe
        images = Rows(probe.train, self._rows(probe))
        batch_size, steps = self._steps(len(images))
        seconds, memory, reads = 0.0, 0, 0
        weightless: list[str] = []
        costs: dict[Hashable, StepCost] = {}
        for candidate in probe.candidates:
            self._check(probe, candidate)
            if _encoder(candidate) is None:
                weightless.append(candidate.name)
                reads += len(images)
            elif steps:
                kind = step_cost.architecture(candidate)
                cost = costs.get(kind) or self.cost(probe, candidate, images)
                costs[kind] = cost
                seconds += self.seeds * cost.seconds(steps, batch_size)
                memory = max(memory, cost.bytes(batch_size))
                reads += self.seeds * steps * batch_size
        dims = {key: dim for key, dim in work.dims.items() if key[1] in weightless}
        fits = effort.regression(work._replace(train=len(images), dims=dims), layers=False)
        seconds, memory = seconds + (fits.seconds or 0.0), max(memory, fits.bytes)
        trainings = f"{counted(self.seeds, 'seed')} of {counted(steps, 'step')}"
        return Estimate(
            features=False,
            val_passes=float(self.seeds),
            reads=reads,
            seconds=seconds,
            bytes=memory,
            how=f"{trainings} of {counted(batch_size, 'image')} for each encoder",
        )

    def cost(self, probe: Probe, candidate: Candidate, images: ImageSource) -> StepCost:
        """Measure training steps of a candidate on a few images."""
        network = candidate.network()
        assert network is not None
        largest = SAMPLE_CPU if probe.device.type == "cpu" else SAMPLE
        count = min(largest, self._steps(len(images))[0])
        ((crops, index),) = probe.augmented(
            images, batch_size=count, steps=1, seed=0, size=candidate.size
        )
        labels = torch.as_tensor(images.labels)[index].to(probe.device)
        with seeded(probe.device, 0):
            model = self.classifier(*network, len(probe.classes)).to(probe.device).train()
            optimizer = self.optimizer(model, count)
            step = functools.partial(model.step, crops, labels, optimizer, self.plan)
            return step_cost.measure(model, optimizer, step, count, probe.device)

    def _rows(self, probe: Probe) -> np.ndarray:
        """Return the rows of the training images to use, int64 [n]."""
        if self.list is not None:
            return image_lists.read(self.list, probe.train, probe.classes)
        labels = np.asarray(probe.train.labels)
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
        notes = []
        if candidate.baseline and self.plan.epochs:
            notes.append(f"{candidate.name}: trained from scratch, on the same images and budget")
        if self.freeze is not None:
            layer_groups.find_stage(encoder, self.freeze)
        if self.plan.layer_decay != 1:
            encoder.stages()
        if self.plan.drop_path and not set_drop_path(encoder, self.plan.drop_path):
            notes.append(f"{candidate.name}: has no stochastic depth, trained without --drop-path")
        return notes

    def train(
        self,
        probe: Probe,
        candidate: Candidate,
        images: ImageSource,
        seed: int,
        file: Path | None = None,
    ) -> Classifier:
        """Return a fine-tuned copy of a candidate's encoder with its head.

        The training continues from `file`, if it exists.
        """
        network = candidate.network()
        assert network is not None
        batch_size, steps = self._steps(len(images))
        labels = torch.as_tensor(images.labels, device=probe.device)

        def batches(first: int) -> Iterator[tuple[Tensor, Tensor]]:
            size = candidate.size
            augmented = probe.augmented(
                images, batch_size=batch_size, steps=steps, seed=seed, size=size, first=first
            )
            return ((crops, labels[index.to(probe.device)]) for crops, index in augmented)

        with seeded(probe.device, seed):
            model = self.classifier(*network, len(probe.classes)).to(probe.device)
            optimizer = self.optimizer(model, batch_size)
            with probe.progress(f"fine-tuning {candidate.name}, seed {seed}") as advance:
                model.fit(batches, optimizer, self.plan, steps, advance, seed=seed, file=file)
        return model

    def _steps(self, count: int) -> tuple[int, int]:
        """Return the batch size and the number of steps for a number of images."""
        batch_size = min(self.plan.batch_size, count)
        return batch_size, self.plan.epochs * (count // batch_size)

    def classifier(
        self, encoder: Encoder, normalise: Callable[[Tensor], Tensor], classes: int
    ) -> Classifier:
        """Return the encoder with a new head, stages frozen and stochastic depth set."""
        if not any(value.requires_grad for value in encoder.parameters()):
            encoder.requires_grad_(True)  # a momentum encoder, such as DINO's teacher
        frozen: list[nn.Module] = []
        if self.freeze is not None:
            stage = layer_groups.find_stage(encoder, self.freeze)
            frozen = layer_groups.freeze(encoder, stage)
        if self.plan.drop_path:
            set_drop_path(encoder, self.plan.drop_path)
        return Classifier(encoder, normalise, classes, frozen, self.plan.head_std)

    def optimizer(self, model: Classifier, batch_size: int) -> torch.optim.Optimizer:
        """Return the preset's optimizer with the highest learning rates of all groups."""
        groups = layer_groups.groups(
            model.encoder,
            model.head,
            self.plan.rates(batch_size),
            layer_decay=self.plan.layer_decay,
            weight_decay=self.plan.weight_decay,
        )
        if self.plan.optimizer == "lars":  # SimCLR adapts the encoder's matrices, not the head
            head = set(model.head.parameters())
            for group in groups:
                first = group["params"][0]
                group["always_adapt"] = first.ndim > 1 and first not in head
        return create_optimizer_v2(groups, self.plan.optimizer, lr=self.plan.lr)

    def _protocol(self, count: int) -> dict[str, Any]:
        """Return the conditions of training on a number of images."""
        batch_size, steps = self._steps(count)
        rates = self.plan.rates(batch_size)
        return {
            "preset": self.preset,
            "replaced": sorted(self.given),
            **asdict(self.plan),
            "train_images": count,
            "images_per_step": batch_size,
            "steps": steps,
            "highest_lr": {"encoder": rates[0], "head": rates[1]},
            "seeds": self.seeds,
            "freeze": self.freeze,
            "share": None if self.list is not None else self.share,
            "share_seed": self.share_seed,
            "scored": "after the last epoch",
            "precision": "float32",
        }


def _encoder(candidate: Candidate) -> Encoder | None:
    """Return a copy of a candidate's encoder; None if it has no weights."""
    network = candidate.network()
    if network is None or next(network[0].parameters(), None) is None:
        return None
    return network[0]


def _hits(logits: Tensor, probe: Probe) -> dict[str, Outcome]:
    return accuracy.hits(logits, torch.as_tensor(probe.val.labels), probe.classes)
