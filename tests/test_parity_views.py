"""Views fall as VISSL's do: distributions over thousands of draws, against the operations that it
composes (torchvision's, and NumPy's draws where VISSL has its own)."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torchvision.transforms import ColorJitter, RandomGrayscale, RandomResizedCrop

from sslkit.interfaces import Batch, Draws
from sslkit_plugins.methods.pirl import Jigsaw, JigsawRotation, Rotation
from sslkit_plugins.views import Augment, Colours, steps

stats = pytest.importorskip("scipy.stats", reason="needs SciPy, which comes with scikit-learn")

ENOUGH = 0.01
"""Smallest p-value. Seeds are fixed, so a test passes always or never."""


def assert_alike(ours, theirs, name):
    """Kolmogorov and Smirnov find no difference between two samples."""
    found = stats.ks_2samp(np.round(ours, 6), np.round(theirs, 6))
    assert found.pvalue > ENOUGH, f"{name}: {found}"


def assert_share(hits, chance):
    """A number of hits that this chance explains."""
    hits = np.asarray(hits)
    assert stats.binomtest(int(hits.sum()), hits.size, chance).pvalue > ENOUGH


def assert_uniform(values, count):
    """Each of 0 … count-1 equally often."""
    seen = np.bincount(np.asarray(values).ravel(), minlength=count)
    assert len(seen) == count and stats.chisquare(seen).pvalue > ENOUGH


# ------------------------------------------------------------------------------------------ crops

CROPS = [
    pytest.param(Jigsaw(), 0, (0.08, 1.0), id="image"),
    pytest.param(Jigsaw(), 1, (0.6, 1.0), id="puzzle"),
    pytest.param(Rotation(), 1, (0.08, 1.0), id="rotated"),
    pytest.param(Augment(), 0, (0.08, 1.0), id="npid"),
]
SIDES = [(500, 375), (300, 400), (640, 120)]
"""Width and height: a photograph, an upright one, and one that few boxes fit into."""


@pytest.mark.parametrize("sides", SIDES, ids=lambda sides: f"{sides[0]}x{sides[1]}")
@pytest.mark.parametrize(("transform", "place", "area"), CROPS)
def test_boxes(transform, place, area, sides):
    """Area, aspect and both offsets, against RandomResizedCrop."""
    width, height = sides
    rng = np.random.default_rng(0)
    boxes = np.array([transform.boxes(width, height, rng)[place] for _ in range(3000)], float)
    ours = boxes[:, :2], boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    torch.manual_seed(0)
    empty = torch.empty(3, height, width)
    drawn = [RandomResizedCrop.get_params(empty, area, (3 / 4, 4 / 3)) for _ in range(3000)]
    top, left, down, across = np.array(drawn, float).T
    theirs = np.stack([left, top], 1), across, down
    for name, measure in MEASURES.items():
        assert_alike(measure(*ours), measure(*theirs), name)


MEASURES = {
    "area": lambda corner, across, down: across * down,
    "aspect": lambda corner, across, down: across / down,
    "left": lambda corner, across, down: corner[:, 0],
    "top": lambda corner, across, down: corner[:, 1],
}


# ---------------------------------------------------------------------------------------- puzzles


def places(transform, count=600):
    """Of each patch: its place in the list, its cell, and its offset in the cell: [count,9]."""
    rng, found = np.random.default_rng(0), []
    for _ in range(count):
        rows, columns = np.meshgrid(np.arange(255), np.arange(255), indexing="ij")
        puzzle = torch.from_numpy(np.stack([rows, columns, rows]).astype(np.uint8))
        transform.cut = lambda image, rng, puzzle=puzzle: iter([puzzle, puzzle])
        corner = transform(Image.new("RGB", (8, 8)), rng).views["patches"][:, :2, 0, 0].numpy()
        found.append(corner.astype(int))
    cells, offsets = np.divmod(np.stack(found), 85)
    return cells[..., 0] * 3 + cells[..., 1], offsets


def test_patches_lie_anywhere_in_their_cells_and_lists():
    """Offsets 0 … 21 on either axis. VISSL draws 0 … 20, an upper end that is exclusive; the paper
    has 64 of 85 px."""
    cells, offsets = places(Jigsaw())
    assert (np.sort(cells, 1) == np.arange(9)).all(), "one patch of each cell"
    for axis in (0, 1):
        assert_uniform(offsets[..., axis], 22)
    together = np.corrcoef(offsets.reshape(len(offsets), -1).T) - np.eye(18)
    assert np.abs(together).max() < 4 / math.sqrt(len(offsets)), "each patch and axis for itself"


def test_orders_are_any_of_all():
    """Each cell at each place equally often, and hardly an order twice among 600 of 362,880."""
    cells, _ = places(Jigsaw())
    for place in range(9):
        assert_uniform(cells[:, place], 9)
    assert len({tuple(order) for order in cells}) >= 597


@pytest.mark.parametrize(
    "transform", [Rotation(size=8), JigsawRotation(size=8)], ids=["rotation", "puzzle"]
)
def test_rotations_are_quarter_turns(transform):
    """0 is among them. A picture that is dark at its left edge tells how it was rotated."""
    left = torch.full((3, 255, 255), 200, dtype=torch.uint8)
    left[..., :120] = 10
    transform.flip = 0.0
    transform.cut = lambda image, rng: iter([left, left])
    rng, found = np.random.default_rng(0), []
    for _ in range(800):
        if isinstance(transform, Rotation):
            shown = transform(Image.new("RGB", (8, 8)), rng).views["rotated"]
        else:
            shown = transform.rotated(left, rng)
        edges = [shown[0, :, 0], shown[0, -1], shown[0, :, -1], shown[0, 0]]
        found.append(int(np.argmin([edge.float().mean() for edge in edges])))
    assert_uniform(found, 4)


# ---------------------------------------------------------------------------------------- colours

ROWS = 6000


def drawn_steps(preset):
    return steps.draw_steps(
        Draws(3).uniform(ROWS, steps.NUMBERS), Colours(**Colours.presets[preset])
    )


@pytest.mark.parametrize(("preset", "strength"), [("official", 0.4), ("blur", 0.8)])
def test_jitter(preset, strength):
    """Factors of brightness, contrast, saturation and hue, and their 24 orders, against
    ColorJitter."""
    jitter = drawn_steps(preset)[:16]
    torch.manual_seed(1)
    ends = (1 - strength, 1 + strength)
    drawn = [ColorJitter.get_params(ends, ends, ends, (-0.2, 0.2)) for _ in range(ROWS)]
    for kind, name in enumerate(("brightness", "contrast", "saturation", "hue")):
        ours = jitter[kind].parameter.numpy()
        assert_alike(ours, [numbers[1 + kind] for numbers in drawn], name)
    chosen = torch.stack([step.chosen for step in jitter], 1).view(ROWS, 4, 4)
    jittered = chosen.any(2).any(1)
    assert_share(jittered, {"official": 1.0, "blur": 0.8}[preset])
    order = chosen[jittered].long().argmax(2)
    numbers = np.unique(order.numpy() @ [64, 16, 4, 1], return_inverse=True)[1]
    assert_uniform(numbers, 24)


def test_photometric_list():
    """One coin of 0.66 for posterize to 4 … 8 bits, sharpness 0.1 … 1.9 and solarize from 0 …
    256.
    """
    posterize, sharpness, solarize, autocontrast = drawn_steps("official")[16:20]
    rng = np.random.default_rng(5)
    assert_alike(posterize.parameter.numpy(), rng.integers(4, 9, ROWS), "bits")
    assert_alike(sharpness.parameter.numpy(), rng.uniform(0.1, 1.9, ROWS), "sharpness")
    assert_alike(solarize.parameter.numpy(), rng.integers(0, 257, ROWS), "threshold")
    for step in (posterize, sharpness, solarize, autocontrast):
        assert torch.equal(step.chosen, posterize.chosen)
    assert_share(posterize.chosen, 0.66)


def test_gray_blur_and_flip():
    """Grayscale 0.2, blur 0.5 with a radius of 0.1 … 2 px, flip 0.5."""
    gray, blur, flip = drawn_steps("blur")[20:]
    for step, chance in ((gray, 0.2), (blur, 0.5), (flip, 0.5)):
        assert_share(step.chosen, chance)
    assert_alike(blur.parameter.numpy(), np.random.default_rng(6).uniform(0.1, 2, ROWS), "radius")
    coins = np.corrcoef(torch.stack([gray.chosen, blur.chosen, flip.chosen]).numpy())
    assert np.abs(coins - np.eye(3)).max() < 4 / math.sqrt(ROWS)


# ------------------------------------------------------------------------------- whole compositions


def picture():
    """16 px; red rises to the right, green downwards, blue half as much to the right, with
    noise.
    """
    rng = np.random.default_rng(0)
    across = np.tile(np.linspace(20, 220, 16), (16, 1))
    pixels = np.stack([across, 90 + across.T / 2, 60 + across / 2], -1)
    pixels += rng.uniform(-18, 18, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def photometric(image, rng):
    """VISSL's list, in its order, all of it or nothing."""
    if rng.random() >= 0.66:
        return image
    image = ImageOps.posterize(image, int(rng.integers(4, 9)))
    image = ImageEnhance.Sharpness(image).enhance(rng.uniform(0.1, 1.9))
    image = ImageOps.solarize(image, int(rng.integers(0, 257)))
    return ImageOps.autocontrast(image)


