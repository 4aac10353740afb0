"""Evaluations of splits that are not as they should be: unreadable images, absent classes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from noise import NPID
from PIL import Image
from test_evaluate import COLOURS, evaluated, paint, scores, sslkit

from sslkit import recipe
from sslkit.evaluation.build import Request, build
from sslkit.runs import checkpoint
from sslkit.training import build as training


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run folder of zero steps."""
    home = tmp_path_factory.mktemp("runs")
    folder = home / "evaluated" / "now"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(NPID.format(root=paint(home / "painted", 4)))
    checkpoint.save(training.build(recipe.read(folder / "recipe.yaml")), folder)
    return folder


def spoil(*paths: Path) -> None:
    for path in paths:
        path.write_bytes(b"no picture")


@pytest.fixture
def torn(tmp_path) -> Path:
    """Two splits of 15 and 9 images, of which two and one cannot be read."""
    paint(tmp_path / "torn" / "train", 5)
    paint(tmp_path / "torn" / "val", 3, seed=1)
    folder = tmp_path / "torn"
    spoil(
        folder / "train" / "blue" / "0.png",
        folder / "train" / "red" / "4.png",
        folder / "val" / "green" / "1.png",
    )
    return folder


WRONG = ["blue/0.png (train)", "red/4.png (train)", "green/1.png (val)"]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("evaluation", ["knn", "linear"])
def test_all_unreadable_images_are_told_at_once(trained, torn, evaluation, workers):
    words = ("--data", torn, "--workers", workers)
    code, _, err = sslkit("eval", evaluation, trained, *words)
    assert code == 2
    head, *lines = err.splitlines()[-4:]
    assert head.startswith("3 images cannot be read, and an evaluation replaces no image; repair")
    assert head.endswith("or skip them: --skip-unreadable")
    assert [line.split(": ")[0].strip() for line in lines] == WRONG


def test_images_that_only_augmented_views_read_are_told_as_well(trained, torn):
    code, _, err = sslkit(
        "eval", "linear", trained, "--solver", "sgd", "--epochs", 1, "--data", torn
    )
    assert code == 2 and "3 images cannot be read" in err


def test_skip_unreadable_goes_on_and_records_what_it_left_out(trained, torn):
    code, out, err = sslkit("eval", "knn", trained, "--data", torn, "--skip-unreadable")
    assert code == 0, err
    assert "13 training and 8 validation images, 3 classes" in out
    assert "3 images left out, which cannot be read:\n  blue/0.png (train): is damaged" in err
    protocol = json.loads((trained / "eval" / "knn.json").read_text())["protocol"]
    skipped = protocol["skipped"]
    assert [f"{one['name']} ({one['split']})" for one in skipped] == WRONG
    assert all(one["reason"].startswith("is damaged") for one in skipped)


def test_what_is_left_is_measured_as_if_nothing_else_had_been_there(trained, torn, tmp_path):
    clean = tmp_path / "clean"
    shutil.copytree(torn, clean)
    for path in clean.rglob("*.png"):
        if path.read_bytes() == b"no picture":
            path.unlink()
    one = evaluated("knn", trained, "--data", torn, "--skip-unreadable")
    other = evaluated("knn", trained, "--data", clean)
    assert scores(one) == scores(other)
    assert one["protocol"]["val_fingerprint"] == other["protocol"]["val_fingerprint"]


def test_nothing_to_skip_says_nothing(trained, tmp_path):
    folder = paint(tmp_path / "whole", 5)
    code, out, err = sslkit("eval", "knn", trained, "--data", folder, "--skip-unreadable")
    assert (code, err) == (0, "")
    result = json.loads(Path(out.split("written: ")[1].strip()).read_text())
    assert result["protocol"]["skipped"] == []


def test_a_long_list_is_cut_on_the_screen_and_whole_in_the_result(trained, tmp_path):
    folder = paint(tmp_path / "many", 8)
    spoil(*(folder / name / f"{number}.png" for name in COLOURS for number in range(5)))
    code, _, err = sslkit("eval", "knn", trained, "--data", folder)
    assert code == 2 and "15 images cannot be read" in err and len(err.splitlines()) == 12
    assert "and 5 more" in err
    result = evaluated("knn", trained, "--data", folder, "--skip-unreadable", "--k", 1)
    assert len(result["protocol"]["skipped"]) == 15


