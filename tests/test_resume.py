"""Runs that go on elsewhere: moved images, other working directories, other versions of plugins."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, new_folder, sslkit
from PIL import Image

from sslkit import recipe
from sslkit.recipe import registry
from sslkit.runs import checkpoint, versions
from sslkit.training.build import build
from sslkit.training.trainer import train


def refused(*words: object) -> str:
    """What is said by a command that ends with exit code 2, in one line."""
    code, _, err = sslkit(*words)
    assert code == 2 and len(err.strip().splitlines()) == 1, err
    return err


def begun(home: Path, text: str) -> Path:
    """A run folder after two of six steps."""
    path = home / "begun.yaml"
    path.write_text(text)
    made = recipe.read(path)
    run, folder = build(made), new_folder(home / "runs", made)
    for _ in zip(range(2), train(run)):  # noqa: B905
        pass
    checkpoint.save(run, folder)
    known = json.dumps(versions.environment(run))
    (folder / "environment.json").write_text(known)
    return folder


def as_folder(images: Path, place: Path) -> Path:
    for number, image in enumerate(sorted(images.iterdir())):
        target = place / f"class {number % 2}" / image.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, target)
    return place


def as_npz(images: Path, place: Path, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    pixels = [np.asarray(Image.open(p).convert("RGB").resize((36, 36))) for p in images.iterdir()]
    order = rng.permutation(len(pixels))
    np.savez(place, images=np.stack(pixels)[order], labels=np.arange(len(pixels)) % 2)
    return place


@pytest.fixture(scope="module")
def source(tmp_path_factory, images):
    """The same images as a folder, an archive and a packed set."""
    home = tmp_path_factory.mktemp("source")
    as_folder(images, home / "photos")
    as_npz(images, home / "photos.npz")
    assert sslkit("pack", home / "photos", home / "packed", "--workers", 0)[0] == 0
    return home


KINDS = {
    "image_folder": ("photos", "use: image_folder, root: '{}'"),
    "npz": ("photos.npz", "use: npz, file: '{}'"),
    "packed": ("packed", "use: packed, root: '{}'"),
}


@pytest.fixture(params=KINDS)
def moved(request, source, tmp_path, monkeypatch):
    """A run on images that lie elsewhere now, and that place."""
    name, section = KINDS[request.param]
    place = tmp_path / name
    (shutil.copytree if (source / name).is_dir() else shutil.copy)(source / name, place)
    monkeypatch.chdir(tmp_path)
    folder = begun(
        tmp_path, TINY.replace("use: image_folder, root: '{root}'", section).format(name)
    )
    there = tmp_path / "drive" / name
    there.parent.mkdir()
    place.rename(there)
    return folder, there


def test_a_run_whose_images_have_moved_goes_on_where_they_lie_now(moved, monkeypatch):
    folder, there = moved
    said = refused("train", "--resume", folder)
    assert "--data" in said
    code, out, err = sslkit("train", "--resume", folder, "--data", there)
    assert (code, err) == (0, "") and "resumed at step 2" in out
    monkeypatch.chdir(there.parent)
    code, out, err = sslkit("train", "--resume", folder)
    assert (code, err) == (0, "") and "nothing to do" in out
    assert str(there) in (folder / "recipe.yaml").read_text(), "the new place is kept"
    code, _, err = sslkit("eval", "knn", folder, "--k", 2)
    assert code == 0, err


def test_the_run_that_goes_on_elsewhere_is_the_run_that_never_moved(source, tmp_path):
    stays = begun(tmp_path, TINY.format(root=source / "photos"))
    moves = tmp_path / "copy"
    shutil.copytree(stays, moves)
    shutil.copytree(source / "photos", tmp_path / "elsewhere")
    assert sslkit("train", "--resume", stays)[0] == 0
    assert sslkit("train", "--resume", moves, "--data", tmp_path / "elsewhere")[0] == 0
    one, other = (place / "encoder.safetensors" for place in (stays, moves))
    assert one.read_bytes() == other.read_bytes()


def one_more(place: Path) -> None:
    shutil.copy(place / "class 1" / "01.jpg", place / "class 0" / "zebra.jpg")


def one_renamed(place: Path) -> None:
    (place / "class 0" / "00.png").rename(place / "class 0" / "000.png")


def one_gone(place: Path) -> None:
    (place / "class 1" / "23.jpg").unlink()


def others_of_the_same_names(place: Path) -> None:
    for path in place.rglob("*.*"):
        Image.new("RGB", (40, 40), (1, 2, 3)).save(path)


@pytest.mark.parametrize(
    "change, difference",
    [
        (one_more, "another list of images (24 then, 25 now; image 12 was"),
        (
            one_renamed,
            "(24 then, 24 now; image 0 was 'class 0/00.png' and is 'class 0/000.png' now)",
        ),
        (one_gone, "(24 then, 23 now; image 23 was 'class 1/23.jpg' and there is none now)"),
        (others_of_the_same_names, "another set of images: 'class 0/00.png' shows something else"),
    ],
)
def test_other_images_are_refused_with_the_difference(source, tmp_path, change, difference):
    folder = begun(tmp_path, TINY.format(root=source / "photos"))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    place = tmp_path / "others"
    shutil.copytree(source / "photos", place)
    change(place)
    said = refused("train", "--resume", folder, "--data", place)
    assert difference in said and f"sslkit train --resume {folder} --data PATH" in said
    for path, content in before.items():
        assert path.read_bytes() == content, "nothing is written"


def test_an_archive_of_as_many_other_images_is_refused(images, source, tmp_path):
    """The names of an archive are numbers: they say nothing of its images."""
    section = KINDS["npz"][1]
    text = TINY.replace("use: image_folder, root: '{root}'", section)
    folder = begun(tmp_path, text.format(source / "photos.npz"))
    other = as_npz(images, tmp_path / "other.npz", seed=1)
    said = refused("train", "--resume", folder, "--data", other)
    assert "another set of images: 'train/" in said and "shows something else (mean [0." in said


def test_run_folders_hold_absolute_paths(source, tmp_path, monkeypatch):
    shutil.copytree(source / "photos", tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    first = begun(tmp_path, TINY.format(root="photos"))
    checkpoint.save_encoder(build(recipe.read(first / "recipe.yaml")), first)
    text = TINY.format(root="photos")
    text = text.replace("model: test_resnet", f"model: test_resnet, weights: {first.name}")
    Path(first.name).symlink_to(first)
    folder = begun(tmp_path, text)
    found = recipe.read(folder / "recipe.yaml")
    assert found.data.options["root"] == str(tmp_path / "photos")
    assert found.encoder.options["weights"] == str(tmp_path / first.name)
    monkeypatch.chdir(tmp_path / "runs")
    assert sslkit("eval", "knn", folder, "--k", 2)[0] == 0


def test_a_word_is_no_path_though_a_folder_is_called_so(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("timm").mkdir()
    text = TINY.format(root=source / "photos").replace("test_resnet", "test_resnet, weights: timm")
    (tmp_path / "word.yaml").write_text(text)
    folder = new_folder(tmp_path / "runs", recipe.read("word.yaml"))
    assert recipe.read(folder / "recipe.yaml").encoder.options["weights"] == "timm"


def test_relative_paths_of_older_runs_stand_beside_the_folder_of_runs(
    source, tmp_path, monkeypatch
):
    shutil.copytree(source / "photos", tmp_path / "photos")
    folder = begun(tmp_path, TINY.format(root=tmp_path / "photos"))
    text = (folder / "recipe.yaml").read_text()
    (folder / "recipe.yaml").write_text(text.replace(str(tmp_path / "photos"), "photos"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert sslkit("train", "--resume", folder)[0] == 0
    assert (folder / "recipe.yaml").read_text() == text, "made absolute"


def test_settings_of_the_machine_may_change(source, tmp_path):
    folder = begun(tmp_path, TINY.format(root=source / "photos"))
    code, _, err = sslkit("train", "--resume", folder, "--set", "train.keep=1")
    assert (code, err) == (0, "") and len(list((folder / "checkpoints").iterdir())) == 1
    said = refused("train", "--resume", folder, "--set", "train.epochs=9")
    assert said.startswith("--set  train.epochs  a resumed run keeps its recipe")
    assert said.endswith(f"to train on: sslkit train --resume {folder} --epochs N\n")
    said = refused("train", "--resume", folder, "--set", "optimizer.lr=9")
    words = said.split("sslkit train ")[1].split()
    assert words == [str(folder / "recipe.yaml"), "--set", "optimizer.lr=…"]
    assert sslkit("check", folder / "recipe.yaml", "--quick", "--set", "optimizer.lr=9")[0] == 0


# ------------------------------------------------------------------------------------ plugins

LOSS = """
from sslkit.interfaces import Loss

