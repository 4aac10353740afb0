"""Arrays of images in one file: their forms, their labels, what is refused."""

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_decoding import coded

from sslkit.errors import DataError
from sslkit_plugins.datasets import (
    Npz,
)

CIFAR_JPEG = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10_jpeg"


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
