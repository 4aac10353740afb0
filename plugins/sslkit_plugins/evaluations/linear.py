"""Linear probe: how much of the labels a linear classifier reads from frozen features."""

import math
from typing import Any, Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from sslkit.data.loader import Loader
from sslkit.data.splits import split_by_class
from sslkit.evaluation.probe import Features, Probe, measure, pool, summary, topk
from sslkit.interfaces import Draws, Evaluation
from sslkit.recipe import registry

STRENGTHS = [1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001]


def logistic_regression(
    features: Tensor, labels: Tensor, classes: int, strength: float, start: Tensor | None = None
) -> Tensor:
    """Weights [D+1,C] that minimise mean cross-entropy + strength/2 · |W|² (the bias is free), by full-batch L-BFGS from `start`."""
    weights = (
        torch.zeros(features.shape[1] + 1, classes, device=features.device)
        if start is None
        else start.clone()
    )
    weights.requires_grad_()
    search = torch.optim.LBFGS(
        [weights], max_iter=60, history_size=10, tolerance_grad=1e-5, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        search.zero_grad()
        loss = (
            F.cross_entropy(features @ weights[:-1] + weights[-1], labels)
            + strength / 2 * weights[:-1].square().sum()
        )
        loss.backward()
        return loss

    search.step(closure)
    return weights.detach()


def standardise(train: Tensor, *others: Tensor) -> list[Tensor]:
    """Each number shifted and scaled by the mean and standard deviation of the training half; constants become 0."""
    mean, std = train.mean(0), train.std(0, correction=0)
    scale = torch.where(std > 1e-6 * std.max().clamp_min(1e-12), 1 / std, torch.zeros_like(std))
    return [(rows - mean) * scale for rows in (train, *others)]


class Linear(Evaluation):
    """Linear classifier on frozen features (the linear protocol of PIRL, arXiv:1912.01991).

    `solver: lbfgs` fits a logistic regression on standardised features of the un-augmented images; the strength of its regulariser
    is chosen on a fifth of the training half, anew with every seed, and the fit repeated on the whole half. `solver: sgd` is the
    paper's protocol: random crops and flips, SGD with Nesterov momentum 0.9, weight decay 5e-4, batches of 256, the rate falling to
    a tenth after 8/28, 16/28 and 24/28 of `epochs`, batch norm before each classifier, all layers at once. `layers: all` scores
    every layer of the encoder, pooled to about 9,000 numbers; `last` only what the encoder gives.
    """

    def __init__(
        self,
        *,
        layers: Literal["last", "all"] = "last",
        solver: Literal["lbfgs", "sgd"] = "lbfgs",
        seeds: PositiveInt = 3,
        epochs: PositiveInt = 28,
        lr: PositiveFloat = 0.01,
    ) -> None:
        self.layers, self.solver, self.seeds, self.epochs, self.lr = (
            layers,
            solver,
            seeds,
            epochs,
            lr,
        )

    def measure(self, probe: Probe) -> dict:
        protocol: dict[str, Any] = {"solver": self.solver, "layers": self.layers}
        if self.solver == "lbfgs":
            protocol |= {
                "strengths": STRENGTHS,
                "chosen_on": "a fifth of the training half",
                "features": "standardised",
            }
        result = measure(
            probe,
            "linear",
            self.regress,
            seeds=self.seeds,
            layers=self.layers == "all",
            protocol=protocol,
        )
        if self.solver == "sgd":
            scores = [self.descend(probe, seed) for seed in range(self.seeds)]
            result["layers"] = {
                layer: summary([score[layer] for score in scores], len(probe.val))
                for layer in scores[0]
            }
            result["protocol"] |= {"epochs": self.epochs, "lr": self.lr, "floors": "by L-BFGS"}
        return result

    def regress(self, features: Features, seed: int) -> tuple[float, float]:
        """Top-1 and top-5 in per cent of the logistic regression with the strength that `seed`'s split chose."""
        classes = int(torch.max(features.train_labels.max(), features.val_labels.max())) + 1
        fit, held = (
            torch.as_tensor(rows)
            for rows in split_by_class(features.train_labels.cpu().numpy(), 0.2, seed)
        )
        some, rest = standardise(features.train[fit], features.train[held])
        best, chosen, weights = -1.0, STRENGTHS[0], None
        for strength in STRENGTHS:
            weights = logistic_regression(
                some, features.train_labels[fit], classes, strength, weights
            )
            score = topk(rest @ weights[:-1] + weights[-1], features.train_labels[held])[0]
            if score > best:
                best, chosen = score, strength
        train, val = standardise(features.train, features.val)
        weights = logistic_regression(train, features.train_labels, classes, chosen)
        return topk(val @ weights[:-1] + weights[-1], features.val_labels)

    def descend(self, probe: Probe, seed: int) -> dict[str, tuple[float, float]]:
        """Top-1 and top-5 by layer after SGD on augmented images, as the paper trains its classifiers."""
        method = probe.method(trained=True)
        crops = registry.find("transforms", "augment").load()(
            size=probe.transform.size, colours="none"
        )
        labels = torch.as_tensor(probe.train.labels, device=probe.device)
        batch_size = min(256, len(probe.train))
        loader = Loader(probe.train, crops, batch_size=batch_size, seed=seed, workers=probe.workers)
        steps = self.epochs * loader.steps_per_epoch

        @torch.no_grad()
        def layers_of(pixels: Tensor) -> dict[str, Tensor]:
            pixels = pixels.contiguous(memory_format=torch.channels_last)
            found = {"features": method.exported(pixels)}
            return (
                found | {name: pool(maps) for name, maps in method.exported.maps(pixels).items()}
                if self.layers == "all"
                else found
            )

        torch.manual_seed(seed)
        size = probe.transform.size
        widths = {
            name: rows.shape[1]
            for name, rows in layers_of(torch.zeros(1, 3, size, size, device=probe.device)).items()
        }
        classifiers = nn.ModuleDict(
            {
                name: nn.Sequential(nn.BatchNorm1d(w), nn.Linear(w, len(probe.classes)))
                for name, w in widths.items()
            }
        )
        classifiers.to(probe.device)
        optimizer = torch.optim.SGD(
            classifiers.parameters(), lr=self.lr, momentum=0.9, nesterov=True, weight_decay=5e-4
        )
        drops = [math.ceil(steps * part / 28) for part in (8, 16, 24)]
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, drops)
        for step, batch in enumerate(loader.batches(0, steps)):
            view = crops.on_device(batch.to(probe.device), Draws(seed, step)).views["image"]
            features = layers_of(view)
            loss = torch.stack(
                [
                    F.cross_entropy(classifiers[name](rows), labels[batch.index])
                    for name, rows in features.items()
                ]
            ).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        classifiers.eval()
        val = probe.features("trained", layers=self.layers == "all")
        with torch.no_grad():
            return {
                name: topk(classifiers[name](rows.val), rows.val_labels)
                for name, rows in val.items()
            }
