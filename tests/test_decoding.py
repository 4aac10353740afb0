"""Decoding: every mode and format to the right colours, upright, smaller where less is needed."""

import io
import re
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from sslkit.data.loader import Loader
from sslkit.errors import DataError
from sslkit_plugins.datasets import (
    ImageFolder,
    decode,
    decode_pixels,
    decoding,
)
from sslkit_plugins.methods.pirl import Jigsaw, Rotation
from sslkit_plugins.views import Augment


def coded(image: Image.Image, file_format: str, **options) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    file.seek(0)
    return file


# --- images

RED, WHITE = (255, 0, 0), (255, 255, 255)


@pytest.mark.parametrize(
    ("image", "file_format", "expected"),
    [
        (Image.new("RGB", (4, 4), RED), "PNG", RED),
        (Image.new("L", (4, 4), 100), "PNG", (100, 100, 100)),
        (Image.new("1", (4, 4), 1), "PNG", WHITE),
        (Image.new("LA", (4, 4), (100, 255)), "PNG", (100, 100, 100)),
        (Image.new("LA", (4, 4), (0, 0)), "PNG", WHITE),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 255)), "PNG", RED),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 0)), "WEBP", WHITE),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 51)), "PNG", (255, 204, 204)),
        (Image.new("P", (4, 4), RED), "GIF", RED),
        (Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "TIFF", RED),
        (Image.new("I;16", (4, 4), 100 * 257), "PNG", (100, 100, 100)),
        (Image.new("I;16", (4, 4), 200), "PNG", (1, 1, 1)),
        (Image.new("I;16", (4, 4), 65535), "TIFF", WHITE),
        (Image.new("I;16B", (4, 4), 100 * 257), "TIFF", (100, 100, 100)),
        (Image.new("I;16", (4, 4), 100 * 257), "PPM", (100, 100, 100)),
        (Image.new("I", (4, 4), 100 * 257), "TIFF", (100, 100, 100)),
        (Image.new("I", (4, 4), -5), "TIFF", (0, 0, 0)),
        (Image.new("F", (4, 4), 0.4), "TIFF", (102, 102, 102)),
        (Image.new("F", (4, 4), 102.0), "TIFF", (102, 102, 102)),
        (Image.new("F", (4, 4), float("nan")), "TIFF", (0, 0, 0)),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else str(value),
)
def test_modes(image, file_format, expected):
    shown = decode(coded(image, file_format))
    assert shown.mode == "RGB" and shown.size == (4, 4) and shown.getpixel((1, 1)) == expected


def test_cmyk_jpeg():
    assert decode(coded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG")).getpixel(
        (8, 8)
    ) == pytest.approx(RED, abs=4)


@pytest.mark.parametrize("transparency", [0, bytes([0, 255]), bytes([255, 255])])
def test_palette_with_transparency(transparency):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    shown = decode(coded(image, "PNG", transparency=transparency))
    first = RED if transparency == bytes([255, 255]) else WHITE
    assert [shown.getpixel((x, 0)) for x in (0, 1)] == [first, (0, 0, 255)]


