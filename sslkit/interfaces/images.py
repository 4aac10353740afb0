"""Images and batches of them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor


class Sample(NamedTuple):
    """What a transform cuts from one image.

    `views` are uint8 or uint16 [C,H,W] or [K,C,H,W] by name, `targets` int64 by name.
    """

    views: dict[str, Tensor]
    targets: dict[str, Tensor]


@dataclass(frozen=True)
class Batch:
    """B images: `views` [B,…] by name, `targets` [B,…] by name, `index` int64 [B] into the data
    set.

    `unreadable` names the images that could not be decoded and were replaced, with the reasons.
    """

    views: dict[str, Tensor]
    targets: dict[str, Tensor]
    index: Tensor
    unreadable: tuple[tuple[str, str], ...] = ()

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on `device`."""

        def move(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}

        index = self.index.to(device, non_blocking=True)
        return replace(self, views=move(self.views), targets=move(self.targets), index=index)


class Pixels(NamedTuple):
    """A decoded image without PIL.

    `values` are uint8 or uint16 [C,h,w]. They may be smaller than `width` × `height`, the upright
    size of the file's image in pixels.
    """

    values: Tensor
    width: int
    height: int

    @classmethod
    def of(cls, image: Image.Image) -> "Pixels":
        """Return the pixels of an RGB image."""
        return cls(torch.from_numpy(np.array(image)).permute(2, 0, 1), *image.size)


class Boxes(NamedTuple):
    """Objects in one image.

    `corners` are float32 [n,4] in pixels (left, top, right, bottom), `labels` int64 [n],
    `difficult` bool [n].
    """

    corners: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray


class ImageSource(ABC):
    """A data set. The order of its images is stable; `names` identify them."""

    opens: ClassVar[dict[str, str]] = {}
    """Paths after `--data` that this data set opens: pattern → the option that gets the path.

    "*.npz" is a file with this ending, "/packed.json" a folder with this file in it, "/" a folder.
    """
    paths: ClassVar[dict[str, tuple[str, ...]]] = {}
    """Further options that hold paths, each with the words that are none. Run folders keep paths
    absolute; options that `opens` names, and those of type Path, need no mention."""
    packs: ClassVar[bool] = False
    """True where `sslkit pack` writes sets of this kind, by a class method `write`."""
    names: Sequence[str]
    """One name per image: a path relative to the root, or a number. Checkpoints keep their hash."""
    labels: np.ndarray | None = None
    """int64 [len], or None without labels."""
    tags: np.ndarray | None = None
    """int8 [len, classes]: 1 present, 0 absent, -1 only difficult objects; or None."""
    boxes: Sequence[Boxes] | None = None
    """The objects of each image, or None."""
    groups: Sequence[str] | None = None
    """The group of each image (a patient, a site), or None. Intervals resample groups."""
    classes: Sequence[str] = ()
    has_val: bool = False
    """True where split "val" holds images of its own; otherwise evaluations split "train"."""
    channels: int = 3
    """C of every image."""
    bits: Literal[8, 16] = 8
    """Bits of every value: 8 (uint8) or 16 (uint16)."""
    reduced_to: int | None = None
    """Short side, px, of images that were larger; None: no image was reduced. Evaluations show the
    same part of an image, whether it was reduced or not."""
    place: str = ""
    """Where the images of this split lie, such as a folder, for messages."""
    notes: Sequence[str] = ()
    """Sentences for the user, such as which files are passed over and how to include them."""
    unlabelled: str = ""
    """Why there are no labels, for messages: "all of them lie in one folder, cat/"."""

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def image(self, index: int) -> Image.Image:
        """Return the decoded RGB image, upright. An exception marks an unreadable image.

        A source of C ≠ 3 channels or 16 bits returns an RGB picture for people to look at.
        """

    def pixels(self, index: int, reduction: Callable[[int, int], float]) -> Pixels:
        """Return the same image as pixels.

        `reduction(width, height)` is the factor by which the sides may be divided, where that
        decodes faster. A source of C ≠ 3 channels or 16 bits overrides this method.
        """
        return Pixels.of(self.image(index))

    def validation(self) -> str:
        """Return where the validation images lie and how many there are, where that is known."""
        return ""
