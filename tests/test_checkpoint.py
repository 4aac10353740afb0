"""Checkpoints: exact, without pickle, and whole or not there at all, whatever happens while one is
written.
"""

import errno
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import safetensors
import torch
from conftest import assert_same, everything, new_folder
from safetensors.torch import load_file

from sslkit import recipe
from sslkit.errors import CheckpointError
from sslkit.runs import checkpoint, files, folders
from sslkit.training.trainer import train


def advance(run, steps):
    for _ in zip(range(steps), train(run)):  # noqa: B905
        pass
    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


@pytest.fixture
def saved(make, folder: Path) -> Path:
    """A run folder with checkpoints of steps 1 and 2."""
    run = make()
    for _ in zip(range(2), train(run)):  # noqa: B905
        checkpoint.save(run, folder)
    return folder


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        (
            "train.channels_last=false",
            "loss.form=info_nce",
            "sampler.negatives=all",
            "sampler.init=forward",
        ),
        ("optimizer.use=adamw", "optimizer.momentum=null", "transform.permutations=10"),
        ("optimizer.use=lamb", "optimizer.momentum=null"),
        ("optimizer.use=adan", "optimizer.momentum=null"),
        ("optimizer.momentum=null", "heads.image.batch_norm=true"),
    ],
    ids=["default", "info_nce", "adamw", "lamb", "adan", "batch_norm"],
)
def test_a_saved_and_resumed_run_equals_an_uninterrupted_one(make, folder, overrides):
    through = advance(make(*overrides), 6)
    first = advance(make(*overrides), 3)
    checkpoint.save(first, folder)
    second = make(*overrides)
    assert checkpoint.resume(second, folder) == []
    assert second.step == 3
    assert_same(everything(first), everything(second))
    assert_same(everything(through), everything(advance(second, 3)))


def test_layouts_in_memory_survive(make, folder):
    checkpoint.save(advance(make(), 2), folder)
    run = make()
    checkpoint.resume(run, folder)
    momentum = [state["momentum_buffer"] for state in run.optimizer.state.values()]
    weights = [value for value in run.optimizer.state]
    assert any(w.dim() == 4 and not w.is_contiguous() for w in weights)
    assert [m.stride() for m in momentum] == [w.stride() for w in weights]


def test_the_memory_and_the_frozen_constant_are_in_it(make, folder):
    run = advance(make(), 2)
    held = load_file(checkpoint.save(run, folder) / "method.safetensors")
    assert torch.equal(held["method.samplers.image.bank"], run.method.sampler.bank)
    assert (
        held["method.loss.log_mean_exp"] == run.method.loss.log_mean_exp != 0
        and held["method.loss.frozen"]
    )


def test_checkpoints_are_safetensors_with_checksums_of_sha256sum(saved):
    (newest,) = (saved / "checkpoints").glob("step-00000002")
    assert {path.name for path in newest.iterdir()} == {
        "method.safetensors",
        "optimizer.safetensors",
        "state.json",
        "SHA256SUMS",
    }
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=newest, check=True)
    assert json.loads((newest / "state.json").read_text())["step"] == 2


def test_a_newer_format_is_refused_not_passed_over(make, folder):
    run = make()
    for _ in zip(range(2), train(run), strict=False):
        newest = checkpoint.save(run, folder)
    state = json.loads((newest / "state.json").read_text())
    assert state["format"] == checkpoint.FORMAT
    text = json.dumps({"format": checkpoint.FORMAT + 1, "something": "else"})
    (newest / "state.json").write_text(text)
    sums = [f"{files.checksum(newest / name)}  {name}\n" for name in checkpoint.FILES]
    (newest / "SHA256SUMS").write_text("".join(sums))
    with pytest.raises(CheckpointError, match=r"has format 2, and this sslkit reads format 1"):
        checkpoint.newest(folder)


def test_unreadable_images_are_remembered(make, folder):
    run = advance(make(), 1)
    run.unreadable = {"ä.png": "broken"}
    checkpoint.save(run, folder)
    again = make()
    checkpoint.resume(again, folder)
    assert again.unreadable == {"ä.png": "broken"}


def test_only_the_newest_are_kept(make, folder):
    run = make("train.keep=2")
    for _ in train(run):
        checkpoint.save(run, folder)
    assert sorted(os.listdir(folder / "checkpoints")) == ["step-00000005", "step-00000006"]


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
@pytest.mark.parametrize(
    "name", ["method.safetensors", "optimizer.safetensors", "state.json", "SHA256SUMS"]
)
def test_a_damaged_checkpoint_is_passed_over_and_said_so(saved, damage, name):
    damage(saved / "checkpoints" / "step-00000002" / name)
    found, state, notes = checkpoint.newest(saved)
    assert found.name == "step-00000001" and state["step"] == 1
    assert len(notes) == 1
    assert "step-00000002" in notes[0] and notes[0].endswith("using the previous one")


def test_no_whole_checkpoint_is_a_sentence(saved, folder):
    for file in saved.glob("checkpoints/*/state.json"):
        file.unlink()
    with pytest.raises(
        CheckpointError,
        match=r"(?s)step-00000002 is damaged.*step-00000001 is damaged.*: sslkit train",
    ):
        checkpoint.newest(saved)


def test_what_a_kill_left_behind_does_no_harm(make, saved):
    left = saved / "checkpoints" / ".writing-999"
    shutil.copytree(saved / "checkpoints" / "step-00000002", left)
    (left / "SHA256SUMS").unlink()
    run = make()
    checkpoint.resume(run, saved)
    assert run.step == 2
    checkpoint.save(advance(run, 1), saved)
    assert sorted(os.listdir(saved / "checkpoints")) == ["step-00000002", "step-00000003"]


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def torn_file(tensors, path, notes):
    path.write_bytes(b"torn")
    raise safetensors.SafetensorError("Error while serializing: No space left on device")


