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
    """The views and targets of one image.

    `views` are uint8 or uint16 [C,H,W] or [K,C,H,W] by name, `targets` int64 by name.
    """

    views: dict[str, Tensor]
    targets: dict[str, Tensor]


@dataclass(frozen=True)
class Batch:
    """The views and targets of B images.

    `views` and `targets` are [B,…] by name, `index` int64 [B] are positions in the data set.
    `unreadable` has names and reasons of images that could not be decoded and were replaced.
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
    """A decoded image as a tensor.

    `values` are uint8 or uint16 [C,h,w]. They may be smaller than `width` × `height`, the size of
    the upright image in the file, px.
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
    """Paths after `--data` that this data set opens: pattern → option for the path.

    "*.npz" is a file with this extension, "/packed.json" a folder with this file, "/" any folder.
    """
    opens_if_named: ClassVar[dict[str, str]] = {}
    """More paths, in the same form, that it opens only for a recipe that names this data set."""
    paths: ClassVar[dict[str, tuple[str, ...]]] = {}
    """Additional options with paths: name → values that are not paths.

    Run folders store paths as absolute. Options in `opens` and `opens_if_named`, and options of
    type Path, are included.
    """
    packs: ClassVar[bool] = False
    """True if `sslkit pack` writes this kind of data set, with a class method `write`."""
    names: Sequence[str]
    """One name per image: a path relative to the root, or a number. Checkpoints store their hash.
    """
    labels: np.ndarray | None = None
    """int64 [len], or None without labels."""
    tags: np.ndarray | None = None
    """int8 [len, classes]: 1 present, 0 absent, -1 only difficult objects; or None."""
    boxes: Sequence[Boxes] | None = None
    """The boxes of each image, or None."""
    groups: Sequence[str] | None = None
    """The group of each image (a patient, a site), or None. Intervals resample groups."""
    classes: Sequence[str] = ()
    has_val: bool = False
    """True if split "val" has separate images; otherwise evaluations split "train"."""
    channels: int = 3
    """C of every image."""
    bits: Literal[8, 16] = 8
    """Bits of every value: 8 (uint8) or 16 (uint16)."""
    reduced_to: int | None = None
    """Short side of images that were reduced, px; None if no image was reduced.

    Evaluations show the same part of an image in both cases.
    """
    place: str = ""
    """Location of the images of this split, such as a folder, for messages."""
    notes: Sequence[str] = ()
    """Sentences for the user, such as which files are skipped and how to include them."""
    unlabelled: str = ""
    """Reason for missing labels, for messages, such as "all of them are in one folder, cat/"."""

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def image(self, index: int) -> Image.Image:
        """Return the decoded, upright RGB image. Any exception marks an unreadable image.

        Data sets of C ≠ 3 channels or 16 bits return an RGB preview.
        """

    def pixels(self, index: int, reduction: Callable[[int, int], float]) -> Pixels:
        """Return the same image as a tensor.

        `reduction(width, height)` is the largest factor by which the sides may be divided for
        faster decoding. Data sets of C ≠ 3 channels or 16 bits override this method.
        """
        return Pixels.of(self.image(index))

    def validation(self) -> str:
        """Return the place and number of the validation images; "" if unknown."""
        return ""
