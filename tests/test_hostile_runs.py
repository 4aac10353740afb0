"""Run folders of strangers are refused in a sentence; a killed worker ends a run with one."""

import hashlib
import io
import json
import os
import pickle
import shutil
import signal
import struct
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, finish, new_folder, start
from hostile import BOMB, VALID, Trap, in_home, needs_alarms, never_for_long, refused, sslkit  # noqa: F401  (fixtures)

from sslkit import recipe
from sslkit.errors import CheckpointError
from sslkit.runs import checkpoint, folders
from sslkit.training.build import build
from sslkit.training.trainer import train

pytestmark = needs_alarms


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """A run folder with the checkpoints of steps 2 and 3 of 6 (the run was stopped, so that it can
    go on), on labelled images.
    """
    place = tmp_path_factory.mktemp("trained")
    data = place / "data"
    for number, image in enumerate(sorted(images.iterdir())):
        target = data / f"class {number % 2}" / image.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, target)
    (place / "tiny.yaml").write_text(TINY.format(root=data))
    made = recipe.read(place / "tiny.yaml")
    run, folder = build(made), new_folder(place / "runs", made)
    for _ in zip(range(3), train(run)):  # noqa: B905
        checkpoint.save(run, folder)
    return folder


@pytest.fixture
def run_folder(trained: Path, home: Path) -> Path:
    shutil.copytree(trained, home / "run")
    return home / "run"


@pytest.mark.parametrize("library", ["../../outside", "/tmp", "os", "timm\n", ""])
def test_a_library_is_no_path(library: str, run_folder: Path) -> None:
    refused("export", run_folder, "--to", library)
    assert not (run_folder / "export").exists()


def newest(folder: Path) -> Path:
    return max((folder / "checkpoints").iterdir())


def sign(path: Path) -> None:
    """SHA256SUMS over whatever is there, as an attacker would write it."""
    names = ("method.safetensors", "optimizer.safetensors", "state.json")
    lines = [
        f"{hashlib.sha256((path / name).read_bytes()).hexdigest()}  {name}\n" for name in names
    ]
    (path / "SHA256SUMS").write_text("".join(lines))


