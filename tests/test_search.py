"""Searches: Optuna's trials, shared by processes, resumable, with a table of the best."""

import csv
import multiprocessing
import sys
from pathlib import Path

import pytest
from conftest import sslkit

from sslkit.errors import RecipeError
from sslkit.sweep import axis, plan, search, study
from sslkit.sweep.home import Home
from sslkit.sweep.search import Search
from sslkit.sweep.slot import Slot

pytest.importorskip("optuna")

pytest_plugins = ("sweep_fixtures",)


@pytest.mark.parametrize(
    "text, found",
    [
        ("0.05..0.5", axis.Range("a.b", 0.05, 0.5, whole=False, log=False)),
        ("log:0.01..0.3", axis.Range("a.b", 0.01, 0.3, whole=False, log=True)),
        ("1..8", axis.Range("a.b", 1, 8, whole=True, log=False)),
        ("log:1..1e3", axis.Range("a.b", 1, 1000, whole=False, log=True)),
        ("-1..1", axis.Range("a.b", -1, 1, whole=True, log=False)),
        ("sgd,lars", axis.Axis("a.b", ("sgd", "lars"))),
    ],
    ids=["floats", "log", "ints", "exponent", "negative", "list"],
)
def test_ranges_are_read(text, found):
    assert axis.read_axis(f"a.b={text}", search=True) == (found, [])


@pytest.mark.parametrize(
    "text, said",
    [("0.5..0.1", "write the smaller number first"), ("log:0..1", "begins above 0")],
    ids=["reversed", "log_of_zero"],
)
def test_wrong_ranges_are_refused(text, said):
    (fault,) = axis.read_axis(f"a.b={text}", search=True)[1]
    assert said in fault.message


@pytest.mark.parametrize(
    "words, said",
    [
        (("tiny.yaml", "jigsaw", "optimizer.lr=0.1..0.2"), "takes one recipe"),
        (("tiny.yaml",), "name what to vary"),
        (("tiny.yaml", "loss.lambda=0..2"), "between 0 and 1, got 2"),
        (("tiny.yaml", "train.epochs=0.5..2.0"), "expected int"),
        (("tiny.yaml", "optimizer.rl=0.1..0.2"), "optimizer.rl"),
    ],
    ids=["recipes", "no_key", "end", "floats_of_int", "misspelt"],
)
def test_wrong_searches_are_refused(place, words, said):
    with pytest.raises(RecipeError, match=said):
        plan.read(words, search=True)


def test_options_of_searches_need_a_search(place):
    code, _, err = sslkit("sweep", "tiny.yaml", "loss.lambda=0", "--trials", 3)
    assert code == 2 and "--trials belongs to --search" in " ".join(err.split())


