"""The data set `voc`: lists, classes, tags, boxes, and broken folders."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner
from voc_folder import annotation, random_voc, write_list, write_voc

from sslkit.cli import app
from sslkit.data.contract import check_source
from sslkit.errors import DataError
from sslkit.parts import make
from sslkit.recipe import paths, read_data
from sslkit_plugins.datasets import Voc

BOX = (3, 5, 20, 30)
EASY, HARD = ("cat", BOX, False), ("cat", BOX, True)
DOG = ("dog", (1, 1, 48, 40), False)

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "voc_bccd"


@pytest.fixture
def folder(tmp_path):
    """Four images: an easy cat with a hard one, a hard cat and a dog, nothing, a dog."""
    lists = {"trainval": {"1": [EASY, HARD], "2": [HARD, DOG]}, "test": {"3": [], "4": [DOG]}}
    return write_voc(tmp_path / "toy", lists)


def opened(folder, split="train", **options) -> Voc:
    source = Voc(split, root=str(folder), **options)
    check_source(source, "voc")
    return source


# ------------------------------------------------------------------------------ what it reads


def test_tags_tell_present_absent_and_only_difficult(folder):
    assert opened(folder).classes == ["cat", "dog"]
    assert opened(folder).tags.tolist() == [[1, 0], [-1, 1]]
    assert opened(folder, "val").tags.tolist() == [[0, 0], [0, 1]]
    assert opened(folder).tags.dtype == np.int8


def test_boxes_count_pixels_from_zero(folder):
    first, second = opened(folder).boxes
    assert first.corners.tolist() == [[2, 4, 20, 30]] * 2 and first.corners.dtype == np.float32
    assert first.difficult.tolist() == [False, True] and first.labels.tolist() == [0, 0]
    assert second.corners[1].tolist() == [0, 0, 48, 40] and second.labels.tolist() == [0, 1]
    empty = opened(folder, "val").boxes[0]
    assert empty.corners.shape == (0, 4) and empty.labels.dtype == np.int64


def test_a_box_marks_its_pixels(folder):
    source = opened(folder)
    left, top, right, bottom = source.boxes[0].corners[0].astype(int)
    pixels = source.pixels(0, lambda width, height: 1).values.numpy()
    bright = pixels.max(0) == 250
    assert bright[top:bottom, left:right].all() and bright.sum() == 18 * 26


@pytest.mark.parametrize(
    "names, classes",
    [
        (["tvmonitor", "dog", "aeroplane"], ["aeroplane", "dog", "tvmonitor"]),
        (["raccoon", "dog", "aeroplane"], ["aeroplane", "dog", "raccoon"]),
        (["zebra", "train", "cat"], ["cat", "train", "zebra"]),
        (["train", "sofa", "sheep"], ["sheep", "sofa", "train"]),
    ],
    ids=["vocs", "one-other", "sorted", "vocs-order"],
)
def test_classes_are_in_vocs_order_or_sorted(tmp_path, names, classes):
    things = [(name, BOX, False) for name in names]
    write_voc(tmp_path, {"trainval": {"1": things[:2]}, "test": {"2": things[2:]}})
    assert opened(tmp_path).classes == opened(tmp_path, "val").classes == classes


@pytest.mark.parametrize(
    "lists, train, val",
    [
        ("trainval test train val", "trainval", "test"),
        ("trainval train val", "train", "val"),
        ("train val test", "train", "val"),
        ("train test", "train", "test"),
        ("trainval val", "trainval", ""),
        ("test", "test", ""),
    ],
)
def test_which_lists_are_the_splits(tmp_path, lists, train, val):
    write_voc(tmp_path, {name: {f"{name}1": [EASY]} for name in lists.split()})
    source = opened(tmp_path)
    assert source.names == [f"JPEGImages/{train}1.png"] and source.has_val == bool(val)
    assert f"{train}.txt" in source.notes[0]
    if val:
        assert opened(tmp_path, "val").names == [f"JPEGImages/{val}1.png"]
        assert f"{val}.txt (1 image)" in source.validation()


def test_a_test_list_without_annotations_is_not_used(tmp_path):
    """As in VOC2012, whose test annotations are not public."""
    write_voc(tmp_path, {name: {name: [EASY]} for name in ("trainval", "train", "val", "test")})
    (tmp_path / "Annotations" / "test.xml").unlink()
    assert opened(tmp_path).names == ["JPEGImages/train.png"]


def test_lists_may_have_the_flags_of_a_class(folder):
    write_list(folder, "trainval", ["1  1", "2 -1"])
    assert opened(folder).names == ["JPEGImages/1.png", "JPEGImages/2.png"]


def test_images_of_both_lists_are_reported(folder):
    write_list(folder, "test", ["2", "3"])
    assert (
        "test.txt shares 1 image with the training images, such as 2.png" in opened(folder).notes[1]
    )


@pytest.fixture(scope="module")
def devkit(tmp_path_factory):
    root = tmp_path_factory.mktemp("devkit")
    for year, name in {"2007": "a", "2012": "b"}.items():
        lists = {"trainval": {f"{name}1": [EASY]}, "test": {f"{name}2": [DOG]}}
        write_voc(root / "VOCdevkit" / f"VOC{year}", lists)
    return root


@pytest.mark.parametrize("below", ["", "VOCdevkit", "VOCdevkit/VOC2007"])
def test_a_devkit_opens_by_any_of_its_folders(devkit, below):
    source = make(read_data(str(devkit / below)), split="train")
    assert isinstance(source, Voc) and source.files[0].parent.parent.name == "VOC2007"


@pytest.mark.parametrize(
    "years, train, val", [(2012, ["b1"], ["b2"]), ("2007+2012", ["a1", "b1"], ["a2"])]
)
def test_years_of_a_devkit(devkit, years, train, val):
    assert [file.stem for file in opened(devkit, years=years).files] == train
    assert [file.stem for file in opened(devkit, "val", years=years).files] == val


def test_years_that_are_not_there_are_refused(devkit, tmp_path):
    shutil.copytree(devkit / "VOCdevkit" / "VOC2012", tmp_path / "VOC2012")
    assert opened(tmp_path).files[0].stem == "b1"
    with pytest.raises(DataError, match="has no folder VOC2007"):
        opened(tmp_path, years="2007+2012")
    with pytest.raises(DataError, match=r"one year; remove data\.years"):
        opened(tmp_path / "VOC2012", years=2012)


def test_packing_says_that_it_drops_tags_and_boxes(folder, tmp_path):
    words = ["pack", str(folder), str(tmp_path / "set"), "--workers", "0"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    told = f"not packed: tags and boxes; evaluations that need them read {folder}\n"
    assert told in done.stderr


def test_other_folders_open_as_before(tmp_path):
    (tmp_path / "JPEGImages").mkdir()
    assert paths.opened_by(str(tmp_path))["use"] == "image_folder"
    write_list(tmp_path, "train", ["1"])
    assert paths.opened_by(str(tmp_path), "image_folder")["use"] == "voc"


def test_images_without_annotations_have_no_classes(folder):
    shutil.rmtree(folder / "Annotations")
    source = opened(folder)
    assert len(source) == 2 and source.tags is None and source.boxes is None
    assert source.unlabelled == "it has no folder Annotations"


def test_boxes_one_pixel_outside_are_moved(folder):
    (folder / "Annotations" / "1.xml").write_text(annotation([("cat", (0, 0, 49, 41), False)]))
    assert opened(folder).boxes[0].corners.tolist() == [[0, 0, 48, 40]]


@pytest.mark.parametrize("place", [1, 48])
def test_a_box_may_be_one_pixel_wide(folder, place):
    box = (place, 3, place, 5)
    (folder / "Annotations" / "1.xml").write_text(annotation([("cat", box, False)]))
    assert opened(folder).boxes[0].corners.tolist() == [[place - 1, 2, place, 5]]


def test_lists_may_have_extensions(folder):
    write_list(folder, "trainval", ["1.jpg", "2.png"])
    assert [file.name for file in opened(folder).files] == ["1.png", "2.png"]


def test_a_size_of_zero_is_read_from_the_image(folder):
    (folder / "Annotations" / "1.xml").write_text(annotation([DOG], 0, 0))
    assert opened(folder).boxes[0].corners.tolist() == [[0, 0, 48, 40]]


def test_real_annotations_are_read():
    if not SHARED.is_dir():
        pytest.skip("the shared data are not at hand")
    source = opened(SHARED)
    assert len(source) == 292 and source.classes == ["Platelets", "RBC", "WBC"]
    assert (source.tags == 1).sum(0).tolist() == [162, 280, 290]


# ------------------------------------------------------------------------------- what it refuses


BOMB = """<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>
<annotation><object><name>&b;</name></object></annotation>"""


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("<annotation><object>", "1.xml cannot be used: no element found"),
        ("", "no element found"),
        (BOMB, "declares a DOCTYPE"),
        (annotation([("cat", (0, 0, 60, 30), False)]), "object 1 (cat) is outside the picture"),
        (annotation([DOG, ("cat", (-2, 1, 9, 9), False)]), "object 2 (cat) is outside"),
        (annotation([("cat", (9, 1, 8, 9), False)]), "object 1 (cat) is empty: xmin 9"),
        (annotation([("cat", (0, 0, 0, 9), False)]), "object 1 (cat) is outside the picture"),
        (annotation([("cat", (49, 1, 49, 9), False)]), "object 1 (cat) is outside the picture"),
        (annotation([("cat", ("nan", 1, 9, 9), False)]), "is not finite"),
        (annotation([("cat", ("a", 1, 9, 9), False)]), "is 'a', not a number"),
        (annotation([("", BOX, False)]), "an object has no name"),
        (annotation([EASY]).replace("bndbox", "box"), "an object (cat) has no xmin"),
        (annotation([EASY]) + " " * (4 << 20), "more than 4,194,304"),
    ],
    ids=[
        "cut-off",
        "no-text",
        "entities",
        "outside",
        "negative",
        "empty",
        "before_the_first",
        "behind_the_last",
        "nan",
        "word",
        "nameless",
        "boxless",
        "large",
    ],
)
def test_a_broken_annotation_is_named(folder, text, sentence):
    (folder / "Annotations" / "1.xml").write_text(text)
    with pytest.raises(DataError, match=re.escape(sentence)) as caught:
        opened(folder)
    assert "1.xml" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("split", ["pretrain", "val"])
def test_a_list_that_names_what_is_missing(folder, split):
    write_list(folder, "trainval", ["1", "9"])
    with pytest.raises(DataError, match=r"trainval\.txt names 9, but JPEGImages has no such"):
        opened(folder, split)
    write_list(folder, "trainval", ["1", "2"])
    (folder / "Annotations" / "2.xml").unlink()
    with pytest.raises(DataError, match=r"2\.xml does not exist; add it \(without <object>"):
        opened(folder, split)


@pytest.mark.parametrize("names, sentence", [([], "is empty"), (["1", "1"], "repeats 1 name")])
def test_a_list_that_is_no_list(folder, names, sentence):
    write_list(folder, "trainval", names)
    with pytest.raises(DataError, match=sentence):
        opened(folder)


def test_a_folder_that_is_none(tmp_path, folder):
    with pytest.raises(DataError, match="is not in VOC layout"):
        opened(tmp_path / "nowhere")
    shutil.rmtree(folder / "JPEGImages")
    with pytest.raises(DataError, match="JPEGImages cannot be read"):
        opened(folder)


def test_a_single_list_has_no_validation_images(tmp_path):
    write_voc(tmp_path, {"trainval": {"1": [EASY]}})
    with pytest.raises(DataError, match="has only the list"):
        opened(tmp_path, "val")


def test_a_random_folder_has_both_kinds_of_every_class(tmp_path):
    source = opened(random_voc(tmp_path, 8, 4, "abc"))
    assert (source.tags == 1).any(0).all() and (source.tags == 0).any(0).all()