def rename(content: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """A safetensors file whose header was changed."""
    length = struct.unpack_from("<Q", content)[0]
    said = json.loads(content[8 : 8 + length])
    change(said)
    text = json.dumps(said).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def first(said: dict[str, Any]) -> dict[str, Any]:
    return next(value for name, value in said.items() if name != "__metadata__")


LIES: dict[str, Callable[[bytes], bytes]] = {
    "pickle": lambda content: pickle.dumps(Trap()),
    "torch.save": lambda content: torch_saved(),
    "empty": lambda content: b"",
    "header_beyond_the_file": lambda content: struct.pack("<Q", len(content)) + content[8:],
    "header_of_2**63": lambda content: struct.pack("<Q", 2**63) + content[8:],
    "header_of_100_MB": lambda content: struct.pack("<Q", 100_000_001) + b"{" + b" " * 100_000_010,
    "not_utf8": lambda content: content[:8] + b"\xff" + content[9:],
    "a_list": lambda content: struct.pack("<Q", 2) + b"[]",
    "nothing_in_it": lambda content: struct.pack("<Q", 2) + b"{}",
    "nested": lambda content: struct.pack("<Q", 20_000) + b"[" * 20_000,
    "offsets_beyond": lambda content: rename(
        content, lambda said: first(said).update(data_offsets=[0, 2**40])
    ),
    "offsets_negative": lambda content: rename(
        content, lambda said: first(said).update(data_offsets=[-8, 8])
    ),
    "offsets_backwards": lambda content: rename(
        content, lambda said: first(said).update(data_offsets=[8, 0])
    ),
    "offsets_overlap": lambda content: rename(
        content,
        lambda said: [
            value.update(data_offsets=[0, 64])
            for name, value in said.items()
            if name != "__metadata__"
        ],
    ),
    "shape_huge": lambda content: rename(
        content, lambda said: first(said).update(shape=[2**62, 2**62])
    ),
    "shape_negative": lambda content: rename(content, lambda said: first(said).update(shape=[-1])),
    "shape_empty": lambda content: rename(
        content, lambda said: first(said).update(shape=[0, 2**60], data_offsets=[0, 0])
    ),
    "dtype": lambda content: rename(content, lambda said: first(said).update(dtype="F64")),
    "dtype_unknown": lambda content: rename(
        content, lambda said: first(said).update(dtype="PICKLE")
    ),
    "name": lambda content: rename(
        content, lambda said: said.update({"../../x": said.pop(next(iter(said)))})
    ),
    "cut": lambda content: content[:-1],
    "longer": lambda content: content + b"x",
}


def torch_saved() -> bytes:
    file = io.BytesIO()
    torch.save({"method.x": Trap()}, file)
    return file.getvalue()


@pytest.mark.parametrize("file", ["method.safetensors", "optimizer.safetensors"])
@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_tensors_that_lie_under_a_sum_that_is_right(
    run_folder: Path, file: str, lie: Callable[[bytes], bytes]
) -> None:
    path = newest(run_folder)
    (path / file).write_bytes(lie((path / file).read_bytes()))
    sign(path)
    run = build(recipe.read(run_folder / "recipe.yaml"))
    if lie is LIES["nothing_in_it"] and file == "optimizer.safetensors":
        assert checkpoint.resume(run, run_folder) == [], "as that of an optimizer without memory"
        return
    with pytest.raises(
        CheckpointError, match=r"step-00000003 does not fit the recipe beside it \(.*\); was recipe"
    ):
        checkpoint.resume(run, run_folder)


@pytest.mark.parametrize(
    "lie", ["pickle", "header_beyond_the_file", "shape_huge", "dtype_unknown", "name", "cut"]
)
def test_evaluations_and_export_meet_the_same_sentence(run_folder: Path, lie: str) -> None:
    path = newest(run_folder)
    (path / "method.safetensors").write_bytes(LIES[lie]((path / "method.safetensors").read_bytes()))
    sign(path)
    root = recipe.read(run_folder / "recipe.yaml").data.options["root"]
    for command in (
        ("eval", "knn", run_folder),
        ("eval", "linear", run_folder),
        ("embed", run_folder, root, "vectors.npz"),
        ("export", run_folder),
    ):
        assert "does not fit the recipe beside it" in refused(*command)
    assert not (run_folder / "export").exists()


STATES: list[Any] = [
    None,
    [],
    {},
    "text",
    7,
    {"step": "3"},
    {"step": -3},
    {"step": 3.5},
    {"step": float("nan")},
    {"step": 10**400},
    {"step": 2},
    {"images": 0},
    {"images": 10**30},
    {"images": "24"},
    {"fingerprint": ["a"]},
    {"fingerprint": None},
    {"unreadable": ["a"]},
    {"unreadable": {"a": 1}},
    {"optimizer": []},
    {"optimizer": {"name": "SGD"}},
    {"optimizer": {"name": "SGD", "state": []}},
    {"optimizer": {"name": 3, "state": {}}},
    {"optimizer": {"name": "SGD", "state": {"0": {"x": {"y": 1}}}}},
    {"optimizer": {"name": "SGD", "state": {"0": {"x": float("inf")}}}},
    {"optimizer": {"name": "../../SGD\x1b[31m", "state": {}}},
    {"optimizer": {"name": "SGD", "state": {"999": {"step": 1}}}},
    {"optimizer": {"name": "SGD", "state": {"-1": {"step": 1}}}},
    {"optimizer": {"name": "SGD", "state": {"x": {"step": 1}}}},
    {"optimizer": {"name": "SGD", "state": {"group 9": {"x": 1}}}},
    {"optimizer": {"name": "SGD", "state": {"group 0": {"lr": 1e9}}}},
    {"optimizer": {"name": "SGD", "state": {"group 0": {"params": [1, 2]}}}},
]


@pytest.mark.parametrize("change", STATES, ids=lambda change: repr(change)[:60])
def test_a_state_that_lies(run_folder: Path, change: Any) -> None:
    path = newest(run_folder)
    state = json.loads((path / "state.json").read_text())
    state = change if not isinstance(change, dict) or not change else state | change
    (path / "state.json").write_text(json.dumps(state))
    sign(path)
    try:
        (note,) = checkpoint.resume(build(recipe.read(run_folder / "recipe.yaml")), run_folder)
        assert "step-00000003 is damaged" in note and note.endswith("using the previous one")
    except CheckpointError as error:
        assert "does not fit the recipe beside it" in str(error)


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "{" * 3, '{"step": 3', "\xff", "NaN", '{"step":' + "9" * 10_000 + "}"],
    ids=["deep", "open", "cut", "latin_1", "nan", "long_number"],
)
def test_a_state_that_is_no_json(run_folder: Path, text: str) -> None:
    path = newest(run_folder)
    (path / "state.json").write_bytes(text.encode("latin1"))
    sign(path)
    _, state, notes = checkpoint.newest(run_folder)
    assert (
        state["step"] == 2
        and len(notes) == 1
        and "step-00000003 is damaged" in notes[0]
        and "\n" not in notes[0]
    )


