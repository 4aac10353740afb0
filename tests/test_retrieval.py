"""Retrieval by class, and detection of transformed copies."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import sslkit
from noise import Noise, made, network
from PIL import Image
from torch.nn import functional as F

from sslkit.errors import DataError
from sslkit.evaluation.candidates import RawPixels
from sslkit.interfaces import Features
from sslkit_plugins.evaluations import retrieval, transforms
from sslkit_plugins.evaluations.copies import Copies, ranks, trapezoid_ap
from sslkit_plugins.evaluations.retrieval import (
    Retrieval,
    chance_ap,
    first_precision,
    similarities,
    step_ap,
)


def clusters(count: int, dim: int = 16, classes: int = 4, seed: int = 0):
    """Features [N,dim] around the centres of their labels."""
    source = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(9))
    return centres[labels] + 2 * torch.randn(count, dim, generator=source), labels


def given(train: int = 60, val: int = 25) -> Features:
    return Features(*clusters(train), *clusters(val, seed=1))


def ap_of(hits: list[int], count: int) -> float:
    """Average precision where the relevant images have the 1-based ranks `hits`."""
    similarity = -torch.arange(count, dtype=torch.float32).unsqueeze(0)
    relevant = torch.zeros(1, count, dtype=torch.bool)
    relevant[0, [hit - 1 for hit in hits]] = True
    return step_ap(similarity, relevant).item()


# ----------------------------------------------------------------------------- average precision


@pytest.mark.parametrize(
    "hits, expected", [([1, 3, 6], 0.7222), ([2, 4], 0.5), ([1], 1.0)], ids=str
)
def test_step_ap_by_hand(hits, expected):
    assert ap_of(hits, 6) == pytest.approx(expected, abs=1e-4)


def test_trapezoid_ap_by_hand():
    assert trapezoid_ap(torch.tensor([[0, 2, 5]])).item() == pytest.approx(0.6778, abs=1e-4)
    single = trapezoid_ap(torch.tensor([[0], [1], [3]]))
    assert single.tolist() == [1.0, 0.25, 0.125]


def test_chance_is_the_mean_over_random_orders():
    source = torch.Generator().manual_seed(0)
    relevant = torch.tensor([[True] * 3 + [False] * 7]).expand(20_000, 10)
    mean = step_ap(torch.rand(20_000, 10, generator=source), relevant).mean().item()
    assert chance_ap(3, 10) == pytest.approx(mean, abs=0.005)
    assert chance_ap(10, 10) == pytest.approx(1) and chance_ap(1, 1) == 1


@pytest.mark.parametrize("base", ["train", "val"])
def test_map_is_that_of_scikit_learn(base):
    metrics = pytest.importorskip("sklearn.metrics", reason="needs scikit-learn")
    features = given()
    found = Retrieval(base=base).rank(features)["mAP"]
    queries = F.normalize(features.val, dim=1)
    base_rows, labels = queries, features.val_labels
    if base == "train":
        base_rows, labels = F.normalize(features.train, dim=1), features.train_labels
    similarity = similarities(queries, base_rows)
    for row, label in enumerate(features.val_labels):
        kept = torch.ones(len(labels), dtype=torch.bool)
        if base == "val":
            kept[row] = False
        relevant = (labels == label)[kept]
        expected = metrics.average_precision_score(relevant, similarity[row, kept])
        assert found[row].item() == pytest.approx(expected, abs=1e-12)


def test_ties_share_their_last_rank_as_in_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics", reason="needs scikit-learn")
    source = torch.Generator().manual_seed(0)
    similarity = torch.randint(4, (50, 12), generator=source).float()
    relevant = torch.rand(50, 12, generator=source) < 0.4
    relevant[:, 0] = True
    expected = [
        metrics.average_precision_score(right, scores)
        for right, scores in zip(relevant, similarity, strict=True)
    ]
    np.testing.assert_allclose(step_ap(similarity, relevant), expected, atol=1e-12)


# -------------------------------------------------------------------------------- same class


def test_equal_features_rank_like_the_share_of_the_class():
    features = given()
    constant = features._replace(train=torch.full((60, 37), 0.3), val=torch.full((25, 37), 0.3))
    quarter = torch.full((25,), 0.25, dtype=torch.float64)
    found = Retrieval().rank(constant)
    torch.testing.assert_close(found["mAP"], quarter)
    torch.testing.assert_close(found["P@1"], quarter)


def test_ties_of_the_nearest_image_are_averaged():
    similarity = torch.tensor([[0.9, 0.9, 0.9, 0.1], [0.2, 0.9, 0.3, 0.1], [0.9, 0.2, 0.9, 0.1]])
    relevant = torch.tensor([[1, 0, 0, 1], [0, 1, 0, 0], [0, 1, 0, 1]]).bool()
    assert first_precision(similarity, relevant).tolist() == [1 / 3, 1.0, 0.0]
    assert Retrieval().rank(given())["P@1"].dtype == torch.bool, "without ties they are hits"


@pytest.mark.parametrize("base", ["train", "val"])
def test_blocks_change_nothing(base, monkeypatch):
    full = Retrieval(base=base).rank(given())
    monkeypatch.setattr(retrieval, "BLOCK_BYTES", retrieval.CELL * 60 * 4)
    blocks = Retrieval(base=base).rank(given())
    assert all(torch.equal(full[name], blocks[name]) for name in full)


def test_the_query_is_never_a_hit():
    features = given()
    alone = Retrieval(base="val").rank(features)
    copied = features._replace(train=features.val, train_labels=features.val_labels)
    with_itself = Retrieval().rank(copied)
    assert with_itself["P@1"].all() and not alone["P@1"].all()
    assert (with_itself["mAP"] > alone["mAP"]).all()


def test_scaled_features_rank_the_same():
    features = given()
    scaled = features._replace(train=5 * features.train, val=0.2 * features.val)
    torch.testing.assert_close(Retrieval().rank(scaled)["mAP"], Retrieval().rank(features)["mAP"])


def test_its_result_has_intervals_differences_and_chance():
    result = Retrieval().measure(made())
    trained, _, _, chance = result.entries
    assert trained.scores["mAP"].intervals[0].of == "12 images"
    assert set(trained.differences) == {"untrained", "raw pixels"}
    assert chance.scores["mAP"].value == pytest.approx(chance_ap(10, 30))
    assert chance.scores["P@1"].value == pytest.approx(1 / 3)
    assert result.protocol["base"] == "training images"


def test_means_of_fewer_than_ten_queries_have_a_note():
    result = Retrieval().measure(made([network()], val=Noise(9, seed=1)))
    note = "values without a 95 % CI: 9 images are too few; it needs 10"
    assert result.protocol["notes"] == [note]
    assert not result.entries[0].scores["mAP"].intervals


def test_a_class_with_one_query_is_refused_with_a_remedy():
    val = Noise(7, seed=1)
    val.labels = np.array([0, 0, 0, 1, 1, 1, 2])
    with pytest.raises(DataError, match=r"'c' has a single validation image.*--base train"):
        Retrieval(base="val").measure(made(val=val))
    assert not val.decoded, "no image was read"
    Retrieval().measure(made(val=val))


# --------------------------------------------------------------------------------------- copies


def test_ranks_of_copies_by_hand():
    originals = torch.eye(3)
    queries = torch.tensor([[1.0, 0, 0], [1.0, 0.5, 0], [0.2, 0.3, 0.1]])
    assert ranks(queries, originals).tolist() == [0, 1, 2]
    assert ranks(torch.ones(3, 2), torch.ones(3, 2)).tolist() == [2, 2, 2], "ties count against"


def test_copies_has_a_row_for_each_transform():
    result = Copies().measure(made())
    rows = [entry.row for entry in result.entries if entry.candidate == "raw pixels"]
    assert rows == ["crop", "jpeg", "blur", "rotation", "colour", "flip", "jigsaw"]
    blur = next(one for one in result.entries if (one.row, one.candidate) == ("blur", "raw pixels"))
    assert blur.scores["P@1"].value == 1, "blur hardly changes noise of 16 px"
    chance = result.entries[-1].scores
    assert chance["P@1"].value == pytest.approx(1 / 12)
    assert chance["mAP"].value == pytest.approx(
        (1 + sum(0.5 / (rank + 1) for rank in range(1, 12))) / 12
    )


def test_jpeg_is_left_out_for_other_than_8_bit_rgb():
    source = Noise(12, channels=5, bits=16)
    result = Copies().measure(made([RawPixels(16)], train=source, val=source))
    rows = {entry.row for entry in result.entries}
    assert "jpeg" not in rows and "crop" in rows


def test_features_that_are_not_finite_have_no_rank():
    found = Copies().score(torch.full((3, 2), math.nan), torch.ones(3, 2))
    assert math.isnan(found["mAP"]) and math.isnan(found["P@1"])


# ----------------------------------------------------------------------------------- transforms


@pytest.mark.parametrize("name", transforms.TRANSFORMS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16], ids=str)
def test_draws_belong_to_the_image_and_the_transform(name, dtype):
    if name == "jpeg" and dtype == torch.uint16:
        pytest.skip("JPEG has 8 bits")
    source = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, 3, 20, 20), generator=source).to(dtype)
    index = torch.arange(4)
    before = images.clone()
    all_at_once = transforms.transformed(images, index, name)
    assert all_at_once.shape == images.shape and all_at_once.dtype == dtype
    assert torch.equal(images, before)
    last = transforms.transformed(images[3:], index[3:], name)
    assert torch.equal(all_at_once[3:], last)
    assert not torch.equal(all_at_once, images)


def test_a_jigsaw_moves_whole_cells():
    image = torch.arange(81.0).view(1, 9, 9)
    shuffled = transforms.jigsaw(image, np.random.default_rng(0))
    cells = {
        tuple(shuffled[0, row : row + 3, column : column + 3].flatten().tolist())
        for row in (0, 3, 6)
        for column in (0, 3, 6)
    }
    first = tuple(image[0, :3, :3].flatten().tolist())
    assert len(cells) == 9 and first in cells and not torch.equal(shuffled, image)


def test_a_flip_flips_and_a_rotation_is_no_identity():
    image = torch.arange(27.0).view(3, 3, 3)
    rng = np.random.default_rng(0)
    assert torch.equal(transforms.flip(image, rng), image.flip(-1))
    assert all(not torch.equal(transforms.rotate(image, rng), image) for _ in range(20))


# ------------------------------------------------------------------------------ the command line


@pytest.fixture(scope="module")
def painted(tmp_path_factory) -> Path:
    """Two classes of eight pictures, each in its colour."""
    folder, rng = tmp_path_factory.mktemp("painted"), np.random.default_rng(0)
    for name, colour in {"blue": (20, 30, 200), "red": (220, 30, 20)}.items():
        (folder / name).mkdir()
        for number in range(8):
            pixels = np.array(colour) + rng.integers(-15, 16, (36, 40, 3))
            picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            picture.save(folder / name / f"{number}.png")
    return folder


def test_retrieval_and_copies_through_the_command_line(painted, tmp_path):
    words = ["--encoder", "timm:test_resnet", "--weights", "none", "--data", painted, "--size", 32]
    code, out, err = sslkit("eval", "retrieval", *words, "--out", tmp_path / "out")
    assert code == 0, err
    assert "mAP % ↑" in out and "P@1 % ↑" in out and "raw pixels" in out and "chance" in out
    saved = json.loads((tmp_path / "out" / "retrieval.json").read_text())
    assert saved["entries"][1]["scores"]["mAP"]["value"] > 0.9, "colours tell the classes apart"
    assert (tmp_path / "out" / "retrieval.png").is_file()
    code, out, err = sslkit("eval", "copies", *words, "--out", tmp_path / "out", "--images", 5)
    assert code == 0, err
    assert "jigsaw" in out and Path(tmp_path / "out" / "copies.json").is_file()


def test_classes_are_needed_for_retrieval_only(painted, tmp_path):
    words = ["--encoder", "timm:test_resnet", "--weights", "none", "--size", 32]
    data = ["--data", painted / "red"]
    code, _, err = sslkit("eval", "retrieval", *words, *data, "--out", tmp_path / "out")
    assert code == 2 and "have no labels" in err and len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
    code, _, err = sslkit("eval", "copies", *words, *data, "--out", tmp_path / "out")
    assert code == 0, err
