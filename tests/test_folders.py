"""Folders of images as people have them: splits, links, other files, what is said of them."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, sslkit
from PIL import Image

from sslkit.data.loader import fingerprint
from sslkit.errors import DataError
from sslkit_plugins.datasets import ImageFolder, ImageNet, decoding


def lay(root: Path, *names: str) -> Path:
    """Write small images of these names, an empty folder for a name that ends in a slash."""
    for number, name in enumerate(names):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            file.mkdir(exist_ok=True)
        elif file.suffix.lower() in decoding.ENDINGS:
            Image.new("RGB", (40, 40), (number * 40 % 256, 90, 30)).save(file)
        else:
            file.write_bytes(b"no image")
    return root


def found(root: Path, split: str = "train", **options) -> ImageFolder:
    return ImageFolder(split, root=str(root), **options)


# ------------------------------------------------------------------------------------- splits


@pytest.mark.parametrize(
    "train, val",
    [
        ("train", "val"),
        ("train", "validation"),
        ("train", "valid"),
        ("train", "dev"),
        ("train", "test"),
        ("training", "testing"),
        ("Train", "Val"),
        ("TRAIN", "Validation"),
        ("Training", "TEST"),
    ],
)
def test_customary_names_are_splits_in_any_case(tmp_path, train, val):
    lay(tmp_path, f"{train}/a/1.png", f"{train}/b/2.png", f"{val}/a/3.png", f"{val}/b/4.png")
    for split in ("pretrain", "train"):
        made = found(tmp_path, split)
        assert made.names == ["a/1.png", "b/2.png"] and made.has_val
        assert made.place == str(tmp_path / train) and list(made.notes) == []
        assert made.validation() == f"{tmp_path / val} (2 images)"
    made = found(tmp_path, "val")
    assert made.names == ["a/3.png", "b/4.png"] and made.classes == ["a", "b"]
    assert made.labels is not None and made.labels.tolist() == [0, 1]


def test_other_names_are_classes(tmp_path):
    made = found(lay(tmp_path, "trains/1.png", "vals/2.png", "tests/3.png", "developer/4.png"))
    assert made.classes == ["developer", "tests", "trains", "vals"] and not made.has_val


@pytest.mark.parametrize(
    "folders, val, unused",
    [
        (["test", "val"], "val", "test/"),
        (["dev", "test"], "dev", "test/"),
        (["valid", "validation"], "valid", "validation/"),
        (["Testing", "Valid"], "Valid", "Testing/"),
        (["extra", "val"], "val", "extra/"),
    ],
)
def test_of_several_the_first_validates_and_others_are_named(tmp_path, folders, val, unused):
    lay(tmp_path, "train/1.png", *(f"{name}/2.png" for name in folders))
    assert found(tmp_path, "val").place == str(tmp_path / val)
    told = f"not read, next to the training and validation folders: {unused}"
    assert list(found(tmp_path).notes) == [told]


def test_a_validation_folder_without_images_is_refused(tmp_path):
    lay(tmp_path, "train/1.png", "val/", "test/2.png", "annotations/a.json")
    assert found(tmp_path, "val").names == ["2.png"]
    shutil.rmtree(tmp_path / "test")
    made = found(tmp_path)
    assert made.names == ["1.png"] and made.has_val
    remedy = "add images, or remove the folder, so that a fifth of the training images validates"
    refused = f"{tmp_path / 'val'} (0 images, which evaluations refuse: {remedy})"
    assert made.validation() == refused, "training goes on"
    with pytest.raises(DataError, match=rf"no image below {tmp_path / 'val'}, .*; {remedy}"):
        found(tmp_path, "val")
    (tmp_path / "val").rmdir()
    assert not found(tmp_path).has_val


def test_empty_split_folders_beside_classes_are_nothing(tmp_path):
    made = found(lay(tmp_path, "a/1.png", "b/2.png", "train/", "val/.hidden.png"))
    assert made.classes == ["a", "b"] and not made.has_val


def test_validation_images_are_never_trained_on(tmp_path):
    lay(tmp_path, "train/readme.txt", "validation/1.png")
    with pytest.raises(DataError, match=r"no image below .*train: \.txt × 1; "):
        found(tmp_path)


@pytest.mark.parametrize("name", ["train", "validation", "Test"])
def test_a_split_alone_is_the_data_set(tmp_path, name):
    made = found(lay(tmp_path, f"{name}/a/1.png", f"{name}/b/2.png", "labels.csv"))
    assert made.classes == ["a", "b"] and not made.has_val
    assert made.place == str(tmp_path / name)


def test_a_file_named_like_a_split_is_no_split(tmp_path):
    made = found(lay(tmp_path, "train", "val", "a/1.png", "b/2.png"))
    assert made.classes == ["a", "b"]


def test_within_a_split_every_folder_is_a_class(tmp_path):
    lay(tmp_path, "train/test/1.png", "train/val/2.png", "val/test/3.png", "val/val/4.png")
    assert found(tmp_path).classes == found(tmp_path, "val").classes == ["test", "val"]


def test_splits_within_classes_are_named(tmp_path):
    lay(tmp_path, "cat/train/1.png", "cat/val/2.png", "dog/Train/3.png", "dog/x/4.png")
    made = found(tmp_path)
    assert made.classes == ["cat", "dog"] and len(made) == 4
    assert list(made.notes) == [
        f"cat/train/, cat/val/, dog/Train/ in {tmp_path} are read like any folder; to use them as "
        f"splits, name the parent folder, such as {tmp_path / 'cat'}"
    ]
    assert found(tmp_path / "cat", "val").names == ["2.png"]


def test_a_link_may_be_a_split(tmp_path):
    outside = lay(tmp_path / "outside", "a/1.png", "b/2.png")
    root = lay(tmp_path / "root", "val/a/3.png", "val/b/4.png")
    (root / "train").symlink_to(outside)
    assert found(root).names == ["a/1.png", "b/2.png"] and found(root).has_val
    shutil.rmtree(outside)
    with pytest.raises(DataError, match=r"train is a broken link; repair or remove it"):
        found(root)


MIXED = {
    "train among classes": (["bus/1.png", "car/2.png", "train/3.png"], "train/", "bus/, car/"),
    "val among classes": (["a/1.png", "b/2.png", "Val/3.png"], "Val/", "a/, b/"),
    "val beside images": (["1.png", "2.png", "val/3.png"], "val/", "2 images"),
    "test beside both": (["1.png", "a/2.png", "test/3.png"], "test/", "a/, 1 image"),
}


@pytest.mark.parametrize("names, split, others", MIXED.values(), ids=MIXED)
def test_a_mixture_is_refused_and_both_remedies_work(tmp_path, names, split, others):
    lay(tmp_path, *names)
    with pytest.raises(DataError) as told:
        found(tmp_path)
    alone = tmp_path / split.rstrip("/")
    assert str(told.value) == (
        f"{tmp_path} mixes {split}, named like a split, with {others}; name {alone} instead to use "
        "only that folder, or use every folder as a class: --set data.splits=false"
    )
    assert found(alone).names == [Path(names[-1]).name]
    whole = found(tmp_path, splits=False)
    assert whole.names == sorted(names) and not whole.has_val


def test_images_beside_a_training_folder_are_said_to_be_unused(tmp_path):
    made = found(lay(tmp_path, "train/1.png", "logo.png", "x.png"))
    assert made.names == ["1.png"]
    assert list(made.notes) == ["not read, next to the training and validation folders: 2 images"]


def test_a_folder_that_is_a_link_beside_splits_is_said_to_be_unused(tmp_path):
    root = lay(tmp_path / "root", "train/1.png")
    (root / "backup").symlink_to(lay(tmp_path / "outside", "2.png"))
    assert found(root).names == ["1.png"]
    assert list(found(root).notes) == [
        "not read, next to the training and validation folders: backup/"
    ]


def test_validation_images_of_one_class_have_labels(tmp_path):
    lay(tmp_path, "train/a/1.png", "train/b/2.png", "val/b/3.png")
    made = found(tmp_path, "val")
    assert made.classes == ["b"] and made.labels is not None and made.labels.tolist() == [0]


@pytest.mark.parametrize(
    "names, told",
    [
        (["train/1.png", "Training/2.png"], "to train on: Training/, train/"),
        (["val/1.png", "test/2.png"], "to choose from, none of them named train: val/, test/"),
    ],
)
def test_several_folders_to_train_on_are_refused(tmp_path, names, told):
    lay(tmp_path, *names)
    with pytest.raises(DataError, match=rf"has several folders {told}; name one of them instead"):
        found(tmp_path)
    assert len(found(tmp_path, splits=False)) == 2


def test_of_two_training_folders_an_empty_one_does_not_count(tmp_path):
    assert found(lay(tmp_path, "Train/", "training/1.png")).names == ["1.png"]


def test_imagenet_takes_the_same_names(tmp_path):
    lay(tmp_path, "Train/n1/1.JPEG", "Train/n2/2.JPEG", "validation/n1/3.JPEG")
    train, val = (ImageNet(split, root=str(tmp_path)) for split in ("train", "val"))
    assert train.classes == ["n1", "n2"] and train.has_val and len(val) == 1


def test_names_of_a_plain_folder_are_what_they_were(tmp_path):
    """Checkpoints keep the hash of the names, so a run goes on only with the same list."""
    lay(tmp_path, "b/2.png", "b/deep/1.jpg", "a/3.png", "a.txt", "train.csv")
    listed = b"a/3.png\0b/2.png\0b/deep/1.jpg\0"
    assert fingerprint(found(tmp_path)) == hashlib.sha256(listed).hexdigest()


# -------------------------------------------------------------------------------------- links


def test_links_out_of_the_folder_are_counted_and_followed_when_asked(tmp_path):
    root, outside = lay(tmp_path / "root", "in/a.png"), lay(tmp_path / "outside", "b.png")
    (root / "out").symlink_to(outside)
    (root / "c.png").symlink_to(outside / "b.png")
    (root / "gone.png").symlink_to(outside / "gone.png")
    made = found(root)
    assert made.names == ["in/a.png"]
    assert list(made.notes) == [
        f"skipped in {root}: 2 links (--set data.follow_links=true follows them), 1 broken link"
    ]
    made = found(root, follow_links=True)
    assert made.names == ["in/a.png", "out/b.png"], "the image is read once"
    assert list(made.notes) == [
        f"skipped in {root}: 1 broken link, 1 link to files that are read anyway"
    ]
    (tmp_path / "alias").symlink_to(root)
    assert found(tmp_path / "alias").names == ["in/a.png"]


@pytest.mark.parametrize("follow_links", [False, True])
def test_links_back_into_the_folder_read_nothing_twice(tmp_path, follow_links):
    root = lay(tmp_path / "root", "a/1.png", "b/2.png", "b/deep/3.png")
    (root / "a" / "again").symlink_to(root)
    (root / "a" / "self").symlink_to("self")
    (root / "b" / "a").symlink_to(root / "a")
    (root / "b" / "3.png").symlink_to("deep/3.png")
    made = found(root, follow_links=follow_links)
    assert made.names == ["a/1.png", "b/2.png", "b/deep/3.png"]
    assert "3 links to files that are read anyway" in made.notes[0]


def test_links_into_hidden_storage_are_read(tmp_path):
    """git-annex and DVC keep files in a hidden folder, and link to them."""
    root = lay(tmp_path, ".store/ab/1.png", ".store/cd/2.png", "a/", "b/")
    (root / "a" / "x.png").symlink_to("../.store/ab/1.png")
    (root / "b" / "y.png").symlink_to("../.store/cd/2.png")
    (root / "b" / "z.png").symlink_to("../.store/cd/2.png")
    assert found(root).names == ["a/x.png", "b/y.png"]


def test_followed_links_do_not_loop(tmp_path):
    root, outside = lay(tmp_path / "root", "1.png"), lay(tmp_path / "outside", "2.png", "x/3.png")
    (root / "out").symlink_to(outside)
    (root / "part").symlink_to(outside / "x")
    (outside / "back").symlink_to(root)
    (outside / "x" / "up").symlink_to("..")
    made = found(root, follow_links=True)
    assert made.names == ["1.png", "out/2.png", "out/x/3.png"]


# -------------------------------------------------------------------------------- other files


def test_formats_that_are_not_read_are_counted(tmp_path):
    names = [f"{number}.HEIC" for number in range(40)]
    lay(tmp_path, "a.png", *names, "x.cr2", "y.CR2", "notes.txt", "LICENSE")
    lay(tmp_path, ".DS_Store", "Thumbs.db", "Desktop.ini", ".hidden.png", "__MACOSX/._a.png")
    assert list(found(tmp_path).notes) == [
        f"skipped in {tmp_path}: .heic × 40, .cr2 × 2 (convert them to JPEG or PNG), "
        ".txt × 1, without extension × 1"
    ]


def test_endings_beyond_the_first_are_counted(tmp_path):
    made = found(lay(tmp_path, "a.png", *(f"x.{letter}" for letter in "bcdefgh")))
    assert made.notes[0].endswith(": .b × 1, .c × 1, .d × 1, .e × 1, .f × 1, 2 more extensions")


@pytest.mark.parametrize("ending", sorted(decoding.ENDINGS - {".mpo", ".avifs"}))
def test_every_ending_is_read(tmp_path, ending):
    mode = "L" if ending in (".pgm", ".pbm") else "RGB"
    kind = "AVIF" if ending == ".avif" else None
    Image.new(mode, (40, 30), "white").save(tmp_path / f"a{ending.upper()}", kind)
    made = found(tmp_path)
    assert made.image(0).size == (40, 30) and min(made.image(0).getpixel((9, 9))) > 250


def test_formats_are_those_of_pillow_but_none_that_runs_programs():
    assert {"JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM"} <= set(decoding.FORMATS)
    assert not {"EPS", "PDF", "WMF", "FITS", "PSD", "TGA"} & set(decoding.FORMATS)
    assert {".jfif", ".jpe", ".jpeg"} <= decoding.ENDINGS


# ------------------------------------------------------------------------------- through the CLI


def photograph(folder: Path) -> Path:
    """Write 16 photographs in two classes."""
    rng = np.random.default_rng(0)
    for number in range(16):
        pixels = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
        file = folder / "ab"[number % 2] / f"{number:02}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    return folder


@pytest.fixture
def photos(tmp_path):
    return photograph(tmp_path / "photos")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of one epoch."""
    home = tmp_path_factory.mktemp("trained")
    (home / "tiny.yaml").write_text(TINY.format(root=photograph(home / "photos")))
    code, _, err = sslkit("train", home / "tiny.yaml", *ONE_EPOCH, "--runs", home)
    assert code == 0, err
    return (home / "tiny" / "latest").resolve()


