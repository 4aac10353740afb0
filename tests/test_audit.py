"""Every command under Python's audit hook: nothing is unpickled, and nothing of what lies in the
folders is run.

The one exception is PyTorch's: loader workers hand batches to the process that trains through a
pipe of their own, which pickles a
closed list of types. It reads no file.
"""

import hashlib
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY

from sslkit.runs import checkpoint

HOOK = """
import os, sys

log = os.open(os.environ["AUDIT_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
MARK = "pwned"
# Programs that Python's own ctypes and platform start.
ASKED = {"ldconfig", "gcc", "cc", "ld", "objdump", "uname", "lscpu"}


def caller(depth):
    frame, names = sys._getframe(depth), []
    while frame is not None and len(names) < 3:
        names.append(f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_code.co_name}")
        frame = frame.f_back
    return " ".join(names)


def ours(code):
    return MARK in code and "hook" not in code


def is_foreign(program):
    return program != sys.executable and os.path.basename(program) not in ASKED


def is_remote(address):
    return isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "localhost")


def hook(event, arguments):
    if event == "pickle.find_class":
        said = f"unpickled {arguments[0]}.{arguments[1]} by {caller(2)}"
    elif event in ("compile", "marshal.loads") and ours(str(arguments[0])):
        said = f"{event} {caller(2)}"
    elif event == "exec" and MARK in f"{arguments[0].co_consts} {arguments[0].co_filename}":
        said = f"exec {caller(2)}"
    elif event == "open" and MARK in str(arguments[0]) and arguments[1] not in ("r", "rb"):
        said = f"open {arguments[0]} {arguments[1]} by {caller(2)}"
    elif event in ("os.system", "os.exec", "os.posix_spawn"):
        said = f"{event} {arguments[0]}"
    elif event == "subprocess.Popen" and is_foreign(arguments[0]):
        said = f"{event} {arguments[0]} by {caller(2)}"
    elif event == "socket.connect" and is_remote(arguments[1]):
        said = f"{event} {arguments[1]}"
    else:
        return
    os.write(log, (said + "\\n").encode())


sys.addaudithook(hook)
os.write(log, b"begun\\n")
"""


class Trap:
    """Unpickled, it writes a file."""

    def __reduce__(self) -> tuple[Callable, tuple]:
        return open, ("pwned", "w")


def plant(folder: Path) -> None:
    """What might be taken for data, weights, results or code, in every folder below."""
    trap = pickle.dumps(Trap())
    for place in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        for name in (
            "x.jpg",
            "encoder.pt",
            "model.pth",
            "data.pkl",
            "names.npy",
            "cache.pickle",
            "state.pt",
        ):
            (place / name).write_bytes(trap)
        torch.save({"weights": Trap()}, place / "weights.pt")
        for name in ("sslkit_plugins", "timm", "hubconf", "conftest", "setup"):
            (place / f"{name}.py").write_text("open('pwned', 'w')\n")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """A folder with hook/, labelled images, a recipe, an archive; traps lie beside them."""
    place = tmp_path_factory.mktemp("audit")
    (place / "hook").mkdir()
    (place / "hook" / "sitecustomize.py").write_text(HOOK)
    for number, image in enumerate(sorted(images.iterdir())):
        target = place / "work" / "data" / f"class {number % 2}" / image.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, target)
    (place / "work" / "tiny.yaml").write_text(
        TINY.format(root="data").replace("epochs: 2", "epochs: 2, unreadable: 100")
    )
    pixels = np.random.default_rng(0).integers(0, 256, (16, 40, 40, 3), dtype=np.uint8)
    np.savez(
        place / "work" / "good.npz",
        images=pixels,
        labels=np.arange(16) % 2,
        other=np.array([Trap()], object),
    )
    np.savez(place / "work" / "trap.npz", images=np.array([Trap()] * 16, object))
    (place / "work" / "pickle.npz").write_bytes(pickle.dumps(Trap()))
    (place / "work" / "trap.yaml").write_text(
        "name: !!python/object/apply:builtins.open [pwned, w]\n"
    )
    return place


