"""Evaluations show the same part of an image, packed or not."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import sslkit
from noise import made, network
from PIL import Image

from sslkit import parts, recipe
from sslkit.evaluation.candidates import RawPixels
from sslkit.interfaces import ImageSource
from sslkit_plugins.datasets.packed import Packed

SIDES = [(500, 375), (420, 300), (260, 260), (320, 200), (96, 64)]
"""Width and height of the images: larger and smaller than what they are packed at."""


def smooth(width: int, height: int) -> Image.Image:
    """Red rises from left to right, green from top to bottom, whatever the size."""
    columns, rows = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([columns, rows, columns / 2], -1).round().astype(np.uint8))


def opened(folder: Path) -> ImageSource:
    return parts.make(recipe.read_data(str(folder)), split="train")


def pack(folder: Path, to: Path, *, short_side: int) -> None:
    Packed.write({"train": opened(folder)}, str(to), short_side=short_side)


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> tuple[Path, Path]:
    """A folder of JPEGs and PNGs, and its packed copy with a short side of 256 px."""
    root = tmp_path_factory.mktemp("both")
    for name, suffix in [("a", ".jpg"), ("b", ".png")]:
        (root / "folder" / name).mkdir(parents=True)
        for number, sides in enumerate(SIDES):
            smooth(*sides).save(root / "folder" / name / f"{number}{suffix}")
    pack(root / "folder", root / "packed", short_side=256)
    return root / "folder", root / "packed"


@pytest.mark.parametrize("size", [32, 64, 128, 224, 240, 256])
def test_a_folder_and_its_packed_copy_show_the_same(both, size):
    """The view of a ramp tells which part it is: 1 of 255 levels is 0.4 % of the image."""
    folder, packed = both
    sources = [opened(folder), opened(packed)]
    assert sources[1].reduced_to == 256
    views = []
    for source in sources:
        batches = made([RawPixels()], train=source).images(source, size=size)
        views.append(torch.cat([images for images, _ in batches]).int())
    apart = (views[0] - views[1]).abs()
    assert apart.float().mean() < 1 and apart.max() <= 6
    edges = views[1][:, 1, 0].float().mean(1)
    whole = torch.tensor([min(sides) <= size for sides in SIDES]).repeat(2)
    assert torch.equal(edges < 8, whole), "a sixteenth of 255 is 16"


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_copy_that_reduced_nothing_says_so(tmp_path, suffix):
    """Images of just the short side are shown whole at their own size, packed or not."""
    (tmp_path / "folder").mkdir()
    smooth(64, 64).save(tmp_path / "folder" / f"x.{suffix}")
    pack(tmp_path / "folder", tmp_path / "packed", short_side=64)
    assert opened(tmp_path / "packed").reduced_to is None


def test_a_copy_of_a_copy_knows_what_was_reduced(both, tmp_path):
    pack(both[1], tmp_path / "again", short_side=300)
    assert opened(tmp_path / "again").reduced_to == 256
    pack(both[1], tmp_path / "smaller", short_side=100)
    assert opened(tmp_path / "smaller").reduced_to == 100


@pytest.mark.slow
def test_protocols_say_what_is_shown(both, tmp_path):
    """Through the command line, for features and for the probe that trains on crops.

    At more than 256 px, an original between 256 px and the size would be shown whole and its copy
    is not; the protocol tells them apart.
    """
    words = ["--encoder", "timm:test_resnet", "--weights", "none", "--size", "32"]
    for solver in ("lbfgs", "sgd"):
        out = tmp_path / solver
        given = ["--data", both[1], "--device", "cpu", "--solver", solver, "--out", out]
        given += ["--epochs", "1", "--seeds", "1"] if solver == "sgd" else []
        code, _, err = sslkit("eval", "linear", *words, *given)
        assert code == 0, err
        protocol = json.loads((out / "linear.json").read_text())["protocol"]
        assert protocol["view"].startswith("crop: short side to 256/224 of the size")
        assert protocol["view"].endswith(
            "; a short side of 256 px, reduced by packing, counts as longer"
        )


def test_a_probe_names_the_view_that_it_was_asked_for():
    probe = made([network()])
    result = probe.compare(lambda features, seed: {}, [], view="squash")
    assert result.protocol["view"] == "squash: the full image, resized to a square"
