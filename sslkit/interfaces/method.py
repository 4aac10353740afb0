"""Methods and losses."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from sslkit.draws import Draws
from sslkit.interfaces.images import Batch
from sslkit.interfaces.negatives import Negatives, NegativeSampler
from sslkit.interfaces.networks import Encoder, Head


@dataclass(frozen=True)
class Progress:
    """The position in training: `step` of `steps`, `epoch` of `epochs`, counted from 0.

    `draws` are the random numbers of this step. In `forward` they have one row per image of the
    global batch, and each rank gets its rows. In `begin_epoch` and `after_step` all ranks get the
    same numbers.
    """

    step: int
    steps: int
    epoch: int
    epochs: int
    draws: Draws

    @property
    def fraction(self) -> float:
        """The completed fraction of training, in [0, 1)."""
        return self.step / max(self.steps, 1)

    def cosine(self, start: float, end: float) -> float:
        """Anneal from `start` at the first step towards `end`, along half a cosine period."""
        return end + (start - end) * (1 + math.cos(math.pi * self.fraction)) / 2


class Epoch(ABC):
    """Data that a method may use before the first step of an epoch."""

    progress: Progress
    """Progress of the next step."""
    micro_batches: int
    """Micro-batches per step on this rank."""

    @abstractmethod
    def views(self) -> Iterator[Batch]:
        """Yield every image of the data set once, in order, with augmented views on the device.

        The images are distributed over ranks. The last batch is padded with the first images.
        """

    @abstractmethod
    def plain(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every image once, un-augmented: float32 [B,C,S,S] normalised, int64 [B].

        The images are distributed over ranks. The last batch is padded with the first images. An
        unreadable image is black.
        """

    @abstractmethod
    def next_step(self) -> Iterator[tuple[Batch, Progress]]:
        """Yield the micro-batches of the next step, on the device.

        Restores running statistics at the end.
        """

    @abstractmethod
    def forget(self, *modules: nn.Module) -> None:
        """Drop the optimizer state of re-initialised modules."""


class Loss(nn.Module, ABC):
    """A function (prediction, target, negatives) → scalar, independent of ranks.

    A loss has no state between steps, except for constants that a paper freezes, in a buffer.
    """

    needs_negatives: ClassVar[bool | None] = False
    """True: negatives are required; None: they are optional; False: the loss takes none."""
    roles: ClassVar[tuple[str, ...] | None] = None
    """Roles in `Method.needs` that the loss has; None: not stated, so any is accepted."""

    @abstractmethod
    def forward(
        self, prediction: Tensor, target: Tensor, negatives: Negatives | None = None
    ) -> Tensor:
        """prediction [N,…] or [T,N,…], target [N,…] → float32 scalar.

        The value is the mean over N, and a weighted mean over T.
        """

    def at_start(self, *, dim: int, negatives: int) -> float | None:
        """Return the expected loss of random unit vectors of length `dim`, or None.

        `negatives` is the number of candidates besides the positive.
        """
        return None

    def at_chance(self, *, dim: int, negatives: int) -> float | None:
        """Return the loss of outputs that do not depend on the image, or None if unknown.

        A constant encoder reaches this value at best. The default is `at_start`.
        """
        return self.at_start(dim=dim, negatives=negatives)


@dataclass(frozen=True)
class Output:
    """The result of a micro-batch.

    `loss` is a scalar. `metrics` are detached scalars by name, with the same names at every step.
    `feature_std` are detached scalars by name that indicate collapse: 1 if features use all
    directions, 0 if all images have the same features. `keep` are detached tensors [rows,…] by
    name, with the same number of rows on every rank; `after_step` gets the rows of all ranks, with
    floats as float32.
    """

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
    feature_std: dict[str, Tensor] = field(default_factory=dict)
    keep: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Parts:
    """The parts of a method: one sampler per stored head; `images` is the size of the data set.

    `shapes` are the shapes of the transform's views without batch dimension.
    """

    encoder: Encoder
    heads: dict[str, Head]
    samplers: dict[str, NegativeSampler]
    loss: Loss
    images: int
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)


