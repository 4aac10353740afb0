"""`sslkit train --resume RUN --epochs N`: a run gets another length, and its schedule with it."""

import json
import shutil
import signal
from pathlib import Path

import pytest
import yaml
from conftest import TINY, finish, sslkit, start
from test_run_folder import assert_as, contents, steps, wait_for

from sslkit import recipe
from sslkit.errors import DataError
from sslkit.runs import checkpoint
from sslkit.training.optim import learning_rate

EPOCH = 3
"""Steps of an epoch: 24 images, 8 in a batch."""
SAVING = ("--set", "train.save_minutes=0")


@pytest.fixture(scope="module")
def home(tmp_path_factory, images) -> Path:
    """A folder with tiny.yaml."""
    path = tmp_path_factory.mktemp("home")
    (path / "tiny.yaml").write_text(TINY.format(root=images))
    return path


@pytest.fixture(scope="module")
def short(home) -> Path:
    """A complete run of two epochs."""
    code, _, err = sslkit("train", home / "tiny.yaml", *SAVING, "--run", home / "short")
    assert (code, err) == (0, "")
    return home / "short"


@pytest.fixture(scope="module")
def longer(home, short) -> Path:
    """The same run, trained on to four epochs."""
    shutil.copytree(short, home / "longer")
    assert sslkit("train", "--resume", home / "longer", "--epochs", 4)[0] == 0
    return home / "longer"


@pytest.fixture
def run(short, tmp_path) -> Path:
    """A copy of the short run."""
    return Path(shutil.copytree(short, tmp_path / "run"))


def rates(folder: Path) -> list[float]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["lr"] for line in lines]


def epochs(folder: Path) -> int:
    return yaml.safe_load((folder / "recipe.yaml").read_text())["train"]["epochs"]


def test_the_schedule_goes_on_as_one_of_that_length(longer):
    made = recipe.read(longer / "recipe.yaml")
    expected = [
        learning_rate(step, 0.03, made.schedule, 2 if step < 2 * EPOCH else 4, EPOCH)
        for step in range(4 * EPOCH)
    ]
    assert rates(longer) == expected
    assert expected[6] == pytest.approx(0.015), "half a cosine, half of the way"
    assert made.train.epochs == 4
    assert checkpoint.newest(longer)[1]["step"] == 12


def test_one_sentence_names_both_rates(run):
    code, out, err = sslkit("train", "--resume", run, "--epochs", 4)
    assert (code, err) == (0, "")
    sentence = "learning rate: 0.00201 at step 6 of 6, and now 0.015 at step 7 of 12"
    assert out.splitlines().count(sentence) == 1
    assert "4 epochs × 3 steps" in out and "health: " in out


@pytest.mark.parametrize("number", [1, 2])
def test_epochs_that_are_done_already_are_refused(run, number):
    before = contents(run)
    code, out, err = sslkit("train", "--resume", run, "--epochs", number)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith(f"{run} has completed 6 steps, and --epochs {number} ends at")
    assert err.endswith("train for more: --epochs 3\n")
    assert contents(run) == before


def test_the_recipe_changes_when_training_goes_on(run, monkeypatch):
    def broken(*_):
        raise DataError("gone")

    before = contents(run)
    monkeypatch.setattr("sslkit.training.trainer.train", broken)
    assert sslkit("train", "--resume", run, "--epochs", 4)[::2] == (2, "gone\n")
    left = contents(run)
    left[run / ".lock"] = before[run / ".lock"]
    assert left == before and epochs(run) == 2


@pytest.fixture(scope="module")
def killed(home, short) -> Path:
    """A complete run that was killed while it trained on."""
    folder = home / "killed"
    shutil.copytree(short, folder)
    process = start("train", "--resume", folder, "--epochs", 4)
    wait_for(lambda: steps(folder) >= 8, process)
    process.send_signal(signal.SIGKILL)
    finish(process)
    assert epochs(folder) == 4
    return folder


@pytest.mark.parametrize("again", ["resume", "run", "epochs"])
def test_killed_while_it_trains_on_it_ends_as_if_never_killed(
    home, longer, killed, tmp_path, again
):
    run = tmp_path / "run"
    shutil.copytree(killed, run)
    words = {
        "resume": ["--resume", run],
        "run": [home / "tiny.yaml", *SAVING, "--set", "train.epochs=4", "--run", run],
        "epochs": ["--resume", run, "--epochs", 4],
    }
    code, out, err = sslkit("train", *words[again])
    assert code == 0 and "learning rate: " not in out, err
    assert_as(run, longer)
    code, _, err = sslkit("train", home / "tiny.yaml", *SAVING, "--run", run)
    assert code == 2 and err.endswith("or resume this one: --set train.epochs=4\n")


def test_an_interrupted_run_is_made_longer(home, tmp_path):
    place = tmp_path / "run"
    process = start("train", home / "tiny.yaml", *SAVING, "--run", place)
    wait_for(lambda: steps(place) >= 2, process)
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == 143
    step = checkpoint.newest(place)[1]["step"]
    code, out, err = sslkit("train", "--resume", place, "--epochs", 3)
    assert (code, err) == (0, "") and f"at step {step} of 6, and now" in out
    assert steps(place) == 9 and epochs(place) == 3


def test_warm_up_and_drops_keep_their_epochs(home, tmp_path):
    """Milestones and the warm-up are epochs, so a longer run has them where they were."""
    words = ["--set", "schedule.use=multistep", "--set", "schedule.milestones=[1,3]"]
    words += ["--set", "schedule.warmup_epochs=0.5", "--run", tmp_path / "run"]
    assert sslkit("train", home / "tiny.yaml", *words)[0] == 0
    code, out, _ = sslkit("train", "--resume", tmp_path / "run", "--epochs", 4)
    assert code == 0
    assert "learning rate: 0.003 at step 6 of 6, and now 0.003 at step 7 of 12" in out
    found = rates(tmp_path / "run")
    assert found == pytest.approx([0, 0.015, 0.03] + 6 * [0.003] + 3 * [0.0003])


def test_a_setting_of_epochs_names_the_option(run):
    code, _, err = sslkit("train", "--resume", run, "--set", "train.epochs=4")
    assert code == 2 and err.endswith(f"to train on: sslkit train --resume {run} --epochs N\n")
