"""Evaluations while training: values, exact resume, refusals, several ranks."""

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from noise import network
from PIL import Image
from test_architecture import reached
from typer.testing import CliRunner

import sslkit
from sslkit import distributed, recipe
from sslkit.cli import app
from sslkit.errors import RecipeError
from sslkit.report import figures
from sslkit.runs import changes
from sslkit.runs.metrics import Bins, Row
from sslkit.training import build as training
from sslkit.training import plan
from sslkit.training.evaluations import Evaluations, Sharded

WATCHED = {"knn": {"every_epochs": 2, "k": 3}}
"""Evaluation after steps 4, 8 and 10 of five epochs of two steps."""


def paint(folder: Path, names=("dark", "bright"), count=8) -> Path:
    rng = np.random.default_rng(0)
    for level, name in enumerate(names, 1):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 120 * level, (24, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{name}{number}.png")
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return paint(tmp_path_factory.mktemp("photos"))


def content(photos: Path, **train) -> dict:
    """A recipe of five epochs of two steps."""
    common = {"epochs": 5, "batch_size": 8, "device": "cpu", "precision": "fp32", "workers": 0}
    return {
        "name": "watched",
        "method": {"use": "npid"},
        "data": {"use": "image_folder", "root": str(photos)},
        "transform": {"use": "augment", "size": 32},
        "encoder": {"use": "timm", "model": "test_resnet"},
        "heads": {"image": {"use": "linear", "out_dim": 8}},
        "sampler": {"use": "memory_bank", "negatives": 4},
        "loss": {"use": "lambda_nce"},
        "optimizer": {"lr": 0.05},
        "train": common | train,
    }


def train(photos: Path, run: Path, **options) -> sslkit.TrainedRun:
    return sslkit.train(content(photos, **options), run=run, progress=False)


@pytest.fixture(scope="module")
def watched(photos, tmp_path_factory) -> sslkit.TrainedRun:
    return train(photos, tmp_path_factory.mktemp("runs") / "watched", evaluate=WATCHED)


def test_values_stand_in_the_rows_of_their_steps(watched):
    values = watched.metrics["knn top-1"]
    assert watched.metrics["step"][np.isfinite(values)].tolist() == [4, 8, 10]
    untrained = watched.metrics["knn top-1, untrained"]
    assert np.isfinite(untrained).tolist() == [True, *[False] * 9]


def test_they_are_those_of_eval(watched):
    result = sslkit.evaluate(watched, "knn", k=3, progress=False)
    assert watched.metrics["knn top-1"][-1] == result.score().value
    assert watched.metrics["knn top-1, untrained"][0] == result.score(candidate="untrained").value


def test_training_does_not_change(photos, watched, tmp_path):
    plain = train(photos, tmp_path / "plain")
    file = "encoder.safetensors"
    assert (plain.folder / file).read_bytes() == (watched.folder / file).read_bytes()
    assert "knn top-1" not in plain.metrics
    assert np.array_equal(plain.metrics["loss"], watched.metrics["loss"])


@pytest.mark.parametrize("killed", [0, 2], ids=["untrained", "second"])
def test_a_killed_evaluation_is_repeated(photos, watched, tmp_path, monkeypatch, killed):
    """Killed while measuring the encoder for the n-th time, with a checkpoint after each step."""
    measure, calls = Evaluations._measure, []

    def dies(self, number, *, trained):
        calls.append(trained)
        if len(calls) == killed + 1:
            raise ZeroDivisionError
        return measure(self, number, trained=trained)

    monkeypatch.setattr(figures, "curves", lambda *_, **options: None)
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(Evaluations, "_measure", dies)
        train(photos, tmp_path / "run", evaluate=WATCHED, save_minutes=0)
    assert (tmp_path / "run").exists() == bool(killed)
    again = train(photos, tmp_path / "run", evaluate=WATCHED)
    for file in ("metrics.jsonl", "encoder.safetensors"):
        assert (again.folder / file).read_bytes() == (watched.folder / file).read_bytes()


def test_measuring_leaves_weights_and_random_state(photos):
    run = training.build(recipe.read(content(photos, evaluate=WATCHED)))
    evaluations = Evaluations(run)
    before = copy.deepcopy(run.method.state_dict())
    run.model.train()
    state = torch.get_rng_state()
    evaluations.begin()
    assert torch.equal(torch.get_rng_state(), state) and run.method.training
    after = run.method.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    run.step = 4
    rows = [Row(3, 2, 0.1, 1.0, {}), Row(4, 2, 0.1, 1.0, {})]
    assert evaluations.due()
    evaluations.add(rows[:1])  # step 4 was skipped
    assert list(rows[0].metrics) == ["knn top-1, untrained"]
    evaluations.add(rows)
    assert list(rows[1].metrics) == ["knn top-1"] and len(rows[0].metrics) == 1


def test_a_file_of_labels_and_other_images(tmp_path, photos):
    flat = tmp_path / "flat"
    flat.mkdir()
    lines = ["name,label"]
    for path in sorted(photos.glob("*/*.png")):
        (flat / path.name).write_bytes(path.read_bytes())
        lines.append(f"{path.stem},{path.parent.name}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    watch = {"data": str(flat), "labels": str(tmp_path / "labels.csv")}
    run = training.build(recipe.read(content(flat, evaluate={"auc": watch})))
    evaluations = Evaluations(run)
    evaluations.begin()
    assert list(evaluations.untrained) == [
        "auc AUC, untrained",
        "auc balanced accuracy, untrained",
    ]
    with pytest.raises(RecipeError) as error:
        Evaluations(training.build(recipe.read(content(flat, evaluate=WATCHED))))
    (fault,) = error.value.faults
    assert fault.key == "train.evaluate.knn"
    assert "have no labels (it has no folders)" in fault.message
    assert "--set train.evaluate.knn.data=DIR names other images" in fault.message


# ----------------------------------------------------------------------- recipes and commands

RECIPES = {
    "name": ("{knnn: {}}", "train.evaluate.knnn", "did you mean 'knn'?"),
    "option": ("{knn: {every_epoch: 1}}", "train.evaluate.knn.every_epoch", "'every_epochs'?"),
    "own_option": ("{knn: {kk: 1}}", "train.evaluate.knn.kk", "did you mean 'k'?"),
    "value": ("{knn: {every_epochs: 0}}", "train.evaluate.knn.every_epochs", "int ≥ 1, got 0"),
    "no_mapping": ("{knn: 3}", "train.evaluate.knn", "3 is not a mapping of options"),
    "text": ("knn", "train.evaluate", "expected a mapping or null, got 'knn'"),
}


@pytest.mark.parametrize("text, key, message", RECIPES.values(), ids=RECIPES)
def test_check_names_the_line(photos, tmp_path, text, key, message):
    path = tmp_path / "mine.yaml"
    path.write_text(
        recipe.read(content(photos)).as_yaml().replace("evaluate: null", f"evaluate: {text}")
    )
    line = len(path.read_text().splitlines())
    ran = CliRunner().invoke(app, ["check", str(path)])
    assert ran.exit_code == 2
    assert ran.stderr.startswith(f"{path}:{line}  {key}  ") and message in ran.stderr


def test_defaults_are_filled_in_and_written(photos, monkeypatch):
    monkeypatch.chdir(photos)
    made = recipe.read(content(photos), overrides=["train.evaluate.knn.data=dark"])
    assert made.train.evaluate["knn"]["every_epochs"] == 10
    again = recipe.read(made.as_dict(), overrides=["train.evaluate.knn.k=7"])
    assert again.train.evaluate["knn"]["k"] == 7
    whole = recipe.paths.absolute(again)
    assert whole.train.evaluate["knn"]["data"] == str(photos / "dark")
    gone = recipe.read(content(photos, evaluate={"knn": {"labels": "gone.csv"}}))
    assert recipe.paths.missing(gone) == [("train.evaluate.knn.labels", "gone.csv")]
    none = recipe.read(content(photos, evaluate={"knn": None}))
    assert none.train.evaluate["knn"]["every_epochs"] == 10


def test_a_resumed_run_may_change_its_evaluations(watched, photos):
    changes.check_settings(watched.folder, ["train.evaluate.knn.data=elsewhere"])
    other = recipe.read(content(photos, evaluate={"auc": {}}))
    changes.check_same(watched.folder, watched.recipe, other)


def test_contradicting_options_are_refused_before_training(photos):
    watch = {"linear": {"solver": "lbfgs", "epochs": 3}}
    run = training.build(recipe.read(content(photos, evaluate=watch)))
    with pytest.raises(RecipeError, match=r"^train.evaluate.linear.epochs  is an option of"):
        Evaluations(run)


def test_plan_tells_how_often(photos):
    found = plan.plan(recipe.read(content(photos, evaluate=WATCHED)))["schedule"]
    (text,) = [value for name, value in found if name == "evaluation"]
    assert text.startswith(f"knn every 2 epochs and at the end: training on {photos} (12 images")
    assert text.endswith("untrained and then 3 times")


def test_the_command_shows_the_values(photos, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(recipe.read(content(photos, epochs=1)).as_yaml())
    words = ["train", str(path), "--run", str(tmp_path / "run")]
    ran = CliRunner().invoke(app, [*words, "--set", "train.evaluate={knn: {every_epochs: 1}}"])
    assert ran.exit_code == 0, ran.stderr
    last = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    lines = ran.stdout.splitlines()
    assert any(line.startswith("knn every epoch and at the end: training on ") for line in lines)
    assert any(line.startswith("untrained: knn top-1 ") for line in lines)
    (shown,) = [line for line in lines if line.startswith("step 2/2 ")]
    assert f"  knn top-1 {last['knn top-1']:.3g}  " in shown


def test_training_without_evaluations_does_not_import_them():
    assert not [name for name in reached("sslkit.training.session") if "sslkit.eval" in name]


def test_the_curve_has_points_and_the_untrained_baseline(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "save", lambda figure, path: drawn.append(figure))
    bins = Bins()
    for step in range(1, 21):
        metrics = {"accuracy": 0.5}
        if step == 1:
            metrics["knn top-1, untrained"] = 0.25
        if step % 5 == 0:
            metrics["knn top-1"] = step / 20
        bins.add(Row(step, 1, 0.1, 1.0, metrics))
    figures.curves(tmp_path, bins, title="", epoch=5, chances={})
    *_, axes = drawn[0].axes
    assert axes.get_title(loc="left") == "knn top-1   1" and len(drawn[0].axes) == 4
    points, baseline = axes.get_lines()
    assert points.get_xdata().tolist() == [1, 2, 3, 4]
    assert points.get_ydata().tolist() == [0.25, 0.5, 0.75, 1]
    assert set(baseline.get_ydata()) == {0.25} and baseline.get_label() == "untrained 0.25"


# ------------------------------------------------------------------------------ several ranks


@pytest.mark.parametrize("count", [7, 8, 2, 1])
@pytest.mark.parametrize("world", [2, 3, 4])
def test_ranks_share_a_batch_and_get_all_features(monkeypatch, count, world):
    alone = network()
    images = torch.randint(256, (count, 3, 16, 16), dtype=torch.uint8)
    part = math.ceil(count / world)
    starts = [min(rank * part, count - part) for rank in range(world)]
    blocks = [alone.embed(images[start : start + part])["features"] for start in starts]
    monkeypatch.setattr(distributed, "world", lambda: world)
    expected = alone.embed(images)["features"]
    for rank in range(world):
        sent = []
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)

        def gather(rows, sent=sent):
            sent.append(rows)
            return torch.cat(blocks)

        monkeypatch.setattr(distributed, "gather", gather)
        ours = Sharded("x", alone.encoder, alone.normalise, size=16, device=alone.device)
        torch.testing.assert_close(ours.embed(images)["features"], expected)
        torch.testing.assert_close(sent[0], blocks[rank])


@pytest.mark.slow
def test_two_ranks_measure_what_one_process_does(photos, tmp_path):
    import os
    import subprocess
    import sys

    path = tmp_path / "mine.yaml"
    path.write_text(recipe.read(content(photos, epochs=2, evaluate=WATCHED)).as_yaml())
    words = ["train", str(path), "--run", str(tmp_path / "run"), "--devices", "2"]
    ran = subprocess.run(
        [sys.executable, "-m", "sslkit", *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    run = sslkit.load(tmp_path / "run")
    result = sslkit.evaluate(run, "knn", k=3, progress=False)
    assert run.metrics["knn top-1"][-1] == result.score().value
    assert run.metrics["knn top-1, untrained"][0] == result.score(candidate="untrained").value
