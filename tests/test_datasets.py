"""Data sets: folders as people have them, every mode decoded to the right colours, arrays, the
customary sets, shapes.
"""

import io
import os
import pickle
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from sslkit.data.loader import Loader
from sslkit.errors import DataError
from sslkit_plugins.datasets import (
    Cifar10,
    Cifar100,
    ImageFolder,
    ImageNet,
    Npz,
    Stl10,
    decode,
    decode_pixels,
    decoding,
)
from sslkit_plugins.datasets.shapes import CLASSES, Shapes
from sslkit_plugins.methods.pirl import Jigsaw, Rotation
from sslkit_plugins.views import Augment

CIFAR_JPEG = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10_jpeg"


def lay(root: Path, *names: str) -> Path:
    """Small images of these names below `root`, red at the left and blue at the right; a name that
    is no image's gets text.
    """
    for name in names:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix.lower() in Image.registered_extensions():
            picture = Image.new("RGB", (8, 4), "red")
            picture.paste("blue", (4, 0, 8, 4))
            picture.save(file)
        else:
            file.write_text("no image")
    return root


def coded(image: Image.Image, file_format: str, **options) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    file.seek(0)
    return file


# --- folders


def test_class_folders_as_in_torchvision(tmp_path):
    root = lay(
        tmp_path, "dog/b.png", "dog/deep/er/a.JPG", "cat/z.webp", "cat/notes.txt", "bird/x.tiff"
    )
    made = ImageFolder("train", root=str(root))
    reference = torchvision.datasets.ImageFolder(str(root))
    assert made.names == ["bird/x.tiff", "cat/z.webp", "dog/b.png", "dog/deep/er/a.JPG"]
    assert made.classes == reference.classes == ["bird", "cat", "dog"]
    assert made.labels is not None and made.labels.dtype == np.int64
    by_name = {Path(path).relative_to(root).as_posix(): label for path, label in reference.samples}
    assert dict(zip(made.names, made.labels.tolist(), strict=True)) == by_name
    assert len(made) == 4 and not made.has_val
    assert made.image(2).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    "names",
    [("a.png", "b.png"), ("one/a.png", "one/b.png"), ("a.png", "x/b.png", "y/c.png")],
    ids=["no_folder", "one_class", "image_beside_folders"],
)
def test_no_labels_where_none_are_known(tmp_path, names):
    made = ImageFolder("pretrain", root=str(lay(tmp_path, *names)))
    assert made.names == sorted(names) and made.labels is None and list(made.classes) == []


