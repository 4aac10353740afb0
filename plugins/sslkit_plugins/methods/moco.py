"""MoCo (He, Fan, Wu, Xie & Girshick 2020, arXiv:1911.05722), v1 and v2.

"Momentum Contrast for Unsupervised Visual Representation Learning". MoCo v2 (Chen, Fan, Girshick &
He 2020, arXiv:2003.04297) is the same method with an MLP head, blur and a cosine schedule. The
official code is facebookresearch/moco. Letters: B images, C compared crops, D features.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from sslkit.interfaces import Batch, Draws, Method, Output, Parts, Progress
from sslkit_plugins.methods.pair import pair
from sslkit_plugins.momentum import Momentum, feature_std, shuffled
from sslkit_plugins.samplers import Queue, as_queue

MomentumOption = Annotated[
    float,
    Field(
        ge=0,
        le=1,
        description="Momentum of the key encoder. MoCo: 0.999; for small data sets 0.99.",
    ),
]
FinalMomentum = Annotated[
    Annotated[float, Field(ge=0, le=1)] | None,
    Field(
        description="Momentum at the end, reached along half a cosine. solo-learn: 0.999 from "
        "0.99. null: constant, as in MoCo."
    ),
]
Shuffle = Annotated[
    bool,
    Field(
        description="Shuffle the key encoder's batch over ranks and slices (shuffling BN). On one "
        "rank it needs encoder.norm: split. MoCo: true."
    ),
]


class Moco(Method):
    """Match a query with the key of the image's other crop, among the keys of a queue.

    A slow copy of encoder and head, f_k, computes the keys. The loss is equation 1 of the paper.
    """

    needs: ClassVar = {"sampler": "queue"}
    crops: ClassVar = {"global": (2, 2)}
    reads: ClassVar = {"projector": "global"}
    stores = ("projector",)
    contrasts = True

    def __init__(
        self,
        parts: Parts,
        /,
        *,
        momentum: MomentumOption = 0.999,
        final_momentum: FinalMomentum = None,
        symmetric: Annotated[
            bool,
            Field(
                description="Use both crops as queries. MoCo v1, v2: false. Costs about twice the "
                "time, and learns about as much as twice the epochs."
            ),
        ] = False,
        shuffle: Shuffle = True,
    ) -> None:
        super().__init__(parts)
        as_queue(self.sampler, "moco")
        self.momentum, self.symmetric, self.shuffle = momentum, symmetric, shuffle
        self.final_momentum = momentum if final_momentum is None else final_momentum
        self.key_encoder = Momentum(encoder=self.encoder, projector=self.heads["projector"])

    @property
    def queue(self) -> Queue:
        """The queue of keys."""
        return as_queue(self.sampler, "moco")

    def forward(self, batch: Batch, progress: Progress) -> Output:
        """Compare queries [B,C,D] with keys [B,C,D], and with the queue (algorithm 1).

        C is 1, or 2 with `symmetric`. The queue does not change before `after_step`, so it has no
        key of this batch in any term.
        """
        crops = pair(batch)
        first, second = (crops, crops.flip(1)) if self.symmetric else crops.split(1, dim=1)
        queries = self.queries(first).flatten(0, 1)
        keys = self.keys(second, progress.draws).flatten(0, 1)
        index = batch.index.repeat_interleave(first.shape[1])
        loss = self.loss(queries, keys, self.queue.draw(index, progress.draws))
        unit = F.normalize(queries.detach().float(), dim=-1)
        match = F.cosine_similarity(unit, keys.float(), dim=-1).mean()
        kept = keys.unflatten(0, first.shape[:2])
        metrics = {"match": match}
        accuracy = getattr(self.loss, "accuracy", None)
        if accuracy is not None:
            metrics["accuracy"] = accuracy
        return Output(loss, metrics, {"projector": feature_std(unit)}, {"keys": kept})

    def queries(self, crops: Tensor) -> Tensor:
        """[B,C,channels,H,W] → queries [B,C,D].

        Each crop passes alone, so a query and its positive share no batch norm.
        """
        queries = [self.heads["projector"](self.encode(crop)) for crop in crops.unbind(1)]
        return torch.stack(queries, 1)

    @torch.no_grad()
    def keys(self, crops: Tensor, draws: Draws) -> Tensor:
        """[B,C,channels,H,W] → keys [B,C,D] of the slow copy, without gradient."""

        def encode(rows: Tensor) -> Tensor:
            features = self.encode(rows, self.key_encoder["encoder"])
            return self.key_encoder["projector"](features)

        keys = []
        for crop in crops.unbind(1):
            keys.append(shuffled(crop, draws, encode) if self.shuffle else encode(crop))
        return torch.stack(keys, 1)

    def after_step(self, index: Tensor, kept: dict[str, Tensor], progress: Progress) -> None:
        """Move f_k towards f_q (equation 2), then enqueue the keys of all crops once."""
        momentum = progress.cosine(self.momentum, self.final_momentum)
        originals = {"encoder": self.encoder, "projector": self.heads["projector"]}
        self.key_encoder.follow(momentum, **originals)
        keys = kept["keys"]
        self.queue.update(index.repeat_interleave(keys.shape[1]), keys.flatten(0, 1))

    def at_start(self, images: int) -> float | None:
        """Return None: at first f_k equals f_q, and the queue holds random vectors.

        The first loss then depends on how similar the untrained features of two crops are.
        """
        return None

    def at_chance(self, images: int) -> dict[str, float]:
        """Return the accuracy of random guesses among 1 + K keys, which MoCo's code logs.

        The loss has no such level. It rises while the queue fills, and may exceed log(1 + K).
        """
        return {"accuracy": 1 / (1 + self.queue.candidates)}
