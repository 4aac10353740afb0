"""Evaluations against values that can be worked out by hand, and what they tell a user whose data does not do."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from typer.testing import CliRunner

from sslkit import recipe
from sslkit.cli import app
from sslkit.data.splits import split_by_class
from sslkit.errors import DataError
from sslkit.evaluation import probe as shared
from sslkit.evaluation.probe import Features, Probe, pool, summary, topk
from sslkit.runs import checkpoint
from sslkit.training import build
from sslkit_plugins.evaluations import linear
from sslkit_plugins.evaluations.knn import Knn
from sslkit_plugins.evaluations.linear import Linear, logistic_regression, standardise

RECIPE = """\
name: evaluated
method: {{use: npid}}
data: {{use: image_folder, root: '{root}'}}
transform: {{use: augment, size: 32}}
encoder: {{use: timm, model: resnet18}}
heads: {{image: {{use: linear, out_dim: 16}}}}
sampler: {{use: memory_bank, negatives: 4}}
loss: {{use: lambda_nce}}
optimizer: {{lr: 0.1}}
train: {{epochs: 1, batch_size: 4, device: cpu, precision: fp32, workers: 0}}
"""
COLOURS = {"blue": (20, 30, 200), "green": (30, 180, 40), "red": (220, 30, 20)}


def paint(folder: Path, count: int, seed: int = 0, colours=COLOURS) -> Path:
    """`count` images of every class, each in its colour: pixels alone tell the classes apart."""
    rng = np.random.default_rng(seed)
    for name, colour in colours.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.array(colour) + rng.integers(-15, 16, (36, 40, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(
                folder / name / f"{number}.png"
            )
    return folder


@pytest.fixture(scope="module")
def painted(tmp_path_factory) -> Path:
    return paint(tmp_path_factory.mktemp("painted"), 10)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, painted) -> Path:
    """A run folder of zero steps: what evaluations need."""
    folder = tmp_path_factory.mktemp("runs") / "evaluated" / "now"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(RECIPE.format(root=painted))
    checkpoint.save(build.build(recipe.read(folder / "recipe.yaml")), folder)
    return folder


def sslkit(*words: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


# ------------------------------------------------------------------------------------------------------- votes and regressions


def at(*degrees: float) -> torch.Tensor:
    angles = torch.deg2rad(torch.tensor(degrees))
    return torch.stack([angles.cos(), angles.sin()], 1)


def test_votes_weigh_exp_of_cosine_over_temperature():
    """One neighbour of class 0 at 10°, two of class 1 at 40°: cosines 0.985 and 0.766."""
    train, labels, query = at(10, 40, -40, 180), torch.tensor([0, 1, 1, 2]), at(0)

    def first(temperature: float, k: int) -> float:
        return Knn(k=k, temperature=temperature).vote(
            Features(train, labels, query, torch.tensor([0]))
        )[0]

    near, far = math.cos(math.radians(10)), math.cos(math.radians(40))
    even = (near - far) / math.log(2)  # exp(near/τ) = 2·exp(far/τ)
    assert first(0.9 * even, k=3) == 100
    assert first(1.1 * even, k=3) == 0
    assert first(1.1 * even, k=1) == 100
    assert first(0.9 * even, k=1000) == 100, "k larger than there are images"


def test_votes_do_not_mind_the_length_of_features():
    train, labels, query = at(10, 40, 90), torch.tensor([0, 1, 2]), at(12, 39, 80)
    lengths = torch.tensor([[0.01], [5.0], [300.0]])
    assert Knn(k=1).vote(
        Features(train * lengths, labels, query * lengths, torch.tensor([0, 1, 2]))
    ) == (100, 100)


def test_separable_classes_are_told_apart_wholly():
    torch.manual_seed(0)
    labels = torch.arange(60) % 3
    rows = 4 * F.one_hot(labels, 3).float() + 0.3 * torch.randn(60, 3)
    weights = logistic_regression(rows, labels, 3, 1e-3)
    assert (rows @ weights[:-1] + weights[-1]).argmax(1).equal(labels)


def test_the_gradient_vanishes_at_the_optimum():
    torch.manual_seed(0)
    rows, labels, strength = torch.randn(80, 5), torch.randint(3, (80,)), 0.1
    weights = logistic_regression(rows, labels, 3, strength)
    chance = (rows @ weights[:-1] + weights[-1]).softmax(1) - F.one_hot(labels, 3)
    assert (rows.T @ chance / 80 + strength * weights[:-1]).abs().max() < 1e-4
    assert chance.mean(0).abs().max() < 1e-4, (
        "the bias is free: mean probabilities are the shares of the classes"
    )


def test_a_boundless_regulariser_leaves_the_shares_of_the_classes():
    torch.manual_seed(0)
    labels = torch.tensor([0] * 6 + [1] * 3 + [2])
    weights = logistic_regression(torch.randn(10, 4), labels, 3, 1e3)
    assert weights[:-1].abs().max() < 1e-3
    torch.testing.assert_close(
        weights[-1].softmax(0), torch.tensor([0.6, 0.3, 0.1]), rtol=1e-3, atol=1e-3
    )


def test_a_start_elsewhere_ends_at_the_same_place():
    torch.manual_seed(0)
    rows, labels = torch.randn(50, 4), torch.randint(2, (50,))
    one = logistic_regression(rows, labels, 2, 0.03)
    other = logistic_regression(rows, labels, 2, 0.03, torch.randn(5, 2))
    torch.testing.assert_close(one[:-1], other[:-1], rtol=1e-2, atol=1e-3)


def test_standardising_uses_the_training_half_alone():
    train, val = torch.tensor([[1.0, 5.0], [3.0, 5.0]]), torch.tensor([[4.0, 7.0]])
    one, other = standardise(train, val)
    assert one.tolist() == [[-1, 0], [1, 0]]
    assert other.tolist() == [[2, 0]], "what is constant in training becomes 0 everywhere"


def test_validation_labels_never_choose_the_regulariser(monkeypatch):
    torch.manual_seed(0)
    labels = torch.arange(60) % 3
    rows = F.one_hot(labels, 3).float() + torch.randn(60, 3)
    strengths = []

    def spy(features, labels, classes, strength, start=None):
        strengths.append((strength, len(features)))
        return logistic_regression(features, labels, classes, strength, start)

    monkeypatch.setattr(linear, "logistic_regression", spy)
    given = Features(rows[:40], labels[:40], rows[40:], labels[40:])
    told = Linear().regress(given, seed=1)
    honest = list(strengths)
    strengths.clear()
    wrong = Linear().regress(
        Features(given.train, given.train_labels, given.val, (given.val_labels + 1) % 3), seed=1
    )
    assert strengths == honest
    assert [count for _, count in honest] == [31] * len(linear.STRENGTHS) + [40], (
        "a fifth of every class held out, then all"
    )
    assert told[0] > wrong[0]


def test_topk_counts_the_right_places():
    logits = torch.tensor([[9.0, 8, 7, 6, 5, 4], [4, 5, 6, 7, 8, 9], [1, 9, 8, 7, 6, 5]])
    assert topk(logits, torch.tensor([0, 1, 0])) == pytest.approx((100 / 3, 200 / 3))
    assert topk(logits[:, :3], torch.tensor([2, 1, 0]))[1] == 100


def test_maps_of_resnet50_are_pooled_to_the_papers_sizes():
    maps = {
        "conv1": (64, 112),
        "res2": (256, 56),
        "res3": (512, 28),
        "res4": (1024, 14),
        "res5": (2048, 7),
    }
    sizes = [
        pool(torch.zeros(1, channels, side, side)).shape[1] for channels, side in maps.values()
    ]
    assert sizes == [9216, 9216, 8192, 9216, 8192]


@pytest.mark.parametrize("channels, side", [(64, 16), (512, 1), (64, 64), (256, 9), (20_000, 3)])
def test_other_maps_are_pooled_to_about_as_many(channels, side):
    width = pool(torch.zeros(1, channels, side, side)).shape[1]
    assert width <= max(shared.FEATURES, channels)
    assert width == channels * side * side or width > shared.FEATURES / 4 or width == channels


# ----------------------------------------------------------------------------------------------------------------- intervals


def test_intervals_by_hand():
    """Wilson for 8 of 10: (0.4902, 0.9433); Student's t of 70, 80, 90 with 2 degrees of freedom: 4.30·10/√3."""
    found = summary([(70, 100), (80, 100), (90, 100)], 10)
    assert found["top1"] == 80 and found["top5"] == 100 and found["per_seed"] == [70, 80, 90]
    assert found["interval_images"] == pytest.approx([49.02, 94.33], abs=0.02)
    assert found["interval_seeds"] == pytest.approx(4.30 * 10 / math.sqrt(3))
    assert "interval_seeds" not in summary([(70, 100)], 10), "one seed tells nothing about seeds"


