"""Training sessions as a user starts them: killed, signalled, resumed, failing; run folders."""

import errno
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import assert_same, everything, finish, new_folder, sslkit, start, wait_for
from safetensors.torch import load_file

from sslkit import recipe
from sslkit.errors import TrainingError
from sslkit.runs import checkpoint
from sslkit.runs.lock import held
from sslkit.runs.metrics import Metrics, Row
from sslkit.training import finite, signals, trainer

LONG = ("--set", "train.save_minutes=0", "--set", "train.epochs=5")
"""15 steps, a checkpoint after each."""


def latest(runs: Path) -> Path:
    return (runs / "tiny" / "latest").resolve()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, images) -> Path:
    """The folder of a run that was never stopped."""
    from conftest import TINY

    path = tmp_path_factory.mktemp("unbroken")
    (path / "tiny.yaml").write_text(TINY.format(root=images))
    code, out, _ = sslkit("train", path / "tiny.yaml", *LONG, "--runs", path / "runs")
    assert code == 0 and "next: sslkit eval linear" in out
    return latest(path / "runs")


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def steps_done(runs: Path, steps: int):
    file = runs / "tiny" / "latest" / "metrics.jsonl"
    return lambda: file.exists() and len(file.read_text().splitlines()) >= steps


def is_writing(runs: Path):
    return lambda: any(
        (runs / "tiny" / "latest" / "checkpoints").glob(".writing-*/method.safetensors")
    )