@pytest.fixture
def run(place: Path):
    """`run(exit code, "train", …)`: a command in a process of its own, and what the hook told of it
    and its children, once each.
    """

    def command(code: int, *arguments: object) -> set[str]:
        log = place / "log"
        log.unlink(missing_ok=True)
        path = os.pathsep.join([str(place / "hook"), *filter(None, [os.environ.get("PYTHONPATH")])])
        done = subprocess.run(
            [sys.executable, "-P", "-m", "sslkit", *map(str, arguments)],
            cwd=place / "work",
            env=os.environ | {"PYTHONPATH": path, "AUDIT_LOG": str(log), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        assert not list(place.rglob("pwned"))
        lines = log.read_text().splitlines()
        assert "begun" in lines
        return set(lines) - {"begun"}

    return command


TRANSPORT = {
    *(
        "multiprocessing.resource_sharer.DupFd",
        "torch.multiprocessing.reductions.rebuild_storage_fd",
    ),
    *(
        "torch.multiprocessing.reductions.rebuild_tensor",
        "torch.multiprocessing.reductions.rebuild_typed_storage",
    ),
    *("torch.Size", "torch.Tensor", "torch.int64", "torch.uint8", "torch.storage.UntypedStorage"),
    *("sslkit.data.loader.Ticket", "sslkit.evaluation.images.Order"),
    *("numpy.ndarray", "numpy.dtype"),
    *(
        f"numpy.{core}.{name}"
        for core in ("core", "_core")
        for name in ("multiarray._reconstruct", "numeric._frombuffer", "multiarray.scalar")
    ),
}
"""What a pipe between a loader worker and the process that trains may make."""


def from_pipes(told: set[str]) -> set[str]:
    """The rest, without what the pipes of loader workers made."""
    return {
        line
        for line in told
        if not (line.split(" ")[1] in TRANSPORT and " by queues.py:get " in line)
        and not (line.split(" ")[1] in TRANSPORT and " by connection.py:recv " in line)
    }


def test_the_hook_sees_what_it_is_there_for(place: Path) -> None:
    script = "import pickle, sys; pickle.load(open('data.pkl', 'rb')); exec(open('timm.py').read())"
    folder = place / "seen"
    folder.mkdir()
    plant(folder)
    env = os.environ | {"PYTHONPATH": str(place / "hook"), "AUDIT_LOG": str(folder / "log")}
    subprocess.run([sys.executable, "-P", "-c", script], cwd=folder, env=env, check=True)
    told = (folder / "log").read_text()
    assert "unpickled" in told and "compile" in told and "exec" in told and "open pwned" in told
    shutil.rmtree(folder)


@pytest.mark.slow
def test_no_command_unpickles_or_runs_what_it_finds(place: Path, run) -> None:
    work = place / "work"
    plant(work)
    for arguments in (
        ("check", "tiny.yaml"),
        ("plugins",),
        ("plugins", "show", "memory_bank"),
        ("schema",),
        ("plan", "tiny.yaml"),
    ):
        assert run(0, *arguments) == set()
    assert run(0, "views", "tiny.yaml", "--data", "good.npz") == set()
    assert run(2, "check", "trap.yaml") == set()
    for data in ("trap.npz", "pickle.npz"):
        assert run(2, "train", "tiny.yaml", "--data", data) == set()
    assert run(0, "train", "tiny.yaml", "--data", "good.npz") == set()
    assert run(0, "train", "tiny.yaml") == set(), "without workers there is nothing to except"

    folder = (work / "runs" / "tiny" / "latest").resolve()
    shutil.rmtree(max((folder / "checkpoints").iterdir()))
    plant(folder)
    (folder / "encoder.safetensors").write_bytes(pickle.dumps(Trap()))
    assert run(2, "train", "--resume", folder) == set(), "complete, and its checkpoints are gone"
    (folder / "encoder.safetensors").unlink()
    (folder / "curves.png").unlink()
    assert run(0, "train", "--resume", folder) == set(), "it begins anew among what is planted"
    (folder / "encoder.safetensors").write_bytes(pickle.dumps(Trap()))
    for image in work.rglob("data/**/x.jpg"):
        image.unlink()
    for evaluation in (("knn",), ("linear",)):
        assert from_pipes(run(0, "eval", *evaluation[:1], folder, *evaluation[1:])) == set()
    assert from_pipes(run(0, "embed", folder, "data", "vectors.npz")) == set()
    assert run(0, "export", folder) == set()
    assert from_pipes(run(0, "pack", "data", "packed")) == set()
    plant(work / "packed")
    assert run(0, "train", "tiny.yaml", "--set", "data={use: packed, root: packed}") == set()


def test_workers_send_a_closed_list_of_types_and_nothing_else(run, place: Path) -> None:
    told = run(0, "train", "tiny.yaml", "--set", "train.workers=2")
    assert any("rebuild_storage_fd" in line for line in told), (
        "PyTorch's transport has changed; look again"
    )
    assert from_pipes(told) == set()


@pytest.mark.slow
def test_a_checkpoint_of_pickles_is_refused(place: Path, run) -> None:
    work = place / "work"
    run(0, "train", "tiny.yaml")
    folder = (work / "runs" / "tiny" / "latest").resolve()
    kept = folder / "recipe.yaml"
    kept.write_text(re.sub(r"epochs: \d+", "epochs: 50", kept.read_text()))  # not complete
    for path in (folder / "checkpoints").iterdir():
        torch.save({"method.x": Trap()}, path / "method.safetensors")
        (path / "optimizer.safetensors").write_bytes(pickle.dumps(Trap()))
        sums = [
            f"{hashlib.sha256((path / name).read_bytes()).hexdigest()}  {name}\n"
            for name in checkpoint.FILES
        ]
        (path / "SHA256SUMS").write_text("".join(sums))
    for command in (
        ("train", "--resume", folder),
        ("eval", "knn", folder),
        ("embed", folder, "data", "vectors.npz"),
        ("export", folder),
    ):
        assert run(2, *command) == set()
