"""Crops of one image as a training set."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from sslkit import recipe
from sslkit.cli import app
from sslkit.errors import DataError, RecipeError
from sslkit_plugins.datasets.virtual import Distortion, Virtual, distorted, largest_area, patch_box


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    """A white image of 120×90 without a black pixel."""
    path = tmp_path_factory.mktemp("photo") / "white.PNG"
    Image.fromarray(np.full((90, 120, 3), 255, np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """A folder with 16 images of two classes."""
    folder, rng = tmp_path_factory.mktemp("classes"), np.random.default_rng(0)
    for number in range(16):
        place = folder / "ab"[number % 2]
        place.mkdir(exist_ok=True)
        pixels = rng.integers(0, 128 + 120 * (number % 2), (40, 44, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number:02}.png")
    return folder


def sslkit(*words):
    """Run the command line in this process."""
    return CliRunner().invoke(app, list(map(str, words)))


@pytest.mark.parametrize("width, height", [(640, 480), (100, 30), (7, 5), (1, 1), (3, 3)])
def test_area_and_ratio_of_crops_are_within_bounds(width, height):
    rng = np.random.default_rng(0)
    for options in (Distortion(), Distortion(min_area=0.05, aspect=0.5)):
        for _ in range(200):
            left, top, right, bottom = patch_box(width, height, options, rng)
            assert 0 <= left < right <= width and 0 <= top < bottom <= height
            w, h = right - left, bottom - top
            assert w * h >= options.min_area * width * height
            assert options.aspect <= h / w <= 1 / options.aspect


def test_crops_are_of_all_areas():
    rng = np.random.default_rng(0)
    boxes = [patch_box(400, 400, Distortion(), rng) for _ in range(1000)]
    areas = np.array([(box[2] - box[0]) * (box[3] - box[1]) / 160_000 for box in boxes])
    counts, _ = np.histogram(areas, bins=[0, 0.25, 0.5, 0.75, 1])
    assert (counts > 100).all() and counts[0] < 450


def test_an_image_that_is_too_long_for_any_crop_is_refused():
    assert largest_area(100, 10, 0.75) == 130 and largest_area(12, 10, 0.75) == 120
    with pytest.raises(DataError, match=r"100×10 has no crop with an area of 0\.5 of it"):
        patch_box(100, 10, Distortion(min_area=0.5), np.random.default_rng(0))


def test_the_paper_rotates_without_black_corners():
    """cos 35° + sin 35° = 1.3927 < √2: the crop is rendered at √2 of its side."""
    assert math.cos(math.radians(35)) + math.sin(math.radians(35)) < math.sqrt(2)
    white = Image.new("RGB", (90, 70), "white")
    plain = Distortion(jitter_chance=0.0)
    for seed in range(100):
        crop = np.asarray(distorted(white, 31, plain, np.random.default_rng(seed)))
        assert crop.shape == (31, 31, 3) and crop.min() == 255


def test_the_released_generator_shears_and_leaves_black_corners(photo):
    source = Virtual("pretrain", root=str(photo), crops=60, side=32, distortion="released")
    assert source.distortion == Distortion(
        first_crop=0.5, min_area=0.002, rotation=30.0, shear=30.0, flip=0.0
    )
    assert min(np.asarray(source.image(number)).min() for number in range(60)) == 0


def test_index_and_seed_determine_a_crop():
    first, again = Virtual("pretrain", crops=20, side=32), Virtual("pretrain", crops=20, side=32)
    other = Virtual("pretrain", crops=20, side=32, seed=1)
    bytes_of = [first.image(number).tobytes() for number in range(20)]
    assert [again.image(number).tobytes() for number in reversed(range(20))] == bytes_of[::-1]
    assert len(set(bytes_of)) == 20 and other.image(3).tobytes() != bytes_of[3]
    assert len(first) == 20 and first.labels is None and len(set(first.names)) == 20


def test_colours_change_in_some_crops_only(photo):
    source = Virtual("pretrain", root=str(photo), crops=200, side=8)
    changed = [np.asarray(source.image(number)).min() < 255 for number in range(200)]
    assert 20 < sum(changed) < 120, "half of them, of which half become brighter than white"


def test_crops_take_turns_among_the_sources(classes):
    source = Virtual("pretrain", root=str(classes), crops=7, sources=3, side=16)
    assert [name.rsplit("/", 1)[0] for name in source.names[:4]] == [
        "a/00.png",
        "a/02.png",
        "a/04.png",
        "a/00.png",
    ]
    assert source.place.startswith("crops of 3 images: ")
    with pytest.raises(RecipeError, match=r"data\.sources  is 17, but .* has only 16"):
        Virtual("pretrain", root=str(classes), sources=17)


def test_evaluations_read_the_labelled_images_themselves(classes):
    train = Virtual("train", root=str(classes))
    assert list(train.classes) == ["a", "b"] and len(train) == 16
    assert train.image(0).size == (44, 40)
    values = train.pixels(0, lambda width, height: 1.0).values
    assert torch.equal(values, torch.from_numpy(np.array(train.image(0))).permute(2, 0, 1))
    drawn = Virtual("val")
    assert len(drawn) == 500 and len(drawn.classes) == 10 and Virtual("train").has_val


def test_faults_are_one_sentence(photo, tmp_path):
    empty, broken = tmp_path / "empty", tmp_path / "broken.jpg"
    empty.mkdir()
    broken.write_bytes(b"no picture")
    cases = [
        (("pretrain", tmp_path / "nowhere.jpg"), "does not exist"),
        (("pretrain", empty), "no image below"),
        (("pretrain", broken), "cannot be read"),
        (("train", photo), "single image without class"),
    ]
    for (split, root), words in cases:
        with pytest.raises(DataError, match=words) as caught:
            Virtual(split, root=str(root))
        assert "\n" not in str(caught.value)


def test_data_names_a_source_only_for_a_recipe_with_virtual(photo, classes):
    ours = recipe.read("single_image", data=str(photo)).data
    assert (ours.use, ours.options["root"]) == ("virtual", str(photo))
    assert recipe.read("single_image", data=str(classes)).data.use == "virtual"
    assert recipe.read("rotnet", data=str(classes)).data.use == "image_folder"
    assert recipe.read_data(str(classes)).use == "image_folder"
    with pytest.raises(RecipeError, match="no installed data set opens this file"):
        recipe.read("rotnet", data=str(photo))


def test_a_photograph_trains_and_a_labelled_folder_evaluates(photo, classes, tmp_path):
    settings = ["train.epochs=1", "train.batch_size=8", "train.workers=0", "train.device=cpu"]
    settings += ["data.crops=16", "data.side=40", "transform.size=32", "encoder.width=0.5"]
    words = ["train", "single_image", "--data", photo, "--run", tmp_path / "run"]
    for setting in settings:
        words += ["--set", setting]
    done = sslkit(*words)
    assert done.exit_code == 0, done.output
    assert "crops of one image" in done.output
    refused = sslkit("eval", "knn", tmp_path / "run")
    assert refused.exit_code == 2 and "name a folder with one folder per class" in refused.output
    done = sslkit("eval", "knn", tmp_path / "run", "--data", classes)
    assert done.exit_code == 0, done.output
    assert "2 classes" in done.output
