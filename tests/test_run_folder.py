"""`sslkit train RECIPE --run DIR`: starts in DIR or goes on, whoever calls it again, and when."""

import errno
import os
import shlex
import shutil
import signal
import threading
from pathlib import Path

import pytest
from conftest import TINY, assert_as, finish, sslkit, start, steps, wait_for

from sslkit import recipe
from sslkit.errors import CheckpointError
from sslkit.runs import checkpoint, folders
from sslkit.training import session

LONG = ("--set", "train.save_minutes=0", "--set", "train.epochs=3")
"""9 steps, a checkpoint after each."""
PROC = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks into /proc")


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def shared(tmp_path_factory, images) -> Path:
    """A folder with tiny.yaml."""
    path = tmp_path_factory.mktemp("shared")
    (path / "tiny.yaml").write_text(TINY.format(root=images))
    return path


@pytest.fixture(scope="module")
def complete(shared) -> Path:
    """The folder of a run that nobody stopped."""
    code, out, err = sslkit("train", shared / "tiny.yaml", *LONG, "--run", shared / "a" / "run")
    assert (code, err) == (0, "") and f"\n{shared / 'a' / 'run'}\n" in out
    return shared / "a" / "run"


# ------------------------------------------------------------------------------- one folder


def test_parents_are_made_and_no_link_beside(complete):
    assert os.listdir(complete.parent) == ["run"]


def test_a_complete_run_is_left_alone(shared, complete):
    before = contents(complete)
    code, out, err = sslkit("train", shared / "tiny.yaml", *LONG, "--run", complete)
    assert (code, err) == (0, "")
    assert out == f"{complete} is complete: 9 steps done; nothing to do\n"
    assert contents(complete) == before


def test_another_recipe_is_refused_with_every_difference(shared, complete):
    before = contents(complete)
    words = ["train", shared / "tiny.yaml", *LONG, "--run", complete]
    words += ["--set", "optimizer.lr=0.1", "--set", "heads.image.out_dim=8"]
    words += ["--set", "heads.patches.out_dim=8", "--set", "optimizer.nesterov=true"]
    code, out, err = sslkit(*words)
    assert (code, out) == (2, "")
    *lines, last = err.splitlines()
    place = str(complete / "recipe.yaml")
    found = {line.split()[1]: line.split(maxsplit=2)[2] for line in lines}
    assert all(line.startswith(place) for line in lines)
    assert found["optimizer.lr"] == "0.03 there, 0.1 here"
    assert found["heads.image.out_dim"] == "16 there, 8 here"
    assert found["optimizer.nesterov"] == "absent there, true here"
    assert last == (
        f"{complete} holds a run of another recipe; start a new one with another --run DIR, or "
        f"resume the run without changes: sslkit train --resume {complete}"
    )
    assert contents(complete) == before


def test_another_data_set_is_refused(shared, complete, images, tmp_path):
    shutil.copytree(images, tmp_path / "copy")
    words = ("train", shared / "tiny.yaml", *LONG, "--run", complete, "--data", tmp_path / "copy")
    code, _, err = sslkit(*words)
    assert code == 2
    assert f"data.root  '{images}' there, '{tmp_path / 'copy'}' here" in err.splitlines()[0]


def test_where_and_how_it_runs_may_differ(shared, complete):
    words = ("--set", "train.workers=1", "--set", "train.keep=7", "--set", "train.log_every=1")
    code, out, _ = sslkit("train", shared / "tiny.yaml", *LONG, *words, "--run", complete)
    assert code == 0 and "nothing to do" in out


def test_fewer_epochs_name_those_of_the_run(shared, complete):
    words = ("train", shared / "tiny.yaml", "--set", "train.save_minutes=0", "--run", complete)
    code, _, err = sslkit(*words)
    first, last = err.splitlines()
    assert code == 2 and first.endswith("train.epochs  3 there, 2 here")
    remedy = shlex.split(last.split("resume this one: ")[1])
    assert sslkit(*words, *remedy)[0] == 0


