"""Loader workers that are spawned, as on macOS and Windows: parts reach them as pickles."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from conftest import TINY, sslkit

from sslkit.data import workers

SITE = """
    import sys
    from sslkit.data import workers
    workers.START = "spawn"
    from sslkit.cli import app
    if __name__ == "__main__":
        app(prog_name="sslkit")
"""
PARTS = """
    import sys

    from sslkit_plugins.datasets import ImageFolder

    class Lambda(ImageFolder):
        opens = {}

        def __init__(self, split, /, *, root: str) -> None:
            super().__init__(split, root=root)
            self.change = lambda image: image

    class Open(Lambda):
        def __init__(self, split, /, *, root: str) -> None:
            super().__init__(split, root=root)
            self.change = sys.__stdout__

    class Local(Lambda):
        def __init__(self, split, /, *, root: str) -> None:
            super().__init__(split, root=root)

            class Change:
                pass

            self.change = Change()
"""
NAMES = ("Lambda", "Open", "Local")


@pytest.fixture
def home(install, images, tmp_path):
    """`spawned.py`, which runs sslkit with spawned workers, and a recipe on labelled images."""
    points = "".join(f"{name.lower()} = spawn_parts:{name}\n" for name in NAMES)
    install("spawn-parts", f"[sslkit.datasets]\n{points}", spawn_parts=PARTS)
    (tmp_path / "spawned.py").write_text(textwrap.dedent(SITE))
    for number, image in enumerate(sorted(images.iterdir())):
        target = tmp_path / "photos" / f"class {number % 2}" / image.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(image.read_bytes())
    text = TINY.format(root=tmp_path / "photos").replace("epochs: 2", "epochs: 1")
    (tmp_path / "tiny.yaml").write_text(text)
    return tmp_path


def spawned(home: Path, *words: object) -> tuple[int, str]:
    """Exit code and stderr, with the plugin installed."""
    command = [sys.executable, str(home / "spawned.py"), *map(str, words)]
    environment = {"PYTHONPATH": str(home / "spawn-parts"), "OMP_NUM_THREADS": "1", "PATH": ""}
    ran = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=home, timeout=100, check=False
    )
    return ran.returncode, ran.stderr


@pytest.mark.parametrize("name", NAMES)
def test_a_part_that_cannot_be_sent_is_a_sentence(home, name, monkeypatch):
    monkeypatch.setattr(workers, "START", "spawn")
    monkeypatch.chdir(home)
    words = ("train", "tiny.yaml", "--set", f"data.use={name.lower()}", "--set", "data.root=photos")
    code, _, err = sslkit(*words, "--set", "train.workers=1")
    assert code == 2 and len(err.splitlines()) == 1, err
    assert err.startswith("the data set or the transform cannot be sent to a loader worker (")
    assert "--set train.workers=0" in err
    assert not (home / "runs").exists()


@pytest.mark.slow
def test_the_remedies_work_and_our_own_parts_can_be_sent(home):
    words = ("train", "tiny.yaml", "--set", "data.use=lambda", "--set", "data.root=photos")
    assert spawned(home, *words) == (0, "")
    words = ("eval", "knn", "runs/tiny/latest", "--k", 2)
    code, err = spawned(home, *words, "--workers", 1)
    assert code == 2 and "in evaluations --workers 0" in err
    assert spawned(home, *words, "--workers", 0) == (0, "")
    assert spawned(home, "train", "tiny.yaml", "--set", "train.workers=1") == (0, "")
