"""What a refusal says: full and read-only disks, empty paths, odd folders, runs that lost
theirs.
"""

import errno
import shlex
import shutil
from pathlib import Path

import pytest
from conftest import sslkit
from PIL import Image

from sslkit.evaluation import store
from sslkit.runs import files, folders
from sslkit_plugins.datasets.folder import ImageFolder

SHORT = ("--set", "train.epochs=1")


def refusing(number: int):
    """A function that fails as on a full or read-only disk."""

    def fail(*_: object, **__: object):
        raise OSError(number, "refused")

    return fail


def lay(root: Path, *names: str) -> Path:
    """Write an image under each name."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (number, 0, 0)).save(root / name)
    return root


def test_views_in_a_read_only_folder_name_out(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", refusing(errno.EROFS))
    monkeypatch.setattr("pathlib.Path.unlink", refusing(errno.EROFS))
    code, out, err = sslkit("views", tiny, "--images", 1, "--draws", 1)
    assert (code, err.count("\n")) == (2, 1) and "--out FILE" in err and "writable" in err
    assert out.startswith("data: training on ")


def test_a_clean_up_that_fails_hides_no_fault(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", refusing(errno.ENOSPC))
    monkeypatch.setattr("pathlib.Path.unlink", refusing(errno.EROFS))
    with pytest.raises(files.WriteError, match="refused; free space on the disk; another place: X"):
        files.write_text(tmp_path / "text", "new", "X")


def test_only_a_run_without_a_checkpoint_begins_anew(tiny, tmp_path):
    runs = tmp_path / "my runs"
    code, out, _ = sslkit("train", tiny, *SHORT, "--runs", runs)
    folder = (runs / "tiny" / "latest").resolve()
    following = f"next: sslkit eval linear {shlex.quote(str(folder))} --data LABELLED_DIR\n"
    assert code == 0 and following in out
    before = (folder / "encoder.safetensors").read_bytes()
    shutil.rmtree(folder / "checkpoints")
    code, _, err = sslkit("train", "--resume", folder)
    assert code == 2 and "is complete, and its checkpoints are gone" in err
    assert err.endswith(f"sslkit train {shlex.quote(str(folder / 'recipe.yaml'))}\n")
    assert (folder / "encoder.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    "words",
    [
        "train RECIPE --data",
        "train RECIPE --runs",
        "train --resume",
        "views RECIPE --out",
        "plan RECIPE --data",
        "check RECIPE --data",
        "eval knn",
        "eval knn --out",
        "eval knn --against",
        "export",
    ],
)
def test_an_empty_path_is_refused(tiny, words):
    given = [str(tiny) if word == "RECIPE" else word for word in words.split()]
    code, out, err = sslkit(*given, "")
    assert (code, out, err.count("\n")) == (2, "", 1) and "the path is empty" in err


def test_a_full_disk_leaves_no_empty_run_folder(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", refusing(errno.ENOSPC))
    code, _, err = sslkit("train", tiny, *SHORT, "--runs", tmp_path / "runs")
    assert code == 2 and "free space" in err and "--runs DIR" in err
    assert not list((tmp_path / "runs").rglob("*"))


def test_a_disk_that_fills_up_names_the_way_on(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("sslkit.runs.files.save_file", refusing(errno.ENOSPC))
    code, _, err = sslkit("train", tiny, *SHORT, "--runs", tmp_path)
    folder = (tmp_path / "tiny" / "latest").resolve()
    assert code == 2 and "free space on the disk; then resume: sslkit train --resume" in err
    assert str(folder) in err and "untouched" not in err
    monkeypatch.undo()
    assert sslkit("train", "--resume", folder)[0] == 0


def test_a_place_of_results_that_is_refused_names_out(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(files.CheckpointError, match="with --out DIR"):
        folders.check_place(tmp_path / "file" / "x", "the folder of results", "--out DIR")


def test_what_is_passed_over_is_told_before_a_refusal(tiny, tmp_path):
    lay(tmp_path / "set", "a/1.png", "a/2.png", "b/3.png")
    (tmp_path / "set" / "a" / "4.heic").touch()
    for command in ("train", "plan"):
        code, out, err = sslkit(command, tiny, "--data", tmp_path / "set")
        first, last = err.splitlines()
        assert code == 2 and "do not fill a batch" in last
        assert first.startswith("skipped") and out.startswith("data: training on")


def test_a_misspelt_setting_of_a_resumed_run_is_named(tiny, tmp_path):
    shutil.copy(tiny, tmp_path / "recipe.yaml")
    _, _, err = sslkit("train", "--resume", tmp_path, "--set", "trian.workers=3")
    assert "did you mean 'train'?" in err
    _, _, err = sslkit("train", "--resume", tmp_path, "--set", "train.worker=3")
    assert "did you mean 'workers'?" in err
    _, _, err = sslkit("train", "--resume", tmp_path, "--set", "optimizer.lr=3")
    assert "start a new run instead" in err


def test_validation_that_evaluations_refuse_is_told(tmp_path):
    more = lay(tmp_path / "more", "train/a/1.png", "train/b/2.png", "val/a/3.png", "val/c/4.png")
    told = ImageFolder("train", root=str(more)).validation()
    assert "(2 images, which evaluations refuse: c/ not among the training classes)" in told
    flat = lay(tmp_path / "flat", "train/a/1.png", "train/b/2.png", "val/3.png")
    told = ImageFolder("train", root=str(flat)).validation()
    assert told.endswith("(1 image, which evaluations refuse: they are not all in class folders)")
    good = lay(tmp_path / "good", "train/a/1.png", "train/b/2.png", "val/a/3.png", "val/b/4.png")
    assert ImageFolder("train", root=str(good)).validation().endswith("(2 images)")


def test_splits_with_a_number_are_named(tmp_path):
    lay(tmp_path, "train2017/1.png", "val2017/2.png")
    (note,) = ImageFolder("train", root=str(tmp_path)).notes
    assert note.startswith(f"train2017/, val2017/ in {tmp_path} are read as classes; to use them")


def test_one_nested_split_is_told_in_the_singular(tmp_path):
    lay(tmp_path, "2020/dev/1.png", "2020/x/2.png", "2021/3.png")
    (note,) = ImageFolder("train", root=str(tmp_path)).notes
    assert note.startswith(f"2020/dev/ in {tmp_path} is read like any folder; to use it as a split")


def test_a_result_that_is_refused_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", refusing(errno.ENOSPC))
    with pytest.raises(files.WriteError, match="free space on the disk; another place: --out DIR"):
        store.write(tmp_path / "new" / "eval", {"evaluation": "knn", "protocol": {}})
    assert not list(tmp_path.iterdir())