@pytest.mark.slow
def test_a_killed_and_signalled_run_ends_as_an_unbroken_one(tiny, unbroken, tmp_path):
    runs = tmp_path / "runs"

    def resume():
        return start("train", "--resume", runs / "tiny" / "latest")

    # kill -9 between two checkpoints, then in the middle of writing one.
    process = start("train", tiny, *LONG, "--runs", runs)
    wait_for(steps_done(runs, 2), process)
    process.send_signal(signal.SIGKILL)
    assert finish(process)[0] == -signal.SIGKILL

    process = resume()
    wait_for(steps_done(runs, 4), process)
    wait_for(is_writing(runs), process)
    process.send_signal(signal.SIGKILL)
    assert finish(process)[0] == -signal.SIGKILL

    # A line that was torn, and lines of steps that no checkpoint holds.
    folder = latest(runs)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "loss": 1}\n{"step": 21, "lo')

    # Asked to stop: saved at once, how to go on, the exit code of the signal.
    for number, code, steps in ((signal.SIGTERM, 143, 7), (signal.SIGINT, 130, 10)):
        process = resume()
        wait_for(steps_done(runs, steps), process)
        process.send_signal(number)
        ended, out, err = finish(process)
        assert (ended, err) == (code, "")
        state = checkpoint.newest(folder)[1]
        (last,) = [line for line in out.splitlines() if "stopped by" in line]
        assert (
            last
            == f"stopped by {number.name} after step {state['step']}, saved; resume with: sslkit "
            f"train --resume {folder}"
        )
        assert rows(folder)[-1]["step"] == state["step"]

    code, out, err = sslkit("train", "--resume", runs / "tiny" / "latest")
    assert (code, err) == (0, "") and "resumed at step" in out

    newest, expected = (checkpoint.newest(path)[0] for path in (folder, unbroken))
    assert newest.name == "step-00000015"
    for file in ("method.safetensors", "optimizer.safetensors", "state.json"):
        assert (newest / file).read_bytes() == (expected / file).read_bytes()
    for file in ("metrics.jsonl", "encoder.safetensors", "recipe.yaml"):
        assert (folder / file).read_bytes() == (unbroken / file).read_bytes()


@pytest.mark.parametrize(("again", "code"), [(0, -signal.SIGINT), (60, 0)])
def test_a_second_signal_ends_the_process_unless_it_is_an_echo(again, code):
    """A terminal and a launcher may both pass on the first, a moment apart."""
    script = f"""
import os, signal
from sslkit.training import signals
signals.AGAIN = {again}
with signals.signals(lambda: False) as caught:
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGINT)
    assert caught == [signal.SIGINT]
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == code


def test_a_signal_before_the_first_step_stops_at_once(make):
    run = make()
    with pytest.raises(signals.Stopped) as stopped, signals.signals(lambda: run.step == 0):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
    assert stopped.value.exit_code == 143 and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_complete_run_says_so(unbroken):
    before = {path: path.read_bytes() for path in unbroken.rglob("*") if path.is_file()}
    code, out, err = sslkit("train", "--resume", unbroken)
    assert (code, err) == (0, "")
    assert out == f"{unbroken} is complete: 15 steps done; nothing to do\n"
    assert {path: path.read_bytes() for path in unbroken.rglob("*") if path.is_file()} == before


def test_what_is_in_a_run_folder(unbroken):
    assert {path.name for path in unbroken.iterdir()} - {"tensorboard"} == {
        *(
            "recipe.yaml",
            "environment.json",
            "metrics.jsonl",
            "encoder.safetensors",
            "curves.png",
            "views.png",
            "checkpoints",
            ".lock",
        )
    }
    assert [row["step"] for row in rows(unbroken)] == list(range(1, 16))
    assert rows(unbroken)[0].keys() == {
        *(
            "step",
            "epoch",
            "lr",
            "loss",
            "loss_image",
            "loss_patches",
            "feature_std/image",
            "feature_std/patches",
            "match",
            "gradient_norm",
        )
    }
    assert [row["epoch"] for row in rows(unbroken)] == [
        epoch for epoch in range(1, 6) for _ in range(3)
    ]
    assert sorted(os.listdir(unbroken / "checkpoints")) == ["step-00000014", "step-00000015"]
    assert {path.suffix for path in unbroken.rglob("*") if path.is_file()} <= {
        ".yaml",
        ".json",
        ".jsonl",
        ".png",
        ".safetensors",
        "",
    }
    assert {path.stat().st_mode & 0o777 for path in unbroken.rglob("*.safetensors")} == {
        unbroken.stat().st_mode & 0o666
    }
    environment = json.loads((unbroken / "environment.json").read_text())
    assert (
        environment["processes"] == 1
        and environment["precision"] == "float32"
        and "torch" in environment["packages"]
    )
    encoder = load_file(unbroken / "encoder.safetensors")
    method = load_file(checkpoint.newest(unbroken)[0] / "method.safetensors")
    assert_same(encoder, {name: method[f"method.encoder.model.{name}"] for name in encoder})


def test_the_recipe_in_the_folder_trains_the_same_again(unbroken, tmp_path):
    assert (
        sslkit(
            "train",
            unbroken / "recipe.yaml",
            "--set",
            "train.save_minutes=5",
            "--runs",
            tmp_path / "runs",
        )[0]
        == 0
    )
    again = latest(tmp_path / "runs")
    assert (again / "metrics.jsonl").read_bytes() == (unbroken / "metrics.jsonl").read_bytes()
    assert (again / "encoder.safetensors").read_bytes() == (
        unbroken / "encoder.safetensors"
    ).read_bytes()


def break_loss(monkeypatch, *numbers: int, rehearsed: int = 1) -> None:
    """The loss is not a number at these steps, counted from 1 after the rehearsed ones."""
    from sslkit_plugins.losses import LambdaNCE

    forward = LambdaNCE.forward
    calls = []

    def broken(self, *given):
        calls.append(1)
        return forward(self, *given) * (float("nan") if len(calls) - rehearsed in numbers else 1)

    monkeypatch.setattr(LambdaNCE, "forward", broken)


def test_steps_that_are_not_finite_are_skipped_where_asked(tiny, tmp_path, monkeypatch):
    break_loss(monkeypatch, 1, 3, 4)
    code, out, err = sslkit("train", tiny, *LONG, "--set", "train.on_nan=skip", "--runs", tmp_path)
    assert (code, err) == (0, "")
    assert [line.partition(":")[0] for line in out.splitlines() if line.startswith("skipped")] == [
        f"skipped step {n}" for n in (1, 3, 4)
    ]
    assert "3 of 15 steps skipped because of non-finite numbers\n" in out
    folder = latest(tmp_path)
    assert [row["step"] for row in rows(folder)] == [2, *range(5, 16)]
    newest, state, _ = checkpoint.newest(folder)
    assert state["step"] == 15 and state["skipped"] == 3
    assert all(
        value.isfinite().all() for value in load_file(newest / "method.safetensors").values()
    )


@pytest.mark.parametrize(("count", "code"), [(7, 0), (8, 1), (15, 1)])
def test_a_run_of_mostly_skipped_steps_ends_with_1(tiny, tmp_path, monkeypatch, count, code):
    """More than half of the 15 steps."""
    break_loss(monkeypatch, *range(1, count + 1))
    words = ("train", tiny, *LONG, "--set", "train.on_nan=skip", "--runs", tmp_path)
    ended, out, err = sslkit(*words)
    assert (ended, err) == (code, "")
    assert f"{count} of 15 steps skipped" in out
    told = [line for line in out.splitlines() if line.startswith("skipped")]
    steps = [int(line.partition(":")[0].rpartition(" ")[2]) for line in told]
    assert steps == [step for step in (1, 2, 3, 4, 8) if step <= count]
    assert all(
        line.endswith(f"{step} steps skipped so far")
        for line, step in zip(told[3:], steps[3:], strict=True)
    )
    assert "too early" not in out
    assert ("more than half, so the exit code is 1" in out) == bool(code)
    assert ("health: no step was taken" in out) == (count == 15)


def test_a_skipped_step_leaves_no_trace(make, monkeypatch):
    run = make("train.on_nan=skip")
    steps = trainer.train(run)
    next(steps)
    before = {name: value.clone() for name, value in everything(run).items()}
    break_loss(monkeypatch, 1, rehearsed=0)
    assert next(steps).skipped
    assert_same(before, everything(run))
    assert not next(steps).skipped and run.step == 3


def test_two_runs_in_one_folder_are_refused(tiny, tmp_path):
    runs = tmp_path / "runs"
    process = start("train", tiny, *LONG, "--set", "train.epochs=1000", "--runs", runs)
    wait_for(steps_done(runs, 2), process)
    code, _, err = sslkit("train", "--resume", latest(runs))
    assert code == 2
    assert (
        err
        == f"{latest(runs)} is in use: process {process.pid} on {platform.node()} trains in it; "
        "wait for it, stop it, or start a new run\n"
    )
    process.kill()
    finish(process)
    checkpoint.newest(latest(runs))
    with held(latest(runs)):
        pass


def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint(tiny, tmp_path, monkeypatch):
    break_loss(monkeypatch, 3)
    code, _, err = sslkit("train", tiny, *LONG, "--runs", tmp_path)
    assert code == 2
    assert (
        err.startswith("step 3: loss, gradient_norm not finite (learning rate 0.0")
        and "resume" in err
    )
    assert len(err.splitlines()) == 1 and "8 images" not in err
    folder = latest(tmp_path)
    known = json.loads((folder / "not_finite.json").read_text())
    assert known["step"] == 3 and known["values"]["loss"] == "nan" and len(known["images"]) == 8
    assert [row["step"] for row in rows(folder)] == [1, 2]
    newest, state, notes = checkpoint.newest(folder)
    assert state["step"] == 2 and notes == []
    assert all(
        value.isfinite().all() for value in load_file(newest / "method.safetensors").values()
    )


def test_a_rate_that_is_far_too_high_ends_with_a_sentence(tiny, tmp_path):
    code, _, err = sslkit("train", tiny, *LONG, "--set", "optimizer.lr=1.0e+30", "--runs", tmp_path)
    assert code == 2
    assert err.startswith("step ") and "not finite" in err and "--set optimizer.lr=" in err
    for path in latest(tmp_path).glob("checkpoints/*/method.safetensors"):
        assert all(value.isfinite().all() for value in load_file(path).values())


def test_a_last_step_that_spoils_the_weights_is_not_saved(tiny, tmp_path):
    code, _, err = sslkit(
        "train",
        tiny,
        "--set",
        "train.epochs=1",
        "--set",
        "optimizer.lr=1.0e+38",
        "--runs",
        tmp_path,
    )
    assert code == 2
    assert "not finite" in err and "--set optimizer.lr=" in err and len(err.splitlines()) == 1
    assert not list(tmp_path.glob("*/*/encoder.safetensors")) and not list(
        tmp_path.glob("*/*/checkpoints/step-*")
    )


def test_places_that_cannot_be_written_or_found(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = sslkit("train", tiny, "--runs", tmp_path / "file")
    assert code == 2 and err.startswith("cannot make the run folder") and "--runs" in err
    code, _, err = sslkit("train", "--resume", tmp_path / "none")
    assert code == 2 and "is not a run folder" in err


def test_a_run_without_a_checkpoint_begins_anew(tiny, unbroken, tmp_path):
    folder = new_folder(tmp_path, recipe.read(unbroken / "recipe.yaml"))
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 5.0}\n')
    code, _, err = sslkit("train", "--resume", folder)
    assert code == 0 and err == f"{folder} holds no checkpoint yet: it starts again\n"
    for file in ("metrics.jsonl", "encoder.safetensors", "recipe.yaml"):
        assert (folder / file).read_bytes() == (unbroken / file).read_bytes()


def test_a_disk_that_fills_up_ends_with_a_sentence(tiny, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    for place in (
        "sslkit.runs.files.save_file",
        "sslkit.report.figures.save",
        "sslkit.runs.metrics.Row.line",
    ):
        with monkeypatch.context() as patch:
            patch.setattr(place, full)
            code, _, err = sslkit("train", tiny, *LONG, "--runs", tmp_path / place)
        assert (
            code == 2
            and err.startswith("cannot write")
            and "No space left" in err
            and len(err.splitlines()) == 1
        )


def test_a_broken_image_does_not_stop_a_run_before_it_began(tiny, images, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(images, folder)
    for file in sorted(folder.iterdir())[::3]:
        file.write_bytes(b"no image")
    code, out, err = sslkit(
        "train", tiny, "--data", folder, "--runs", tmp_path / "runs", "--set", "train.epochs=1"
    )
    assert (code, err) == (
        0,
        "",
    ) and "8 images could not be read and were replaced: 00.png (" in out


def test_metrics_drop_what_will_be_done_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in (1, 2, 3, 4)]
    path.write_text("\n".join(lines) + '\n{"step": 5')
    metrics = Metrics(path, 2)
    assert path.read_text().splitlines() == lines[:2]
    metrics.add([Row(3, 0, 0.1, 2.0, {"match": 0.5})])
    assert json.loads(path.read_text().splitlines()[2]) == {
        "step": 3,
        "epoch": 0,
        "lr": 0.1,
        "loss": 2.0,
        "match": 0.5,
    }


def test_a_metric_that_is_not_finite_is_named(tiny, make, tmp_path):
    run = make()
    step = trainer.Step(7, 0, 0.1, torch.tensor(1.0), {}, torch.tensor([0, 1]))
    row = Row(7, 0, 0.1, 1.0, {"match": float("inf"), "feature_std/image": 1.0})
    with pytest.raises(
        TrainingError,
        match=r"step 7: match not finite .*images 00.png, 01.jpg, see not_finite.json",
    ):
        finite.check_finite([row], [step], run, tmp_path)
    known = {
        "step": 7,
        "lr": 0.1,
        "values": {"loss": "1.0", "match": "inf", "feature_std/image": "1.0"},
        "images": ["00.png", "01.jpg"],
    }
    assert json.loads((tmp_path / "not_finite.json").read_text()) == known
    assert finite.check_finite([row], [replace(step, skipped=True)], run, tmp_path)[0].startswith(
        "skipped step 7: match not finite"
    )


@pytest.mark.parametrize("place", [0, 7, 23])
def test_weights_are_looked_at_in_chunks(make, monkeypatch, tmp_path, place):
    """A bank of 24 rows of 16 numbers, three rows at once."""
    run = make()
    monkeypatch.setattr(finite, "CHUNK", 48)
    finite.check_weights(run, tmp_path)
    run.method.sampler.bank[place, 3] = float("inf")
    with pytest.raises(
        TrainingError, match=r"1 tensor not finite after step 0, such as samplers\.image\.bank"
    ):
        finite.check_weights(run, tmp_path)
