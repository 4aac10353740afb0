"""SimCLR (Chen, Kornblith, Norouzi & Hinton 2020, arXiv:2002.05709).

"A Simple Framework for Contrastive Learning of Visual Representations". The official code is
google-research/simclr. Letters: B images, D features.
"""

from typing import ClassVar

from torch.nn import functional as F

from sslkit.interfaces import Batch, Method, Output, Progress
from sslkit_plugins.methods.pair import pair
from sslkit_plugins.momentum import feature_std
from sslkit_plugins.precision import at_least_float32
from sslkit_plugins.samplers import in_batch


class SimClr(Method):
    """Find the other crop of an image among the crops of all other images of the batch.

    With the loss `info_nce` this is NT-Xent (equation 1). The official code adds the losses of both
    crops, which is twice the mean over all 2B rows that this method returns.
    """

    crops: ClassVar = {"global": (2, 2)}
    reads: ClassVar = {"projector": "global"}
    contrasts = True
    joins = True

    def forward(self, batch: Batch, progress: Progress) -> Output:
        """Project both crops of each image, [B,2,D], and compare all 2B rows (algorithm 1)."""
        projected = self.heads["projector"](self.encode(pair(batch)))
        pairs = F.normalize(at_least_float32(projected), dim=-1)
        rows, partners = pairs.flatten(0, 1), pairs.flip(1).flatten(0, 1)
        loss = self.loss(rows, partners, in_batch(rows))
        match = (rows * partners).detach().sum(-1).mean()
        return Output(loss, {"match": match}, {"projector": feature_std(rows.detach())})

    def at_start(self, images: int) -> float | None:
        """Return the loss of random unit vectors."""
        dim = self.head("projector").out_dim
        return self.loss.at_start(dim=dim, negatives=2 * images - 2)

    def at_chance(self, images: int) -> dict[str, float]:
        """Return log(2B - 1), the loss of equal rows."""
        dim = self.head("projector").out_dim
        chance = self.loss.at_chance(dim=dim, negatives=2 * images - 2)
        return {} if chance is None else {"loss": chance}