ONE_EPOCH = ("--set", "train.epochs=1")


@pytest.mark.slow
def test_what_sslkit_writes_into_the_folder_is_no_data(tiny, photos, monkeypatch):
    monkeypatch.chdir(photos)
    foreign = ("--encoder", "timm:test_resnet", "--weights", "none", "--data", ".")
    commands = [
        ("views", tiny, "--data", ".", "--images", 1, "--draws", 1, "--out", "views of a.png"),
        ("train", tiny, "--data", ".", *ONE_EPOCH, "--runs", "mine"),
        ("eval", "knn", *foreign),
        ("pack", ".", "packed"),
    ]
    for command in commands:
        code, _, err = sslkit(*command)
        assert code == 0, err
    assert {path.name for path in photos.rglob("*.png")} >= {"curves.png", "knn.png"}
    run = photos / "mine" / "tiny" / "latest"
    code, out, err = sslkit("eval", "knn", run, "--data", ".")
    assert code == 0 and "(12 images in 2 classes: a, b)" in out
    assert err == f"skipped in {photos}: 4 folders or pictures of sslkit, .json × 1\n"
    code, out, err = sslkit("train", "--resume", run)
    assert code == 0 and "nothing to do" in out
    with pytest.raises(DataError, match=r"latest is a run folder or a packed set of sslkit; name"):
        found(run)


