"""Grids: values × training seeds, shared by processes, resumable, with a table."""

import csv
import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import finish, sslkit, start, steps, wait_for

from sslkit.errors import RecipeError
from sslkit.evaluation.intervals import student
from sslkit.report import sweep_figure, sweep_table
from sslkit.sweep import axis, cell, plan, table
from sslkit.sweep.grid import Grid
from sslkit.sweep.home import Home
from sslkit.sweep.slot import Slot, slots

pytest_plugins = ("sweep_fixtures",)


@pytest.mark.parametrize(
    "text, parts",
    [
        ("0,0.25,1", ["0", "0.25", "1"]),
        ("[1,2],[3,4]", ["[1,2]", "[3,4]"]),
        ("{a: [1, 2]},null", ["{a: [1, 2]}", "null"]),
        ("'a,b',c", ["'a,b'", "c"]),
        ("[1,2", None),
        ("'a,b", None),
    ],
    ids=["numbers", "lists", "mappings", "quotes", "open_bracket", "open_quote"],
)
def test_values_split_at_commas_outside_brackets(text, parts):
    assert axis.split(text) == parts


@pytest.mark.parametrize("text", ["0.5", "1e-5", "true", "null", "'24'", "[1, a]", "{a: 0.5}"])
def test_texts_of_values_read_back(text):
    value = axis.value_of(text)
    assert axis.value_of(axis.text_of(value)) == value


def test_equal_numbers_have_equal_texts():
    assert axis.text_of(1.0) == axis.text_of(1) == "1"
    assert axis.text_of(0.50) == "0.5"


def test_names_of_folders_are_safe_and_distinct():
    name = cell.folder_name("pirl", {"loss.lambda": "0.5"}, 1)
    assert name == "pirl,loss.lambda=0.5,seed=1"
    texts = ["resnet18", "ResNet18", "a/b", "a b", "[1, 2]", "x" * 300, "../x", "ä"]
    names = [cell.safe(text) for text in texts]
    assert len({name.lower() for name in names}) == len(texts)
    for name in names:
        assert len(name) <= 40 and set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789._+-")
    many = {f"transform.option{number}": "x" * 30 for number in range(9)}
    assert len(cell.folder_name("pirl", many, 0)) < 200


def refused(*words, **options) -> list[str]:
    """The faults of a plan: key and message."""
    with pytest.raises(RecipeError) as caught:
        plan.read(words, **options)
    return [f"{fault.file or ''} {fault.key} {fault.message}" for fault in caught.value.faults]


def test_all_faults_are_reported_at_once(place):
    faults = refused(
        "tiny.yaml",
        "loss.lamda=0,0.5",
        "optimizer.lr=0.1..0.3",
        "encoder.model=[a",
        evaluations=("kn",),
        overrides=("train.seed=3", "train.epoch=3"),
    )
    assert any("tiny.yaml loss.lamda" in fault and "'lambda'" in fault for fault in faults)
    assert any("optimizer.lr" in fault and "add --search" in fault for fault in faults)
    assert any("encoder.model a bracket" in fault for fault in faults)
    assert any("--evaluate no evaluation named 'kn'" in fault for fault in faults)
    assert any("train.seed --seeds N" in fault for fault in faults)
    assert any("train.epoch" in fault and "'epochs'" in fault for fault in faults)


@pytest.mark.parametrize(
    "words, said",
    [
        (("loss.lambda=0,1",), "RECIPE name a recipe first"),
        (("tiny.yaml", "tiny.yaml"), "is given twice; name each recipe once"),
        (("tiny.yaml", "loss.lambda=0,0.0"), "0.0 is given twice"),
        (("tiny.yaml", "loss.lambda=0", "loss.lambda=1"), "list all its values in one word"),
        (("tiny.yaml", "train.seed=0,1"), "--seeds N sets the training seeds"),
        (("tiny.yaml", "loss.lambda=0,,1"), "empty value"),
        (("tiny.yaml", "loss.lambda=0,9"), "between 0 and 1, got 9"),
        (("tinny.yaml", "loss.lambda=0"), "no such file or shipped recipe"),
    ],
    ids=["no_recipe", "recipe", "value", "key", "seed", "empty", "out_of_range", "file"],
)
def test_a_wrong_plan_is_refused(place, words, said):
    assert any(said in fault for fault in refused(*words))