@pytest.mark.parametrize("name", ["photo.jpg", "recipe.yaml", ".hidden", "checkpoints/"])
def test_a_folder_that_is_no_run_is_left_untouched(tiny, tmp_path, name):
    place = tmp_path / "mine"
    (place / name).mkdir(parents=True) if name.endswith("/") else place.mkdir()
    if not name.endswith("/"):
        shutil.copy(tiny, place / name)
    before = contents(tmp_path)
    code, out, err = sslkit("train", tiny, "--run", place)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith(f"{place} is no run folder and not empty ('{name.rstrip('/')}' is in it)")
    assert contents(tmp_path) == before


def test_a_file_is_no_run_folder(tiny):
    before = tiny.read_bytes()
    for place in (tiny, tiny / "below"):
        code, _, err = sslkit("train", tiny, "--run", place)
        assert code == 2 and "--run" in err and len(err.splitlines()) == 1
    assert tiny.read_bytes() == before


@pytest.mark.parametrize("left", [(), (".lock", ".recipe.yaml.123")], ids=["empty", "killed early"])
def test_an_empty_folder_is_used(shared, complete, tmp_path, left):
    place = tmp_path / "empty"
    place.mkdir()
    for name in left:
        (place / name).touch()
    code, _, err = sslkit("train", shared / "tiny.yaml", *LONG, "--run", place)
    assert (code, err) == (0, "")
    assert_as(place, complete)


def test_a_run_without_a_checkpoint_begins_anew_in_it(shared, complete, tmp_path):
    place = tmp_path / "killed"
    place.mkdir()
    shutil.copy(complete / "recipe.yaml", place)
    (place / ".lock").touch()
    (place / "metrics.jsonl").write_text('{"step": 1, "loss": 5.0}\n')
    (place / "checkpoints" / ".writing-1").mkdir(parents=True)
    before = contents(place)
    words = ("train", shared / "tiny.yaml", *LONG, "--run", place)
    code, _, err = sslkit(*words, "--set", "train.seed=1")
    assert code == 2 and "train.seed  0 there, 1 here" in err and contents(place) == before
    code, _, err = sslkit(*words)
    assert (code, err) == (0, f"{place} holds no checkpoint yet: it starts again\n")
    assert_as(place, complete)


def test_an_encoder_before_the_first_checkpoint_is_no_lost_run(shared, complete, tmp_path):
    """The encoder is written first; a kill between the two leaves it alone."""
    place = tmp_path / "killed"
    place.mkdir()
    for name in ("recipe.yaml", ".lock", "metrics.jsonl", "encoder.safetensors"):
        shutil.copy(complete / name, place)
    assert sslkit("train", shared / "tiny.yaml", *LONG, "--run", place)[0] == 0
    assert_as(place, complete)


def test_the_encoder_is_that_of_the_last_checkpoint(tiny, tmp_path, monkeypatch):
    """So that a run which is killed between the two is not taken for complete."""
    order = []
    for name in ("save", "save_encoder"):
        function = getattr(checkpoint, name)
        monkeypatch.setattr(
            checkpoint, name, lambda *given, f=function, n=name: (order.append(n), f(*given))[1]
        )
    assert sslkit("train", tiny, "--run", tmp_path / "run")[0] == 0
    assert order == ["save_encoder", "save"]


# ------------------------------------------------------------------------------ nothing left


@pytest.mark.parametrize("exists", [False, True], ids=["absent", "empty"])
@pytest.mark.parametrize("place", ["os.fsync", "sslkit.runs.metrics.Row.line"])
def test_a_full_disk_leaves_no_new_folder(tiny, tmp_path, monkeypatch, place, exists):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = tmp_path / "a" / "b"
    if exists:
        folder.mkdir(parents=True)
    monkeypatch.setattr(place, full)
    code, _, err = sslkit("train", tiny, "--run", folder)
    assert code == 2 and "free space" in err and err.endswith("another place: --run DIR\n")
    assert len(err.splitlines()) == 1
    assert [path.name for path in tmp_path.rglob("[!t]*")] == (["a", "b"] if exists else [])


