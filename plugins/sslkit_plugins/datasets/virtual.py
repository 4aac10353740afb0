"""Crops of a few source images as a training set.

Asano, Rupprecht & Vedaldi 2020, "A critical analysis of self-supervision, or what we can learn from
a single image", arXiv:1904.13132, section 3.1. Official code: `make_dataset_single.py` of
github.com/yukimasano/single_img_pretraining. Letters: N source images, W×H pixels of one of them.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from PIL import Image
from pydantic import Field, NonNegativeInt, PositiveInt
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from sslkit.errors import DataError, Fault, RecipeError
from sslkit.interfaces import ImageSource, Pixels
from sslkit_plugins.datasets.decoding import MAX_PIXELS, MaxPixels, decode
from sslkit_plugins.datasets.folder import ImageFolder
from sslkit_plugins.datasets.shapes import CLASSES, Shapes, draw
from sslkit_plugins.views.colours import Chance, Hue, Strength

CACHED = 8
"""Number of decoded source images that stay in memory."""

TILES, TILE = 6, 160
"""Tiles per side of the drawn source image, and their side, px."""

Degrees = Annotated[float, Field(ge=0, le=180)]


@dataclass(frozen=True, kw_only=True)
class Distortion:
    """How a crop is cut from its source image and distorted, in this order.

    `paper` has the numbers of the paper, section 3.1. `released` has the defaults of the official
    generator, which leaves flips to the training method.
    """

    first_crop: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="Side of a random square that is cut first, as a fraction of the shorter "
            "side. 0: none. paper: 0; released: 0.5.",
        ),
    ] = 0.0
    min_area: Annotated[
        float,
        Field(
            gt=0,
            le=1,
            description="Smallest area of a crop, as a fraction of the image. paper: 1e-4 (β); "
            "released: 0.002.",
        ),
    ] = 1.0e-4
    aspect: Annotated[
        float,
        Field(
            gt=0,
            le=1,
            description="Smallest ratio of a crop's shorter side to its longer side. paper: 0.75 "
            "(γ).",
        ),
    ] = 0.75
    rotation: Annotated[
        Degrees,
        Field(description="Largest rotation to either side, degrees. paper: 35; released: 30."),
    ] = 35.0
    shear: Annotated[
        Degrees,
        Field(
            description="Largest horizontal shear to either side, degrees. It leaves black "
            "corners. paper: 0; released: 30."
        ),
    ] = 0.0
    flip: Annotated[
        Chance, Field(description="Probability of a horizontal flip. paper: 0.5; released: 0.")
    ] = 0.5
    vertical_flip: Annotated[
        Chance, Field(description="Probability of a vertical flip, usually 0.")
    ] = 0.0
    jitter: Annotated[
        tuple[Strength, Strength, Strength, Hue],
        Field(
            description="Largest change of brightness, contrast, saturation and hue, in random "
            "order. released: 0.4, 0.4, 0.4, 0.1."
        ),
    ] = (0.4, 0.4, 0.4, 0.1)
    jitter_chance: Annotated[
        Chance, Field(description="Probability of the jitter. released: 0.5.")
    ] = 0.5

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {},
        "released": {
            "first_crop": 0.5,
            "min_area": 0.002,
            "rotation": 30.0,
            "shear": 30.0,
            "flip": 0.0,
        },
    }


class Virtual(ImageSource):
    """Distorted crops of one image or of a few; index and seed determine every crop.

    `root` is an image, or a folder whose training images are the sources. null draws one image, a
    collage of the objects of `shapes`. Crops take turns among the sources, and have no labels.

    Evaluations read the un-distorted images of the folder with their classes, as `image_folder`
    does. With `root: null` they read the images of `shapes`.
    """

    opens_if_named: ClassVar[dict[str, str]] = {
        "/": "root",
        "*.jpg": "root",
        "*.jpeg": "root",
        "*.png": "root",
        "*.webp": "root",
        "*.tif": "root",
        "*.tiff": "root",
        "*.bmp": "root",
    }

    def __init__(
        self,
        split: str,
        /,
        *,
        root: Annotated[
            str | None,
            Field(description="An image, or a folder of images. null: a drawn image."),
        ] = None,
        sources: Annotated[
            PositiveInt | None,
            Field(
                description="Number of source images N, the first of the folder. Paper: 1, 10 or "
                "1,000. null: all."
            ),
        ] = None,
        crops: Annotated[
            PositiveInt,
            Field(description="Number of crops, the size of the training set. Paper: 1,281,167."),
        ] = 1_281_167,
        side: Annotated[
            PositiveInt, Field(description="Side of the square crops, px. Official code: 256.")
        ] = 256,
        distortion: Annotated[
            Literal["paper", "released"] | Distortion,
            Field(description="How crops are cut and distorted: a preset or its options."),
        ] = "paper",
        seed: Annotated[NonNegativeInt, Field(description="Seed that determines every crop.")] = 0,
        max_pixels: MaxPixels = MAX_PIXELS,
    ) -> None:
        self.max_pixels, self.side, self.seed = max_pixels, side, seed
        if isinstance(distortion, str):
            distortion = Distortion(**Distortion.presets[distortion])
        self.distortion = distortion
        self._decoded: dict[int, Image.Image] = {}
        self._images = self._opened(split, root)
        self.training = split == "pretrain"
        if not self.training:
            self._evaluate()
            return
        names = self._source_names(root)
        if sources is not None and sources > len(names):
            place = root or "the drawn picture"
            message = f"is {sources}, but {place} has only {len(names)}; use a smaller number"
            raise RecipeError(Fault("data.sources", message))
        self.source_names = names[:sources]
        count = len(self.source_names)
        self.names = [f"{self.source_names[crop % count]}/{crop}" for crop in range(crops)]
        many = "one image" if count == 1 else f"{count:,} images"
        self.place = f"crops of {many}: {root or 'a drawn collage of shapes'}"
        self.unlabelled = "crops have no classes"

    def _opened(self, split: str, root: str | None) -> ImageSource | None:
        """Return the images of a folder, or of `shapes` for evaluations; None for one image."""
        if root is None:
            return None if split == "pretrain" else Shapes(split)
        path = os.path.expanduser(root)
        if os.path.isdir(path):
            return ImageFolder(split, root=root, max_pixels=self.max_pixels)
        if not os.path.isfile(path):
            raise DataError(
                f"the source image {root} does not exist; name an image or a folder of images: "
                "--data PATH"
            )
        if split != "pretrain":
            raise DataError(
                f"{root} is a single image without class, but evaluations need labelled images: "
                "name a folder with one folder per class: --data DIR"
            )
        try:
            image = decode(Path(path), self.max_pixels)
        except Exception as error:
            raise DataError(
                f"the source image {root} cannot be read: {error}; name an image or a folder of "
                "images: --data PATH"
            ) from error
        patch_box(image.width, image.height, self.distortion, np.random.default_rng(0))
        self._decoded[0] = image
        return None

    def _evaluate(self) -> None:
        """Take names, labels and classes from the images of an evaluation."""
        images = self._images
        assert images is not None
        self.names, self.labels, self.classes = images.names, images.labels, images.classes
        self.has_val, self.place, self.notes = images.has_val, images.place, images.notes
        self.unlabelled = images.unlabelled

    def _source_names(self, root: str | None) -> list[str]:
        if self._images is not None:
            self.notes = self._images.notes
            return [str(name) for name in self._images.names]
        return ["collage" if root is None else Path(root).name]

    def image(self, index: int) -> Image.Image:
        """Return a crop of `side`×`side`; in evaluations, an image as it is."""
        if not self.training:
            assert self._images is not None
            return self._images.image(index)
        rng = np.random.default_rng((self.seed, index))
        source = self.source(index % len(self.source_names))
        return distorted(source, self.side, self.distortion, rng)

    def pixels(self, index: int, reduction: Callable[[int, int], float]) -> Pixels:
        """Return the same image as a tensor."""
        if self.training:
            return Pixels.of(self.image(index))
        assert self._images is not None
        return self._images.pixels(index, reduction)

    def source(self, number: int) -> Image.Image:
        """Return a source image, and keep it in memory."""
        if number not in self._decoded:
            if len(self._decoded) >= CACHED:
                self._decoded.clear()
            found = collage() if self._images is None else self._images.image(number)
            self._decoded[number] = found
        return self._decoded[number]


def collage() -> Image.Image:
    """Draw objects of all classes of `shapes` side by side: RGB, 960×960."""
    rng = np.random.default_rng(0)
    rows = []
    for row in range(TILES):
        labels = [(row * TILES + column) % len(CLASSES) for column in range(TILES)]
        rows.append(np.concatenate([draw(label, TILE, rng) for label in labels], 1))
    return Image.fromarray(np.concatenate(rows, 0))


def largest_area(width: int, height: int, aspect: float) -> int:
    """Return the area of the largest crop with this aspect that fits into W×H, px."""
    short, long = sorted((width, height))
    return short * min(long, int(short / aspect))


def patch_box(
    width: int, height: int, options: Distortion, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draw the box of a crop, inside the image: left, top, right, bottom, px.

    Area and logarithm of the aspect ratio are uniform. Boxes that break a bound after rounding are
    drawn again. Raises DataError if no box is large enough.
    """
    smallest, largest = (
        options.min_area * width * height,
        largest_area(width, height, options.aspect),
    )
    if largest < smallest:
        raise DataError(
            f"an image of {width}×{height} has no crop with an area of {options.min_area:g} of it "
            f"and an aspect of {options.aspect:g}; use a smaller data.distortion.min_area"
        )
    while True:
        pixels = rng.uniform(smallest, largest)
        ratio = math.exp(rng.uniform(math.log(options.aspect), -math.log(options.aspect)))
        w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        fits = 0 < w <= width and 0 < h <= height and w * h >= smallest
        if fits and min(w, h) >= options.aspect * max(w, h):
            left = int(rng.integers(width - w + 1))
            top = int(rng.integers(height - h + 1))
            return left, top, left + w, top + h