def test_folders_that_are_no_checkpoints_are_passed_over(run_folder: Path) -> None:
    home = run_folder / "checkpoints"
    shutil.copytree(newest(run_folder), home / "step-99999999")
    (home / "step-x").mkdir()
    (home / "step-\x1b[31m\n").write_text("a file")
    (home / "...").mkdir()
    (home / "step-99999998").symlink_to("step-00000002")
    code, out, errors = sslkit("train", "--resume", run_folder)
    assert code == 0 and "resumed at step 3" in out
    assert (
        "step-99999999 is damaged (ValueError: state.json is that of step 3); using the "
        "previous one" in errors
    )


@pytest.mark.parametrize("target", ["../../../outside", "/dev/zero"])
@pytest.mark.parametrize("name", ["checkpoints", "eval", "export", ".curves.png", "metrics.jsonl"])
def test_links_that_lead_out_of_a_run_folder(run_folder: Path, name: str, target: str) -> None:
    path = run_folder / name
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(target)
    for command in (
        ("train", "--resume", run_folder),
        ("train", run_folder / "recipe.yaml", "--run", run_folder),
        ("eval", "knn", run_folder),
        ("embed", run_folder, "data", "vectors.npz"),
        ("export", run_folder),
    ):
        assert f"{name} is a link that leads out of the run folder" in refused(*command)


LINES = [
    b"[" * 100_000,
    b"\xff\xfe",
    b"null",
    b"[]",
    b'"x"',
    b'{"step": "1"}',
    b'{"step": 1, "loss": "x"}',
    b'{"step": 1, "loss": {}}',
    b'{"step": 1, "loss": null}',
]
LINES += [
    b'{"step": 1, "loss": ' + b"9" * 400 + b"}",
    b'{"step": NaN, "loss": 1}',
    b'{"step": 1, "$x_{$\\u001b[31m": 1}',
]


def test_metrics_that_are_none_are_dropped(run_folder: Path) -> None:
    (run_folder / "metrics.jsonl").write_bytes(b"\n".join(LINES))
    assert sslkit("train", "--resume", run_folder)[0] == 0
    steps = [
        json.loads(line)["step"] for line in (run_folder / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == [4, 5, 6]


@pytest.mark.parametrize(
    "content",
    [b"[]", b"[" * 100_000, b"\xff", b'{"protocol": 1}', b"null", b'"' * 3],
    ids=["list", "deep", "binary", "number", "null", "quotes"],
)
def test_an_old_result_that_is_none_is_kept_aside(run_folder: Path, content: bytes) -> None:
    (run_folder / "eval").mkdir()
    (run_folder / "eval" / "knn.json").write_bytes(content)
    assert sslkit("eval", "knn", run_folder, "--k", 2)[0] == 0
    assert (run_folder / "eval" / "knn.1.json").read_bytes() == content


@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        VALID.replace("name: tiny", "name: ../../outside/x"),
        "",
        "\0",
        VALID.replace("out_dim: 16", "out_dim: 8"),
    ],
    ids=["anchors", "name", "empty", "nul_byte", "out_dim"],
)
def test_a_run_folder_with_another_recipe(run_folder: Path, text: str) -> None:
    root = recipe.read(run_folder / "recipe.yaml").data.options["root"]
    (run_folder / "recipe.yaml").write_text(text.replace("'images'", f"'{root}'"))
    for command in (
        ("train", "--resume", run_folder),
        ("eval", "knn", run_folder),
        ("export", run_folder),
    ):
        refused(*command)


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for the workers")
def test_a_killed_loader_worker_ends_the_run_with_a_message(images: Path, home: Path) -> None:
    Path("tiny.yaml").write_text(
        TINY.format(root=images).replace("epochs: 2", "epochs: 500, save_minutes: 0.005")
    )
    process = start("train", "tiny.yaml", "--set", "train.workers=2")
    try:
        while not list(home.glob("runs/tiny/latest/checkpoints/step-*")):
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(workers[0]), signal.SIGKILL)
    finally:
        code, _, errors = finish(process)
    assert code == 2 and len(errors.splitlines()) == 1, errors
    assert (
        errors.startswith("the system killed a loader worker") and "--set train.workers=0" in errors
    )
    assert checkpoint.newest(home / "runs" / "tiny" / "latest")[2] == []


def test_a_clock_that_is_set_back_gives_every_run_a_folder_of_its_own(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("good.yaml").write_text(VALID)
    made, made_folders = recipe.read("good.yaml"), []
    for hour in (12, 11, 11, 12):

        class Clock(datetime):
            @classmethod
            def now(cls, *_: object) -> datetime:
                return datetime(2026, 10, 25, hour, 30)  # noqa: B023

        monkeypatch.setattr(folders, "datetime", Clock)
        made_folders.append(new_folder(home / "runs", made))
        assert (home / "runs" / "tiny" / "latest").resolve() == made_folders[-1]
    assert len(set(made_folders)) == 4
