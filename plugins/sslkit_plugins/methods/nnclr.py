"""NNCLR (Dwibedi, Aytar, Tompson, Sermanet & Zisserman 2021, arXiv:2104.14548).

"With a Little Help from My Friends: Nearest-Neighbor Contrastive Learning of Visual
Representations". The authors published no code. Letters: B images, D features.
"""

from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from sslkit.interfaces import Batch, Method, Output, Parts, Progress
from sslkit_plugins.methods.pair import pair
from sslkit_plugins.momentum import feature_std
from sslkit_plugins.precision import at_least_float32
from sslkit_plugins.samplers import Queue, as_queue, in_batch


class Nnclr(Method):
    """Find the prediction of an image's other crop, given the neighbour of the first crop.

    The neighbour is the nearest projection in a queue, so the positive is usually another image.
    """

    needs: ClassVar = {"sampler": "queue"}
    crops: ClassVar = {"global": (2, 2)}
    reads: ClassVar = {"projector": "global", "predictor": "projector"}
    compares = ("projector", "predictor")
    stores = ("projector",)
    contrasts = True
    joins = True

    def __init__(self, parts: Parts, /) -> None:
        super().__init__(parts)
        as_queue(self.sampler, "nnclr")

    @property
    def queue(self) -> Queue:
        """The queue of projections, which are positives here."""
        return as_queue(self.sampler, "nnclr")

    def forward(self, batch: Batch, progress: Progress) -> Output:
        """Compare the neighbours of both crops [B,2,D] with the predictions of the other crop."""
        projected = self.heads["projector"](self.encode(pair(batch)))
        predicted = F.normalize(at_least_float32(self.heads["predictor"](projected)), dim=-1)
        index = batch.index.repeat_interleave(2)
        neighbours = self.queue.nearest(projected.flatten(0, 1), index).unflatten(0, (-1, 2))
        first, second = predicted.unbind(1)
        loss = self.term(neighbours[:, 0], second) + self.term(neighbours[:, 1], first)
        match = (neighbours * predicted.detach().flip(1)).sum(-1).mean()
        unit = F.normalize(projected.detach().float(), dim=-1).flatten(0, 1)
        kept = {"projector": projected[:, 0].detach()}
        return Output(loss / 2, {"match": match}, {"projector": feature_std(unit)}, kept)

    def term(self, neighbours: Tensor, predicted: Tensor) -> Tensor:
        """Return the loss of neighbours [B,D] against the unit-norm predictions of all images.

        The loss of section 3.2. The candidates are the predictions of one crop of each image in the
        global batch, N in all, with gradient on every rank; SimCLR has 2N - 1.
        """
        return self.loss(neighbours, predicted, in_batch(predicted, copies=1))

    def after_step(self, index: Tensor, kept: dict[str, Tensor], progress: Progress) -> None:
        """Enqueue the projections of the first crops, after both searches.

        If they were in the queue before, every crop would find itself: that is SimCLR.
        """
        self.queue.update(index, kept["projector"])

    def at_start(self, images: int) -> float | None:
        """Return the loss of random unit vectors."""
        dim = self.head("predictor").out_dim
        return self.loss.at_start(dim=dim, negatives=images - 1)

    def at_chance(self, images: int) -> dict[str, float]:
        """Return log N, the loss of equal predictions."""
        dim = self.head("predictor").out_dim
        chance = self.loss.at_chance(dim=dim, negatives=images - 1)
        return {} if chance is None else {"loss": chance}
