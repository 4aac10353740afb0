"""Decodes image files to pixels."""

import contextlib
import importlib
import io
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, BinaryIO

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin, UnidentifiedImageError, features
from PIL.ImageFile import ImageFile
from pydantic import Field
from torch import Tensor

from sslkit.errors import DataError
from sslkit.interfaces import Pixels

MAX_PIXELS = 89_478_485
"""Default of the largest image to decode, pixels: 256 MiB of RGB, as in Pillow."""

MaxPixels = Annotated[
    int,
    Field(
        ge=1,
        description="Largest image to decode, pixels. Larger ones count as unreadable.",
    ),
]

PLUGINS = {
    "AVIF": ("Avif", ".avif .avifs"),
    "BMP": ("Bmp", ".bmp"),
    "GIF": ("Gif", ".gif"),
    "JPEG": ("Jpeg", ".jpg .jpeg .jpe .jfif .mpo"),
    "JPEG2000": ("Jpeg2K", ".jp2 .j2k .j2c .jpc .jpf .jpx"),
    "PNG": ("Png", ".png .apng"),
    "PPM": ("Ppm", ".ppm .pgm .pbm .pnm"),
    "TIFF": ("Tiff", ".tif .tiff"),
    "WEBP": ("WebP", ".webp"),
}
"""Pillow's plugins for photographs and their file extensions, by format.

The list is short because a hostile file can reach every decoder in it. EPS starts Ghostscript, and
WMF needs Windows. TGA has no signature, so it would read damaged files of other formats. FITS,
GRIB, HDF5 and MPEG only parse the header. Layers (PSD), icons, textures, films and old formats
(ICO, DDS, FLI, PCX) are not photographs.
"""

FEATURES = {"AVIF": "avif", "JPEG": "jpg", "JPEG2000": "jpg_2000", "WEBP": "webp"}
"""Optional libraries of Pillow, by format."""


def _installed() -> tuple[str, ...]:
    """Return the formats of `PLUGINS` that the installed Pillow reads."""
    found = []
    for name, (plugin, _) in PLUGINS.items():
        with contextlib.suppress(ImportError, ValueError):
            importlib.import_module(f"PIL.{plugin}ImagePlugin")
            if name not in FEATURES or features.check(FEATURES[name]):
                found.append(name)
    return tuple(found)


FORMATS = _installed()
"""Formats that a file may have, whatever its extension."""

ENDINGS = frozenset(" ".join(PLUGINS[name][1] for name in FORMATS).split())
"""Extensions of the files that count as images."""


def _faster_decoders() -> dict[str, Callable[[Tensor], Tensor]]:
    """Return decoders by format, uint8 [bytes] → [3,H,W], faster than Pillow with equal values.

    They come from TorchCodec, else from torchvision, its predecessor. Both raise RuntimeError on a
    damaged file.
    """
    for library in ("torchcodec.decoders", "torchvision.io"):
        with contextlib.suppress(ImportError, AttributeError, RuntimeError, OSError):
            module = importlib.import_module(library)
            mode = module.ImageReadMode.RGB
            return {
                "JPEG": partial(module.decode_jpeg, mode=mode),
                "WEBP": partial(module.decode_webp, mode=mode),
            }
    return {}


FASTER = _faster_decoders()


