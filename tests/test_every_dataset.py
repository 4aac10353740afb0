"""What `sslkit.interfaces` promises of data sets, asked of every installed one."""

import shutil

import numpy as np
import pytest
from installed_parts import eight_photos, every  # noqa: F401  (a fixture)
from voc_folder import random_voc

from sslkit import parts, recipe
from sslkit.errors import DataError
from sslkit.recipe import registry
from sslkit.recipe.signature import REQUIRED


@pytest.fixture(scope="module")
def sets(photos, tmp_path_factory):
    """Options that lead the data sets which need one to images: two halves of two classes."""
    root = tmp_path_factory.mktemp("sets")
    for number, path in enumerate(sorted(photos.glob("*/*.png"), key=lambda path: path.name)):
        folder = root / "folder" / ("val" if number > 5 else "train") / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 9, 3), dtype=np.uint8)
    np.savez(
        root / "a.npz",
        images=pixels[:6],
        labels=np.arange(6) % 2,
        images_val=pixels[6:],
        labels_val=np.arange(2),
    )
    folder = parts.make(recipe.read_data(str(root / "folder")), split="train")
    registry.find("datasets", "packed").load().write({"train": folder}, str(root / "packed"))
    return {
        "root": {"packed": str(root / "packed"), "voc": str(random_voc(root / "voc", 4, 2))},
        "file": {"npz": str(root / "a.npz")},
        "folder": str(root / "folder"),
    }


@every("datasets")
def test_a_dataset_holds_named_images(part, sets, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    signature = part.signature()
    options = {
        name: sets.get(name, {}).get(part.name, sets["folder"])
        for name, option in signature.options.items()
        if option.default is REQUIRED or (part.name == "imagenet" and name == "root")
    }
    try:
        source = part.load()("pretrain", **signature.arguments(options))
    except DataError:
        pytest.skip("its images are not at hand")
    assert len(source) == len(source.names) == len(set(map(str, source.names)))
    image = source.image(len(source) - 1)
    assert image.mode == "RGB"
    again = part.load()("pretrain", **signature.arguments(options))
    assert list(again.names) == list(source.names)
    assert again.image(len(source) - 1).tobytes() == image.tobytes()
    if source.labels is not None:
        assert len(source.labels) == len(source) and source.labels.dtype == np.int64
        assert set(source.labels.tolist()) <= set(range(len(source.classes)))
    if source.has_val:
        val = part.load()("val", **signature.arguments(options))
        assert list(val.classes) == list(source.classes)
        assert val.image(0).tobytes() != source.image(0).tobytes()


@every("datasets")
def test_a_dataset_that_is_not_there_says_so(part, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    signature = part.signature()
    options = {
        name: str(tmp_path / "nowhere")
        for name, o in signature.options.items()
        if o.default is REQUIRED
    }
    try:
        part.load()("pretrain", **signature.arguments(options))
    except DataError as error:
        assert len(str(error)) > 20 and "\n" not in str(error), "one sentence"
    assert not list(tmp_path.iterdir()), "nothing is made"