def test_home_is_understood(tmp_path, monkeypatch):
    lay(tmp_path / "photos", "a.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(ImageFolder("train", root="~/photos")) == 1


def test_nothing_there(tmp_path):
    with pytest.raises(DataError, match=r"nowhere does not exist; .*--data DIR$"):
        ImageFolder("train", root=str(tmp_path / "nowhere"))
    lay(tmp_path, "a.png", "full/b.txt", "full/c.TXT", "full/LICENSE")
    with pytest.raises(DataError, match=r"a\.png is a file"):
        ImageFolder("train", root=str(tmp_path / "a.png"))
    with pytest.raises(
        DataError,
        match=r"no image below .*full: \.txt × 2, without extension × 1; files that end in "
        r"\.apng, ",
    ):
        ImageFolder("train", root=str(tmp_path / "full"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no image below .*empty, and nothing else; "):
        ImageFolder("train", root=str(tmp_path / "empty"))


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read(tmp_path):
    lay(tmp_path, "a/1.png", "b/2.png")
    (tmp_path / "b").chmod(0)
    with pytest.raises(DataError, match=r"b cannot be read \(Permission denied\)"):
        ImageFolder("train", root=str(tmp_path))


def test_bytes_that_are_no_text_in_a_name(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    try:
        lay(tmp_path, f"{name}/1.png", "tea/2.png")
    except OSError:
        pytest.skip("this file system wants UTF-8")
    made = ImageFolder("train", root=str(tmp_path))
    assert made.classes == [name, "tea"] and made.image(0).size == (8, 4)


# --- decoding

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


# --- arrays


def pack(file: Path, **arrays) -> str:
    np.savez(file, **arrays)
    return str(file)


def pixels(count: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)


def test_npz(tmp_path):
    images = pixels(6, 5, 4, 3)
    made = Npz(
        "pretrain",
        file=pack(tmp_path / "a.npz", images=images, labels=np.array([0, 1, 2, 0, 1, 2], np.uint8)),
    )
    assert made.names[:2] == ["train/0", "train/1"] and len(made) == 6 and not made.has_val
    assert np.array_equal(made.image(3), images[3])
    assert (
        made.labels is not None
        and made.labels.dtype == np.int64
        and made.labels.tolist() == [0, 1, 2] * 2
    )
    assert made.classes == ["0", "1", "2"]
    with pytest.raises(DataError, match=r"has no array images_val, and data\.val_file is not set"):
        Npz("val", file=str(tmp_path / "a.npz"))


def test_npz_of_gray_images_without_labels(tmp_path):
    images = pixels(2, 5, 4)
    made = Npz("train", file=pack(tmp_path / "a.npz", images=images))
    assert (
        made.labels is None
        and made.image(1).mode == "RGB"
        and np.array_equal(np.asarray(made.image(1))[..., 2], images[1])
    )


def test_npz_with_validation_arrays(tmp_path):
    arrays = {
        "images": pixels(4, 4, 4, 3),
        "images_val": pixels(2, 4, 4, 3)[::-1],
        "labels": [0, 1, 2, 1],
        "labels_val": [1, 0],
    }
    file = pack(tmp_path / "a.npz", **arrays)
    train, val = Npz("train", file=file), Npz("val", file=file)
    assert train.has_val and val.labels is not None and val.labels.tolist() == [1, 0]
    assert train.classes == val.classes == ["0", "1", "2"], "the classes are those of both halves"
    assert np.array_equal(val.image(0), arrays["images_val"][0])


def test_npz_of_files(tmp_path):
    files = [
        coded(Image.new("RGB", (8, 8), colour), "PNG").getvalue()
        for colour in ("red", "blue", "lime")
    ]
    arrays = {
        "jpeg": np.frombuffer(b"".join(files), np.uint8),
        "offset": np.cumsum([0, *map(len, files)]),
        "label": np.array([1, 0, 1], np.uint8),
        "classes": np.array(["warm", "cold"]),
    }
    file = pack(tmp_path / "a.npz", **arrays)
    val_file = pack(
        tmp_path / "b.npz", jpeg=arrays["jpeg"], offset=arrays["offset"], label=np.array([0, 0, 0])
    )
    train, val = (
        Npz("train", file=file, val_file=val_file),
        Npz("val", file=file, val_file=val_file),
    )
    assert train.has_val and train.classes == val.classes == ["warm", "cold"]
    assert train.image(2).getpixel((0, 0)) == (0, 255, 0)
    assert val.names == ["val/0", "val/1", "val/2"]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros(3)}, r"holds x, but neither 'images' nor 'jpeg' and 'offset'"),
        (
            {"images": np.zeros((2, 4, 4, 3))},
            r"must be uint8 or uint16 \[N,H,W,C\] or \[N,H,W\]; they are float64 \[2, 4, 4, 3\]",
        ),
        ({"images": np.zeros((2, 3, 4, 4), np.uint8)}, r"they are uint8 \[2, 3, 4, 4\]"),
        ({"images": np.zeros((0, 4, 4, 3), np.uint8)}, r"they are uint8 \[0, 4, 4, 3\]"),
        (
            {"images": pixels(2, 4, 4), "labels": [0]},
            r"must be 2 integers ≥ 0, one per image; they are int64 \[1\]",
        ),
        ({"images": pixels(2, 4, 4), "labels": [0.0, 1.0]}, r"they are float64 \[2\]"),
        ({"images": pixels(2, 4, 4), "labels": [0, -1]}, r"integers ≥ 0"),
        (
            {"images": pixels(2, 4, 4), "labels": [0, 5], "classes": ["a", "b"]},
            r"has the label 5 but names only 2 classes",
        ),
        (
            {"jpeg": np.zeros(9, np.uint8), "offset": [0, 5, 8]},
            r"must rise from 0 to the length of jpeg \(9\)",
        ),
        ({"jpeg": np.zeros(9, np.uint8), "offset": [0, 7, 5, 9]}, r"must rise from 0"),
        (
            {"images": np.array([{}, {}], object)},
            r"is not a NumPy archive \(\.npz\) of plain arrays",
        ),
    ],
    ids=[
        "no_images",
        "float64",
        "channels_first",
        "empty",
        "short_labels",
        "float_labels",
        "negative_label",
        "label_without_class",
        "short_offset",
        "falling_offset",
        "objects",
    ],
)
def test_npz_of_the_wrong_form(tmp_path, arrays, message):
    with pytest.raises(DataError, match=message):
        Npz("train", file=pack(tmp_path / "a.npz", **arrays))