def decode(file: Path | io.BytesIO, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return the first frame, upright, as RGB, with transparency composited on white.

    Integers of 16 and 32 bits are read as 16 bits and divided by 257. Floating-point pixels range
    from 0 to 1, or to 255 if any exceeds 1. Pillow's errors for damaged files propagate; its
    warnings, such as those about metadata, are ignored. Raises DataError for a file in none of
    `FORMATS`, for other bands (`BANDS`), and for more than `max_pixels` pixels.
    """
    with _opened(file, max_pixels) as opened:
        return _shown(opened)


def decode_pixels(
    file: Path | io.BytesIO,
    reduction: Callable[[int, int], float],
    max_pixels: int = MAX_PIXELS,
) -> Pixels:
    """Return the pixels that `decode` returns, faster.

    Upright RGB images in JPEG, or in WebP without animation, use the decoders in `FASTER`. If
    `reduction(width, height)` is at least 2, Pillow decodes JPEG at 1/2, 1/4 or 1/8 of its size.
    """
    stream = io.BytesIO(file.read_bytes()) if isinstance(file, Path) else file
    with _opened(stream, max_pixels) as opened:
        orientation = opened.getexif().get(ExifTags.Base.Orientation, 1)
        width, height = opened.size
        if orientation in (5, 6, 7, 8):
            width, height = height, width
        allowed = max(1, reduction(width, height))
        divisor = max(divisor for divisor in (1, 2, 4, 8) if divisor <= allowed)
        if divisor > 1 and opened.format == "JPEG":
            opened.draft(None, (opened.width // divisor, opened.height // divisor))
        elif (
            opened.format in FASTER
            and opened.mode == "RGB"
            and orientation == 1
            and not getattr(opened, "is_animated", False)
        ):
            with contextlib.suppress(RuntimeError):  # Pillow then reports the error.
                data = torch.frombuffer(stream.getbuffer(), dtype=torch.uint8)
                return Pixels(FASTER[opened.format](data), width, height)
        return Pixels(Pixels.of(_shown(opened)).values, width, height)


@contextlib.contextmanager
def _opened(file: Path | io.BytesIO, max_pixels: int) -> Iterator[ImageFile]:
    """Open an image with Pillow's pixel limit set to `max_pixels`."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        stream = stack.enter_context(file.open("rb")) if isinstance(file, Path) else file
        if (bands := odd_bands(stream)) is not None:
            raise DataError(f"has {bands} bands; {BANDS}")
        stack.callback(setattr, Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
        Image.MAX_IMAGE_PIXELS = None
        try:
            opened = stack.enter_context(Image.open(stream, formats=FORMATS))
        except UnidentifiedImageError:
            raise DataError(_unidentified(stream)) from None
        count = opened.width * opened.height
        if count > max_pixels:
            raise DataError(
                f"has {count:,} pixels ({opened.width} × {opened.height}), more than "
                f"data.max_pixels = {max_pixels:,}; to read it: --set data.max_pixels={count}"
            )
        Image.MAX_IMAGE_PIXELS = max_pixels
        yield opened


def _unidentified(stream: BinaryIO) -> str:
    """Describe a file that has none of `FORMATS`."""
    stream.seek(0)
    head = stream.read(32)
    if not head:
        return "is empty"
    if head[4:8] == b"ftyp" and head[8:11] in (b"hei", b"hev", b"mif", b"msf"):
        return "is HEIC, whatever its extension; convert it to JPEG or PNG"
    if head.lstrip()[:5].lower() in (b"<html", b"<!doc"):
        return "is a web page"
    return "is damaged, or not an image in a supported format"


BANDS = (
    "files may have 1, 3 or 4 bands (gray, RGB, RGBA or CMYK); convert it, or store all images in "
    "an array for the data set npz"
)
"""The rest of the error message about other numbers of bands."""


def odd_bands(stream: BinaryIO) -> int | None:
    """Return the number of bands of a TIFF file that is neither gray, RGB, RGBA nor CMYK.

    Returns None for all other files, including gray with transparency. Pillow reads three of five
    bands without a warning.
    """
    header = stream.read(16)
    stream.seek(0)
    if header[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return None
    bands, extra = 1, ()
    with contextlib.suppress(Exception):  # Pillow reports the error later.
        is_big = b"+" in header[:4]
        tags = TiffImagePlugin.ImageFileDirectory_v2(header if is_big else header[:8])
        stream.seek(tags.next)
        tags.load(stream)
        bands = tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1)
        extra = tags.get(TiffImagePlugin.EXTRASAMPLES, ())
    stream.seek(0)
    is_transparent = bands == 2 and extra in ((1,), (2,))
    return None if bands in (1, 3, 4) or is_transparent else bands


def _shown(opened: ImageFile) -> Image.Image:
    """Return an opened image upright as RGB."""
    opened.load()
    image: Image.Image = opened
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
    elif image.mode == "F":
        values = np.nan_to_num(np.asarray(image))
        scale = 255 if values.max() <= 1 else 1
        image = Image.fromarray((values * scale).clip(0, 255).round().astype(np.uint8))
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        solid = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", solid.size, "white"), solid).convert("RGB")
    return image.convert("RGB")
