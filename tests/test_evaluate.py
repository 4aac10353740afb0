"""Evaluations of a run through the command line, what they refuse, what all of them promise."""

import copy
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import sslkit
from noise import NPID, made, network
from PIL import Image

from sslkit import console, parts, recipe
from sslkit.errors import DataError, PluginError
from sslkit.evaluation import store
from sslkit.evaluation.build import Request, build
from sslkit.evaluation.candidates import RawPixels
from sslkit.recipe import registry
from sslkit.runs import checkpoint
from sslkit.training import build as training
from sslkit_plugins.evaluations.knn import Knn

COLOURS = {"blue": (20, 30, 200), "green": (30, 180, 40), "red": (220, 30, 20)}
LAYERS = ["features", "conv1", "res2", "res3", "res4", "res5"]


def paint(folder: Path, count: int, seed: int = 0, colours=COLOURS) -> Path:
    """`count` images of every class, each in its colour: pixels alone tell the classes apart."""
    rng = np.random.default_rng(seed)
    for name, colour in colours.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.array(colour) + rng.integers(-15, 16, (36, 40, 3))
            picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            picture.save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def painted(tmp_path_factory) -> Path:
    return paint(tmp_path_factory.mktemp("painted"), 10)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, painted) -> Path:
    """A run folder of zero steps: what evaluations need."""
    folder = tmp_path_factory.mktemp("runs") / "evaluated" / "now"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(NPID.format(root=painted))
    checkpoint.save(training.build(recipe.read(folder / "recipe.yaml")), folder)
    return folder


def evaluated(*words: object) -> dict:
    """What `sslkit eval …` wrote."""
    code, out, err = sslkit("eval", *words)
    assert code == 0, err
    return json.loads(Path(out.split("written: ")[1].strip()).read_text())


def scores(result: dict, metric: str = "top-1") -> dict:
    """Value by (row, candidate)."""
    return {
        (entry["row"], entry["candidate"]): entry["scores"][metric]["value"]
        for entry in result["entries"]
    }


# --------------------------------------------------------------------------- on a run, whole


def test_knn_on_a_run_writes_scores_baselines_and_protocol(trained, painted):
    result = evaluated("knn", trained, "--k", 3, "--split-seed", 7)
    protocol = result["protocol"]
    expected = {
        "k": 3,
        "temperature": 0.07,
        "train_images": 24,
        "val_images": 6,
        "classes": 3,
        "split": "a fifth of every class, split with seed 7",
        "step": 0,
        "checkpoint": "step-00000000",
    }
    assert {name: protocol[name] for name in expected} == expected
    assert protocol["data"] == {
        "use": "image_folder",
        "root": str(painted),
        "follow_links": False,
        "splits": True,
        "max_pixels": 89_478_485,
    }
    found = scores(result)
    assert list(found) == [
        ("features", "trained"),
        ("features", "untrained"),
        (None, "raw pixels"),
        (None, "chance"),
    ]
    assert found[None, "chance"] == pytest.approx(1 / 3) and found[None, "raw pixels"] == 1
    assert (trained / "eval" / "knn.png").read_bytes()[:4] == b"\x89PNG"


def test_more_neighbours_than_images_are_told_of(trained, tmp_path):
    code, out, _ = sslkit("eval", "knn", trained, "--k", "1000", "--out", tmp_path / "out")
    assert code == 0 and "all 24 training images vote, fewer than 1000 (--k)\n" in out
    result = json.loads((tmp_path / "out" / "knn.json").read_text())
    assert result["protocol"]["k"] == 24


@pytest.mark.parametrize(
    "words",
    [["--k", "3", "{run}"], ["--k=3", "{run}"], ["{run}", "--k=3", "--layers", "all"]],
    ids=["option_first", "equals_sign", "run_first"],
)
def test_options_and_run_may_come_in_any_order(trained, words):
    result = evaluated("knn", *(word.format(run=trained) for word in words))
    assert result["protocol"]["k"] == 3


