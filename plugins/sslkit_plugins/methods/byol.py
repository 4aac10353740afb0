"""BYOL (Grill, Strub, Altché, Tallec, Richemond et al. 2020, arXiv:2006.07733).

"Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning". The official code is
google-deepmind/deepmind-research, folder byol. Letters: B images, D features.
"""

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from sslkit.interfaces import Batch, Method, Output, Parts, Progress
from sslkit_plugins.methods.pair import pair
from sslkit_plugins.momentum import Momentum, TeacherMomentum, feature_std


class Byol(Method):
    """Predict the target network's projection of one view from the other view.

    The target network is a moving average of the online network and has no predictor. Views pass
    the networks one after the other, so batch norm sees one view at a time, as in the official
    code.
    """

    crops: ClassVar = {"global": (2, 2)}
    reads: ClassVar = {"projector": "global", "predictor": "projector"}
    compares = ("projector", "predictor")

    def __init__(
        self,
        parts: Parts,
        /,
        *,
        momentum: TeacherMomentum = 0.996,
    ) -> None:
        super().__init__(parts)
        self.momentum = momentum
        self.target = Momentum(encoder=self.encoder, projector=self.heads["projector"])

    def online(self, view: Tensor) -> tuple[Tensor, Tensor]:
        """Return projection and prediction [B,D] of a view [B,C,H,W]."""
        projection = self.heads["projector"](self.encode(view))
        return projection, self.heads["predictor"](projection)

    @torch.no_grad()
    def target_projection(self, view: Tensor) -> Tensor:
        """Return the target network's projection [B,D] of a view [B,C,H,W]."""
        return self.target["projector"](self.encode(view, self.target["encoder"]))

    def forward(self, batch: Batch, progress: Progress) -> Output:
        """Compare each view's prediction with the target of the other view (equation 2)."""
        first, second = pair(batch).unbind(1)
        first_projection, first_prediction = self.online(first)
        first_target = self.target_projection(first)
        second_projection, second_prediction = self.online(second)
        second_target = self.target_projection(second)
        loss = self.loss(first_prediction, second_target)
        loss = loss + self.loss(second_prediction, first_target)
        projections = torch.cat([first_projection, second_projection]).detach().float()
        deviation = feature_std(F.normalize(projections, dim=-1))
        return Output(loss, feature_std={"projector": deviation})

    def after_step(self, index: Tensor, kept: dict[str, Tensor], progress: Progress) -> None:
        """Move the target network towards the online network (equation 1).

        The momentum is τ = 1 - (1 - τ₀)·(cos(πk/K) + 1)/2 at step k of K.
        """
        momentum = progress.cosine(self.momentum, 1.0)
        self.target.follow(momentum, encoder=self.encoder, projector=self.heads["projector"])

    def at_start(self, images: int) -> float | None:
        """Return the loss of predictions that are orthogonal to both targets."""
        term = self.loss.at_start(dim=self.head("predictor").out_dim, negatives=0)
        return None if term is None else 2 * term
