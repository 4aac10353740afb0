"""Two memories, made from one section of the recipe; heads that read segments."""

from typing import ClassVar

from torch.nn import functional as F

from sslkit.interfaces import Batch, Method, Output, Progress


class TwoMemories(Method):
    """Compare each half of the encoder's vector with the memory of the other half."""

    reads: ClassVar = {"first": "image.left", "second": "image.right"}
    compares = None
    stores = ("first", "second")
    recalls = True
    contrasts = True

    def forward(self, batch: Batch, progress: Progress) -> Output:
        features = self.encode(batch.views["image"])
        outputs = {
            "first": self.heads["first"](self.encoder.segment(features, "left")),
            "second": self.heads["second"](self.encoder.segment(features, "right")),
        }
        loss = 0
        for name, other in (("first", "second"), ("second", "first")):
            memory = self.samplers[other].recall(batch.index)
            negatives = self.samplers[other].draw(batch.index, progress.draws)
            loss = loss + self.loss(outputs[name], memory, negatives) / 2
        return Output(loss, keep={name: rows.detach() for name, rows in outputs.items()})

    def after_step(self, index, kept, progress):
        for name, rows in kept.items():
            self.samplers[name].update(index, F.normalize(rows, dim=1))

    def at_start(self, images: int) -> float | None:
        candidates = self.samplers["first"].candidates
        return self.loss.at_start(dim=self.head("first").out_dim, negatives=candidates)