def test_the_newest_run_is_taken_where_none_is_named(trained, monkeypatch, tmp_path):
    shutil.copytree(trained.parent.parent, tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    code, out, err = sslkit("eval", "knn", "--k", "2")
    assert code == 0, err
    assert str(tmp_path / "runs" / "evaluated" / "now") in out


def test_every_layer_stands_beside_its_own_untrained_layer(trained):
    code, out, err = sslkit("eval", "linear", trained, "--layers", "all")
    assert code == 0, err
    result = json.loads((trained / "eval" / "linear.json").read_text())
    rows = [(row, name) for name in ("trained", "untrained") for row in LAYERS]
    assert list(scores(result)) == [*rows, (None, "raw pixels"), (None, "chance")]
    paired = {
        entry["row"]: entry["differences"]
        for entry in result["entries"]
        if entry["candidate"] == "trained"
    }
    assert all(set(found) == {"untrained", "raw pixels"} for found in paired.values())
    assert scores(result)["conv1", "trained"] == 1, "colours are plain to see"
    assert "trained − untrained" in out and "res5" in out and "raw pixels: 100.0" in out


def test_linear_by_sgd_scores_every_candidate(trained):
    words = ("--solver", "sgd", "--epochs", 2, "--seeds", 2, "--layers", "all")
    result = evaluated("linear", trained, *words)
    rows = [(row, name) for name in ("trained", "untrained") for row in LAYERS]
    assert list(scores(result)) == [*rows, (None, "raw pixels"), (None, "chance")]
    assert all(len(entry["scores"]["top-1"]["values"]) == 2 for entry in result["entries"][:-1])
    assert (result["protocol"]["epochs"], result["protocol"]["seeds"]) == (2, 2)


def test_another_size_another_run_and_another_folder(trained, tmp_path):
    other = tmp_path / "evaluated" / "then"
    shutil.copytree(trained, other)
    out = tmp_path / "here"
    words = ("--size", 48, "--against", other, "--out", out)
    result = evaluated("knn", trained, *words)
    assert (out / "knn.json").is_file() and not (trained / "eval" / "x").exists()
    sizes = {one["name"]: one["size"] for one in result["protocol"]["candidates"]}
    assert sizes == {"trained": 48, "untrained": 48, "raw pixels": 32, "then": 48}
    found = scores(result)
    assert found["features", "then"] == found["features", "trained"], "the same weights"


def test_an_encoder_alone_is_measured_on_a_folder(painted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("--encoder", "timm:test_resnet", "--data", painted, "--weights", "none")
    result = evaluated("knn", *words)
    assert (tmp_path / "eval" / "timm_test_resnet" / "knn.json").is_file()
    assert list(scores(result)) == [
        ("features", "timm:test_resnet"),
        (None, "raw pixels"),
        (None, "chance"),
    ]
    assert result["protocol"]["encoder"]["model"] == "test_resnet"
    sizes = [one["size"] for one in result["protocol"]["candidates"]]
    assert sizes == [160, 32], "timm's test models were made for 160 px"


def test_an_exported_folder_stands_beside_its_untrained_twin(
    trained, painted, tmp_path, monkeypatch
):
    folder = tmp_path / "mine" / "export" / "timm"
    folder.mkdir(parents=True)
    probe = build(Request(run=trained, device="cpu")).probe
    probe.candidates[0].encoder.export("timm", folder, 32)
    monkeypatch.chdir(tmp_path)
    alone = scores(evaluated("knn", "--encoder", folder, "--data", painted))
    whole = scores(evaluated("knn", trained))
    assert alone["features", "mine"] == whole["features", "trained"]
    assert alone["features", "untrained"] == whole["features", "untrained"]
    assert (tmp_path / "eval" / "mine" / "knn.json").is_file()


def test_training_and_validation_folders_are_used_as_they_are(trained, tmp_path):
    paint(tmp_path / "train", 5)
    paint(tmp_path / "val", 2, seed=1)
    probe = build(Request(run=trained, data=str(tmp_path), device="cpu")).probe
    assert (len(probe.train), len(probe.val)) == (15, 6)
    assert probe.protocol()["split"] == "the data set's own validation images"
    assert {Path(probe.val.root).name, Path(probe.train.root).name} == {"train", "val"}
    code, _, err = sslkit("eval", "knn", trained, "--data", tmp_path, "--split-seed", 3)
    assert code == 2 and "has separate validation images; remove the option" in err


def test_a_split_takes_a_fifth_of_every_class_by_seed(trained):
    one, same, other = (
        build(Request(run=trained, split_seed=seed, device="cpu")).probe for seed in (0, 0, 1)
    )
    assert list(one.val.names) == list(same.val.names) != list(other.val.names)
    assert not set(one.val.names) & set(one.train.names)
    assert np.bincount(one.val.labels).tolist() == [2, 2, 2]
    assert np.bincount(one.train.labels).tolist() == [8, 8, 8]
    for label, name in zip(one.val.labels, one.val.names, strict=True):
        assert one.classes[label] == name.split("/")[0]


# ------------------------------------------------------------------- what cannot be measured


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--kk", "3"], "--kk  no such option; did you mean '--k'?"),
        (["--layer", "all"], "did you mean '--layers'"),
        (["--k", "0"], "expected int ≥ 1 or null, got 0"),
        (["--k", "[1"], "--k  is not valid YAML"),
        (["--k"], "requires an argument"),
        (["--weights", "none"], "--weights  requires an encoder"),
        (["--encoder", "resnet18"], "neither a folder nor an encoder"),
        (["--encoder", "tim:resnet18"], "did you mean 'timm'?"),
        (["--encoder", "timm:resnet18", "--weights", "none.pt"], "none.pt"),
        (["--encoder", "{run}"], "is a run; write it as RUN, or --against"),
        (["--encoder", "{run}/checkpoints"], "channel_groups, scattering, timm) can load"),
        (["--encoder", "alexnet:a"], "has no models; write --encoder alexnet"),
        (["--encoder", "timm"], "name a model of encoder 'timm': --encoder timm:MODEL"),
        (["--encoder", "alexnet"], "has no pretrained weights; name some: --weights RUN"),
        (["--against", "{run}"], "is already measured"),
        (["--size", "0"], "--size"),
        (["--data", "nowhere"], "there is no such folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_options_are_named(trained, words, sentence):
    words = [word.format(run=trained) for word in words]
    code, _, err = sslkit("eval", "knn", trained, *words)
    assert code == 2
    assert sentence in " ".join(err.split()).replace("--k ", "--k  ") or sentence in err
    assert "Traceback" not in err


def test_options_of_the_other_solver_are_refused(trained):
    code, _, err = sslkit("eval", "linear", trained, "--epochs", 3, "--seeds", 2)
    assert code == 2
    assert "--epochs" in err and "--seeds" in err and "is an option of --solver sgd only" in err


def test_an_encoder_without_images_is_refused():
    code, _, err = sslkit("eval", "knn", "--encoder", "timm:test_resnet", "--weights", "none")
    assert code == 2 and "--encoder without a run needs images: --data DIR" in err


def test_an_unknown_evaluation_is_named(trained):
    code, _, err = sslkit("eval", "lineal", trained)
    assert code == 2 and "did you mean 'linear'?" in err


def test_splits_with_different_classes_are_refused_in_a_sentence(trained, tmp_path):
    paint(tmp_path / "train", 2)
    paint(tmp_path / "val", 2, colours={"blue": (0, 0, 9), "pink": (9, 0, 9)})
    code, _, err = sslkit("eval", "knn", trained, "--data", tmp_path)
    assert code == 2 and "val has classes that" in err and "does not have: pink" in err
    assert evaluated("knn", trained, "--data", tmp_path / "train", "--k", 2), "the remedy"


def test_a_run_whose_images_are_gone_is_evaluated_on_others(trained, tmp_path):
    folder = tmp_path / "evaluated" / "then"
    shutil.copytree(trained, folder)
    (folder / "recipe.yaml").write_text(NPID.format(root=tmp_path / "gone"))
    code, _, err = sslkit("eval", "knn", folder)
    assert code == 2 and "does not exist" in err and "--data DIR" in err
    result = evaluated("knn", folder, "--data", paint(tmp_path / "here", 5))
    assert result["protocol"]["data"]["root"] == str(tmp_path / "here")


def test_no_run_is_told_in_a_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = sslkit("eval", "knn")
    assert code == 2 and "there is no trained run below runs/" in err
    code, _, err = sslkit("eval", "knn", tmp_path)
    assert code == 2 and "is not a run folder" in err


def test_needs_are_checked_before_weights_are_loaded(trained, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(trained, folder)
    shutil.rmtree(folder / "checkpoints")
    code, _, err = sslkit("eval", "knn", folder, "--data", paint(tmp_path / "few", 1))
    assert code == 2 and "single image" in err


@pytest.mark.parametrize("needs, word", [("tags", "no tags"), ("boxes", "no boxes")])
def test_other_needs_are_told(trained, needs, word):
    with pytest.raises(DataError, match=word):
        build(Request(run=trained, device="cpu"), needs)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_is_named(trained, tmp_path, monkeypatch, workers):
    folder = paint(tmp_path / "torn", 5)
    (folder / "blue" / "0.png").write_bytes(b"no picture")
    monkeypatch.setattr("sslkit.evaluation.build.auto_workers", lambda device: workers)
    with pytest.raises(DataError) as caught:
        build(Request(run=trained, data=str(folder), device="cpu"))
    assert "1 image cannot be read" in str(caught.value) and "blue/0.png" in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_a_run_of_other_channels_is_refused(trained, tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (9, 16, 16, 5), dtype=np.uint8)
    np.savez(tmp_path / "five.npz", images=images, labels=np.arange(9) % 3)
    code, _, err = sslkit("eval", "knn", trained, "--data", tmp_path / "five.npz")
    assert code == 2 and "was trained on images of 3 channels and 8 bits" in err


# ----------------------------------------------------------- promises of every evaluation

PARTS = registry.parts("evaluations")
every = pytest.mark.parametrize("part", [pytest.param(part, id=part.name) for part in PARTS])
# Detectors need boxes and train for thousands of steps: see test_detect.py.
brief = pytest.mark.parametrize(
    "part",
    [
        pytest.param(part, id=part.name)
        for part in PARTS
        if part.signature().attributes.get("needs") != "boxes"
    ],
)


@brief
def test_it_changes_no_weight_and_no_buffer(part):
    probe = made()
    before = [copy.deepcopy(one.encoder.state_dict()) for one in probe.candidates[:2]]
    store.run(recipe.read_evaluation(part.name, {}), probe)
    after = [one.encoder.state_dict() for one in probe.candidates[:2]]
    for one, other in zip(before, after, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


@brief
def test_it_gives_the_same_json_twice(part):
    choice = recipe.read_evaluation(part.name, {})
    one, other = (store.run(choice, made()) for _ in range(2))
    assert json.dumps(one) == json.dumps(other)
    assert one["metrics"] and {"trained", "untrained", "raw pixels"} <= {
        entry["candidate"] for entry in one["entries"]
    }


@brief
def test_features_that_are_nan_are_shown_as_a_dash(part, capsys):
    class Broken(RawPixels):
        def embed(self, images, *, layers=False):
            return {name: rows * torch.nan for name, rows in super().embed(images).items()}

    result = store.run(recipe.read_evaluation(part.name, {}), made([network(), Broken()]))
    entry = next(one for one in result["entries"] if one["candidate"] == "raw pixels")
    assert {found["value"] for found in entry["scores"].values()} == {None}
    console.print_result(result)
    out = capsys.readouterr().out
    assert "raw pixels" in out and re.search(r"\s-\s", out) and "nan" not in out


@every
@pytest.mark.parametrize(
    "colours, count, sentence",
    [
        (dict(list(COLOURS.items())[:1]), 4, "all of them are in one folder"),
        (COLOURS, 1, "has a single image"),
    ],
    ids=["one-class", "single-images"],
)
def test_it_refuses_what_it_cannot_measure(part, trained, tmp_path, colours, count, sentence):
    if part.signature().attributes["needs"] != "labels":
        pytest.skip("needs no labels")
    folder = paint(tmp_path / "set", count, colours=colours)
    code, _, err = sslkit("eval", part.name, trained, "--data", folder)
    assert code == 2 and sentence in err and len(err.strip().splitlines()) == 1


@every
@pytest.mark.parametrize(
    "labels, sentence",
    [(None, "have no labels"), ([1] * 8, "are of one class"), ([], "set.npz")],
    ids=["no-labels", "one-class", "empty"],
)
def test_it_refuses_arrays_that_it_cannot_measure(part, trained, tmp_path, labels, sentence):
    if part.signature().attributes["needs"] != "labels":
        pytest.skip("needs no labels")
    count = 8 if labels is None else len(labels)
    arrays = {"images": np.zeros((count, 16, 16, 3), np.uint8)}
    if labels is not None:
        arrays["labels"] = np.array(labels, np.int64)
    np.savez(tmp_path / "set.npz", **arrays)
    code, _, err = sslkit("eval", part.name, trained, "--data", tmp_path / "set.npz")
    assert code == 2 and sentence in err and len(err.strip().splitlines()) == 1


def test_an_evaluation_that_fails_is_named(monkeypatch):
    choice = recipe.read_evaluation("knn", {})
    monkeypatch.setattr(Knn, "hits", lambda *_: 1 / 0)
    with pytest.raises(PluginError, match=r"evaluation 'knn' of sslkit .* ZeroDivision"):
        store.run(choice, made())
    monkeypatch.setattr(Knn, "measure", lambda *_: {"top1": 1})
    with pytest.raises(PluginError, match="returned 'dict' instead of a Result"):
        store.run(choice, made())
    assert isinstance(parts.make(choice), Knn)
