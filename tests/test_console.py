"""What the screen says while a run trains."""

from pathlib import Path
from types import SimpleNamespace as Thing

import pytest
import torch

from sslkit.data import summary
from sslkit.runs.metrics import Row
from sslkit.screen import TrainingScreen
from sslkit.training.health import Health
from sslkit_plugins.methods.pirl import Pirl


@pytest.fixture(autouse=True)
def no_data(monkeypatch):
    monkeypatch.setattr(summary, "training", lambda source, data, *, labels_used: "data")


def screen(steps=200, warmup=0.0, epochs=4):
    train = Thing(epochs=epochs, batch_size=8, evaluate=None)
    recipe = Thing(
        name="mine",
        data=None,
        train=train,
        schedule=Thing(warmup_epochs=warmup),
        optimizer=Thing(lr=0.05),
    )
    loader = Thing(world=1, workers=0, steps_per_epoch=steps // epochs, step_size=8)
    run = Thing(
        recipe=recipe,
        loader=loader,
        steps=steps,
        step=0,
        source=[0] * 400,
        method=Pirl.__new__(Pirl),
        mostly_skipped=False,
        device=torch.device("cpu"),
        precision=torch.float32,
        unreadable={},
        skipped=0,
    )
    shown = TrainingScreen(run)
    shown.made(Path("runs/mine/1"))
    return shown, Health(10.0, steps, chances={"loss": 10.0})


def follow(shown, health, spreads):
    for step, spread in enumerate(spreads, 1):
        row = Row(step, 1, 0.1, 5.0, {"feature_std/image": spread})
        health.add(row)
        shown.show([row], [], health)


def test_a_collapse_is_told_when_it_happens_and_once(capsys):
    shown, health = screen()
    follow(shown, health, [1.0] * 60 + [0.0] * 120)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("health: ")]
    assert len(lines) == 2 and lines[1].startswith("health: collapsed: feature_std/image is 0.0")


def test_the_clock_starts_after_the_first_step(capsys):
    shown, health = screen(steps=20)
    follow(shown, health, [1.0] * 2)
    first, second = (
        line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")
    )
    assert first.endswith("lr 0.1") and second.endswith("s left")


def test_a_run_that_only_warms_up_is_told(capsys):
    screen(warmup=2.0, epochs=2)[0].begin([], None)
    assert (
        "never reaches 0.05: schedule.warmup_epochs = 2 of train.epochs = 2"
        in capsys.readouterr().out
    )
    screen(warmup=2.0, epochs=4)[0].begin([], None)
    assert "warmup" not in capsys.readouterr().out


def test_a_pass_over_the_images_is_told_of_ever_more_seldom(monkeypatch, capsys):
    clock = iter(range(51))
    monkeypatch.setattr("sslkit.screen.time.monotonic", lambda: 2.0 * next(clock))
    shown = screen()[0]
    for batch in range(1, 51):
        shown.passing(8 * batch)
    lines = [line for line in capsys.readouterr().out.splitlines() if "pass over" in line]
    assert lines[0] == "pass over the images: 32 of 400, 4 images/s, 92 s left"
    assert lines[-1] == "pass over the images: 400 of 400, 4 images/s, done"
    assert len(lines) < 18


def test_a_short_pass_is_not_told_of(capsys):
    shown = screen()[0]
    for batch in range(1, 51):
        shown.passing(8 * batch)
    assert "pass over" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("epochs", "words"), [(1, "1 epoch × 200 steps"), (200, "200 epochs × 1 step;")]
)
def test_one_is_counted_as_one(capsys, epochs, words):
    screen(epochs=epochs)[0].begin([], None)
    assert words in capsys.readouterr().out