def test_npz_that_is_none(tmp_path):
    with pytest.raises(DataError, match=r"there is no file .*nothing\.npz"):
        Npz("train", file=str(tmp_path / "nothing.npz"))
    np.save(tmp_path / "a.npy", np.zeros(3))
    (tmp_path / "text.npz").write_text("hello")
    with open(tmp_path / "pickled.npz", "wb") as file:
        pickle.dump({}, file)
    for name in ("a.npy", "text.npz", "pickled.npz"):
        with pytest.raises(DataError, match=re.escape(f"{name} is not a NumPy archive")):
            Npz("train", file=str(tmp_path / name))


@pytest.mark.skipif(not CIFAR_JPEG.exists(), reason="CIFAR-10 as JPEG is not beside the checkout")
def test_cifar10_as_jpeg():
    made = Npz("val", file=str(CIFAR_JPEG / "test.npz"), val_file=str(CIFAR_JPEG / "test.npz"))
    assert len(made) == 10_000 and made.image(0).size == (32, 32) and made.classes[3] == "cat"


# --- customary sets


class TinyCifar:
    """What torchvision.datasets.CIFAR10 offers."""

    def __init__(self, root: str, train: bool, download: bool) -> None:
        if not (download or Path(root, "here").exists()):
            raise RuntimeError(
                "Dataset not found or corrupted. You can use download=True to download it"
            )
        self.data, self.targets, self.classes = (
            pixels(3 if train else 2, 32, 32, 3),
            [1, 0, 1][: 3 if train else 2],
            ["a", "b"],
        )

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.data[index]), self.targets[index]


@pytest.mark.parametrize(("part", "name"), [(Cifar10, "CIFAR10"), (Cifar100, "CIFAR100")])
def test_cifar(monkeypatch, tmp_path, part, name):
    monkeypatch.setattr(torchvision.datasets, name, TinyCifar)
    with pytest.raises(DataError, match=rf"{name} is not below .*--set data\.download=true"):
        part("train", root=str(tmp_path))
    train, val = (part(split, root=str(tmp_path), download=True) for split in ("pretrain", "val"))
    assert train.has_val and (len(train), len(val)) == (3, 2)
    assert (
        train.labels is not None
        and train.labels.tolist() == [1, 0, 1]
        and train.classes == ["a", "b"]
    )
    assert train.image(1).mode == "RGB" and train.names[0] != val.names[0]


def test_stl10_in_its_own_format(monkeypatch, tmp_path):
    """Column-major planes of 96×96, labels from 1; the unlabelled split is what pretraining
    sees.
    """
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    images = {
        "train": pixels(4, 96, 96, 3),
        "test": pixels(3, 96, 96, 3),
        "unlabeled": pixels(6, 96, 96, 3),
    }
    for split, array in images.items():
        (folder / f"{split}_X.bin").write_bytes(
            np.ascontiguousarray(array.transpose(0, 3, 2, 1)).tobytes()
        )
    (folder / "train_y.bin").write_bytes(bytes([1, 10, 2, 1]))
    (folder / "test_y.bin").write_bytes(bytes([3, 1, 10]))
    (folder / "class_names.txt").write_text("\n".join("abcdefghij"))
    monkeypatch.setattr(torchvision.datasets.STL10, "_check_integrity", lambda self: True)
    seen = {split: Stl10(split, root=str(tmp_path)) for split in ("pretrain", "train", "val")}
    assert {split: len(made) for split, made in seen.items()} == {
        "pretrain": 6,
        "train": 4,
        "val": 3,
    }
    assert seen["pretrain"].labels is None
    assert (
        seen["train"].labels is not None
        and seen["train"].labels.tolist() == [0, 9, 1, 0]
        and seen["train"].classes[9] == "j"
    )
    assert np.array_equal(seen["pretrain"].image(5), images["unlabeled"][5])
    assert np.array_equal(seen["val"].image(0), images["test"][0])


