"""BYOL: Grill et al. 2020, "Bootstrap Your Own Latent", arXiv:2006.07733.

Letters: B images, K crops, N rows, D features. "Official" is google-deepmind/deepmind-research.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from sslkit.interfaces import Batch, Head, Loss, Method, Negatives, Output, Parts, Progress
from sslkit_plugins.momentum import Momentum, feature_std


class BootstrapMlp(Head):
    """Linear, batch norm, ReLU, linear: BYOL's projector and predictor (section "Architecture")."""

    def __init__(
        self,
        in_dim: int,
        /,
        *,
        hidden_dim: Annotated[
            PositiveInt, Field(description="Width of the hidden layer. The paper: 4096.")
        ] = 4096,
        out_dim: Annotated[
            PositiveInt, Field(description="Length of the output. The paper: 256.")
        ] = 256,
        hidden_norm: Annotated[
            bool, Field(description="Batch norm before the ReLU. The paper: true.")
        ] = True,
    ) -> None:
        super().__init__()
        self.out_dim = out_dim
        self.hidden = nn.Linear(in_dim, hidden_dim)
        self.norm = nn.BatchNorm1d(hidden_dim) if hidden_norm else nn.Identity()
        self.project = nn.Linear(hidden_dim, out_dim)

    def forward(self, features: Tensor) -> Tensor:
        """[…,in_dim] → […,out_dim]; the batch norm sees all rows at once."""
        hidden = self.norm(self.hidden(features.flatten(0, -2))).relu()
        return self.project(hidden).unflatten(0, features.shape[:-1])


class BootstrapDistance(Loss):
    """2 - 2·cos(prediction, target), the squared distance of unit vectors (equation 2)."""

    def forward(
        self, prediction: Tensor, target: Tensor, negatives: Negatives | None = None
    ) -> Tensor:
        """prediction [N,D], target [N,D] → mean over N."""
        cosines = F.cosine_similarity(prediction.float(), target.float(), dim=-1)
        return (2 - 2 * cosines).mean()

    def at_start(self, *, dim: int, negatives: int) -> float | None:
        """2: random vectors are orthogonal."""
        return 2.0


class Bootstrap(Method):
    """Predict the projection of one crop, made by a slow copy of the network, from the other crop.

    All crops of a batch pass batch norm together; the official code passes them one after another.
    """

    reads: ClassVar = {"projector": "global", "predictor": "projector"}
    compares = ("projector", "predictor")

    def __init__(
        self,
        parts: Parts,
        /,
        *,
        momentum: Annotated[
            float,
            Field(
                ge=0,
                le=1,
                description="Momentum of the copy at the first step; 1 at the last. The paper: "
                "0.99 for 100 and 300 epochs, 0.996 for 1000.",
            ),
        ] = 0.996,
    ) -> None:
        super().__init__(parts)
        self.momentum = momentum
        self.target = Momentum(encoder=self.encoder, projector=self.heads["projector"])

    def forward(self, batch: Batch, progress: Progress) -> Output:
        """Compare the predictions of two crops with each other's targets, both [B,2,D]."""
        view = batch.views["global"]
        projected = self.heads["projector"](self.encode(view))
        predicted = self.heads["predictor"](projected)
        with torch.no_grad():
            features = self.encode(view, self.target["encoder"])
            targets = self.target["projector"](features).flip(1)
        loss = self.loss(predicted.flatten(0, 1), targets.flatten(0, 1))
        unit = F.normalize(projected.detach().float().flatten(0, 1), dim=-1)
        return Output(loss, feature_std={"projector": feature_std(unit)})

    def after_step(self, index: Tensor, kept: dict[str, Tensor], progress: Progress) -> None:
        """Move the copy towards the network: τ = 1 - (1 - τ₀)·(cos(πk/K) + 1)/2, equation 1
        with τ.
        """
        momentum = progress.cosine(self.momentum, 1.0)
        self.target.follow(momentum, encoder=self.encoder, projector=self.heads["projector"])

    def at_start(self, images: int) -> float | None:
        """Predictions and targets that are orthogonal."""
        return self.loss.at_start(dim=self.head("predictor").out_dim, negatives=0)