def test_a_folder_that_cannot_be_made_is_a_sentence(tiny, tmp_path, monkeypatch):
    def refused(self, *_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refused)
    code, _, err = sslkit("train", tiny, "--run", tmp_path / "a" / "b")
    assert code == 2 and err.startswith(f"cannot make the run folder {tmp_path / 'a' / 'b'}: ")
    assert "--run" in err and not (tmp_path / "a").exists()


@pytest.mark.parametrize("setting", ["transform.patch=30", "optimizer.lr=1.0e+38"])
def test_a_recipe_that_fails_at_once_leaves_no_folder(tiny, tmp_path, setting):
    words = ("--set", setting, "--set", "train.clip_grad=null")
    code, _, err = sslkit("train", tiny, *words, "--run", tmp_path / "a" / "run")
    assert code == 2, err
    if "patch" in setting:
        assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    "words, sentence",
    [
        ("RECIPE --run x --runs y", "leave out one of them"),
        ("--resume x --run y", "leave out one of --run and --resume"),
        ("RECIPE --run x --profile", "--profile trains nothing"),
        ("RECIPE --epochs 9", "--set train.epochs=9"),
        ("RECIPE --run x --epochs 9", "--set train.epochs=9"),
    ],
)
def test_options_that_contradict_each_other(tiny, tmp_path, monkeypatch, words, sentence):
    monkeypatch.chdir(tmp_path)
    given = [tiny if word == "RECIPE" else word for word in words.split()]
    code, _, err = sslkit("train", *given)
    assert code == 2 and sentence in err
    assert os.listdir(tmp_path) == [tiny.name]


# --------------------------------------------------------------------------- others meanwhile


def test_a_run_that_another_process_began_meanwhile_is_left(tiny, tmp_path, monkeypatch):
    place = tmp_path / "run"
    rehearse = session.rehearse_recipe

    def meanwhile(*given):
        monkeypatch.setattr(session, "rehearse_recipe", rehearse)
        assert sslkit("train", tiny, "--run", place)[0] == 0
        return rehearse(*given)

    monkeypatch.setattr(session, "rehearse_recipe", meanwhile)
    code, _, err = sslkit("train", tiny, "--run", place)
    assert code == 2
    assert err == (
        f"another process has started a run in {place}; resume it: sslkit train --resume {place}\n"
    )
    assert sslkit("train", tiny, "--run", place)[1].endswith("nothing to do\n")


def test_a_session_runs_in_a_thread_and_holds_its_folder(tiny, tmp_path):
    """A notebook or a server may train in a thread; the system's locks are those of a process."""
    made, place = recipe.read(tiny), tmp_path / "run"
    ended, refused = [], []

    class Screen:
        def __getattr__(self, name):
            return lambda *given, **options: None

        def made(self, folder):
            other = recipe.read(tiny)
            try:
                session.train(other, run=place)
            except CheckpointError as error:
                refused.append(str(error))

    def work():
        viewer = session.Viewer(screen=lambda run: Screen())
        ended.append(session.train(made, run=place, viewer=viewer))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ended == [session.Ended(place)] and ended[0].exit_code == 0
    assert refused == [
        f"{place} is in use: this process trains in it; wait for it, stop it, or start a new run"
    ]


@pytest.mark.parametrize("replaced", [False, True], ids=["removed", "replaced"])
def test_a_folder_that_is_gone_is_not_made_again(shared, complete, tmp_path, replaced):
    place = tmp_path / "run"
    words = ("train", shared / "tiny.yaml", "--set", "train.epochs=1000", "--run", place)
    process = start(*words, "--set", "train.save_minutes=0.001")
    wait_for(lambda: steps(place) >= 2, process)
    process.send_signal(signal.SIGSTOP)
    shutil.rmtree(place)
    if replaced:
        shutil.copytree(complete, place)
    before = contents(tmp_path)
    process.send_signal(signal.SIGCONT)
    code, _, err = finish(process)
    assert code == 2 and len(err.splitlines()) == 1
    assert err.startswith("cannot write") and "No such file" in err
    assert contents(tmp_path) == before and place.exists() == replaced


