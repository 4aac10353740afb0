"""Linear classification of frozen features."""

import math
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from sslkit.errors import Fault, RecipeError, SslkitError
from sslkit.evaluation import combine, split_by_class
from sslkit.interfaces import Candidate, Evaluation, Features, Outcome, Probe, Result
from sslkit_plugins.evaluations import accuracy

STRENGTHS = [1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001]
CHUNK = 8192
"""Rows of features per matrix product."""
SEEDS, EPOCHS, LR = 3, 28, 0.01
"""Defaults of `solver: sgd`. VISSL: 28 epochs at 0.01, one seed."""


class Standardised(NamedTuple):
    """Lazily standardised features [N,D]: minus `mean` [D], times `scale` [D].

    Products apply mean and scale to the weights instead of copying the features.
    """

    features: Tensor
    mean: Tensor
    scale: Tensor

    def logits(self, weights: Tensor, bias: Tensor) -> Tensor:
        """Return logits [N,C] for weights [C,D] and bias [C]."""
        weights = weights * self.scale
        return F.linear(self.features, weights, bias - weights @ self.mean)

    def some(self, rows: Tensor | slice) -> "Standardised":
        """Select rows."""
        return self._replace(features=self.features[rows])


def standardise(train: Tensor, val: Tensor) -> tuple[Standardised, Standardised]:
    """Standardise both splits by mean and standard deviation of the training split.

    Features that are constant in training become 0. If D exceeds the N training rows, both splits
    are rotated to the span of these rows: N features instead of D, with the same regularised fit.
    """
    mean, std = train.mean(0), train.std(0, correction=0)
    usable = std > 1e-6 * std.max().clamp_min(1e-12)
    scale = torch.where(usable, 1 / std, torch.zeros_like(std))
    if train.shape[1] <= len(train):
        return Standardised(train, mean, scale), Standardised(val, mean, scale)
    basis, upper = torch.linalg.qr(((train - mean) * scale).T)
    zero, one = mean.new_zeros(len(train)), mean.new_ones(len(train))
    rotated = ((val - mean) * scale) @ basis
    return Standardised(upper.T.contiguous(), zero, one), Standardised(rotated, zero, one)


