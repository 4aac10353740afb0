"""What several test files share: a folder of small images, a recipe that trains in a second, and
the command line in a process.
"""

import contextlib
import faulthandler
import multiprocessing
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from typer.testing import CliRunner

from sslkit import distributed, recipe
from sslkit.cli import app
from sslkit.recipe import registry, source
from sslkit.runs import checkpoint
from sslkit.runs.folders import NewFolder
from sslkit.runs.run import Run
from sslkit.training.build import build

TINY = """\
name: tiny
method:    {{use: pirl}}
data:      {{use: image_folder, root: '{root}'}}
transform: {{use: jigsaw, size: 32, grid: 2, resize: 32, patch: 12}}
encoder:   {{use: timm, model: test_resnet}}
heads:
  image:   {{use: linear, out_dim: 16}}
  patches: {{use: concat_patches, patch_dim: 16, out_dim: 16}}
sampler:   {{use: memory_bank, negatives: 12}}
loss:      {{use: lambda_nce}}
optimizer: {{use: sgd, lr: 0.03, momentum: 0.9, weight_decay: 1.0e-4}}
train:     {{epochs: 2, batch_size: 8, precision: fp32, device: cpu, workers: 0}}
"""
"""PIRL with every trait that a checkpoint must hold: a memory, drawn negatives, a frozen constant,
momentum, batch norm.
"""


LONG_FILES = (
    "test_every_recipe.py",
    "test_fuzz.py",
    "test_run_folder.py",
    "test_learning.py",
    "test_distributed.py",
    "test_every_method.py",
    "test_audit.py",
    "test_shared.py",
    "test_rehearsal.py",
    "test_train_on.py",
    "test_svm.py",
    "test_wheel.py",
)
"""Files of tests that take long, the longest first."""


def pytest_configure(config: pytest.Config) -> None:
    """Let xdist keep the order of files; its own order runs files of few, long tests last."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with long files: with `--dist loadfile`, the last file decides when all workers end."""
    places = {name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 images: noise and gradients, JPEG and PNG, of mixed size and shape."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(24):
        height, width = rng.integers(33, 60, 2)
        if number % 2:
            pixels = rng.integers(0, 256, (height, width, 3))
        else:
            ramp = (
                np.linspace(0, 255, width)[None, :, None] * np.linspace(0, 1, height)[:, None, None]
            )
            pixels = np.broadcast_to(ramp * rng.random(3), (height, width, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(
            folder / f"{number:02}.{'jpg' if number % 3 else 'png'}"
        )
    return folder


@pytest.fixture
def ranks(tmp_path):
    """`ranks(work, 4)`: `work(folder)` in four processes that have joined; their exit codes. One
    that hangs tells where and fails the test.
    """

    def run(work, count: int = 2) -> list[int]:
        forking = multiprocessing.get_context("fork")
        ports = forking.SimpleQueue()

        def enter(number: int) -> None:
            port = ports.get()
            faulthandler.dump_traceback_later(50, exit=True, file=sys.__stderr__)
            os.environ |= {
                "RANK": str(number),
                "LOCAL_RANK": str(number),
                "WORLD_SIZE": str(count),
                "MASTER_ADDR": "127.0.0.1",
            }
            os.environ |= {
                "MASTER_PORT": str(port),
                "TORCHELASTIC_USE_AGENT_STORE": "True",
                "TORCHELASTIC_RESTART_COUNT": "0",
            }
            with distributed.joined(torch.device("cpu")):
                work(tmp_path)

        processes = [forking.Process(target=enter, args=(number,)) for number in range(count)]
        for process in processes:
            process.start()
        # The store has a thread, whose locks a process forked beside it might inherit locked.
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        for _ in processes:
            ports.put(store.port)
        for process in processes:
            process.join(60)
            process.kill()
        return [process.exitcode for process in processes]

    return run


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`install(name, entry_points, module=source)`: a distribution on sys.path; its folder."""

    def add(name: str, entry_points: str, **modules: str) -> Path:
        folder = tmp_path / name
        info = folder / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "entry_points.txt").write_text(textwrap.dedent(entry_points))
        for module, text in modules.items():
            (folder / f"{module}.py").write_text(textwrap.dedent(text))
        monkeypatch.syspath_prepend(folder)
        registry.discover.cache_clear()
        return folder

    yield add
    monkeypatch.undo()
    for cached in (registry.discover, registry._signature, source.find):
        cached.cache_clear()


@pytest.fixture
def loaded_here(monkeypatch):
    """`sslkit export` loads what it wrote in this process, which saves an import of PyTorch."""

    def run(command, cwd, **_):
        with contextlib.chdir(cwd):
            exec(command[-1], {})
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr("sslkit.runs.export.subprocess", SimpleNamespace(run=run))


@pytest.fixture
def tiny(images: Path, tmp_path: Path) -> Path:
    """The tiny recipe as a file."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.format(root=images))
    return path


@pytest.fixture
def make(tiny: Path):
    """`make("train.seed=1", …)`: everything made from the tiny recipe, as before the first step."""

    def made(*overrides: str, data: Path | None = None) -> Run:
        return build(
            recipe.read(tiny, overrides=overrides, data=None if data is None else str(data))
        )

    return made


def new_folder(root: Path, made: recipe.Recipe) -> Path:
    """Make the folder of a new run below `root`, with its recipe, as a session does."""
    new = NewFolder(made, root)
    folder = new.make()
    new.fill()
    return folder


def everything(run: Run) -> dict[str, torch.Tensor]:
    """All numbers that training changes."""
    moments = {
        f"optimizer.{key}.{name}": value
        for key, state in run.optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }
    return run.method.state_dict() | {
        name: torch.as_tensor(value) for name, value in moments.items()
    }


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """The same bit for bit."""
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different


def sslkit(*words: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command line, run in this process."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def start(*arguments: object, torchrun: int = 0, restarts: int = 0) -> subprocess.Popen:
    """`python -m sslkit …`, or `torchrun --standalone … -m sslkit …`, with one thread to each
    process.
    """
    options = ["--standalone", f"--nproc-per-node={torchrun}", f"--max-restarts={restarts}"]
    launcher = ["-m", "torch.distributed.run", *options] if torchrun else []
    process = subprocess.Popen(
        [sys.executable, *launcher, "-m", "sslkit", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    STARTED.append(process)
    return process


STARTED: list[subprocess.Popen] = []
"""Processes of the current test."""


@pytest.fixture(autouse=True)
def end_processes():
    """Kill what a failing test leaves behind, so that it fails alone."""
    yield
    while STARTED:
        with STARTED.pop() as process:
            process.kill()


def finish(process: subprocess.Popen, timeout: float = 300) -> tuple[int, str, str]:
    """Exit code, stdout and stderr; a process that hangs fails the test."""
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, out, err


def assert_as(folder: Path, expected: Path) -> None:
    """The same results, byte for byte."""
    one, other = (checkpoint.newest(path)[0] for path in (folder, expected))
    assert one.name == other.name
    for file in checkpoint.FILES:
        assert (one / file).read_bytes() == (other / file).read_bytes(), file
    for file in ("metrics.jsonl", "encoder.safetensors", "recipe.yaml"):
        assert (folder / file).read_bytes() == (expected / file).read_bytes(), file


def steps(folder: Path) -> int:
    """Steps that a run has logged."""
    file = folder / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


def wait_for(what, *processes, seconds: float = 300) -> None:
    """Wait while the processes run, until `what()`."""
    deadline = time.monotonic() + seconds
    while not what():
        assert all(process.poll() is None for process in processes), processes[0].communicate()
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.001)