def test_a_missing_optuna_is_one_sentence(place, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    code, _, err = sslkit("sweep", "tiny.yaml", "--search", "loss.lambda=0.0..1.0")
    assert (code, err) == (2, "--search needs Optuna: pip install 'sslkit[sweep]'\n")
    assert not Path("sweeps").exists()


def test_a_wrong_storage_is_one_sentence(place):
    words = ("sweep", "tiny.yaml", "--search", "loss.lambda=0.0..1.0", "--storage")
    for url in ("nothing://host/x", "sqlite:////no/such/folder/x.db"):
        code, _, err = sslkit(*words, url)
        assert code == 2 and "check --storage URL" in err and len(err.splitlines()) == 1, err
    assert not Path("sweeps").exists()


WORDS = ("sweep", "tiny.yaml", "--search", "loss.lambda=0.1,0.4,0.5", "optimizer.lr=log:0.01..0.3")
OUT = Path("sweeps/tiny,loss.lambda,optimizer.lr,search")


def test_a_search_ends_with_the_best_and_resumes(place, calls):
    code, out, err = sslkit(*WORDS, "--trials", 3, "--seeds", 2)
    assert (code, err) == (0, ""), err
    assert "3 trials × 2 training seeds over loss.lambda, optimizer.lr, 4 steps each" in out
    assert "top-1 % ↑, median of 2 seeds" in out and "the best 3 of 3 trials" in out
    assert [line.split()[0] for line in calls()].count("train") == 6
    rows = list(csv.DictReader((OUT / "table.csv").read_text().splitlines()))
    scores = [float(row["top-1"]) for row in rows]
    assert scores == sorted(scores, reverse=True) and len(rows) == 3
    for row, score in zip(rows, scores, strict=True):
        # Medians over seeds 0 and 1 of 1 − |λ − 0.5| / 2 + seed / 100.
        assert score == pytest.approx(1 - abs(float(row["loss.lambda"]) - 0.5) / 2 + 0.005)
        assert 0.01 <= float(row["optimizer.lr"]) <= 0.3
        assert (OUT / f"{row['trial']},seed=1" / "eval" / "knn.json").exists()
    assert (OUT / "sweep.png").stat().st_size > 5000

    code, again, _ = sslkit(*WORDS, "--trials", 3, "--seeds", 2)
    assert code == 0 and calls() == [] and "3 of 3 trials finished already" in again
    assert again.endswith(out[out.index("\nknn\n") :])
    code, _, err = sslkit(*WORDS, "--trials", 3, "--seeds", 3)
    assert code == 2 and "2 there, 3 here" in err


def test_a_failed_trial_goes_on_in_its_folder(place, calls):
    words = ("sweep", "tiny.yaml", "--search", "loss.lambda=0.9", "--trials", 1, "--out", "s")
    code, _, err = sslkit(*words)
    assert code == 1 and "failed: trial-0000: it diverged" in err and "logs" in err
    (place / "s" / "mended").touch()
    calls()
    code, out, err = sslkit(*words)
    assert code == 0, err
    assert [line.split()[1] for line in calls()] == ["trial-0000,seed=0"] * 2
    assert "80.0" in out and "the best 1 of 1 trials" in out


def made(home: Path, trials: int, *words: str, say=lambda line: None) -> Search:
    """A search in this process."""
    found = plan.read(("tiny.yaml", *words), search=True)
    place = Home(home, found.evaluations)
    place.begin(found)
    return Search(place, found, [Slot("CPU", {})], say, trials=trials, sampler="random")


def test_lower_metrics_are_minimised(place, calls):
    """The stand-in's metric is better if lower where the temperature is 0.5."""
    words = ("loss.temperature=0.5", "loss.lambda=0.0..0.49")
    with study.quiet():
        one = made(place / "low", 3, *words)
        one.run(lambda: False)
        scores = [row["score"] for row in search.table(one)["trials"]]
    assert scores == sorted(scores) and len(scores) == 3


def test_processes_claim_no_trial_twice(place, calls):
    def work():
        with study.quiet():
            made(place / "shared", 6, "loss.lambda=0.0..0.6").run(lambda: False)

    forking = multiprocessing.get_context("fork")
    processes = [forking.Process(target=work) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(100)
    assert [process.exitcode for process in processes] == [0, 0]
    trained = [line.split()[1] for line in calls() if line.startswith("train")]
    assert sorted(trained) == [f"trial-{number:04},seed=0" for number in range(6)]


def test_a_trial_of_a_dead_process_is_taken_over(place, calls):
    """A running trial whose folder no process has claimed belongs to a dead process."""
    said = []
    with study.quiet():
        one = made(place / "dead", 2, "loss.lambda=0.0..0.6", say=said.append)
        with pytest.warns(UserWarning, match="Heartbeat"):
            dead = one.study.ask()
        dead.suggest_float("loss.lambda", 0.0, 0.6)
        dead.set_user_attr(search.FIRST, dead.number)
        dead.set_user_attr(search.CLAIMED, True)
        one.run(lambda: False)
        trials = search.table(one)["trials"]
    assert "trial-0000: taken over from a process that ended" in said
    (first,) = (trial for trial in trials if trial["trial"] == "trial-0000")
    assert first["values"] == dead.params and len(trials) == 2
