"""CMC (Tian, Krishnan & Isola 2020, arXiv:1906.05849).

"Contrastive Multiview Coding". The official code is HobbitLong/CMC. Letters: M views of an image,
which are groups of its channels; B images, D features.
"""

import copy
import itertools
from contextlib import ExitStack
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sslkit import distributed
from sslkit.errors import Fault, RecipeError
from sslkit.interfaces import Batch, Epoch, Method, NegativeSampler, Output, Parts, Progress
from sslkit_plugins.momentum import feature_std


class Cmc(Method):
    """Tell an image from others by comparing each of its views with a memory of another view.

    A view is a segment of the encoder's features, such as lightness or colour. Each has a head and
    a memory bank. The loss is a sum over ordered pairs of views (i, j):
    L(zᵢ | bank j), where the positive of an image is its row in the bank of the *other* view.
    """

    crops: ClassVar = {}
    reads: ClassVar = {"*": "image.*"}
    compares = None
    stores = ("*",)
    recalls = True
    contrasts = True

    def __init__(
        self,
        parts: Parts,
        /,
        *,
        graph: Annotated[
            Literal["core", "full"],
            Field(
                description="Pairs of more than two views (section 3.3). core: the first view "
                "with each other view. full: all pairs."
            ),
        ] = "full",
    ) -> None:
        super().__init__(parts)
        views = list(self.heads)
        unread = [name for name in self.encoder.dims if name not in self.heads]
        if len(views) < 2 or unread:
            segments = ", ".join(self.encoder.dims)
            message = (
                "'cmc' needs a head for each of at least two segments of the encoder, but the "
                f"heads are {', '.join(views)} and the segments {segments}"
            )
            raise RecipeError(Fault("heads", message))
        self.pairs = [
            (one, other)
            for one, other in itertools.permutations(views, 2)
            if graph == "full" or views[0] in (one, other)
        ]
        """Query and bank of each term."""
        self.losses = nn.ModuleDict({"_".join(p): copy.deepcopy(parts.loss) for p in self.pairs})
        """The loss of each pair, since NCE has a constant Z for each bank."""

    def forward(self, batch: Batch, progress: Progress) -> Output:
        """Sum the terms of all pairs of views."""
        outputs = self.project(batch.views["image"])
        terms = self.terms(outputs, batch.index, progress)
        unit = {name: F.normalize(z.detach().float(), dim=-1) for name, z in outputs.items()}
        return Output(
            torch.stack(list(terms.values())).sum(),
            {f"loss_{pair}": term.detach() for pair, term in terms.items()},
            {name: feature_std(rows) for name, rows in unit.items()},
            keep={name: z.detach() for name, z in outputs.items()},
        )

    def project(self, images: Tensor) -> dict[str, Tensor]:
        """[B,C,H,W] → {view: [B,D]}, the outputs of the heads."""
        features = self.encode(images)
        return {
            name: head(self.encoder.segment(features, name)) for name, head in self.heads.items()
        }

    def terms(
        self, outputs: dict[str, Tensor], index: Tensor, progress: Progress
    ) -> dict[str, Tensor]:
        """Return L(zᵢ | bank j) of each pair, a scalar by the name `i_j`."""
        terms = {}
        for one, other in self.pairs:
            bank = self.bank(other)
            positives, negatives = bank.recall(index), bank.draw(index, progress.draws)
            loss = self.losses[f"{one}_{other}"]
            terms[f"{one}_{other}"] = loss(outputs[one].unsqueeze(0), positives, negatives)
        return terms

    def bank(self, name: str) -> NegativeSampler:
        """Return the memory bank of a view."""
        bank = self.samplers[name]
        assert isinstance(bank, NegativeSampler)
        return bank

    def begin_epoch(self, epoch: Epoch) -> None:
        """Fill the banks and freeze the constants of NCE, before the first step."""
        if epoch.progress.step > 0:
            return
        if any(self.bank(name).needs_fill for name in self.samplers):
            for batch in epoch.views():
                index = distributed.gather(batch.index)
                for name, rows in self.project(batch.views["image"]).items():
                    self.bank(name).fill(index, distributed.gather(rows.float()))
        if epoch.micro_batches > 1 and hasattr(self.loss, "observe"):
            losses: list[Any] = list(self.losses.values())
            with ExitStack() as stack:
                for loss in losses:
                    stack.enter_context(loss.observe())
                for batch, progress in epoch.next_step():
                    self(batch, progress)

    def after_step(self, index: Tensor, kept: dict[str, Tensor], progress: Progress) -> None:
        """Move each view's bank towards the outputs of its head."""
        for name, rows in kept.items():
            self.bank(name).update(index, rows)

    def at_start(self, images: int) -> float | None:
        """Return the sum over pairs of the loss of random unit vectors."""
        name = self.pairs[0][1]
        dim, negatives = self.head(name).out_dim, self.bank(name).candidates
        term = self.loss.at_start(dim=dim, negatives=negatives)
        return None if term is None else len(self.pairs) * term

    def at_chance(self, images: int) -> dict[str, float]:
        """Return the chance level of the loss and of each term."""
        name = self.pairs[0][1]
        dim, negatives = self.head(name).out_dim, self.bank(name).candidates
        term = self.loss.at_chance(dim=dim, negatives=negatives)
        if term is None:
            return {}
        terms = {f"loss_{one}_{other}": term for one, other in self.pairs}
        return {"loss": len(self.pairs) * term, **terms}