@pytest.mark.slow
def test_remedies_work_in_every_command_that_prints_them(tiny, photos, tmp_path, trained):
    """A link to a folder, and an image of ten megapixels in place of 89.5."""
    lay(tmp_path / "more", "c/1.png", "c/2.png")
    (photos / "c").symlink_to(tmp_path / "more" / "c")
    Image.new("RGB", (3600, 2800)).save(photos / "a" / "large.png")
    links, pixels = "--set data.follow_links=true", "--set data.max_pixels=10080000"
    told = (
        "has 10,080,000 pixels (3600 × 2800), more than data.max_pixels = 10,000,000; to read "
        f"it: {pixels}"
    )
    commands = [
        ("train", tiny, *ONE_EPOCH, "--set", "train.batch_size=17", "--runs", tmp_path),
        ("eval", "knn", trained),
        ("pack", photos, tmp_path / "packed"),
    ]
    for command in commands:
        data = () if command[0] == "pack" else ("--data", photos)
        code, out, err = sslkit(*command, *data, "--set", "data.max_pixels=10000000")
        assert code == 2 and told in err and "2 classes: a, b" in out
        assert f"skipped in {photos}: 1 link ({links} follows them)\n" in err
        code, out, err = sslkit(*command, *data, *links.split(), *pixels.split())
        assert code == 0 and "3 classes: a, b, c" in out and "skipped in" not in err, err


