"""What schedulers and launchers leave in the environment: obeyed, ignored, or told in a
sentence.
"""

import pytest
from conftest import finish, start
from typer.testing import CliRunner

from sslkit import distributed, launcher
from sslkit.cli import app
from sslkit.data.loader import auto_workers
from sslkit.errors import SslkitError

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def setting(monkeypatch, text):
    for word in text.split():
        name, _, value = word.partition("=")
        monkeypatch.setenv(name, value)


MEETING = "MASTER_ADDR=localhost MASTER_PORT=29500"


@pytest.mark.parametrize(
    "text, sentence, remedy",
    [
        ("WORLD_SIZE=4", "WORLD_SIZE is 4, but RANK is not set", "WORLD_SIZE"),
        ("WORLD_SIZE=four", "WORLD_SIZE is 'four', not a number", "WORLD_SIZE"),
        ("WORLD_SIZE=-1", "WORLD_SIZE is '-1', not a number", "WORLD_SIZE"),
        ("WORLD_SIZE=2 RANK=x", "RANK is 'x', not a number", "RANK"),
        ("RANK=3", "RANK is 3, but WORLD_SIZE is 1", "RANK"),
        ("RANK=2 WORLD_SIZE=2", "RANK is 2, but WORLD_SIZE is 2", "RANK"),
        ("RANK=0 WORLD_SIZE=2", "WORLD_SIZE is 2, but MASTER_ADDR is not set", "WORLD_SIZE"),
        (
            "RANK=0 WORLD_SIZE=2 MASTER_ADDR=here",
            "WORLD_SIZE is 2, but MASTER_PORT is not set",
            "WORLD_SIZE",
        ),
        (
            "RANK=0 WORLD_SIZE=2 MASTER_ADDR=here MASTER_PORT=x",
            "MASTER_PORT is 'x', not a number",
            "WORLD_SIZE",
        ),
    ],
)
def test_training_refuses_half_an_environment(tiny, tmp_path, monkeypatch, text, sentence, remedy):
    setting(monkeypatch, text)
    words = ["train", str(tiny), "--runs", str(tmp_path / "runs")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert result.stderr == (
        f"{sentence}; start ranks with torchrun or `sslkit train --devices N`, or train in one "
        f"process: unset {remedy}\n"
    )
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("text", ["", "WORLD_SIZE=1", "RANK=0", "WORLD_SIZE=1 RANK=0", "RANK="])
def test_one_process_needs_no_launcher(monkeypatch, text):
    setting(monkeypatch, text)
    launcher.check()
    assert not launcher.launched() and launcher.local_world() == 1


def test_a_launched_rank_is_one(monkeypatch):
    setting(monkeypatch, f"RANK=1 WORLD_SIZE=4 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2 {MEETING}")
    launcher.check()
    assert launcher.launched() and launcher.local_world() == 2 and distributed.local_rank() == 1


@pytest.mark.parametrize("text", ["WORLD_SIZE=4", "WORLD_SIZE=x RANK=y", "LOCAL_RANK=x"])
@pytest.mark.parametrize("words", ["check {}", "plan {}"], ids=["check", "plan"])
def test_commands_without_ranks_do_not_care(tiny, monkeypatch, text, words):
    setting(monkeypatch, text)
    result = CliRunner().invoke(app, words.format(tiny).split())
    assert result.exit_code == 0, result.output


def test_a_schedulers_world_takes_no_cores_away(monkeypatch):
    before = auto_workers("cpu")
    setting(monkeypatch, "WORLD_SIZE=64")
    assert auto_workers("cpu") == before


def test_without_a_local_rank_a_gpu_is_chosen_only_where_there_is_one(monkeypatch):
    setting(monkeypatch, f"RANK=1 WORLD_SIZE=2 {MEETING}")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert distributed.local_rank() == 0
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    with pytest.raises(
        SslkitError, match="LOCAL_RANK is not set, so this rank cannot select one of 8 GPUs"
    ):
        distributed.local_rank()


@pytest.mark.slow
def test_devices_start_ranks_whatever_a_scheduler_has_set(tiny, tmp_path, monkeypatch):
    setting(monkeypatch, "WORLD_SIZE=4")
    words = ("--devices", 2, "--set", "train.epochs=1", "--runs", tmp_path / "runs")
    code, out, err = finish(start("train", tiny, *words), 100)
    assert (code, err) == (0, "") and "over 2 cpu devices" in out


def test_a_machine_that_is_not_there_is_a_sentence(tiny, tmp_path, monkeypatch):
    setting(monkeypatch, "RANK=1 WORLD_SIZE=2 MASTER_ADDR=localhost MASTER_PORT=99999")
    result = CliRunner().invoke(app, ["train", str(tiny), "--runs", str(tmp_path / "runs")])
    assert result.exit_code == 2
    assert result.stderr.startswith("cannot reach the other ranks at localhost:99999 (ValueError:")
