"""The nouns of sslkit: what every part promises. Imports nothing of ours but the errors.

Letters of shapes: B images of this process's batch, N rows, K crops or patches of one image, C×H×W pixels, T terms of a loss,
M negatives, D features.

A part is a plain typed class. Facts that only the toolkit can know (`in_dim`, `num_images`, …) are positional-only parameters;
options that a recipe may set are keyword-only, typed, with defaults. The signature and the docstring are the schema: validation,
`sslkit plugins show` and the generated reference read them, without importing the module.

| kind        | facts that a constructor may ask for, by name          |
|-------------|--------------------------------------------------------|
| encoders    | none                                                   |
| heads       | `in_dim`, `crops` (K of the view that the head reads)  |
| transforms  | none                                                   |
| samplers    | `dim`, `num_images`                                    |
| losses      | none                                                   |
| methods     | `parts`                                                |
| datasets    | `split` ("pretrain", "train" or "val")                 |
| evaluations | none                                                   |
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from sslkit.draws import Draws
from sslkit.errors import SslkitError


@dataclass(frozen=True)
class Progress:
    """Where training stands: `step` of `steps` (from 0), `epoch` of `epochs` (from 0), and the random numbers of this step."""

    step: int
    steps: int
    epoch: int
    epochs: int
    draws: Draws

    @property
    def fraction(self) -> float:
        """0 at the first step, towards 1 at the last."""
        return self.step / max(self.steps, 1)


class Sample(NamedTuple):
    """What a transform cuts from one image: `views` uint8 [C,H,W] or [K,C,H,W] by name, `targets` int64 by name."""

    views: dict[str, Tensor]
    targets: dict[str, Tensor]


@dataclass(frozen=True)
class Batch:
    """B images: `views` [B,…] by name, `targets` [B,…] by name, `index` int64 [B] into the data set.

    `unreadable` names the images that could not be decoded and were replaced by others, each with the reason.
    """

    views: dict[str, Tensor]
    targets: dict[str, Tensor]
    index: Tensor
    unreadable: tuple[tuple[str, str], ...] = ()

    def to(self, device: torch.device) -> "Batch":
        def move(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}

        return replace(
            self,
            views=move(self.views),
            targets=move(self.targets),
            index=self.index.to(device, non_blocking=True),
        )


class Pixels(NamedTuple):
    """A decoded image without PIL: `values` uint8 [3,h,w], perhaps smaller than the upright `width` × `height` of its file."""

    values: Tensor
    width: int
    height: int

    @classmethod
    def of(cls, image: Image.Image) -> "Pixels":
        """The pixels of an RGB image."""
        return cls(torch.from_numpy(np.array(image)).permute(2, 0, 1), *image.size)


class PretextTransform(ABC):
    """Cuts the views of a pretext task from an image, and finishes them for a whole batch where the model lives.

    Class attribute `views` names the views. Every instance has: `size`, the side in pixels of the square that evaluations show
    to the encoder; `shapes`, the shape of each view without B; `answers`, how many answers each target has.
    """

    views: ClassVar[tuple[str, ...]]
    size: int
    shapes: dict[str, tuple[int, ...]]
    answers: dict[str, int]

    @abstractmethod
    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Sample:
        """RGB image of any size → fixed-size uint8 views. Runs in the loader's workers; a pure function of `image` and `rng`."""

    def fetch(self, source: "ImageSource", index: int, rng: np.random.Generator) -> Any:
        """What the loader hands to `__call__` for image `index`: the image, or whatever is faster to make and cut, such as its pixels.

        `rng` begins like the one that `__call__` gets, so that what will be cut can be known here. What this raises counts as an
        unreadable image.
        """
        return source.image(index)

    @abstractmethod
    def on_device(self, batch: Batch, draws: Draws) -> Batch:
        """uint8 views → float32 normalised views of the same shapes: colour, blur, flips, each row with its own draw."""

    @abstractmethod
    def plain(self, images: Tensor) -> Tensor:
        """uint8 [N,3,H,W] → float32 [N,3,H,W], normalised and otherwise unchanged: what evaluations and export feed the encoder."""

    def state(self) -> dict[str, Tensor]:
        """What has to be in the checkpoint (a set of permutations, say). A run that resumes checks that it is the same."""
        return {}


class Encoder(nn.Module, ABC):
    """[N,C,H,W] → [N,dim]. Knows nothing of crops, targets or negatives."""

    dim: int

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """float [N,C,H,W] → [N,dim]."""

    @abstractmethod
    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """float [N,C,H,W] → {layer: [N,c,h,w]}, shallow to deep, for per-layer probes."""

    def weights(self) -> dict[str, Tensor]:
        """Parameters and buffers under the names that the architecture's own library gives them."""
        return self.state_dict()

    def loading(self, library: str, file: str) -> str:
        """Lines of Python that rebuild the architecture with `library` alone and load `file`, leaving it in a variable `model`.

        Raises SslkitError where that library does not have it.
        """
        raise SslkitError(f"{type(self).__name__} does not say how {library} would load it")


class Head(nn.Module, ABC):
    """[…,in_dim] → […,out_dim], leading dimensions free; a head over crops reads […,K,in_dim]. Thrown away after training."""

    out_dim: int

    @abstractmethod
    def forward(self, features: Tensor) -> Tensor: ...


class Negatives(ABC):
    """Candidates that are not the query's own image. The sampler chooses how their similarity is computed."""

    count: int
    """How many candidates one query is held against."""

    @abstractmethod
    def similarity(self, query: Tensor) -> Tensor:
        """[T,B,D] or [B,D] unit-norm queries → float32 [T,B,M] or [B,M] cosines; -inf where a candidate is the query's own image."""