@pytest.mark.parametrize("share, low, high", [(0, 0, 27.75), (100, 72.25, 100)])
def test_intervals_at_the_ends_stay_within(share, low, high):
    assert summary([(share, share)], 10)["interval_images"] == pytest.approx([low, high], abs=0.02)


@pytest.mark.parametrize(
    "freedom, t", [(1, 12.71), (2, 4.30), (9, 2.26), (10, 2.228), (20, 2.086), (60, 2.000)]
)
def test_students_t(freedom, t):
    assert shared.t_95(freedom) == pytest.approx(t, abs=0.004)


# ---------------------------------------------------------------------------------------------------------- on a run, end to end


def test_knn_on_a_run_writes_scores_floors_and_protocol(trained, painted):
    code, out, _ = sslkit("eval", "knn", trained, "--k", 3, "--split-seed", 7)
    assert code == 0 and "chance" in out and "untrained" in out
    result = json.loads((trained / "eval" / "knn.json").read_text())
    protocol = result["protocol"]
    assert (protocol["k"], protocol["temperature"], protocol["seeds"], protocol["layers"]) == (
        3,
        0.07,
        1,
        "last",
    )
    assert (
        protocol["train_images"],
        protocol["val_images"],
        protocol["classes"],
        protocol["size"],
    ) == (24, 6, 3, 32)
    assert protocol["split"] == "a fifth of every class, split with seed 7"
    assert protocol["data"] == {"use": "image_folder", "root": str(painted), "follow_links": False}
    assert (protocol["step"], protocol["checkpoint"]) == (0, "step-00000000")
    assert result["floors"]["chance"] == pytest.approx(100 / 3)
    assert result["floors"]["raw pixels (32×32)"] == 100
    assert list(result["layers"]) == ["features"]
    assert result["layers"]["features"]["top1"] == result["floors"]["the same encoder untrained"], (
        "no step was taken"
    )
    assert (trained / "eval" / "knn.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    "words", [["--k", "3", "{run}"], ["--k=3", "{run}"], ["{run}", "--k=3", "--layers", "all"]]
)
def test_options_and_run_may_come_in_any_order(trained, words):
    code, _, err = sslkit("eval", "knn", *(word.format(run=trained) for word in words))
    assert code == 0, err
    assert json.loads((trained / "eval" / "knn.json").read_text())["protocol"]["k"] == 3


