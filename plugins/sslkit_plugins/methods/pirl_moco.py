"""PIRL with the momentum encoder and the queue of MoCo in place of the memory bank.

No paper proposes it. PIRL: Misra & van der Maaten 2020, arXiv:1912.01991. MoCo: He, Fan, Wu, Xie &
Girshick 2020, arXiv:1911.05722. Letters: B images, D features.
"""

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from sslkit.interfaces import Batch, Draws, Negatives, Output, Parts, Progress
from sslkit_plugins.methods.moco import FinalMomentum, MomentumOption, Shuffle
from sslkit_plugins.methods.pirl import Pirl
from sslkit_plugins.momentum import Momentum, shuffled
from sslkit_plugins.precision import at_least_float32
from sslkit_plugins.samplers import Queue, as_queue


class PirlMoco(Pirl):
    """Pull f(image) and g(pretext view) towards f_k(image), away from the keys of other images.

    f_k is a slow copy of encoder and image head. A bank entry is as old as an epoch; a key of the
    queue is at most K / B steps old. Prefer this method if an epoch is long.
    """

    needs: ClassVar = {"sampler": "queue"}
    recalls = False

    def __init__(
        self,
        parts: Parts,
        /,
        *,
        momentum: MomentumOption = 0.999,
        final_momentum: FinalMomentum = None,
        shuffle: Shuffle = True,
    ) -> None:
        super().__init__(parts)
        as_queue(self.sampler, "pirl_moco")
        self.momentum, self.shuffle = momentum, shuffle
        self.final_momentum = momentum if final_momentum is None else final_momentum
        self.key_encoder = Momentum(encoder=self.encoder, image=self.heads["image"])

    @property
    def queue(self) -> Queue:
        """The queue of keys."""
        return as_queue(self.sampler, "pirl_moco")

    def forward(self, batch: Batch, progress: Progress) -> Output:
        """Compare both outputs [B,D] with the images' keys [B,D]."""
        outputs = {name: self.heads[name](self.encode(batch.views[name])) for name in self.order}
        keys = self.keys(batch.views["image"], progress.draws)
        negatives = self.queue.draw(batch.index, progress.draws, terms=len(outputs))
        output = self.compare(outputs, keys, negatives)
        metrics = output.metrics | {"accuracy": accuracy(outputs["image"], keys, negatives)}
        return replace(output, metrics=metrics, keep={"image": keys})

    @torch.no_grad()
    def keys(self, images: Tensor, draws: Draws) -> Tensor:
        """[B,C,H,W] → unit-norm keys [B,D] of the slow copy, without gradient."""

        def encode(rows: Tensor) -> Tensor:
            return self.key_encoder["image"](self.encode(rows, self.key_encoder["encoder"]))

        keys = shuffled(images, draws, encode) if self.shuffle else encode(images)
        return F.normalize(at_least_float32(keys), dim=-1)

    def after_step(self, index: Tensor, kept: dict[str, Tensor], progress: Progress) -> None:
        """Move f_k towards f, then enqueue the keys."""
        momentum = progress.cosine(self.momentum, self.final_momentum)
        self.key_encoder.follow(momentum, encoder=self.encoder, image=self.heads["image"])
        self.queue.update(index, kept["image"])

    def at_start(self, images: int) -> float | None:
        """Return None: at first f_k equals f, and the queue holds random vectors."""
        return None

    def at_chance(self, images: int) -> dict[str, float]:
        """Return the accuracy of random guesses among 1 + K keys, as MoCo does.

        The loss has no such level. It rises while the queue fills, and may exceed log(1 + K).
        """
        return {"accuracy": 1 / (1 + self.queue.candidates)}


@torch.no_grad()
def accuracy(queries: Tensor, keys: Tensor, negatives: Negatives) -> Tensor:
    """Return the fraction of queries [B,D] whose key [B,D] is nearer than all negatives."""
    unit = F.normalize(at_least_float32(queries), dim=-1)
    own = (unit * keys).sum(-1)
    return (own > negatives.similarity(unit).amax(-1)).float().mean()