class NegativeSampler(nn.Module, ABC):
    """Where negatives come from. `draw` never updates; all state is a persistent, eagerly sized buffer."""

    needs_fill: bool = False
    """True: before the first step the trainer runs every image through the method once and hands the keys to `fill`."""

    @abstractmethod
    def draw(self, index: Tensor, draws: Draws, terms: int = 1) -> Negatives:
        """index int64 [B] → the negatives of these images, for a loss of `terms` terms."""

    def recall(self, index: Tensor) -> Tensor:
        """index int64 [B] → [B,D] unit-norm memory of these images."""
        raise NotImplementedError(f"{type(self).__name__} remembers no image")

    def update(self, index: Tensor, keys: Tensor) -> None:
        """Take in keys [B,D] of images `index` [B]: those of *all* ranks, in the same order on every rank."""

    def fill(self, index: Tensor, keys: Tensor) -> None:
        """Like `update`, before the first step: the keys replace what is stored."""

    def spread(self) -> dict[str, tuple[int, int, int]]:
        """Buffers of which this process holds rows first … last-1 of count: name → (first, last, count); empty where every process
        holds all."""
        return {}


class Loss(nn.Module, ABC):
    """(prediction, target, negatives) → scalar. Remembers nothing between steps but what a paper freezes, in a buffer."""

    needs_negatives: ClassVar[bool] = False
    """True: only a method that has a sampler can use this loss."""
    terms: Tensor | None = None
    """float32 [T], detached: the terms of the last forward pass, before they are weighed; None where there is one number only."""

    @abstractmethod
    def forward(
        self, prediction: Tensor, target: Tensor, negatives: Negatives | None = None
    ) -> Tensor:
        """prediction [N,…] or [T,N,…], target [N,…] → float32 scalar: mean over N, weighted mean over T."""

    def observe(self) -> AbstractContextManager[None]:
        """What a loss freezes at its first call is then, for all ranks, the mean over all calls inside."""
        return nullcontext()

    def at_start(self, *, dim: int, negatives: int) -> float | None:
        """The value expected of random unit vectors of `dim` numbers against `negatives` candidates; None where there is none."""
        return None


@dataclass(frozen=True)
class Output:
    """What a method makes of a batch: `loss` scalar, `metrics` scalars by name (detached), `keys` [B,D] for the sampler."""

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
    keys: Tensor | None = None


@dataclass(frozen=True)
class Parts:
    """What a method is wired from."""

    encoder: Encoder
    heads: dict[str, Head]
    sampler: NegativeSampler | None
    loss: Loss


class Method(nn.Module, ABC):
    """The wiring of a paper: which head reads which view, what the loss compares, what is remembered.

    Class attributes, known before a tensor exists: `reads` names each head and the view that it reads, None for one head per view
    of the transform, named like it; `answers` names the target that a head answers, whose `out_dim` must be the number of answers;
    `stores` names the head whose output the sampler keeps, None where the method needs no sampler.
    """

    reads: ClassVar[dict[str, str] | None] = None
    answers: ClassVar[dict[str, str]] = {}
    stores: ClassVar[str | None] = None

    def __init__(self, parts: Parts, /) -> None:
        super().__init__()
        self.encoder = parts.encoder
        self.heads = nn.ModuleDict(dict(parts.heads))
        self.sampler = parts.sampler
        self.loss = parts.loss

    @abstractmethod
    def forward(self, batch: Batch, progress: Progress) -> Output: ...

    def keys(self, batch: Batch) -> Tensor:
        """[B,D] to fill the sampler with before the first step."""
        raise NotImplementedError(f"{type(self).__name__} fills no sampler")

    def begin_epoch(self, progress: Progress) -> None:
        """Called before the first step of every epoch, and once more where a run resumes."""

    def after_step(self, index: Tensor, keys: Tensor, progress: Progress) -> None:
        """Called after the optimizer's step with `index` [B] and `keys` [B,D] of all ranks: the place to write memory."""

    def encode(self, view: Tensor) -> Tensor:
        """[B,C,H,W] → [B,dim]; [B,K,C,H,W] → [B,K,dim], one pass over all B·K crops, image-major."""
        if view.dim() == 4:
            return self.encoder(view)
        return self.encoder(view.flatten(0, 1)).unflatten(0, view.shape[:2])

    def represent(self, images: Tensor) -> Tensor:
        """[N,C,H,W] → [N,dim]: all that evaluations and export ever call."""
        return self.encoder(images)


class ImageSource(ABC):
    """A data set. The order of its images is stable; `names` identify them."""

    names: Sequence[str]
    """One name per image: a path relative to the root, or a number. Their hash is kept in checkpoints."""
    labels: np.ndarray | None = None
    """int64 [len], or None where nothing is known."""
    classes: Sequence[str] = ()
    has_val: bool = False
    """True where split "val" holds images of its own; otherwise evaluations split "train" by class."""

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def image(self, index: int) -> Image.Image:
        """The decoded RGB image, upright. Whatever it raises counts as an unreadable image."""

    def pixels(self, index: int, reduction: Callable[[int, int], float]) -> Pixels:
        """The same image as pixels. `reduction(width, height)` says by how much its sides may be divided, where that decodes faster."""
        return Pixels.of(self.image(index))


class Evaluation(ABC):
    """Measures features. Options come from the constructor, like those of any part."""

    @abstractmethod
    def measure(self, features: Any) -> dict[str, Any]:
        """A `sslkit.evaluate.features.Probe` → a dictionary for JSON: `score`, `floors`, and whatever explains them."""