def distorted(
    image: Image.Image, side: int, options: Distortion, rng: np.random.Generator
) -> Image.Image:
    """Cut, rotate, shear, flip and colour one crop: RGB of `side`×`side`.

    The crop is resized to √2 · `side` before the rotation. So the central square has no black
    corner: cos 35° + sin 35° < √2.
    """
    left, top, width, height = 0, 0, image.width, image.height
    if options.first_crop > 0:
        square = max(1, int(options.first_crop * min(width, height)))
        left, top = int(rng.integers(width - square + 1)), int(rng.integers(height - square + 1))
        width = height = square
    x0, y0, x1, y1 = patch_box(width, height, options, rng)
    box = (left + x0, top + y0, left + x1, top + y1)
    large = math.ceil(math.sqrt(2) * side)
    crop = image.resize((large, large), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0)
    angle = rng.uniform(-options.rotation, options.rotation)
    shear = rng.uniform(-options.shear, options.shear)
    crop = F.affine(
        crop, angle, [0, 0], 1.0, [shear, 0.0], interpolation=InterpolationMode.BILINEAR
    )
    crop = F.center_crop(crop, [side, side])
    if rng.random() < options.flip:
        crop = F.hflip(crop)
    if rng.random() < options.vertical_flip:
        crop = F.vflip(crop)
    return _jittered(crop, options.jitter, rng) if rng.random() < options.jitter_chance else crop


def _jittered(
    image: Image.Image, strengths: tuple[float, ...], rng: np.random.Generator
) -> Image.Image:
    """Change brightness, contrast, saturation and hue in random order."""
    factors = rng.uniform(-1, 1, 4) * strengths
    for number in rng.permutation(4):
        if number == 3:
            image = F.adjust_hue(image, factors[3])
        else:
            adjust = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)[number]
            image = adjust(image, 1 + factors[number])
    return image
