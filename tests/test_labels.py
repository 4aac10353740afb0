"""Labels, groups and splits of images from a CSV file."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import sslkit
from sslkit import recipe
from sslkit.cli import app
from sslkit.errors import DataError, RecipeError
from sslkit.evaluation.labelled import open_labelled
from sslkit.evaluation.rows import split

COLOURS = {"dark": 40, "bright": 180}


@pytest.fixture(scope="module")
def flat(tmp_path_factory) -> Path:
    """Forty images without class folders: dark/bright by name only."""
    folder, rng = tmp_path_factory.mktemp("flat"), np.random.default_rng(0)
    for name, level in COLOURS.items():
        for number in range(20):
            pixels = rng.integers(level - 30, level + 30, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{name}{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def split_folder(tmp_path_factory) -> Path:
    """Folders train/ and val/, each with a/1.png … in class folders."""
    folder = tmp_path_factory.mktemp("split")
    for name in ("train/a/1", "train/a/2", "train/b/3", "train/b/4", "val/a/1", "val/b/9"):
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20)).save(path)
    return folder


def rows(flat: Path, extra=lambda number: "", ending=".png") -> list[str]:
    names = sorted(path.stem for path in flat.iterdir())
    return [f"{name}{ending},{name[:-2]}{extra(n)}" for n, name in enumerate(names)]


def opened(folder: Path, tmp_path: Path, text: str | bytes, needs="labels", seed=None):
    path = tmp_path / "labels.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return open_labelled(recipe.read_data(str(folder)), path, needs, seed)


def table(lines: list[str], header="name,label") -> str:
    return "\n".join([header, *lines]) + "\n"


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text,
        lambda text: text.replace(",", ";"),
        lambda text: text.replace(",", "\t"),
        lambda text: "\ufeff" + text.replace("\n", "\r\n"),
        lambda text: text.replace("name,label", " Name , LABEL").replace(",", " ,") + "\n,\n",
        lambda text: text.replace(".png", ""),
        lambda text: text.replace("\ndark", "\n./dark"),
    ],
    ids=["comma", "semicolon", "tab", "bom_and_crlf", "spaces_and_blanks", "no_ending", "dot"],
)
def test_a_flat_folder_becomes_a_labelled_one(flat, tmp_path, change):
    found = opened(flat, tmp_path, change(table(rows(flat))))
    assert (len(found.train), len(found.val)) == (32, 8)
    assert list(found.train.classes) == ["bright", "dark"]
    for source in (found.train, found.val):
        shown = [source.classes[label] for label in source.labels]
        assert all(name.startswith(label) for name, label in zip(source.names, shown, strict=True))
        assert (np.asarray(source.image(0)).mean() > 100) == (shown[0] == "bright")
    assert found.how == "a fifth of every class, split with seed 0" and not found.notes


def test_absolute_paths_name_images_of_the_folder(flat, tmp_path):
    found = opened(flat, tmp_path, table([f"{flat}/{row}" for row in rows(flat)]))
    assert len(found.train) == 32


def test_images_without_a_row_are_left_out_and_counted(flat, tmp_path):
    found = opened(
        flat, tmp_path, table([row + ",x" for row in rows(flat)[::2]], "name,label,size")
    )
    assert len(found.train) + len(found.val) == 20 and found.labels["left_out"] == 20
    assert found.notes[0].startswith(f"20 images of {flat} left out, without a row in ")
    assert found.notes[1].endswith("labels.csv that are not read: size")


def test_groups_are_never_split(flat, tmp_path):
    text = table(rows(flat, lambda number: f",patient {number // 2}"), "name,label,group")
    found = opened(flat, tmp_path, text, seed=3)
    assert not set(found.train.groups) & set(found.val.groups)
    assert np.bincount(found.val.labels).tolist() == [4, 4]
    assert found.how == "a fifth of the groups, split with seed 3"


def test_a_group_in_both_splits_is_refused(flat, tmp_path):
    lines = rows(flat, lambda number: f",p{number // 3},{'train' if number % 20 < 16 else 'VAL'}")
    with pytest.raises(DataError, match=r"both splits have 2 groups of .*: p\d+, p\d+; all images"):
        opened(flat, tmp_path, table(lines, "name,label,group,split"))


def test_splits_of_the_file_are_used_in_any_case(flat, tmp_path):
    kinds = ("Training", "dev", "TEST", "train")
    lines = rows(flat, lambda number: f",{kinds[number % 4]}")
    found = opened(flat, tmp_path, table(lines, "name,label,split"))
    assert (len(found.train), len(found.val)) == (20, 10)
    assert found.how == "the images with split dev"
    assert found.notes == ("10 images of the split test left out; dev validates",)
    with pytest.raises(RecipeError, match="fixed splits; remove the option"):
        opened(flat, tmp_path, table(lines, "name,label,split"), seed=1)


def test_the_only_split_is_split_at_random(flat, tmp_path):
    lines = rows(flat, lambda number: ",test")
    found = opened(flat, tmp_path, table(lines, "name,label,split"))
    assert (len(found.train), len(found.val)) == (32, 8)


def test_names_may_leave_out_the_folder_of_the_split(split_folder, tmp_path):
    lines = ["a/2.png,x", "3,x", "b/4,y", "train/a/1.png,y", "val/a/1,x", "b/9.png,y"]
    found = opened(split_folder, tmp_path, table(lines))
    assert found.how == "the images with split val"
    names = [f"train/{name}.png" for name in ("a/1", "a/2", "b/3", "b/4")]
    assert list(found.train.names) == names
    assert found.train.labels.tolist() == [1, 0, 0, 1] and found.val.labels.tolist() == [0, 1]
    with pytest.raises(DataError, match=r"line 2: 'a/1.png' may be train/a/1.png or val/a/1.png;"):
        opened(split_folder, tmp_path, table(["a/1.png,x"]))


def test_several_labels_become_tags(split_folder, tmp_path):
    lines = ["train/a/1,x|y", "2,x", "3,y", "4,z", "4,x", "9,x", "val/a/1,z"]
    found = opened(split_folder, tmp_path, table(lines), needs="tags")
    assert found.train.labels is None and list(found.train.classes) == ["x", "y", "z"]
    assert found.train.tags.tolist() == [[1, 1, 0], [1, 0, 0], [0, 1, 0], [1, 0, 1]]
    with pytest.raises(DataError, match=r"gives train/a/1.png several labels \(x, y\), but"):
        opened(split_folder, tmp_path, table(lines))


REFUSED = {
    "missing_file": (["nope.png,a", "dark00.png,a", "no.png,b"], "names 2 images that .* does not "
                     r"have: nope.png, no.png; write paths below .*, or remove these rows"),
    "contradiction": (["dark00,a", "dark00.png,b"], r"gives dark00.png several labels \(a, b\)"),
    "empty_label": (["dark00.png,"], "line 2: the label of dark00.png is empty; fill it in"),
    "empty_name": ([",a"], "line 2: the name is empty; fill it in, or remove the row"),
    "empty_of_several": (["dark00,a|"], "one of the labels 'a|' is empty".replace("|", r"\|")),
    "cells": (["dark00.png,a,b"], "line 2 has 3 cells and its first line 2"),
    "quotes": (['"dark00.png,a'], "line 2 is not a row of CSV .*; correct its quotes"),
    "one_class": (["dark00,a", "dark01,a"], "are of one class, but"),
    "no_rows": ([], "has no rows below its first line; add one row per image"),
}  # fmt: skip


@pytest.mark.parametrize("lines, message", REFUSED.values(), ids=REFUSED)
def test_a_wrong_row_is_refused_in_one_sentence(flat, tmp_path, lines, message):
    with pytest.raises(DataError, match=message) as error:
        opened(flat, tmp_path, table(lines))
    assert "\n" not in str(error.value)


FILES = {
    "column": ("name,class\ndark00,a\n", "needs the columns name and label; .* but it is "
               "'name,class'"),
    "delimiter": ("name|label\ndark00|a\n", "separated by commas, semicolons or tabs, but it is"),
    "twice": ("name,label,label\n", "has several columns label; keep one of them"),
    "empty": ("", "needs the columns name and label"),
    "utf16": ("name,label\nä,a\n".encode("utf-16"), "line 1 is not UTF-8 text; save the file as"),
    "latin1": ("name,label\ndark00,ä\n".encode("latin-1"), "line 2 is not UTF-8 text"),
    "split": ("name,label,split\ndark00,a,holdout\n", "line 2: 'holdout' is not a split; write"),
    "no_training": ("name,label,split\ndark00,a,val\ndark01,b,test\n", "has no training images"),
    "group": ("name,label,group\ndark00,a,p\ndark01,b,p\n", "are of the group 'p', so none is "
              "left for validation"),
    "groups": ("name,label,group\ndark00,a,p\ndark00,a,q\n", "has the groups 'p' and 'q'; keep"),
}  # fmt: skip


@pytest.mark.parametrize("text, message", FILES.values(), ids=FILES)
def test_a_wrong_file_is_refused_in_one_sentence(flat, tmp_path, text, message):
    with pytest.raises(DataError, match=message) as error:
        opened(flat, tmp_path, text)
    assert "\n" not in str(error.value)


def test_boxes_cannot_come_from_a_file(flat, tmp_path):
    with pytest.raises(RecipeError, match="reads the boxes of the data set"):
        opened(flat, tmp_path, table(rows(flat)), needs="boxes")


def test_classes_of_one_image_are_split_at_random():
    from noise import Noise

    source = Noise(10)
    source.labels = np.arange(10)
    train, val, how = split(source, 0)
    assert (len(train), len(val)) == (8, 2) and how == "a fifth of the images, split with seed 0"


def test_groups_too_few_for_folds_still_split():
    from noise import Noise

    source = Noise(3)
    source.groups, source.labels = ["a", "a", "b"], np.array([0, 0, 1])
    assert sorted(map(len, split(source, 0)[:2])) == [1, 2]
    source.groups, source.labels = ["a", "b", "c"], np.array([0, 1, 2])
    assert sorted(map(len, split(source, 0)[:2])) == [1, 2]


# ------------------------------------------------------------------------ command and Python


def test_the_command_and_python_take_labels(flat, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("labels.csv").write_text(table(rows(flat)))
    words = ["--encoder", "timm:test_resnet", "--weights", "none", "--size", "32"]
    ran = CliRunner().invoke(
        app, ["eval", "knn", *words, "--data", str(flat), "--labels", "labels.csv"]
    )
    assert ran.exit_code == 0, ran.stderr
    written = json.loads(Path("eval/timm_test_resnet/knn.json").read_text())
    facts = written["protocol"]["labels"]
    assert facts["file"] == "labels.csv" and len(facts["sha256"]) == 64 and facts["left_out"] == 0
    found = sslkit.evaluate(
        "timm:test_resnet", "knn", weights="none", data=flat, labels="labels.csv", size=32,
        progress=False,
    )  # fmt: skip
    assert found.as_dict()["entries"] == written["entries"]
    ran = CliRunner().invoke(
        app, ["eval", "knn", *words, "--data", str(flat), "--labels", "label.csv"]
    )
    assert ran.exit_code == 2 and "did you mean labels.csv?" in ran.stderr