def logistic_regression(
    rows: Standardised,
    labels: Tensor,
    classes: int,
    strength: float,
    start: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Fit weights [C,D] and bias [C] by full-batch L-BFGS from `start`.

    Minimises mean cross-entropy + strength/2 · |weights|², without penalty on the bias. Processes
    the features in chunks of rows.
    """
    if start is None:
        start = rows.mean.new_zeros(classes, len(rows.mean)), rows.mean.new_zeros(classes)
    weights, bias = (values.clone().requires_grad_() for values in start)
    search = torch.optim.LBFGS(
        [weights, bias],
        max_iter=60,
        history_size=10,
        tolerance_grad=1e-5,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        search.zero_grad()
        total = strength / 2 * weights.square().sum()
        total.backward()
        for first in range(0, len(labels), CHUNK):
            chunk = slice(first, first + CHUNK)
            logits = rows.some(chunk).logits(weights, bias)
            loss = F.cross_entropy(logits, labels[chunk], reduction="sum") / len(labels)
            loss.backward()
            total = total.detach() + loss.detach()
        return total

    search.step(closure)
    return weights.detach(), bias.detach()


def choose_strength(rows: Standardised, labels: Tensor, classes: int) -> float:
    """Return the strength with the best accuracy on a held-out fifth of every class.

    Each fit starts from the previous solution.
    """
    fit, held_out = map(torch.as_tensor, split_by_class(labels.cpu().numpy(), 0.2, 0))
    some, rest = rows.some(fit), rows.some(held_out)
    best, chosen, fitted = -1.0, STRENGTHS[0], None
    for strength in STRENGTHS:
        fitted = logistic_regression(some, labels[fit], classes, strength, fitted)
        correct = rest.logits(*fitted).argmax(1) == labels[held_out]
        score = correct.float().mean().item()
        if score > best:
            best, chosen = score, strength
    return chosen


class ChannelNorm(nn.BatchNorm1d):
    """Batch norm per channel of a pooled map, flattened to [N,c·s]."""

    def forward(self, features: Tensor) -> Tensor:
        """[N,c·s] → [N,c·s]."""
        positions = features.unflatten(1, (self.num_features, -1))
        return super().forward(positions).flatten(1)


def map_channels(candidate: Candidate, images: Tensor) -> dict[str, int]:
    """Return the number of channels of each layer's map; {} for candidates without maps."""
    network = candidate.network()
    if network is None:
        return {}
    encoder, normalise = network
    try:
        with torch.no_grad():
            maps = encoder.maps(normalise(images[:1]))
    except SslkitError:
        return {}
    return {name: values.shape[1] for name, values in maps.items()}


class Linear(Evaluation):
    """Linear classifier on frozen features (the linear protocol of PIRL, arXiv:1912.01991).

    `solver: lbfgs` fits a logistic regression on standardised features of the un-augmented images.
    For each layer of each candidate, a held-out fifth of the training split selects the strength of
    the regulariser; the final fit uses the full split. Only the choice of the fifth is random.

    `solver: sgd` is the protocol of VISSL, PIRL's code (`eval_resnet_8gpu_transfer_in1k_linear`).
    It trains on random crops and flips, with a batch norm per channel before each classifier, and
    all layers at once. SGD has Nesterov momentum 0.9, batches of 256, and weight decay 5e-4 except
    on batch norms. The learning rate drops to a tenth after 8/28, 16/28 and 24/28 of `epochs`; the
    paper's text has two drops.
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
        solver: Annotated[
            Literal["lbfgs", "sgd"],
            Field(
                description="Solver of the classifier. lbfgs: logistic regression. sgd: VISSL's "
                "SGD on augmented images."
            ),
        ] = "lbfgs",
        seeds: Annotated[
            PositiveInt | None, Field(description="Independent fits of `sgd`, 3 by default.")
        ] = None,
        epochs: Annotated[
            PositiveInt | None,
            Field(description="Epochs of `sgd`, 28 by default, as in VISSL."),
        ] = None,
        lr: Annotated[
            PositiveFloat | None,
            Field(description="Learning rate of `sgd`, 0.01 by default, as in VISSL."),
        ] = None,
    ) -> None:
        given = {"seeds": seeds, "epochs": epochs, "lr": lr}
        wrong = [name for name, value in given.items() if value is not None]
        if solver == "lbfgs" and wrong:
            raise RecipeError(
                *(Fault(f"--{name}", "is an option of --solver sgd only") for name in wrong)
            )
        self.layers, self.solver = layers, solver
        self.seeds, self.epochs, self.lr = seeds or SEEDS, epochs or EPOCHS, lr or LR

    def measure(self, probe: Probe) -> Result:
        """Score every candidate, and every layer against the same layer of the baselines."""
        metrics = accuracy.metrics(probe.classes)
        chance = accuracy.chance(probe.val, probe.classes)
        protocol: dict[str, Any] = {"solver": self.solver}
        if self.solver == "lbfgs":
            protocol |= {"strengths": STRENGTHS, "chosen_on": "a fifth of the training split"}

            def score(features: Features, seed: int) -> dict[str, Outcome]:
                return self.regress(features, probe)

            return probe.compare(
                score, metrics, layers=self.layers == "all", chance=chance, protocol=protocol
            )
        protocol |= {"seeds": self.seeds, "epochs": self.epochs, "lr": self.lr}
        outcomes: dict[tuple[str | None, str], list[dict[str, Outcome]]] = {}
        for candidate in probe.candidates:
            for seed in range(self.seeds):
                for layer, found in self.descend(probe, candidate, seed).items():
                    row = layer if candidate.has_layers else None
                    outcomes.setdefault((row, candidate.name), []).append(found)
        return combine(probe, outcomes, metrics, chance=chance, protocol=protocol)

    def regress(self, features: Features, probe: Probe) -> dict[str, Outcome]:
        """Return the hits of the logistic regression."""
        train, val = standardise(features.train, features.val)
        labels, classes = features.train_labels, len(probe.classes)
        strength = choose_strength(train, labels, classes)
        logits = val.logits(*logistic_regression(train, labels, classes, strength))
        return accuracy.hits(logits, features.val_labels, probe.classes)

    def descend(
        self, probe: Probe, candidate: Candidate, seed: int
    ) -> dict[str, dict[str, Outcome]]:
        """Return the hits by layer after VISSL's SGD on augmented images."""
        layers = self.layers == "all"
        labels = torch.as_tensor(probe.train.labels, device=probe.device)
        batch_size = min(256, len(probe.train))
        steps = self.epochs * (len(probe.train) // batch_size)
        torch.manual_seed(seed)
        classifiers = nn.ModuleDict()
        batches = probe.augmented(
            probe.train, batch_size=batch_size, steps=steps, seed=seed, size=candidate.size
        )
        for step, (images, index) in enumerate(batches):
            found = candidate.embed(images, layers=layers)
            if step == 0:
                channels = map_channels(candidate, images) if layers else {}
                for name, rows in found.items():
                    width = rows.shape[1]
                    norm = ChannelNorm(channels.get(name, width))
                    classifiers[name] = nn.Sequential(norm, nn.Linear(width, len(probe.classes)))
                classifiers.to(probe.device)
                optimizer, schedule = self._optimizer(classifiers, steps)
            losses = [
                F.cross_entropy(classifiers[name](rows), labels[index.to(probe.device)])
                for name, rows in found.items()
            ]
            optimizer.zero_grad()
            torch.stack(losses).sum().backward()
            optimizer.step()
            schedule.step()
        classifiers.eval()
        return self._hits(probe, candidate, classifiers)

    def _optimizer(self, classifiers: nn.ModuleDict, steps: int) -> tuple[Any, Any]:
        norms: list[Tensor] = []
        others: list[Tensor] = []
        for module in classifiers.modules():
            if isinstance(module, ChannelNorm):
                norms += module.parameters()
            elif isinstance(module, nn.Linear):
                others += module.parameters()
        groups = [{"params": others, "weight_decay": 5e-4}, {"params": norms, "weight_decay": 0.0}]
        optimizer = torch.optim.SGD(groups, lr=self.lr, momentum=0.9, nesterov=True)
        drops = [math.ceil(steps * part / 28) for part in (8, 16, 24)]
        return optimizer, torch.optim.lr_scheduler.MultiStepLR(optimizer, drops)

    @torch.no_grad()
    def _hits(
        self, probe: Probe, candidate: Candidate, classifiers: nn.ModuleDict
    ) -> dict[str, dict[str, Outcome]]:
        logits: dict[str, list[Tensor]] = {name: [] for name in classifiers}
        for images, _ in probe.images(probe.val, size=candidate.size):
            found = candidate.embed(images, layers=self.layers == "all")
            for name, rows in found.items():
                logits[name].append(classifiers[name](rows))
        labels = torch.as_tensor(probe.val.labels)
        return {
            name: accuracy.hits(torch.cat(parts), labels, probe.classes)
            for name, parts in logits.items()
        }
