"""Data sets: folders as people have them, the customary sets, shapes."""

import os
from pathlib import Path

import numpy as np
import pytest
import torchvision
from PIL import Image
from test_npz import pixels

from sslkit.errors import DataError
from sslkit_plugins.datasets import (
    Cifar10,
    Cifar100,
    ImageFolder,
    ImageNet,
    Stl10,
)
from sslkit_plugins.datasets.shapes import CLASSES, Shapes


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
