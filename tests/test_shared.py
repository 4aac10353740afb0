"""Loader workers with little shared memory, and waits for data that end when asked to."""

import faulthandler
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch.utils.data import Dataset

from sslkit.data import shared
from sslkit.data.workers import deliver
from sslkit.errors import DataError, PluginError
from sslkit.runs import checkpoint

MIB = 2**20


def small_shared_memory(size: str, *command: object) -> subprocess.CompletedProcess[str]:
    """Run a command with a /dev/shm of that size, in a mount namespace of its own."""
    mounting = f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"'
    words = ["unshare", "-m", "sh", "-c", mounting, "sh", *map(str, command)]
    return subprocess.run(words, capture_output=True, text=True, timeout=90, check=False)


def may_mount() -> bool:
    return shutil.which("unshare") is not None and not small_shared_memory("1m", "true").returncode


mounts = pytest.mark.skipif(not may_mount(), reason="this machine lets nobody mount a tmpfs")

CLI = """
import sys, torch
torch.multiprocessing.set_sharing_strategy(sys.argv.pop(1))
from sslkit.cli import app
app()
"""


@mounts
@pytest.mark.parametrize(
    ("size", "strategy"),
    [
        ("4k", "file_descriptor"),
        ("128k", "file_descriptor"),
        pytest.param("128k", "file_system", marks=pytest.mark.slow),
    ],
    ids=["for semaphores", "for batches", "for files"],
)
def test_batches_without_room_end_the_run_with_a_remedy(tiny, tmp_path, size, strategy):
    words = [sys.executable, "-c", CLI, strategy, "train", tiny, "--runs", tmp_path / "runs"]
    words += ["--set", "transform.size=96", "--set", "train.workers=2"]
    ended = small_shared_memory(size, *words)
    assert ended.returncode == 2, ended.stderr
    assert "has no room for the batches of loader workers" in ended.stderr
    assert "docker run --shm-size=1g" in ended.stderr and "--set train.workers=0" in ended.stderr
    assert "Traceback" not in ended.stderr and len(ended.stderr.splitlines()) == 1


@mounts
@pytest.mark.slow
def test_workers_of_auto_are_as_many_as_there_is_room_for(tiny, tmp_path):
    script = (
        "from sslkit.data import loader; from sslkit.training import build; "
        "build.auto_workers = lambda kind: 4; from sslkit.cli import app; app()"
    )
    words = [sys.executable, "-c", script, "train", tiny, "--runs", tmp_path / "runs"]
    ended = small_shared_memory("16k", *words, "--set", "train.workers=auto")
    assert ended.returncode == 0, ended.stderr
    assert "0 loader workers" in ended.stdout


@pytest.mark.parametrize(
    ("free", "workers", "size", "expected"),
    [
        (None, 2, MIB, 4),
        (64 * MIB, 2, MIB, 4),
        (64 * MIB, 4, 2 * MIB, 4),
        (64 * MIB, 4, 4 * MIB, 2),
        (64 * MIB, 4, 40 * MIB, 1),
        (10**12, 16, 66 * MIB, 1),
        (10**12, 4, 66 * MIB, 3),
        (10**12, 4, 0, 4),
    ],
)
def test_prefetch_is_bound_by_bytes(monkeypatch, free, workers, size, expected):
    """At most 1 GiB by default, and half of what is free."""
    monkeypatch.setattr(shared, "room", lambda: free)
    assert shared.prefetch(workers, size) == expected


def test_workers_fit_into_half_of_what_is_free(monkeypatch):
    monkeypatch.setattr(shared, "room", lambda: 64 * MIB)
    assert [shared.fitting(16, size * MIB) for size in (1, 4, 32, 33)] == [16, 8, 1, 0]
    monkeypatch.setattr(shared, "room", lambda: None)
    assert shared.fitting(16, 10**12) == 16


def test_ranks_of_a_machine_divide_the_room(monkeypatch):
    monkeypatch.setattr(
        shared.shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(100, 20, 80)
    )
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert shared.room() == 20


class Made(Dataset):
    """Items that a function makes."""

    def __init__(self, make) -> None:
        self.make = make

    def __getitem__(self, order):
        return self.make(order)


def test_items_arrive_in_shared_memory():
    def make(order):
        return {"view": torch.full((2,), order)}, (torch.tensor([order]), "name", None)

    for number, (views, (index, name, nothing)) in enumerate(
        deliver(Made(make), list(range(5)), 2)
    ):
        assert views["view"].is_shared() and views["view"].tolist() == [number] * 2
        assert (index.tolist(), name, nothing) == ([number], "name", None)


def test_an_item_that_cannot_be_sent_is_told():
    """PyTorch's thread would print a traceback, and the training process wait forever."""
    with pytest.raises(PluginError, match="cannot send a function; return tensors"):
        list(deliver(Made(lambda order: [lambda: order]), [0, 1, 2], 1))


@pytest.mark.skipif(not hasattr(signal, "SIGBUS"), reason="a system without bus errors")
@pytest.mark.parametrize(
    ("number", "sentence"),
    [("SIGBUS", "has no room for the batches"), ("SIGKILL", "perhaps for lack of memory, or take")],
)
def test_a_lost_worker_is_told_by_its_signal(number, sentence, capfd):
    def make(order):
        faulthandler.disable()  # pytest's would report the signal as a crash.
        os.kill(os.getpid(), getattr(signal, number))

    with pytest.raises(DataError, match=sentence):
        list(deliver(Made(make), [0, 1, 2], 1, size=5, remedy=", or take none"))
    assert "Traceback" not in capfd.readouterr().err


STUCK = """
import sys, time
from sslkit_plugins.datasets.folder import ImageFolder
given, after, read = sys.argv.pop(1), int(sys.argv.pop(1)), ImageFolder.pixels
def pixels(self, index, reduction):
    global after
    after -= 1
    if after < 0:
        print(given, flush=True)
        time.sleep(10**6)
    return read(self, index, reduction)
ImageFolder.pixels = pixels
from sslkit.cli import app
app()
"""
"""The command line with a data set that never returns from reading one of its images."""


def stuck(after: int, *words: object) -> subprocess.Popen:
    command = [sys.executable, "-c", STUCK, "stuck", after, *words]
    return subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_a_wait_for_data_ends_at_a_signal(tiny, tmp_path, number, code, workers):
    """Steps done are saved, and the run goes on from there."""
    runs = tmp_path / "runs"
    awaited = {"stuck", "step 1/"}
    process = stuck(
        20 * (2 - workers // 2), "train", tiny, "--runs", runs, "--set", f"train.workers={workers}"
    )
    for line in process.stdout:
        awaited -= {word for word in awaited if line.startswith(word)}
        if not awaited:
            break
    time.sleep(0.5)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (code, "")
    folder = next((runs / "tiny").glob("2*"))
    step = checkpoint.newest(folder)[1]["step"]
    assert f"stopped by {number.name} after step {step}, saved" in out
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == step