def test_only_options_of_the_data_can_be_set(photos, tmp_path, trained):
    code, _, err = sslkit("eval", "knn", trained, "--set", "loss.lambda=1")
    assert code == 2 and err == (
        "--set  'loss.lambda=1' is not an option of the data set; use --set data.KEY=VALUE\n"
    )
    foreign = ("eval", "knn", "--encoder", "timm:test_resnet", "--data", photos)
    for arguments in (foreign, ("pack", photos, tmp_path / "set")):
        code, _, err = sslkit(*arguments, "--set", "data.follow=true")
        assert code == 2 and "no such option of image_folder; did you mean 'follow_links'?" in err


@pytest.mark.slow
def test_what_serves_as_what_is_printed(tiny, photos, tmp_path, trained):
    root = tmp_path / "set"
    for name in ("Training", "valid", "test"):
        shutil.copytree(photos, root / name)
    (root / "valid" / "a" / "00.jpg").unlink()
    train, val = root / "Training", root / "valid"
    code, out, err = sslkit("train", tiny, "--data", root, *ONE_EPOCH, "--runs", tmp_path)
    assert code == 0 and err == "not read, next to the training and validation folders: test/\n"
    assert out.startswith(
        f"data: training on {train} (16 images); for evaluations: 2 classes: a, b; "
        f"validation on {val} (15 images)\n"
    )
    code, out, err = sslkit("eval", "knn", trained, "--data", root)
    assert code == 0 and err == "not read, next to the training and validation folders: test/\n"
    told = f"data: training on {train} (16 images in 2 classes: a, b); validating on {val} "
    assert out.splitlines()[1] == f"{told}(15 images)"
    code, out, _ = sslkit("eval", "knn", trained, "--data", photos)
    assert code == 0 and out.splitlines()[1] == (
        f"data: training on {photos} (12 images in 2 classes: a, b); "
        "validating on a fifth of every class, split with seed 0 (4 images)"
    )


@pytest.mark.parametrize(
    "names, why",
    [
        (["1.png", "2.png"], "it has no folders"),
        (["cat/1.png", "cat/2.png", "3.png"], "some are next to its folders, such as 3.png"),
        (["cat/1.png", "cat/deep/2.png"], "all of them are in one folder, cat/"),
    ],
)
def test_why_images_have_no_labels(tmp_path, names, why):
    made = found(lay(tmp_path, *names))
    assert made.labels is None and list(made.classes) == [] and made.unlabelled == why


def test_an_evaluation_says_why_images_have_no_labels(photos, trained):
    shutil.rmtree(photos / "b")
    code, _, err = sslkit("eval", "knn", trained, "--data", photos)
    assert code == 2 and err == (
        f"the images of {photos} have no labels (all of them are in one folder, a/), but this "
        "evaluation needs them: name a folder with one folder per class, at least two, and "
        "no images next to them: --data DIR\n"
    )
