"""The story of an engineer's messy folder: trained on, evaluated with a labelled subset, packed."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, sslkit
from PIL import Image

GOOD, BROKEN = 24, 3
FEATURES = ("--set", "train.epochs=2", "--set", "train.batch_size=8")


def photograph(file: Path, seed: int, side: int = 48) -> None:
    """Write a picture whose colour depends on its folder, with noise of its own."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    colour = np.array([40, 120, 200]) if "cat" in file.parts else np.array([200, 90, 30])
    noise = rng.integers(-30, 31, (side, side + 8, 3))
    kind = "JPEG" if file.suffix.lower() in (".jfif", ".jpe") else None
    Image.fromarray((colour + noise).clip(0, 255).astype(np.uint8)).save(file, kind)


@pytest.fixture(scope="module")
def mess(tmp_path_factory) -> Path:
    """24 good images of many kinds in nested folders, 3 broken ones, and all that lies around."""
    home = tmp_path_factory.mktemp("mess")
    root = home / "fotos ünd bilder"
    names = ["Reise 2019/Straße.JPG", "Reise 2019/日本/東京.png", "Reise 2019/日本/a.jfif"]
    names += ["Reise 2019/日本/b.jpe", "Camera/DCIM/100/été.webp", "Camera/DCIM/100/x.tiff"]
    names += [f"Camera/DCIM/101/IMG_{number:04}.jpg" for number in range(GOOD - len(names))]
    for seed, name in enumerate(names):
        photograph(root / name, seed)
    whole = (root / names[0]).read_bytes()
    (root / "Camera" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "Camera" / "empty.png").touch()
    (root / "Camera" / "page.jpg").write_text("<html>404 Not Found</html>")
    for name in ("1.HEIC", "2.heic", "raw/3.CR2", "notes.txt", ".DS_Store", "raw/Thumbs.db"):
        (root / "Camera" / name).parent.mkdir(exist_ok=True)
        (root / "Camera" / name).write_bytes(b"\0\1\2")
    photograph(root / "__MACOSX" / "._a.jpg", 0)
    photograph(home / "elsewhere" / "more.jpg", 50)
    (root / "NAS").symlink_to(home / "elsewhere")
    (root / "Camera" / "back").symlink_to(root)
    (root / "Camera" / "gone.jpg").symlink_to("/nowhere/gone.jpg")
    os.mkfifo(root / "Camera" / "pipe.jpg")
    for number in range(20):
        kind = ("cat", "dog")[number % 2]
        photograph(home / "labelled" / kind / f"{number}.jpg", 100 + number)
    (home / "labelled" / ".DS_Store").write_bytes(b"\0")
    (home / "labelled" / "dog" / "8.heic").write_bytes(b"\0")
    (home / "tiny.yaml").write_text(TINY.format(root=root))
    return home


@pytest.fixture(scope="module")
def run(mess) -> Path:
    """Train on the folder as it is."""
    root = mess / "fotos ünd bilder"
    code, out, err = sslkit("train", mess / "tiny.yaml", *FEATURES, "--runs", mess / "runs")
    assert code == 0, err
    assert err == PASSED_OVER.format(root=root)
    lines = out.splitlines()
    assert lines[0] == (
        f"data: training on {root} (27 images); for evaluations: 2 classes: Camera, Reise 2019"
    )
    told = [line for line in lines if "could not be read" in line]
    assert len(told) == 1
    assert told[0].startswith("3 images could not be read and were replaced: Camera/cut.jpg (")
    assert "Camera/empty.png (" in told[0] and "Camera/page.jpg (" in told[0]
    assert "0x" not in told[0], "no address of an object"
    return (mess / "runs" / "tiny" / "latest").resolve()


PASSED_OVER = (
    "skipped in {root}: .heic × 2, .cr2 × 1 (convert them to JPEG or PNG), "
    "1 link (--set data.follow_links=true follows them), 1 broken link, "
    "1 link to files that are read anyway, 1 pipe or device, .txt × 1\n"
)


@pytest.mark.parametrize("evaluation", ["linear", "knn"])
def test_it_is_evaluated_with_the_labelled_subset(mess, run, evaluation):
    labelled = mess / "labelled"
    code, out, err = sslkit("eval", evaluation, run, "--data", labelled)
    assert code == 0, err
    assert err == f"skipped in {labelled}: .heic × 1 (convert them to JPEG or PNG)\n"
    lines = out.splitlines()
    assert lines[:2] == [
        f"{evaluation} on {run}",
        f"data: training on {labelled} (16 images in 2 classes: cat, dog); validating on a fifth "
        "of every class, split with seed 0 (4 images)",
    ]
    assert lines[-1] == f"written: {run / 'eval' / evaluation}.json"


def test_an_evaluation_on_the_mess_shows_its_classes_and_stops(mess, run):
    """Two trips are no two classes: the line shows what was about to be measured."""
    root = mess / "fotos ünd bilder"
    code, out, err = sslkit("eval", "knn", run)
    assert code == 2 and "in 2 classes: Camera, Reise 2019" in out
    assert err.startswith(PASSED_OVER.format(root=root)) and "cannot be read" in err


@pytest.mark.slow
def test_it_is_packed_and_trained_on_again(mess, run):
    root, packed = mess / "fotos ünd bilder", mess / "packed"
    code, out, err = sslkit("pack", root, packed, "--workers", 0)
    assert code == 2 and err.startswith(PASSED_OVER.format(root=root))
    assert "3 images cannot be read: Camera/cut.jpg (" in err and not packed.exists()
    assert err.endswith("repair or remove them, or leave them out: --skip-unreadable\n")
    remedies = ("--skip-unreadable", "--set", "data.follow_links=true")
    code, out, err = sslkit("pack", root, packed, "--workers", 0, *remedies)
    assert code == 0, err
    assert out.splitlines()[:2] == [
        f"data: {root} (28 images in 3 classes: Camera, NAS, Reise 2019)",
        "25 images (train): 22 kept their bytes, 3 were re-encoded, 3 left out",
    ]
    assert err.count("left out, it cannot be read: Camera/") == 3
    again = ("--data", packed, "--runs", mess / "again", *FEATURES)
    code, out, err = sslkit("train", mess / "tiny.yaml", *again)
    assert code == 0 and err == "", err
    assert out.startswith(f"data: training on {packed} (25 images); for evaluations: 3 classes: ")


def test_broken_files_that_are_removed_are_missed_by_nobody(mess, run, tmp_path):
    """The remedy of the evaluation: a copy without the broken files is measured."""
    root = tmp_path / "copy"
    shutil.copytree(mess / "fotos ünd bilder" / "Camera" / "DCIM", root)
    code, out, err = sslkit("eval", "knn", run, "--data", root)
    assert code == 0 and "2 classes: 100, 101" in out and err == ""