def test_the_newest_run_is_found_also_right_below_runs(complete, tmp_path):
    for number, name in enumerate(("tiny/2026", "mine", "tiny/latest")):
        if name == "tiny/latest":
            (tmp_path / name).symlink_to("2026")
            continue
        shutil.copytree(complete, tmp_path / name)
        for state in (tmp_path / name).glob("checkpoints/*/state.json"):
            os.utime(state, (number, number))
    assert folders.find_folder(None, tmp_path) == tmp_path / "mine"
    assert folders.find_folder(tmp_path / "tiny" / "latest") == tmp_path / "tiny" / "2026"


# ------------------------------------------------------------------------------------- kills


@pytest.mark.slow
def test_killed_and_called_again_it_ends_as_if_never_killed(shared, complete, tmp_path):
    place = tmp_path / "run"
    words = ("train", shared / "tiny.yaml", *LONG, "--run", place)
    for done in (1, 5):
        process = start(*words)
        wait_for(lambda done=done: steps(place) >= done, process)
        process.kill()
        assert finish(process)[0] == -signal.SIGKILL
    code, out, err = sslkit(*words)
    assert (code, err) == (0, "") and "resumed at step" in out
    assert_as(place, complete)
    code, out, _ = sslkit(*words)
    assert code == 0 and out.endswith("nothing to do\n")


def below(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for member in found:
        children = Path(f"/proc/{member}/task/{member}/children")
        found += [int(child) for child in children.read_text().split()]
    return found


@pytest.fixture(scope="module")
def complete_by_two(shared) -> Path:
    """The folder of a run of two ranks that nobody stopped."""
    words = ("train", shared / "tiny.yaml", *LONG, "--run", shared / "two", "--devices", 2)
    code, _, err = finish(start(*words), 100)
    assert code == 0, err
    return shared / "two"


@PROC
@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["devices", "torchrun"])
def test_all_ranks_killed_and_called_again(shared, complete_by_two, tmp_path, launcher):
    place = tmp_path / "run"
    words = ["train", shared / "tiny.yaml", *LONG, "--run-dir", place]
    words += ["--devices", 2] if launcher == "devices" else []
    ranks = 0 if launcher == "devices" else 2
    for done in (1, 5):
        process = start(*words, torchrun=ranks)
        wait_for(lambda done=done: steps(place) >= done, process)
        for member in below(process.pid):
            os.kill(member, signal.SIGKILL)
        finish(process)
    code, out, err = finish(start(*words, torchrun=ranks), 100)
    assert code == 0 and out.count("resumed at step") == 1, err
    assert_as(place, complete_by_two)
    code, out, err = finish(start(*words, torchrun=ranks), 100)
    assert (code, out) == (0, f"{place} is complete: 9 steps done; nothing to do\n"), err
    code, out, err = finish(start(*words, "--set", "train.seed=1", torchrun=ranks), 100)
    assert (
        code and "train.seed  0 there, 1 here" in err and "Traceback" not in err.split("ranks")[0]
    )


@PROC
@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["devices", "torchrun"])
@pytest.mark.parametrize("killed", [0, 1])
def test_restarts_go_on_in_the_folder(shared, complete_by_two, tmp_path, launcher, killed):
    place = tmp_path / "run"
    words = ["train", shared / "tiny.yaml", *LONG, "--run-dir", place]
    words += ["--devices", 2] if launcher == "devices" else []
    ranks = 0 if launcher == "devices" else 2
    process = start(*words, torchrun=ranks, restarts=1)
    wait_for(lambda: steps(place) >= 4, process)
    workers = [
        pid
        for pid in below(process.pid)[1:]
        if b"sslkit" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    os.kill(workers[killed], signal.SIGKILL)
    code, out, err = finish(process, 120)
    assert code == 0 and out.count("resumed at step") == 1, err
    assert_as(place, complete_by_two)


@pytest.mark.slow
def test_torchrun_without_a_folder_is_warned_of(shared, tmp_path):
    words = ("train", shared / "tiny.yaml", "--runs", tmp_path, "--set", "train.epochs=1")
    code, _, err = finish(start(*words, torchrun=2), 100)
    assert code == 0 and err.count(session.FORGETS) == 1
