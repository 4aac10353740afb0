"""`sslkit embed`: what it writes, of which images, and what it refuses."""

import importlib.util
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import sslkit
from noise import NPID
from PIL import Image
from test_evaluate import paint

from sslkit import recipe
from sslkit.runs import checkpoint
from sslkit.training import build


@pytest.fixture(scope="module")
def painted(tmp_path_factory) -> Path:
    """A folder of three classes with training and validation images: 12 and 6."""
    folder = tmp_path_factory.mktemp("painted")
    paint(folder / "train", 4)
    paint(folder / "val", 2, seed=1)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory, painted) -> Path:
    """A run folder of zero steps."""
    folder = tmp_path_factory.mktemp("runs") / "evaluated" / "now"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(NPID.format(root=painted))
    checkpoint.save(build.build(recipe.read(folder / "recipe.yaml")), folder)
    return folder


def arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a .npz file."""
    with np.load(path, allow_pickle=False) as found:
        return dict(found)


def embedded(*words: object) -> dict[str, np.ndarray]:
    """The arrays that `sslkit embed …` wrote."""
    code, _, err = sslkit("embed", *words)
    assert code == 0, err
    return arrays([Path(word) for word in map(str, words) if word.endswith(".npz")][-1])


def test_both_splits_are_embedded_under_paths_below_the_folder(trained, painted, tmp_path):
    out = tmp_path / "new" / "vectors.npz"
    code, shown, _ = sslkit("embed", trained, painted, out)
    assert code == 0
    assert f"embedding {painted}/train (12 images in 3 classes" in shown
    assert f"and {painted}/val (6 images" in shown
    assert f"written: {out} (18 vectors of 96 numbers)" in shown
    found = arrays(out)
    assert found.keys() == {"names", "labels", "vectors"}
    assert found["vectors"].shape == (18, 96) and found["vectors"].dtype == np.float32
    assert found["names"][0] == "train/blue/0.png" and found["names"][-1] == "val/red/1.png"
    assert all((painted / name).is_file() for name in found["names"])
    assert [name.split("/")[1] for name in found["names"]] == found["labels"].tolist()
    assert sorted(path.name for path in out.parent.iterdir()) == ["vectors.npz"]


@pytest.mark.parametrize(("split", "rows"), [("train", slice(0, 12)), ("val", slice(12, 18))])
def test_one_split_has_the_same_names_and_vectors(trained, painted, tmp_path, split, rows):
    both = embedded(trained, painted, tmp_path / "both.npz")
    one = embedded(trained, painted, tmp_path / "one.npz", "--split", split)
    for name, values in one.items():
        assert np.array_equal(values, both[name][rows])


def test_workers_do_not_change_a_bit(trained, painted, tmp_path):
    one, other = (
        embedded(trained, painted, tmp_path / f"{count}.npz", "--workers", count)
        for count in (0, 2)
    )
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_the_vector_of_an_image_does_not_depend_on_the_others(trained, painted, tmp_path):
    (tmp_path / "alone").mkdir()
    shutil.copy(painted / "val" / "red" / "1.png", tmp_path / "alone")
    alone = embedded(trained, tmp_path / "alone", tmp_path / "alone.npz")
    both = embedded(trained, painted, tmp_path / "both.npz")
    assert alone.keys() == {"names", "vectors"}
    assert alone["names"].tolist() == ["1.png"]
    np.testing.assert_allclose(alone["vectors"][0], both["vectors"][-1], atol=1e-5)


def test_a_foreign_encoder_takes_two_places(painted, tmp_path):
    words = ["--encoder", "timm:test_resnet", "--weights", "none", "--size", 32]
    found = embedded(painted, tmp_path / "vectors.npz", *words)
    assert found["vectors"].shape == (18, 96)


def test_npz_and_packed_sets_are_embedded(trained, painted, tmp_path):
    code, _, err = sslkit("pack", painted, tmp_path / "photos.packed")
    assert code == 0, err
    packed = embedded(trained, tmp_path / "photos.packed", tmp_path / "packed.npz")
    folder = embedded(trained, painted, tmp_path / "folder.npz")
    assert np.array_equal(packed["names"], folder["names"])
    assert np.array_equal(packed["labels"], folder["labels"])
    images = np.random.default_rng(0).integers(0, 256, (5, 40, 40, 3), np.uint8)
    np.savez(tmp_path / "set.npz", images=images, labels=np.array([0, 1, 2, 0, 1]))
    found = embedded(trained, tmp_path / "set.npz", tmp_path / "vectors.npz")
    assert found["names"].tolist() == [f"train/{number}" for number in range(5)]
    assert found["labels"].tolist() == ["0", "1", "2", "0", "1"]


def test_npy_holds_the_vectors_alone_and_says_so(trained, painted, tmp_path):
    code, shown, err = sslkit("embed", trained, painted, tmp_path / "vectors.npy")
    assert code == 0, err
    assert "rows are in the order of `names`, which an OUT.npz would hold" in shown
    vectors = embedded(trained, painted, tmp_path / "all.npz")["vectors"]
    assert np.array_equal(np.load(tmp_path / "vectors.npy", allow_pickle=False), vectors)


def test_parquet_holds_a_row_for_each_image(trained, painted, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="the extra `parquet` is not installed")
    code, _, err = sslkit("embed", trained, painted, tmp_path / "vectors.parquet")
    assert code == 0, err
    table = parquet.read_table(tmp_path / "vectors.parquet")
    found = embedded(trained, painted, tmp_path / "vectors.npz")
    assert table.column_names == ["name", "label", "vector"]
    assert table["name"].to_pylist() == found["names"].tolist()
    assert table["label"].to_pylist() == found["labels"].tolist()
    assert np.array_equal(np.array(table["vector"].to_pylist(), np.float32), found["vectors"])


def test_parquet_without_its_package_is_one_sentence(trained, painted, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "pyarrow" else find(name)
    )
    code, _, err = sslkit("embed", trained, painted, tmp_path / "vectors.parquet")
    assert code == 2 and "pip install 'sslkit[parquet]'" in err
    assert not (tmp_path / "vectors.parquet").exists()


def test_an_existing_file_is_replaced_only_on_request(trained, painted, tmp_path):
    out = tmp_path / "vectors.npz"
    out.write_text("mine")
    code, _, err = sslkit("embed", trained, painted, out)
    assert code == 2 and "exists; name another file, or add --overwrite" in err
    assert out.read_text() == "mine"
    assert embedded(trained, painted, out, "--overwrite")["vectors"].shape == (18, 96)


def test_broken_images_are_named_and_left_out_on_request(trained, painted, tmp_path):
    folder, out = tmp_path / "photos", tmp_path / "vectors.npz"
    shutil.copytree(painted / "train", folder)
    (folder / "green" / "1.png").write_bytes(b"broken")
    code, _, err = sslkit("embed", trained, folder, out)
    assert code == 2 and "1 image cannot be read, and each needs its vector" in err
    assert "green/1.png" in err and "--skip-unreadable" in err and not out.exists()
    code, _, err = sslkit("embed", trained, folder, out, "--skip-unreadable")
    assert code == 0 and "1 image left out, which cannot be read" in err
    found = arrays(out)
    assert len(found["names"]) == len(found["labels"]) == len(found["vectors"]) == 11
    assert "green/1.png" not in found["names"]
    for path in folder.rglob("*.png"):
        path.write_bytes(b"broken")
    code, _, err = sslkit("embed", trained, folder, out, "--skip-unreadable", "--overwrite")
    assert code == 2 and "no image is left to embed" in err


def test_a_split_without_classes_leaves_the_labels_out(trained, painted, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(painted / "train", folder / "train")
    (folder / "test").mkdir()
    Image.new("RGB", (40, 40)).save(folder / "test" / "loose.png")
    code, _, err = sslkit("embed", trained, folder, tmp_path / "vectors.npz")
    assert code == 0 and "only one split has classes" in err
    found = arrays(tmp_path / "vectors.npz")
    assert found.keys() == {"names", "vectors"} and found["names"][-1] == "test/loose.png"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("RUN", "DIR"), "name three: RUN DIR OUT"),
        (("RUN", "DIR", "OUT/v.npz", "--encoder", "timm:x"), "name two beside --encoder"),
        (("RUN", "DIR", "OUT/v.csv"), "ends in none of .npz, .npy, .parquet"),
        (("RUN", "DIR", "OUT"), "is a folder; name a file in it"),
        (("RUN", "DIR", "FILE/v.npz"), "is no folder; choose another place with the argument OUT"),
        pytest.param(
            ("RUN", "DIR", "/proc/v.npz"),
            "another place: the argument OUT",
            marks=pytest.mark.skipif(sys.platform != "linux", reason="writes to /proc"),
        ),
        (("RUN", "DIR", f"OUT/{'x' * 300}.npz"), "File name too long; another place"),
        (("RUN", "OUT", "OUT/v.npz"), "no image below"),
        (("RUN", "nowhere", "OUT/v.npz"), "there is no such folder or file"),
        (("DIR", "DIR", "OUT/v.npz"), "is not a run folder"),
        (("RUN", "DIR", "OUT/v.npz", "--set", "train.epochs=1"), "not an option of the data set"),
        (("RUN", "DIR", "OUT/v.npz", "--weights", "none"), "requires an encoder"),
        (("RUN", "", "OUT/v.npz"), "the path is empty"),
    ],
    ids=[
        "no_out",
        "run_and_encoder",
        "ending",
        "folder_as_out",
        "file_as_folder",
        "unwritable",
        "long_name",
        "no_images",
        "no_data",
        "no_run",
        "train_option",
        "weights_without_encoder",
        "empty_path",
    ],
)
def test_bad_input_is_refused_before_anything_is_computed(
    words, message, trained, painted, tmp_path
):
    out, file = tmp_path / "out", tmp_path / "file"
    out.mkdir()
    file.touch()
    places = {"RUN": trained, "DIR": painted, "OUT": out, "FILE": file}
    given = []
    for word in words:
        first, slash, rest = word.partition("/")
        given.append(f"{places[first]}{slash}{rest}" if first in places else word)
    code, _, err = sslkit("embed", *given)
    assert code == 2 and message in " ".join(err.replace("│", " ").split())
    assert not list(out.iterdir())