@pytest.mark.parametrize(
    ("place", "failing"),
    [
        ("sslkit.runs.files.save_file", full_disk),
        ("sslkit.runs.files.save_file", torn_file),
        ("os.fsync", full_disk),
        (
            "sslkit.runs.checkpoint.write_text",
            lambda path, text: full_disk() if path.name == "state.json" else None,
        ),
        ("pathlib.Path.mkdir", full_disk),
        ("pathlib.Path.replace", full_disk),
    ],
)
def test_a_full_or_read_only_disk_is_a_sentence_and_harms_nothing(
    make, saved, monkeypatch, place, failing
):
    run = make()
    checkpoint.resume(run, saved)
    before = {path: path.read_bytes() for path in saved.rglob("*") if path.is_file()}
    advance(run, 1)
    with monkeypatch.context() as patch:
        patch.setattr(place, failing)
        with pytest.raises(
            CheckpointError,
            match=r"cannot write the checkpoint of step 3.*No space left.*have not changed",
        ):
            checkpoint.save(run, saved)
    assert {path: path.read_bytes() for path in saved.rglob("*") if path.is_file()} == before
    checkpoint.save(run, saved)
    assert checkpoint.newest(saved)[1]["step"] == 3


@pytest.mark.parametrize(
    ("place", "failing"), [("os.fsync", full_disk), ("sslkit.runs.files.save_file", torn_file)]
)
def test_a_failed_write_keeps_the_old_encoder_or_text(make, folder, monkeypatch, place, failing):
    run = make()
    checkpoint.save_encoder(run, folder)
    files.write_text(folder / "text", "old")
    monkeypatch.setattr(place, failing)
    with pytest.raises(CheckpointError, match=r"cannot write .*encoder.safetensors"):
        checkpoint.save_encoder(run, folder)
    if place == "os.fsync":
        with pytest.raises(CheckpointError, match=r"cannot write .*text: No space left"):
            files.write_text(folder / "text", "new")
    assert (folder / "text").read_text() == "old"
    assert sorted(os.listdir(folder)) == ["encoder.safetensors", "text"]


def test_another_list_of_images_is_refused(make, saved, images, tmp_path):
    fewer = tmp_path / "fewer"
    shutil.copytree(images, fewer)
    (fewer / "00.png").rename(fewer / "renamed.png")
    with pytest.raises(
        CheckpointError,
        match=r"another list of images \(24 then, 24 now; image 0 was .*put its own images back",
    ):
        checkpoint.resume(make(data=fewer), saved)


def test_a_recipe_that_was_changed_is_refused(make, saved):
    with pytest.raises(
        CheckpointError, match=r"step-00000002 does not fit the recipe beside it.*changed since"
    ):
        checkpoint.resume(make("heads.image.out_dim=8", "heads.patches.out_dim=8"), saved)


def test_another_set_of_permutations_is_refused(make, folder):
    checkpoint.save(advance(make("transform.permutations=10"), 1), folder)
    run = make("transform.permutations=10")
    run.transform.permutations = run.transform.permutations[::-1].copy()
    with pytest.raises(
        CheckpointError, match=r"transform's state in .* is not what the installed plugin makes"
    ):
        checkpoint.resume(run, folder)


def test_another_optimizer_is_refused(make, saved):
    with pytest.raises(
        CheckpointError,
        match=r"step-00000002 does not fit the recipe beside it \(it was saved by SGD, not AdamW\)",
    ):
        checkpoint.resume(make("optimizer.use=adamw", "optimizer.momentum=null"), saved)


def test_run_folders(tiny, tmp_path, monkeypatch):
    made = recipe.read(tiny)
    first = new_folder(tmp_path / "runs", made)
    second = new_folder(tmp_path / "runs", made)
    assert first != second and first.parent == second.parent == tmp_path / "runs" / "tiny"
    latest = first.parent / "latest"
    assert latest.is_symlink() and latest.resolve() == second
    assert recipe.read(second / "recipe.yaml") == made
    assert folders.find_folder(latest) == second
    for folder, when in ((first, 2e9), (second, 1e9)):
        state = folder / "checkpoints" / "step-00000001" / "state.json"
        state.parent.mkdir(parents=True)
        state.touch()
        os.utime(state, (when, when))
    third = new_folder(tmp_path / "runs", made)
    assert folders.find_folder(None, tmp_path / "runs") == first, (
        "the newest checkpoint's, and no link"
    )
    assert latest.resolve() == third


def test_run_folders_that_are_not_there(tiny, tmp_path):
    with pytest.raises(
        CheckpointError,
        match=r"is not a run folder: it does not exist; name a folder such as",
    ):
        folders.find_folder(tmp_path / "none")
    with pytest.raises(
        CheckpointError,
        match=r"there is no trained run below .*none/; name the folder of one, or train one "
        r"first: sslkit train",
    ):
        folders.find_folder(None, tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(
        CheckpointError,
        match=r"cannot make the run folder .*: Not a directory; choose another place with --runs",
    ):
        new_folder(tmp_path / "file", recipe.read(tiny))


def test_a_file_system_without_links_goes_without_latest(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "symlink_to", full_disk)
    folder = new_folder(tmp_path, recipe.read(tiny))
    assert os.listdir(folder.parent) == [folder.name]