@pytest.mark.parametrize(
    ("mode", "key", "other"), [("RGB", (255, 0, 0), (0, 0, 255)), ("L", 7, 90)]
)
def test_one_colour_that_is_transparent(mode, key, other):
    image = Image.new(mode, (2, 1), key)
    image.putpixel((1, 0), other)
    shown = decode(coded(image, "PNG", transparency=key))
    assert shown.getpixel((0, 0)) == WHITE
    assert shown.getpixel((1, 0)) == (other if isinstance(other, tuple) else (other,) * 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_exif_orientation_is_set_upright(orientation, file_format):
    """Quarters red, green / blue, white; how a camera would have stored them, from the definition
    of tag 0x0112.
    """
    upright = Image.new("RGB", (48, 32), "white")
    for colour, box in {
        "red": (0, 0, 24, 16),
        "lime": (24, 0, 48, 16),
        "blue": (0, 16, 24, 32),
    }.items():
        upright.paste(colour, box)
    way = Image.Transpose
    stored = {
        1: None,
        2: way.FLIP_LEFT_RIGHT,
        3: way.ROTATE_180,
        4: way.FLIP_TOP_BOTTOM,
        5: way.TRANSPOSE,
        6: way.ROTATE_90,
        7: way.TRANSVERSE,
        8: way.ROTATE_270,
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    shown = decode(
        coded(upright if stored is None else upright.transpose(stored), file_format, exif=exif)
    )
    assert shown.size == (48, 32)
    assert np.abs(np.asarray(shown, int) - np.asarray(upright, int)).mean() < 6


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0garbage",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3",
    ],
)
def test_broken_exif_is_no_fault_of_the_picture(exif):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(coded(Image.new("RGB", (8, 4)), "JPEG", exif=exif)).size == (8, 4)


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_a_moving_picture_the_first_frame(file_format):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    file = coded(frames[0], file_format, save_all=True, append_images=frames[1:])
    assert decode(file).getpixel((4, 4)) == pytest.approx(RED, abs=4)
    assert np.array_equal(decode_pixels(file, whole).values.permute(1, 2, 0), decode(file))


