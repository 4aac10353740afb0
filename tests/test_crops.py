"""Crops, multi-crop and patch grids: sizes, areas, aspects, interpolation."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as reference

from sslkit.errors import RecipeError
from sslkit.interfaces import Pixels
from sslkit_plugins.views import Crops, Local, MultiCrop, PatchGrid, crop, crop_box

DINO_LOCAL = Local(count=8, size=12, min_area=0.05, max_area=0.4, colours="dino_local")


def photo(width=120, height=90, seed=0):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def part(boxes, width, height):
    """The part of the image in each box, and its width:height."""
    boxes = np.array(boxes, float)
    sides = boxes[..., 2:] - boxes[..., :2]
    return sides.prod(-1) / (width * height), sides[..., 0] / sides[..., 1]


@pytest.mark.parametrize(
    ("transform", "areas", "aspect"),
    [
        (Crops(size=8), [(0.08, 1)] * 2, (3 / 4, 4 / 3)),
        (Crops(size=8, min_area=0.2, count=3), [(0.2, 1)] * 3, (3 / 4, 4 / 3)),
        (Crops(size=8, min_area=0.3, aspect=(0.7, 1.4)), [(0.3, 1)] * 2, (0.7, 1.4)),
        (MultiCrop(size=8), [(0.14, 1)] * 2 + [(0.05, 0.14)] * 6, (3 / 4, 4 / 3)),
        (
            MultiCrop(size=8, min_area=0.4, local=DINO_LOCAL),
            [(0.4, 1)] * 2 + [(0.05, 0.4)] * 8,
            (3 / 4, 4 / 3),
        ),
        (PatchGrid(size=64), [(0.3, 1)], (3 / 4, 4 / 3)),
    ],
    ids=["simclr", "moco", "amdim", "swav", "dino", "cpc"],
)
def test_boxes_cover_what_the_paper_says(transform, areas, aspect):
    rng = np.random.default_rng(0)
    boxes = [transform.boxes(400, 360, rng) for _ in range(1500)]
    area, ratio = part(boxes, 400, 360)
    assert area.shape[1] == len(areas)
    for place, (low, high) in enumerate(areas):
        assert low - 0.01 < area[:, place].min() < low + 0.03
        assert high - 0.12 < area[:, place].max() < high + 0.01
        assert aspect[0] - 0.03 < ratio[:, place].min() < aspect[0] + 0.1
        assert aspect[1] - 0.1 < ratio[:, place].max() < aspect[1] + 0.04
    together = np.corrcoef(area.T) if len(areas) > 1 else np.eye(1)
    assert (np.abs(together - np.eye(len(areas))) < 0.1).all(), "independent of each other"


@pytest.mark.parametrize(
    ("area", "aspect"),
    [((0.05, 0.14), (3 / 4, 4 / 3)), ((0.3, 1.0), (0.7, 1.4)), ((0.9, 1), (2, 3))],
)
@pytest.mark.parametrize(("width", "height"), [(100, 60), (40, 300), (500, 40)])
def test_boxes_of_any_range_fall_like_torchvisions(width, height, area, aspect):
    """Means of left, top, width, height; the long pictures need the fallback."""
    rng = np.random.default_rng(0)
    ours = np.array([crop_box(width, height, rng, area, aspect) for _ in range(2000)])
    ours[:, 2:] -= ours[:, :2]
    picture = torch.zeros(3, height, width)
    torch.manual_seed(0)
    scale, ratio = list(area), list(aspect)
    theirs = [RandomResizedCrop.get_params(picture, scale, ratio) for _ in range(2000)]
    theirs = np.array(theirs)[:, [1, 0, 3, 2]]
    error = np.sqrt((ours.var(0) + theirs.var(0)) / 2000)
    assert (np.abs(ours.mean(0) - theirs.mean(0)) <= 5 * error + 1e-9).all()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("side", [20, 48, 200])
def test_crops_are_torchvisions_crops(interpolation, side):
    """Equal to torchvision's on tensors bit for bit, to Pillow's within one step."""
    image, box = photo(), (11, 7, 101, 83)
    ours = crop(Pixels.of(image), box, side, interpolation)
    inside = Pixels.of(image).values[:, 7:83, 11:101]
    mode = InterpolationMode(interpolation)
    assert torch.equal(ours, reference.resize(inside, [side, side], mode, antialias=True))
    filtered = Image.Resampling[interpolation.upper()]
    pillow = reference.pil_to_tensor(image.crop(box).resize((side, side), filtered))
    assert (ours.int() - pillow.int()).abs().max() <= 1


def test_the_option_interpolation_reaches_the_crops():
    image = photo()
    for make in (Crops, MultiCrop):
        linear, cubic = (
            make(size=20, interpolation=how)(image, np.random.default_rng(0)).views
            for how in ("bilinear", "bicubic")
        )
        for name, view in linear.items():
            assert not torch.equal(view, cubic[name])
            assert (view.float() - cubic[name].float()).abs().mean() < 40


def test_multi_crop_gives_large_and_small_crops():
    transform = MultiCrop(size=32, count=3, local=DINO_LOCAL)
    views = transform(photo(), np.random.default_rng(0)).views
    shapes = {name: tuple(view.shape) for name, view in views.items()}
    assert shapes == transform.shapes == {"global": (3, 3, 32, 32), "local": (8, 3, 12, 12)}
    assert transform.size == 32 and transform.num_targets == {}
    for view in views.values():
        assert len({tuple(one.flatten().tolist()) for one in view}) == len(view)


def test_large_crops_are_those_of_crops():
    """Boxes are drawn view by view, so small crops change nothing of the large ones."""
    image = photo()
    large = Crops(size=24, min_area=0.14)(image, np.random.default_rng(4)).views["global"]
    both = MultiCrop(size=24)(image, np.random.default_rng(4)).views["global"]
    assert torch.equal(large, both)


def test_small_crops_show_small_parts():
    """A picture of its own coordinates tells how much of it a crop spans."""
    grid = np.stack([*np.meshgrid(np.arange(240), np.arange(240)), np.zeros((240, 240))], -1)
    image, rng = Image.fromarray(grid.astype(np.uint8)), np.random.default_rng(0)
    transform = MultiCrop(size=16, colours="none", local=Local(size=16, colours="none"))
    spans = {"global": [], "local": []}
    for _ in range(100):
        for name, view in transform(image, rng).views.items():
            sides = view[:, :2].float().amax((2, 3)) - view[:, :2].float().amin((2, 3))
            spans[name].append(sides.prod(1).sqrt() / 240)
    large, small = (torch.stack(spans[name]).flatten() for name in ("global", "local"))
    assert small.max() < 0.38 and small.mean() == pytest.approx(0.28, abs=0.03)
    assert large.mean() > 0.6 and large.min() > 0.3


# -------------------------------------------------------------------------------------- patch grids


def test_a_patch_grid_reassembles_to_its_crop():
    """Patches overlap by half; laid over one another they are the crop that `crops` makes."""
    transform = PatchGrid(size=40, patch=16, stride=8, flip=0.0)
    patches = transform(photo(), np.random.default_rng(0)).views["patches"]
    assert patches.shape == transform.shapes["patches"] == (16, 3, 16, 16)
    whole = Crops(size=40, count=1, min_area=0.3)(photo(), np.random.default_rng(0))
    whole = whole.views["global"][0]
    for place, patch in enumerate(patches):
        top, left = 8 * (place // 4), 8 * (place % 4)
        assert torch.equal(patch, whole[:, top : top + 16, left : left + 16])


def test_a_patch_grid_is_flipped_as_a_whole():
    upright, mirrored = (
        PatchGrid(size=40, patch=16, stride=8, flip=chance)(photo(), np.random.default_rng(0))
        for chance in (0.0, 1.0)
    )
    rows = upright.views["patches"].unflatten(0, (4, 4))
    assert torch.equal(rows.flip(1).flip(-1).flatten(0, 1), mirrored.views["patches"])


def test_the_grid_of_the_paper_is_seven_by_seven():
    assert PatchGrid().shapes == {"patches": (49, 3, 64, 64)}
    assert PatchGrid(size=100, patch=64, stride=32).shapes == {"patches": (4, 3, 64, 64)}
    assert PatchGrid(size=64, patch=64).shapes == {"patches": (1, 3, 64, 64)}


def test_a_patch_larger_than_its_crop_is_a_sentence():
    with pytest.raises(RecipeError, match=r"transform\.patch  64 px do not fit into a crop of 48"):
        PatchGrid(size=48)