def test_recipes_are_swept_side_by_side():
    words = ("pirl_jigsaw", "jigsaw", "transform.permutations=24,100,1000")
    made = plan.read(words, seeds=2)
    assert len(made.cells) == 12
    names = [one.name for one in made.cells]
    assert names[0] == "pirl_jigsaw,transform.permutations=24,seed=0"
    assert names[-1] == "jigsaw,transform.permutations=1000,seed=1"
    assert [one.seed for one in made.cells] == [0] * 6 + [1] * 6
    assert made.cells[-1].recipe.train.seed == 1
    assert made.cells[-1].recipe.transform.options["permutations"] == 1000
    assert made.default_name == "pirl_jigsaw+jigsaw,transform.permutations"


def test_planning_imports_no_torch(place):
    code = (
        "import sys; from sslkit.cli import app; from sslkit.sweep import plan; "
        "plan.read(['tiny.yaml', 'loss.lambda=0,1'], seeds=2); assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---------------------------------------------------------------------------- the whole command

GRID = ("sweep", "tiny.yaml", "loss.lambda=0,0.5", "--seeds", 2)
OUT = Path("sweeps/tiny,loss.lambda")


def test_a_grid_is_trained_evaluated_and_shown(place, calls):
    code, out, err = sslkit(*GRID)
    assert code == 0, err
    assert "2 values of loss.lambda × 2 training seeds = 4 cells, 16 steps" in out
    assert "[1/4] tiny loss.lambda=0 seed 0: starts" in out and " left\n" in out
    assert "[2/4] tiny loss.lambda=0.5 seed 0: knn top-1 100.0 %" in out
    seen = calls()
    assert len(seen) == 8 and seen[0].startswith("train tiny,loss.lambda=0,seed=0")
    low, high = student([0.75, 0.76])
    assert f"75.5 [{100 * low:.1f}, {100 * high:.1f}]" in out
    assert "chance, top-1: 10.0" in out and "over 2 training seeds" in out
    rows = list(csv.DictReader((OUT / "table.csv").read_text().splitlines()))
    assert [row["candidate"] for row in rows] == ["trained", "untrained"] * 2
    assert float(rows[0]["mean"]) == pytest.approx(0.755) and rows[0]["seeds"] == "2"
    assert float(rows[0]["low"]) == pytest.approx(low) and rows[0]["loss.lambda"] == "0"
    assert (OUT / "sweep.png").stat().st_size > 5000

    again = sslkit(*GRID)
    assert again[0] == 0 and calls() == []
    assert "4 of 4 cells finished already" in again[1]
    shown = out[out.index("\nknn\n") :]
    assert again[1].endswith(shown)


def test_a_failed_cell_is_named_and_tried_again(place, calls):
    words = ("sweep", "tiny.yaml", "loss.lambda=0,0.9")
    code, out, err = sslkit(*words)
    assert code == 1
    assert "failed: tiny loss.lambda=0.9 seed 0: it diverged; lower the rate" in err
    assert "logs/tiny,loss.lambda=0.9,seed=0.log" in err and "tries failed cells again" in err
    assert "knn top-1 75.0 %" in out
    calls()
    (OUT / "mended").touch()
    code, out, err = sslkit(*words)
    assert code == 0 and "80.0" in out, err
    assert [line.split()[0] for line in calls()] == ["train", "eval"]


def test_a_killed_training_is_started_once_more(place, calls):
    code, _, err = sslkit("sweep", "tiny.yaml", "loss.lambda=0.8")
    assert code == 0, err
    assert [line.split()[0] for line in calls()] == ["train", "train", "eval"]


SMALL = ("sweep", "tiny.yaml", "loss.lambda=0")


def test_only_missing_results_are_made(place, calls):
    sslkit(*SMALL)
    calls()
    (OUT / "tiny,loss.lambda=0,seed=0" / "eval" / "knn.json").write_text("{}")
    assert sslkit(*SMALL)[0] == 0
    assert [line.split()[:2] for line in calls()] == [["eval", "tiny,loss.lambda=0,seed=0"]]


def test_another_plan_in_the_folder_is_refused(place, calls):
    sslkit(*SMALL)
    before = {path: path.stat().st_mtime_ns for path in OUT.rglob("*")}
    other = ("sweep", "tiny.yaml", "loss.lambda=0,0.5,1", "--seeds", 2, "--out", OUT)
    code, _, err = sslkit(*other, "--set", "train.epochs=3", "--evaluate", "linear")
    assert code == 2
    assert "values.loss.lambda" in err and "['0'] there, ['0', '0.5', '1'] here" in err
    assert "seeds" in err and "1 there, 2 here" in err
    assert "recipes.tiny.train.epochs" in err and "['knn'] there, ['linear'] here" in err
    assert "--out DIR" in err
    assert before == {path: path.stat().st_mtime_ns for path in OUT.rglob("*")}
    code, _, err = sslkit(*SMALL, "--set", "train.keep=1")
    assert code == 0, "settings of the machine may change"


def test_data_without_labels_are_refused_first(place, calls, images):
    words = ("sweep", "tiny.yaml", "loss.lambda=0", "--data", images)
    code, _, err = sslkit(*words)
    assert code == 2 and "24 images are fewer than a batch of 32" in err
    code, _, err = sslkit(*words, "--set", "train.batch_size=8")
    assert code == 2 and "have no labels" in err and len(err.strip().splitlines()) == 1
    assert not Path("sweeps").exists() and calls() == []


def test_a_folder_of_something_else_is_refused(place, calls):
    code, _, err = sslkit(*GRID, "--out", place)
    assert code == 2 and "is not empty and holds no sweep ('tiny.yaml' is in it)" in err
    assert not (place / "logs").exists()


@pytest.mark.parametrize("kept", [(), ("mine",)], ids=["new folder", "parent with a file"])
def test_a_full_disk_leaves_no_folder_of_a_sweep(place, monkeypatch, kept):
    folder = place / "parent" / "sweep"
    for name in kept:
        folder.parent.mkdir()
        (folder.parent / name).touch()

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    code, _, err = sslkit("sweep", "tiny.yaml", "loss.lambda=0,0.5", "--out", folder)
    assert code == 2 and err.count("\n") == 1 and "free space on the disk" in err, err
    assert [path.name for path in place.rglob("*") if path.name != "tiny.yaml"] == (
        ["parent", *kept] if kept else []
    )


def test_a_damaged_plan_is_refused(place, calls):
    OUT.mkdir(parents=True)
    (OUT / "sweep.json").write_text("{")
    code, _, err = sslkit(*GRID)
    assert code == 2 and "cannot be read" in err and "--out DIR" in err


# ------------------------------------------------------------------------------- processes


def grid(words, home, places=1, said=None, **options):
    """A grid in this process; its lines go to `said`."""
    made = plan.read(words, **options)
    place = Home(home, made.evaluations)
    place.begin(made)
    steps = {one.name: 4 for one in made.cells}
    say = (said if said is not None else []).append
    slot = [Slot("CPU", {"OMP_NUM_THREADS": "1"})] * places
    return Grid(place, made.cells, slot, steps, say, lambda one: ""), made


def test_processes_share_the_cells(place, calls):
    words = ("tiny.yaml", "loss.lambda=0,0.1,0.2")

    def work():
        made, _ = grid(words, place / "shared", places=2, seeds=2)
        made.run(lambda: False)
        assert not made.unfinished() and not made.failed

    forking = multiprocessing.get_context("fork")
    processes = [forking.Process(target=work) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    trained = [line.split()[1] for line in calls() if line.startswith("train")]
    assert len(trained) == len(set(trained)) == 6


def test_a_stop_ends_the_trainings(place, calls):
    said = []
    made, _ = grid(("tiny.yaml", "loss.lambda=0.7,0.1"), place / "stopped", said=said)
    made.run(lambda: any("starts" in line for line in said))
    assert "stopped at step 0" in said[-1] and not made.failed
    assert len(made.unfinished()) == 2


def test_jobs_share_threads_and_gpus(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    two = slots(2, "auto", gpus=0)
    assert [one.environment["OMP_NUM_THREADS"] for one in two] == ["4", "4"]
    (alone,) = slots(None, "auto", gpus=0)
    assert alone.environment["OMP_NUM_THREADS"] == "8" and alone.workers is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    three = slots(3, "auto", gpus=2)
    assert [one.environment["CUDA_VISIBLE_DEVICES"] for one in three] == ["3", "5", "3"]
    assert len(slots(None, "cuda", gpus=2)) == 2
    assert len(slots(None, "cpu", gpus=2)) == 1


# ----------------------------------------------------------------------------------- figures

TOP_1 = {"name": "top-1", "unit": "%", "better": "higher", "low": 0, "high": 1}


def made_table(keys, values, recipes=("pirl",)):
    """A table with rising scores of two seeds."""
    rows = []
    for recipe in recipes:
        for number, combination in enumerate(values):
            score = table.summary([0.3 + number / 10, 0.32 + number / 10])
            scores = {"trained": {"top-1": score}, "untrained": {"top-1": table.summary([0.2])}}
            row = {"recipe": recipe, "values": dict(zip(keys, combination, strict=True))}
            rows.append({**row, "seeds": [0, 1], "scores": scores})
    found = {"evaluation": "knn", "metrics": [TOP_1], "chance": {"top-1": 0.1}, "rows": rows}
    return {"recipes": list(recipes), "keys": keys, "evaluations": [found]}


@pytest.mark.parametrize(
    "keys, values, recipes",
    [
        (["loss.lambda"], [(0,), (0.5,), (1,)], ("pirl", "npid")),
        (["negatives"], [(8,), (64,), (512,)], ("pirl",)),
        (["encoder.model"], [("a",), ("b",)], ("pirl",)),
        (["encoder.model"], [("a" * 40,), ("b" * 40,)], ("pirl",)),
        (["a.x", "b.y"], [(0, "p"), (0, "q"), (1, "p"), (1, "q")], ("pirl",)),
        ([], [()], ("pirl", "npid")),
    ],
    ids=["lines", "log_lines", "bars", "rotated_names", "heat_map", "recipes"],
)
def test_figures_show_each_kind_of_sweep(tmp_path, keys, values, recipes):
    found = made_table(keys, values, recipes)
    assert sweep_figure.draw(found, tmp_path / "sweep.png", title="a sweep").stat().st_size > 5000
    (shown,) = sweep_table.tables(found)
    assert len(shown.rows) == len(values) * len(recipes)


def test_intervals_stay_within_the_metric():
    found = made_table(["x.y"], [(0,)])
    found["evaluations"][0]["rows"][0]["scores"]["trained"]["top-1"] = table.summary([0.1, 0.9])
    (shown,) = sweep_table.tables(found)
    assert shown.rows[0][1] == "50.0 [0.0, 100.0]"


@pytest.mark.slow
def test_a_killed_sweep_goes_on(place):
    """SIGKILL of the parent ends its training after a checkpoint; the next start continues it."""
    words = ("sweep", "tiny.yaml", "loss.lambda=0.5", "--set", "train.epochs=200", "--out", "grid")
    run = place / "grid" / "tiny,loss.lambda=0.5,seed=0"
    first = start(*words)
    wait_for(lambda: steps(run) > 3, first, seconds=120)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    log = place / "grid" / "logs" / f"{run.name}.log"
    wait_for(lambda: "stopped by SIGTERM" in log.read_text(), seconds=60)
    saved = steps(run)
    assert f"after step {saved}, saved" in log.read_text()
    second = start(*words)
    wait_for(lambda: steps(run) > saved, second, seconds=120)
    second.send_signal(signal.SIGINT)
    code, out, err = finish(second)
    assert code == 130, err
    assert f"goes on at step {saved}" in out and "stopped by SIGINT with 1 cell left" in out
    rows = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows == list(range(1, len(rows) + 1)), "no step twice"