def test_the_newest_run_is_taken_where_none_is_named(trained, monkeypatch, tmp_path):
    shutil.copytree(trained.parent.parent, tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    code, out, err = sslkit("eval", "knn", "--k", "2")
    assert code == 0, err
    assert str(tmp_path / "runs" / "evaluated" / "now") in out


def test_linear_on_all_layers(trained):
    code, out, err = sslkit("eval", "linear", trained, "--layers", "all", "--seeds", "2")
    assert code == 0, err
    result = json.loads((trained / "eval" / "linear.json").read_text())
    assert list(result["layers"]) == ["features", "conv1", "res2", "res3", "res4", "res5"]
    assert len(result["layers"]["res3"]["per_seed"]) == 2
    assert result["layers"]["conv1"]["top1"] == 100, "colours are plain to see"
    assert (
        result["protocol"]["strengths"] == linear.STRENGTHS
        and result["protocol"]["solver"] == "lbfgs"
    )
    assert "trained: res5" in out


def test_linear_by_sgd(trained):
    code, _, err = sslkit(
        "eval",
        "linear",
        trained,
        "--solver",
        "sgd",
        "--epochs",
        "2",
        "--seeds",
        "1",
        "--layers",
        "all",
    )
    assert code == 0, err
    result = json.loads((trained / "eval" / "linear.json").read_text())
    assert list(result["layers"]) == ["features", "conv1", "res2", "res3", "res4", "res5"]
    assert result["protocol"]["epochs"] == 2 and result["protocol"]["solver"] == "sgd"


def test_training_and_validation_folders_are_used_as_they_are(trained, tmp_path):
    paint(tmp_path / "train", 5)
    paint(tmp_path / "val", 2, seed=1)
    probe = Probe(trained, data=str(tmp_path), device="cpu")
    assert (len(probe.train), len(probe.val)) == (15, 6)
    assert probe.split == "the data set's own validation images"
    assert {Path(probe.val.root).name, Path(probe.train.root).name} == {"train", "val"}


def test_a_split_takes_a_fifth_of_every_class_and_depends_on_the_seed_alone(trained):
    one, same, other = (Probe(trained, seed=seed, device="cpu") for seed in (0, 0, 1))
    assert list(one.val.names) == list(same.val.names) != list(other.val.names)
    assert not set(one.val.names) & set(one.train.names)
    assert np.bincount(one.val.labels).tolist() == [2, 2, 2] and np.bincount(
        one.train.labels
    ).tolist() == [8, 8, 8]
    assert all(
        one.classes[label] == name.split("/")[0]
        for label, name in zip(one.val.labels, one.val.names, strict=True)
    )


def test_split_by_class_leaves_an_image_on_either_side():
    first, second = split_by_class(np.array([0, 0, 1, 1, 1, 2]), 0.2, 0)
    assert sorted([*first, *second]) == list(range(6))
    assert np.bincount(np.array([0, 0, 1, 1, 1, 2])[second], minlength=3).tolist() == [1, 1, 0]


# --------------------------------------------------------------------------------------------------------- what cannot be done


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--kk", "3"], "did you mean 'k'?"),
        (["--layer", "all"], "did you mean 'layers'?"),
        (["--k", "0"], "expected int ≥ 1, got 0"),
        (["--k"], "needs a value"),
        (["--k", "3", "3"], "3  is no option of knn"),
        (["--device", "tpu"], "'tpu' is not one of"),
    ],
)
def test_wrong_options_are_named(trained, words, sentence):
    code, _, err = sslkit("eval", "knn", trained, *words)
    assert code == 2
    assert sentence in err and "Traceback" not in err