@pytest.mark.parametrize("file_format", decoding.FORMATS)
def test_a_file_that_is_cut_off_raises(file_format):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    whole = coded(noise, file_format).getvalue()
    with pytest.raises((OSError, SyntaxError, ValueError, DataError)):
        decode(io.BytesIO(whole[: len(whole) // 2]))


@pytest.mark.parametrize(
    "content, told",
    [
        (b"", "is empty"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "is HEIC, whatever its extension; convert it to"),
        (b"\n<!DOCTYPE html>", "is a web page"),
        (b"%PDF-1.4", "is damaged, or not an image in a supported format"),
    ],
)
def test_what_is_no_image_is_named(content, told):
    with pytest.raises(DataError, match=f"^{re.escape(told)}"):
        decode(io.BytesIO(content))


@pytest.mark.parametrize("limit", [10, 24])
def test_more_pixels_than_allowed(limit):
    file = coded(Image.new("RGB", (5, 5)), "PNG")
    told = rf"^has 25 pixels \(5 × 5\), more than data\.max_pixels = {limit}; to read it: "
    for reading in (decode, lambda file, most: decode_pixels(file, whole, most)):
        with pytest.raises(DataError, match=rf"{told}--set data\.max_pixels=25$"):
            reading(file, limit)
        reading(file, 25)


def test_more_pixels_than_pillow_allows(monkeypatch):
    """Pillow's own limit stays as it is, and does not count."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert decode(coded(Image.new("RGB", (5, 5)), "PNG")).size == (5, 5)
    assert Image.MAX_IMAGE_PIXELS == 10


# --- pixels


def picture(width: int, height: int) -> Image.Image:
    """Soft colours: what JPEG stores well, so that a reduced one can be compared."""
    noise = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def whole(width: int, height: int) -> float:
    return 1


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "P", "RGBA", "1"])
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_pixels_are_those_of_the_image(mode, file_format):
    if (file_format, mode) in {("JPEG", "P"), ("JPEG", "RGBA"), ("JPEG", "1"), ("PNG", "CMYK")}:
        pytest.skip("the format has no such mode")
    stored = picture(37, 21).convert("RGB" if (file_format, mode) == ("WEBP", "CMYK") else mode)
    file = coded(stored, file_format)
    values, width, height = decode_pixels(file, whole)
    assert (width, height) == (37, 21) and values.dtype == torch.uint8
    assert np.array_equal(values.permute(1, 2, 0), decode(file))


def test_pixels_need_no_other_decoder_than_pillow(monkeypatch):
    file = coded(picture(37, 21), "JPEG")
    assert set(decoding.FASTER) == {"JPEG", "WEBP"}
    faster = decode_pixels(file, whole)
    monkeypatch.setattr(decoding, "FASTER", {})
    assert torch.equal(decode_pixels(file, whole).values, faster.values)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("reduction", [1, 2])
def test_pixels_are_upright(orientation, reduction):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = coded(picture(320, 160), "JPEG", exif=exif)
    asked = []
    values, width, height = decode_pixels(file, lambda *size: asked.append(size) or reduction)
    shown = decode(file)
    assert (width, height) == shown.size and asked == [shown.size]
    assert values.shape == (3, height // reduction, width // reduction)
    assert (
        np.abs(
            values.permute(1, 2, 0).numpy().astype(int) - np.asarray(shown.reduce(reduction), int)
        ).mean()
        < 3
    )


@pytest.mark.parametrize(
    ("reduction", "divisor"), [(0.3, 1), (1.9, 1), (2, 2), (3.9, 2), (5, 4), (100, 8)]
)
def test_jpeg_is_decoded_smaller_but_never_too_small(reduction, divisor):
    file = coded(picture(403, 301), "JPEG")
    values, width, height = decode_pixels(file, lambda width, height: reduction)
    assert (width, height) == (403, 301) and values.shape == (
        3,
        -(-301 // divisor),
        -(-403 // divisor),
    )
    assert decode_pixels(
        coded(picture(403, 301), "PNG"), lambda width, height: reduction
    ).values.shape == (3, 301, 403)


@pytest.mark.parametrize("cut", [0.5, 0.98])
@pytest.mark.parametrize("reduction", [1, 2])
@pytest.mark.parametrize("file_format", ["JPEG", "WEBP"])
def test_pixels_of_a_file_that_is_cut_off_raise(file_format, cut, reduction):
    """What Pillow says, whatever decodes."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    file = coded(noise, file_format).getvalue()
    file = file[: int(cut * len(file))]
    with pytest.raises(OSError) as theirs:
        decode(io.BytesIO(file))
    with pytest.raises(OSError, match=re.escape(str(theirs.value).partition("(")[0])):
        decode_pixels(io.BytesIO(file), lambda width, height: reduction)


def test_pixels_of_broken_exif():
    assert (
        decode_pixels(
            coded(picture(8, 8), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff"), whole
        ).width
        == 8
    )


@pytest.mark.parametrize(
    "transform",
    [Jigsaw(size=48, resize=51, patch=12), Augment(size=32), Rotation(size=32)],
    ids=["jigsaw", "augment", "rotation"],
)
def test_views_of_reduced_images_are_the_same_and_none_is_enlarged(tmp_path, transform):
    """A large photo: where its crops are large, it is decoded smaller, and the views show the
    same.
    """
    picture(640, 480).save(tmp_path / "photo.jpg", quality=95)
    source, reduced = ImageFolder("pretrain", root=str(tmp_path)), 0
    for seed in range(40):
        pixels = transform.fetch(source, 0, np.random.default_rng(seed))
        divisor = round(640 / pixels.values.shape[2])
        boxes = transform.boxes(640, 480, np.random.default_rng(seed))
        for (left, top, right, bottom), cut in zip(boxes, transform.crops, strict=True):
            assert divisor == 1 or min(right - left, bottom - top) >= divisor * cut.size
        sample = transform(pixels, np.random.default_rng(seed))
        other = transform(source.image(0), np.random.default_rng(seed))
        for name, view in sample.views.items():
            assert (view.float() - other.views[name].float()).abs().mean() < 3
        reduced += divisor > 1
    assert reduced > 10


def test_batches_of_reduced_images_do_not_depend_on_workers(tmp_path):
    for number in range(4):
        picture(320 + number, 240).save(tmp_path / f"{number}.jpg")
    source = ImageFolder("pretrain", root=str(tmp_path))
    runs = [
        list(Loader(source, Augment(size=32), batch_size=2, seed=0, workers=workers).batches(0, 4))
        for workers in (0, 2)
    ]
    for first, second in zip(*runs, strict=True):
        assert torch.equal(first.views["image"], second.views["image"]) and torch.equal(
            first.index, second.index
        )