def test_sets_that_are_missing(tmp_path):
    for part in (Cifar10, Cifar100, Stl10):
        with pytest.raises(DataError, match=r"--set data\.download=true"):
            part("pretrain", root=str(tmp_path))
    with pytest.raises(
        DataError, match=r"^ImageNet is not below .*: put its folders train/ and val/ there"
    ):
        ImageNet("pretrain", root=str(tmp_path))


def test_imagenet(tmp_path):
    root = lay(
        tmp_path,
        "train/n01440764/1.JPEG",
        "train/n01443537/2.JPEG",
        "val/n01440764/3.JPEG",
        "val/n01443537/4.JPEG",
    )
    train, val = (ImageNet(split, root=str(root)) for split in ("train", "val"))
    assert (
        train.classes == val.classes == ["n01440764", "n01443537"]
        and train.has_val
        and len(val) == 2
    )


@pytest.mark.parametrize(
    ("part", "images"),
    [(Cifar10, 50_000), (Cifar100, 50_000), (Stl10, 100_000), (ImageNet, 1_281_167)],
)
def test_nominal_sizes(part, images):
    assert part.nominal["pretrain"] == images and set(part.nominal) >= {"pretrain", "train", "val"}


# --- shapes


def stack(made: Shapes) -> np.ndarray:
    return np.stack([np.asarray(made.image(index)) for index in range(len(made))])


def test_shapes_are_a_function_of_seed_split_and_index():
    small = {"images": 20, "val_images": 10}
    train = stack(Shapes("train", **small))
    assert train.shape == (20, 64, 64, 3) and train.dtype == np.uint8
    assert np.array_equal(train, stack(Shapes("pretrain", **small)))
    assert np.array_equal(train[:10], stack(Shapes("train", images=10)))
    assert not np.array_equal(train[:10], stack(Shapes("val", **small)))
    assert not np.array_equal(train, stack(Shapes("train", seed=1, **small)))


def test_upright_shapes_are_lit_from_above():
    upright, turned = (stack(Shapes("train", images=60, upright=up)) for up in (True, False))
    assert upright.shape == turned.shape and not np.array_equal(upright, turned)
    above, below = (upright[:, rows].mean() for rows in (slice(0, 32), slice(32, 64)))
    assert above > below + 5
    above, below = (turned[:, rows].mean() for rows in (slice(0, 32), slice(32, 64)))
    assert abs(above - below) < 5
    assert np.array_equal(Shapes("train").image(7), Shapes("train").image(7))


def test_shapes_are_balanced():
    train, val = Shapes("train", images=50), Shapes("val", val_images=30)
    assert train.labels is not None and np.bincount(train.labels).tolist() == [5] * 10
    assert val.labels is not None and np.bincount(val.labels).tolist() == [3] * 10
    assert train.has_val and list(train.classes) == list(CLASSES) and len(set(CLASSES)) == 10


@pytest.mark.parametrize("side", [32, 96])
def test_shapes_of_other_sizes(side):
    assert Shapes("train", images=10, side=side).image(3).size == (side, side)


def test_raw_pixels_do_not_tell_shapes_apart():
    """The nearest neighbour in raw pixels is of the same class hardly more often than by chance (10
    %).
    """
    train, val = Shapes("train", images=300), Shapes("val", val_images=100)
    flat = [
        stack(made)[:, ::2, ::2].reshape(len(made), -1).astype(np.float32) for made in (train, val)
    ]
    distance = (flat[0] ** 2).sum(1)[None] - 2 * flat[1] @ flat[0].T
    assert train.labels is not None and val.labels is not None
    assert (train.labels[distance.argmin(1)] == val.labels).mean() < 0.3