def test_an_unknown_evaluation_is_named(trained):
    code, _, err = sslkit("eval", "lineal", trained)
    assert code == 2 and "did you mean 'linear'?" in err


def test_a_folder_without_labels_is_refused_in_a_sentence(trained, tmp_path):
    paint(tmp_path, 4, colours={"only": (1, 2, 3)})
    code, _, err = sslkit("eval", "knn", trained, "--data", tmp_path)
    assert code == 2
    assert f"the images of {tmp_path} have no labels" in err and "one subfolder per class" in err


def test_classes_of_one_image_are_refused_in_a_sentence(trained, tmp_path):
    code, _, err = sslkit("eval", "knn", trained, "--data", paint(tmp_path / "few", 1))
    assert code == 2 and "single image" in err


def test_halves_with_different_classes_are_refused_in_a_sentence(trained, tmp_path):
    paint(tmp_path / "train", 2)
    paint(tmp_path / "val", 2, colours={"blue": (0, 0, 9), "pink": (9, 0, 9)})
    code, _, err = sslkit("eval", "knn", trained, "--data", tmp_path)
    assert code == 2 and "different classes" in err and "pink" in err


def test_a_run_whose_images_are_gone_is_evaluated_on_others(trained, tmp_path):
    folder = tmp_path / "evaluated" / "then"
    shutil.copytree(trained, folder)
    (folder / "recipe.yaml").write_text(RECIPE.format(root=tmp_path / "gone"))
    code, _, err = sslkit("eval", "knn", folder)
    assert code == 2 and "does not exist" in err and "--data DIR" in err
    code, _, err = sslkit("eval", "knn", folder, "--data", paint(tmp_path / "here", 5))
    assert code == 0, err
    assert json.loads((folder / "eval" / "knn.json").read_text())["protocol"]["data"][
        "root"
    ] == str(tmp_path / "here")


def test_no_run_is_told_in_a_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = sslkit("eval", "knn")
    assert code == 2 and "there is no trained run below runs/" in err
    code, _, err = sslkit("eval", "knn", tmp_path)
    assert code == 2 and "is not a run folder" in err


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_is_named(trained, tmp_path, monkeypatch, workers):
    folder = paint(tmp_path / "torn", 5)
    (folder / "blue" / "0.png").write_bytes(b"no picture")
    monkeypatch.setattr(shared, "auto_workers", lambda device: workers)
    with pytest.raises(DataError) as caught:
        Probe(trained, data=str(folder), device="cpu").features("pixels")
    assert "blue/0.png cannot be read" in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_a_result_of_another_protocol_is_kept(tmp_path):
    def result(k, top1):
        layers = {"features": {"top1": top1, "interval_images": [0, 1]}}
        return {
            "evaluation": "knn",
            "layers": layers,
            "floors": {"chance": 10.0},
            "protocol": {"k": k, "val_images": 6},
        }

    for k, top1 in ((20, 50.0), (20, 51.0), (200, 40.0)):
        shared.write(tmp_path, result(k, top1))
    held = {path.name: json.loads(path.read_text()) for path in (tmp_path / "eval").glob("*.json")}
    assert {
        name: (found["protocol"]["k"], found["layers"]["features"]["top1"])
        for name, found in held.items()
    } == {
        "knn.json": (200, 40.0),
        "knn.1.json": (20, 51.0),
    }
