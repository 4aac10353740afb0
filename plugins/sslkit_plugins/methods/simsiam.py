"""SimSiam (Chen & He 2020, arXiv:2011.10566).

"Exploring Simple Siamese Representation Learning". The official code is facebookresearch/simsiam.
Letters: B images, D features.
"""

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from sslkit.interfaces import Batch, Method, Output, Progress
from sslkit_plugins.methods.pair import pair
from sslkit_plugins.momentum import feature_std


class SimSiam(Method):
    """Predict the projection of one view from the other view; no gradient passes the target.

    BYOL without a target network. Views pass the network one after the other, so batch norm sees
    one view at a time, as in the official code.
    """

    crops: ClassVar = {"global": (2, 2)}
    reads: ClassVar = {"projector": "global", "predictor": "projector"}
    compares = ("projector", "predictor")

    def project(self, view: Tensor) -> Tensor:
        """Return the projection z [B,D] of a view [B,C,H,W]."""
        return self.heads["projector"](self.encode(view))

    def forward(self, batch: Batch, progress: Progress) -> Output:
        """Compare each view's prediction with the other view's projection (equations 3 and 4)."""
        first, second = pair(batch).unbind(1)
        first_projection, second_projection = self.project(first), self.project(second)
        first_prediction = self.heads["predictor"](first_projection)
        second_prediction = self.heads["predictor"](second_projection)
        loss = self.loss(first_prediction, second_projection.detach())
        loss = (loss + self.loss(second_prediction, first_projection.detach())) / 2
        projections = torch.cat([first_projection, second_projection]).detach().float()
        deviation = feature_std(F.normalize(projections, dim=-1))
        return Output(loss, feature_std={"projector": deviation})

    def at_start(self, images: int) -> float | None:
        """Return the loss of predictions that are orthogonal to their targets."""
        return self.loss.at_start(dim=self.head("predictor").out_dim, negatives=0)