class Method(nn.Module, ABC):
    """The computation of a paper: encoder, heads, samplers and loss combined.

    Class attributes are literals, so recipes can be checked without importing torch. `forward` does
    not change buffers; `begin_epoch` and `after_step` may.
    """

    reads: ClassVar[dict[str, str] | None] = None
    """Head → its input: another head, a view, or `view.segment` (a segment of the features).

    None: one head per view of the transform, with the view's name. `{"*": "image.*"}`: any heads
    that a recipe names, each reading the segment of its name.
    """
    predicts: ClassVar[dict[str, str]] = {}
    """Head → its target. `label` is the class in the data set; the transform provides others."""
    compares: ClassVar[tuple[str, ...] | None] = ()
    """Heads whose outputs are compared, so their `out_dim` must be equal.

    None: all heads except those that predict a target.
    """
    stores: ClassVar[tuple[str, ...]] = ()
    """Heads whose outputs a sampler stores; `*` stands for all heads.

    Each gets an instance of the recipe's sampler.
    """
    recalls: ClassVar[bool] = False
    """True: the method reads the stored vector of a given image."""
    contrasts: ClassVar[bool] = False
    """True: the method passes negatives to the loss."""
    joins: ClassVar[bool] = False
    """True: the loss depends on the full batch, so `train.accumulate` would change it."""
    needs: ClassVar[dict[str, str]] = {}
    """`encoder`, `sampler`, `loss` or `heads.NAME` → the role that this part must have."""
    crops: ClassVar[dict[str, tuple[int, int | None]] | None] = None
    """View → fewest and most crops of an image that the method compares; None: no limit.

    `global+local` limits the sum of both views. Heads get these crops one by one; a head joins the
    crops of other views. None for all: `sslkit check` does not examine crops.
    """
    uses_every_parameter: ClassVar[bool] = True
    """False: some steps leave weights without gradient."""
    notes: tuple[str, ...] = ()
    """Sentences that training prints at the start, such as a number that was limited."""

    def __init__(self, parts: Parts, /) -> None:
        super().__init__()
        self.encoder = parts.encoder
        self.heads = nn.ModuleDict(dict(parts.heads))
        self.samplers = nn.ModuleDict(dict(parts.samplers))
        self.loss = parts.loss

    def head(self, name: str) -> Head:
        """Return a head by its name, typed as Head."""
        head = self.heads[name]
        assert isinstance(head, Head)
        return head

    @property
    def sampler(self) -> NegativeSampler:
        """The only sampler."""
        (sampler,) = self.samplers.values()
        assert isinstance(sampler, NegativeSampler)
        return sampler

    @property
    def exported(self) -> Encoder:
        """The encoder that evaluations measure and export writes."""
        return self.encoder

    @abstractmethod
    def forward(self, batch: Batch, progress: Progress) -> Output:
        """Compute the loss and the metrics of a micro-batch."""

    def begin_epoch(self, epoch: Epoch) -> None:
        """Prepare an epoch before its first step, without gradient and under autocast.

        The method is in training mode before and after the call. torch's generator is seeded from
        the step, with the same seed on all ranks. A run that resumes within an epoch does not
        repeat the call.
        """

    def after_step(self, index: Tensor, kept: dict[str, Tensor], progress: Progress) -> None:
        """Update banks and moving averages after an optimizer step, without gradient.

        `index` int64 [B] and `kept` (`Output.keep`) have the rows of all ranks in the same order.
        Skipped steps do not call this method.
        """

    def at_start(self, images: int) -> float | None:
        """Return the loss expected before training for a global batch of `images`, or None."""
        return None

    def at_chance(self, images: int) -> dict[str, float]:
        """Return the chance level of the loss and of metrics by name.

        `images` is the global batch size. Names are `loss` and those of `Output.metrics`; each term
        of a loss may have a separate entry. Names that start with `loss` are better below chance
        level, all others above. The health report compares with these values, and curves show them.
        """
        return {}

    def encode(self, view: Tensor, encoder: nn.Module | None = None) -> Tensor:
        """[B,C,H,W] → [B,dim]; [B,K,C,H,W] → [B,K,dim] in one image-major pass.

        `encoder` replaces the method's encoder, for example by a teacher.
        """
        encoder = self.encoder if encoder is None else encoder
        if view.dim() == 4:
            return encoder(view)
        return encoder(view.flatten(0, 1)).unflatten(0, view.shape[:2])