@pytest.mark.parametrize(
    "spoilt, sentence",
    [
        (["train/*/*"], "has no training images"),
        (["val/*/*"], "has no validation images"),
        (["train/blue/*", "train/red/*"], "are of one class"),
        (["train/blue/*"], "has validation images of blue, but no training images"),
    ],
    ids=["no training", "no validation", "one class", "a class only in validation"],
)
def test_too_little_that_can_be_read_is_a_sentence(trained, tmp_path, spoilt, sentence):
    paint(tmp_path / "few" / "train", 3)
    paint(tmp_path / "few" / "val", 2)
    for pattern in spoilt:
        spoil(*(tmp_path / "few").glob(pattern))
    code, _, err = sslkit("eval", "knn", trained, "--data", tmp_path / "few", "--skip-unreadable")
    assert code == 2 and len(err.strip().splitlines()) == 1, err
    assert sentence in err and "left out, which cannot be read)" in err


# ----------------------------------------------------------------------------------- classes


@pytest.mark.parametrize("evaluation", ["knn", "linear"])
def test_a_class_without_validation_images_is_told(trained, tmp_path, evaluation):
    paint(tmp_path / "train", 4)
    shown = {name: COLOURS[name] for name in ("green", "red")}
    paint(tmp_path / "val", 2, seed=1, colours=shown)
    code, out, err = sslkit("eval", evaluation, trained, "--data", tmp_path)
    assert code == 0, err
    assert err == "no validation image shows blue: measured on the other 2 of 3 classes\n"
    result = json.loads(Path(out.split("written: ")[1].strip()).read_text())
    assert result["protocol"]["unseen_classes"] == ["blue"] and result["protocol"]["classes"] == 3
    found = scores(result)
    assert found[None, "raw pixels"] == 1, "labels count the classes of training"
    assert found[None, "chance"] == 0.5, "of the validation images"


def test_skipped_images_leave_one_line_of_unseen_classes(trained, tmp_path):
    paint(tmp_path / "train", 4)
    paint(tmp_path / "val", 2, seed=1, colours={name: COLOURS[name] for name in ("green", "red")})
    spoil(*(tmp_path / "val" / "red").glob("*"))
    code, _, err = sslkit("eval", "knn", trained, "--data", tmp_path, "--skip-unreadable")
    assert code == 0, err
    assert err.count("no validation image shows") == 1
    assert "no validation image shows blue, red: measured on the other 1 of 3 classes" in err


def test_a_class_of_one_image_is_told_too(trained, tmp_path):
    folder = paint(tmp_path / "set", 5)
    for number in range(1, 5):
        (folder / "red" / f"{number}.png").unlink()
    code, _, err = sslkit("eval", "knn", trained, "--data", folder, "--k", 2)
    assert code == 0 and "no validation image shows red: measured on the other 2 of 3" in err


def test_an_array_that_lacks_a_class_is_told(trained, tmp_path):
    images = np.zeros((12, 16, 16, 3), np.uint8)
    labels = np.arange(12) % 3
    val = {"images_val": images[:4], "labels_val": labels[:4] % 2}
    np.savez(tmp_path / "set.npz", images=images, labels=labels, **val)
    code, _, err = sslkit("eval", "knn", trained, "--data", tmp_path / "set.npz", "--k", 2)
    assert code == 0 and "no validation image shows 2: measured on the other 2 of 3" in err


def test_a_validation_class_that_training_lacks_is_refused(trained, tmp_path):
    images = np.zeros((12, 16, 16, 3), np.uint8)
    labels = np.arange(12) % 3
    val = {"images_val": images[:2], "labels_val": np.array([0, 3])}
    np.savez(tmp_path / "set.npz", images=images, labels=labels, **val)
    code, _, err = sslkit("eval", "knn", trained, "--data", tmp_path / "set.npz")
    assert code == 2 and "has validation images of 3, but no training images" in err


def test_an_evaluation_gets_splits_that_can_be_read_and_compared(trained, torn):
    """A stranger's evaluation needs to know nothing of all this."""
    shutil.rmtree(torn / "val" / "blue")
    request = Request(run=trained, data=str(torn), device="cpu", skip_unreadable=True, workers=0)
    probe = build(request).probe
    assert list(probe.val.classes) == list(probe.train.classes) == list(probe.classes)
    assert len(probe.train.labels) == len(probe.train) == 13
    for split in (probe.train, probe.val):
        seen = [index for _, index in probe.images(split)]
        assert sum(map(len, seen)) == len(split)
        for row, name in enumerate(split.names):
            assert split.classes[split.labels[row]] == name.split("/")[0]
    assert isinstance(probe.val.image(0), Image.Image)
