"""Linear classification of frozen features."""

from dataclasses import asdict, replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from sslkit.errors import Fault, RecipeError
from sslkit.evaluation import combine
from sslkit.interfaces import (
    Candidate,
    Estimate,
    Evaluation,
    Features,
    Outcome,
    Probe,
    Result,
    Work,
)
from sslkit_plugins.evaluations import accuracy, effort
from sslkit_plugins.evaluations.classifiers import Reader, batch_of, predict, train
from sslkit_plugins.evaluations.logistic import (
    STRENGTHS,
    choose_strength,
    logistic_regression,
    standardise,
)
from sslkit_plugins.evaluations.protocols import PRESETS, Protocol

Batch = Annotated[int, Field(ge=2)]

SEEDS = 3
"""Fits of `solver: sgd` without a preset. Presets have one, as published."""


class Linear(Evaluation):
    """Linear classifier on frozen features.

    `solver: lbfgs` fits a logistic regression on standardised features of the un-augmented images.
    For each layer of each candidate, a held-out fifth of the training split selects the strength of
    the regulariser. If there are groups, it is a fifth of the groups. The final fit uses the full
    split. Only the choice of the fifth is random.

    `preset` trains on random crops and flips as a paper's code does: optimizer, learning rate per
    256 images, weight decay, epochs, schedule, initial weights, batch norm before the classifier.
    Options that are given replace those of the preset. All layers are trained at once.

    `solver: sgd` is the preset `pirl` (VISSL's code, arXiv:1912.01991) with three seeds and the
    learning rate 0.01 for any batch.
    """

    def __init__(
        self,
        *,
        layers: Annotated[
            Literal["last", "all"],
            Field(
                description="Layers to score. last: the features. all: also every layer, pooled "
                "to about 9,000 numbers."
            ),
        ] = "last",
        preset: Annotated[
            Literal[
                "pirl",
                "moco",
                "swav",
                "simclr",
                "byol",
                "simsiam",
                "barlow",
                "vicreg",
                "dino",
                "mae",
                "lightly",
                "alexnet",
            ]
            | None,
            Field(
                description="Published protocol. pirl: VISSL's, per layer. alexnet: conv1 to conv5 "
                "with ten crops. null: `solver`."
            ),
        ] = None,
        solver: Annotated[
            Literal["lbfgs", "sgd"] | None,
            Field(
                description="Solver without a preset. lbfgs (default): logistic regression. sgd: "
                "VISSL's SGD on augmented images."
            ),
        ] = None,
        seeds: Annotated[
            PositiveInt | None,
            Field(description="Independent fits of `sgd`, 3 by default; 1 with a preset."),
        ] = None,
        epochs: Annotated[
            PositiveInt | None,
            Field(description="Epochs of `sgd`, by default the preset's; 28 in VISSL."),
        ] = None,
        lr: Annotated[
            PositiveFloat | None,
            Field(
                description="Learning rate of `sgd`, not scaled by the batch, by default the "
                "preset's; 0.01 in VISSL."
            ),
        ] = None,
        batch_size: Annotated[
            Batch | None,
            Field(description="Batch size of `sgd`, by default the preset's; 256 in VISSL."),
        ] = None,
        weight_decay: Annotated[
            NonNegativeFloat | None,
            Field(description="Weight decay of `sgd`, by default the preset's; 5e-4 in VISSL."),
        ] = None,
    ) -> None:
        given = {
            "seeds": seeds,
            "epochs": epochs,
            "lr": lr,
            "batch_size": batch_size,
            "weight_decay": weight_decay,
        }
        given = {name: value for name, value in given.items() if value is not None}
        if solver == "lbfgs" and preset is not None:
            message = "a preset is trained by SGD or LARS; leave out one of --preset and --solver"
            raise RecipeError(Fault("--preset", message))
        self.layers, self.preset = layers, preset
        self.solver = solver or ("lbfgs" if preset is None else "sgd")
        if self.solver == "lbfgs" and given:
            message = "is an option of --solver sgd only, and of presets"
            flags = [f"--{name.replace('_', '-')}" for name in given]
            raise RecipeError(*(Fault(flag, message) for flag in flags))
        given.pop("seeds", None)
        self.seeds = seeds or (SEEDS if preset is None else 1)
        self.given = given
        self.protocol = _replaced(PRESETS[preset or "pirl"], given, keeps_rate=preset is None)

    def measure(self, probe: Probe) -> Result:
        """Score every candidate, and every layer against the same layer of the baselines."""
        metrics = accuracy.metrics(probe.classes)
        chance = accuracy.chance(probe.val, probe.classes)
        if self.solver == "sgd":
            outcomes, notes = self._trained(probe)
            protocol = self._stated(len(probe.train))
            protocol["notes"] += notes
            return combine(probe, outcomes, metrics, chance=chance, protocol=protocol)

        def score(features: Features, seed: int) -> dict[str, Outcome]:
            return self.regress(features, probe)

        held_out = "a fifth of the training split"
        if probe.train.groups is not None:
            held_out = "a fifth of the groups of the training split"
        return probe.compare(
            score,
            metrics,
            layers=self.layers == "all",
            chance=chance,
            protocol={
                "solver": "lbfgs",
                "strengths": STRENGTHS,
                "chosen_on": held_out,
            },
            chunked=True,
        )

    def regress(self, features: Features, probe: Probe) -> dict[str, Outcome]:
        """Return the hits of the logistic regression."""
        labels, classes = features.train_labels, len(probe.classes)
        train, val = standardise(features.train, features.val, labels.device)
        strength = choose_strength(train, labels, classes, probe.train.groups)
        logits = val.predicted(*logistic_regression(train, labels, classes, strength))
        return accuracy.hits(logits, features.val_labels, probe.classes)

    def _trained(self, probe: Probe) -> tuple[dict[Any, list[dict[str, Outcome]]], list[str]]:
        """Return the outcomes by row and candidate, and notes."""
        outcomes: dict[Any, list[dict[str, Outcome]]] = {}
        notes: list[str] = []
        for candidate in probe.candidates:
            for seed in range(self.seeds):
                found, said = self.descend(probe, candidate, seed)
                notes += [note for note in said if note not in notes]
                for layer, hits in found.items():
                    row = layer if candidate.has_layers else None
                    outcomes.setdefault((row, candidate.name), []).append(hits)
        return outcomes, notes

    def descend(
        self, probe: Probe, candidate: Candidate, seed: int
    ) -> tuple[dict[str, dict[str, Outcome]], list[str]]:
        """Return the hits by layer after training on augmented images, and notes."""
        read = Reader(candidate, self.protocol, layers=self.layers == "all")
        classifiers = train(probe, read, self.protocol, seed)
        labels = torch.as_tensor(probe.val.labels)
        logits = predict(probe, read, classifiers)
        hits = {
            name: accuracy.hits(values, labels, probe.classes) for name, values in logits.items()
        }
        return hits, read.notes

    def _stated(self, count: int) -> dict[str, Any]:
        """Return the protocol of the JSON: every number used, their source, options given."""
        batch_size, lr = batch_of(self.protocol, count)
        notes = []
        if batch_size < self.protocol.batch_size:
            notes.append(
                f"one batch of all {count} training images per epoch, fewer than "
                f"{self.protocol.batch_size:,} (preset {self.preset or 'pirl'}); "
                f"learning rate {lr:g}"
            )
        return {
            "solver": "sgd",
            "preset": self.preset or "pirl",
            **asdict(self.protocol),
            "lr": lr,
            "lr_per_256": self.protocol.lr if self.protocol.scaled else None,
            "batch_size": batch_size,
            "seeds": self.seeds,
            "layers": self.layers,
            "replaced": sorted(self.given),
            "notes": notes,
        }

    def estimate(self, work: Work) -> Estimate:
        """Estimate the fits from one closure, or the training from one step, of each width."""
        if self.solver == "lbfgs":
            return effort.regression(work, layers=self.layers == "all")
        return effort.training(work, self.protocol, self.seeds, layers=self.layers == "all")


def _replaced(protocol: Protocol, given: dict[str, Any], *, keeps_rate: bool) -> Protocol:
    """Return a protocol with the given options; a given rate is not scaled by the batch."""
    made = replace(protocol, **given)
    if "epochs" in given:
        made = replace(made, epochs_of_source=protocol.epochs)
    return replace(made, scaled=made.scaled and not keeps_rate and "lr" not in given)