def official(image, rng):
    """`pirl_jigsaw_4node_resnet50.yaml`: jitter, photometric list, gray, flip."""
    image = ColorJitter(0.4, 0.4, 0.4, 0.2)(image)
    image = RandomGrayscale(0.2)(photometric(image, rng))
    return ImageOps.mirror(image) if rng.random() < 0.5 else image


def blur(image, rng):
    """`photo_gblur.yaml`: flip, jitter of strength 1 with 0.8, gray, blur with 0.5."""
    if rng.random() < 0.5:
        image = ImageOps.mirror(image)
    if rng.random() < 0.8:
        image = ColorJitter(0.8, 0.8, 0.8, 0.2)(image)
    image = RandomGrayscale(0.2)(image)
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2)))
    return image


def measured(pixels):
    """What is looked at, of pixels [N,3,16,16] in 0 … 255, by name; whole levels."""
    pixels = np.asarray(pixels, float)
    return {
        "red": pixels[:, 0].mean((1, 2)).round(),
        "blue": pixels[:, 2].mean((1, 2)).round(),
        "contrast": pixels.std((1, 2, 3)).round(),
        "colour": (pixels.max(1) - pixels.min(1)).mean((1, 2)).round(),
        "edges": np.abs(np.diff(pixels, axis=3)).mean((1, 2, 3)).round(),
        "left and right": (pixels[..., :8] - pixels[..., 8:]).mean((1, 2, 3)).round(),
    }


@pytest.mark.parametrize("compose", [official, blur], ids=["official", "blur"])
def test_whole_compositions(compose):
    """2,000 views of one picture, theirs with Pillow's bytes, ours with floats on the device."""
    rng, image = np.random.default_rng(1), picture()
    torch.manual_seed(1)
    theirs = [np.asarray(compose(image, rng)).transpose(2, 0, 1) for _ in range(2000)]
    transform = Augment(size=16, colours=compose.__name__)
    whole = torch.from_numpy(np.array(image)).permute(2, 0, 1).expand(2000, -1, -1, -1)
    done = transform.on_device(
        Batch({"image": whole.contiguous()}, {}, torch.arange(2000)), Draws(4)
    )
    mean, scale = transform.normalisation.tensors()
    ours = measured((done.views["image"] / scale + mean).numpy())
    for name, values in measured(theirs).items():
        assert_alike(ours[name], values, name)