class Quiet(Loss):
    needs_negatives = True

    def __init__(self, *, scale: float = 1.0{more}) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, terms):
        total = sum((term.positive * 0 + term.query.square().mean() for term in terms.values()))
        return total, {{}}
"""
SET = """
from sslkit_plugins.datasets import ImageFolder

class Photos(ImageFolder):
    opens = {}
"""
INIT = """
    def __init__(self, split, /, *, root: str{options}) -> None:
        super().__init__(split, root=root)
"""
LINKS = ", follow_links: bool = False"


@pytest.fixture
def photos(install, source, tmp_path):
    """A run on the data set of a plugin, photos 1.0; the folder where that is installed."""
    place = install(
        "photos",
        "[sslkit.datasets]\nphotos = photos_set:Photos\n",
        photos_set=SET + INIT.format(options=LINKS),
    )
    text = TINY.replace("image_folder", "photos").format(root=source / "photos")
    return begun(tmp_path, text), place


def forget() -> None:
    for cached in (registry.discover, registry._signature, registry.source.find):
        cached.cache_clear()


def test_another_version_of_a_plugin_is_told(photos):
    folder, place = photos
    (place / "photos-1.0.dist-info").rename(place / "photos-2.0.dist-info")
    forget()
    code, _, err = sslkit("train", "--resume", folder)
    assert code == 0
    assert err == (
        "data set 'photos' of photos 2.0 made this run with photos 1.0, and goes on with photos "
        "2.0\n"
    )


def test_another_distribution_of_a_part_is_told(photos):
    folder, place = photos
    (place / "photos-1.0.dist-info").rename(place / "pictures-1.0.dist-info")
    forget()
    code, _, err = sslkit("train", "--resume", folder)
    assert code == 0 and "made this run with photos 1.0, and goes on with pictures 1.0" in err


def replace_module(place: Path, text: str) -> None:
    import sys

    (place / "photos_set.py").write_text(text)
    shutil.rmtree(place / "__pycache__", ignore_errors=True)
    sys.modules.pop("photos_set", None)
    (place / "photos-1.0.dist-info").rename(place / "photos-2.0.dist-info")
    forget()


def test_a_new_option_of_a_plugin_is_refused_until_it_is_written(photos):
    folder, place = photos
    replace_module(place, SET + INIT.format(options=f"{LINKS}, gray: bool = False"))
    said = refused("train", "--resume", folder)
    assert "recipe.yaml" in said and "data.gray" in said
    assert "photos 1.0, which began the run, had not; write it into this file (false if" in said
    text = (folder / "recipe.yaml").read_text()
    (folder / "recipe.yaml").write_text(text.replace("use: photos,", "use: photos, gray: false,"))
    assert sslkit("train", "--resume", folder)[0] == 0


def test_an_option_removed_from_a_plugin_is_refused_with_its_version(photos):
    folder, place = photos
    replace_module(place, SET + INIT.format(options=""))
    code, _, err = sslkit("train", "--resume", folder)
    assert code == 2 and "data.follow_links" in err and "no such option of photos" in err
    assert "the run began with photos 1.0, and photos 2.0 is installed" in err


def test_a_plugin_that_is_gone_is_named(photos, monkeypatch):
    folder, place = photos
    shutil.rmtree(place)
    forget()
    code, _, err = sslkit("train", "--resume", folder)
    assert code == 2 and "no data set named 'photos' is installed" in err
    assert "the run began with photos 1.0, and no photos is installed" in err
    assert "Traceback" not in err


# ------------------------------------------------------------------------- without the data


def test_an_export_needs_no_data_set(photos, source, loaded_here):
    folder, place = photos
    shutil.rmtree(place)
    forget()
    code, out, err = sslkit("export", folder, "--to", "timm")
    assert code == 0 and "checked" in out, err
    assert "of `photos`" in (folder / "export" / "timm" / "README.md").read_text()
    code, _, err = sslkit("eval", "knn", folder, "--data", source / "photos", "--k", 2)
    assert code == 0, err


def test_a_run_to_compare_with_needs_no_data_set(photos, source, tmp_path):
    folder, place = photos
    shutil.rmtree(place)
    forget()
    other = begun(tmp_path, TINY.format(root=source / "photos"))
    code, _, err = sslkit("eval", "knn", other, "--against", folder, "--k", 2)
    assert code == 0, err


def test_an_environment_that_is_none_is_ignored(source, tmp_path, loaded_here):
    folder = begun(tmp_path, TINY.format(root=source / "photos"))
    odd = [b"[]", b"[" * 9000, b"\xff", b'{"plugins": [], "parts": 3}', b'{"plugins": {"a": {}}}']
    for content in odd:
        (folder / "environment.json").write_bytes(content)
        assert versions.changes(folder, recipe.read(folder / "recipe.yaml")) == []
    assert sslkit("export", folder)[0] == 0


def test_a_run_goes_on_with_its_images_packed(source, tmp_path):
    """The names are the same, and packing changes no mean."""
    folder = begun(tmp_path, TINY.format(root=source / "photos"))
    words = ("--short-side", 24, "--workers", 0)
    assert sslkit("pack", source / "photos", tmp_path / "small", *words)[0] == 0
    code, out, err = sslkit("train", "--resume", folder, "--data", tmp_path / "small")
    assert (code, err) == (0, "") and "resumed at step 2" in out
