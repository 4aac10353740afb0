"""Cutting and colours: each operation against torchvision's, each row with its own draws."""

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as reference

from sslkit.interfaces import Batch, Draws, Normalisation, Pixels
from sslkit_plugins.methods.pirl import Jigsaw
from sslkit_plugins.views import (
    Augment,
    Colours,
    Normaliser,
    crop,
    crop_box,
    flip_or_not,
    operations,
    steps,
)


def bytes_like(*shape, seed=0):
    """Smooth enough to be a picture, with saturated, gray, black and white places."""
    noise = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 60
    ramp = torch.linspace(-40, 290, shape[-1]).expand(shape)
    pixels = (noise + ramp).clamp(0, 255).to(torch.uint8)
    pixels[..., :3, :3] = 77
    return pixels


NORMALISE = Normaliser(Normalisation(), torch.device("cpu"))


def finish(view, draws, colours, **options):
    """The view after one list of colours, or several."""
    lists = colours if isinstance(colours, tuple) else (colours,)
    return steps.finish(view, draws, lists, NORMALISE, **options)


def preset(name):
    return Colours(**Colours.presets[name])


def back(pixels):
    """Undo the normalisation: 0 … 255."""
    mean, scale = Normalisation().tensors()
    return pixels / scale + mean


def far(ours, theirs):
    return (ours - theirs.float()).abs().max().item()


def assert_like(ours, function, image, *parameters):
    """Equal to torchvision on floats, and within rounding on bytes."""
    assert far(ours, function(image / 255, *parameters) * 255) < 0.02
    assert far(ours, function(image, *parameters)) < 2


# --------------------------------------------------------------------------------------- operations

FACTORS = torch.tensor([0.0, 0.6, 1.0, 1.4, 1.8])


def after(operation, images, parameters=None):
    """What an operation makes of each row, with the parameter of the row."""
    pixels = images.float()
    operation(
        pixels,
        torch.zeros(len(images), 1, 1, 1)
        if parameters is None
        else torch.as_tensor(parameters).view(-1, 1, 1, 1),
    )
    return pixels


@pytest.mark.parametrize("name", ["adjust_brightness", "adjust_contrast", "adjust_saturation"])
def test_brightness_contrast_saturation(name):
    images = bytes_like(5, 3, 20, 24)
    ours = after(getattr(operations, name), images, FACTORS)
    for row, factor in enumerate(FACTORS.tolist()):
        assert_like(ours[row], getattr(reference, name), images[row], factor)


def test_a_flip_mirrors():
    images = bytes_like(2, 3, 5, 7)
    assert torch.equal(after(operations.flip, images), images.flip(-1).float())


def test_hue():
    turns = torch.tensor([-0.5, -0.2, 0.0, 0.13, 0.5])
    images = bytes_like(5, 3, 20, 24)
    ours = after(operations.adjust_hue, images, turns)
    for row, turn in enumerate(turns.tolist()):
        assert_like(ours[row], reference.adjust_hue, images[row], turn)
    assert far(ours[2], images[2]) < 1e-3


def test_posterize():
    bits = torch.arange(4, 9).float()
    images = bytes_like(5, 3, 20, 24)
    ours = after(operations.posterize, images, bits)
    for row in range(5):
        assert far(ours[row], reference.posterize(images[row], int(bits[row]))) == 0


def test_sharpness():
    factors = torch.tensor([0.1, 0.7, 1.0, 1.5, 1.9])
    images = bytes_like(5, 3, 20, 24)
    ours = after(operations.adjust_sharpness, images, factors)
    for row, factor in enumerate(factors.tolist()):
        assert_like(ours[row], reference.adjust_sharpness, images[row], factor)


@pytest.mark.parametrize("side", [1, 2, 3])
def test_tiny_patches_survive_every_operation(side):
    every = Colours(
        jitter=(0.4, 0.4, 0.4, 0.2),
        jitter_chance=1,
        photometric=1,
        gray=0.5,
        blur=1,
    )
    assert finish(bytes_like(4, 3, side, side), Draws(0), every).isfinite().all()


def test_solarize_inverts_from_the_threshold_on():
    thresholds = torch.tensor([0.0, 100.0, 255.0, 256.0])
    images = bytes_like(4, 3, 20, 24)
    ours = after(operations.solarize, images, thresholds)
    for row in range(3):
        assert far(ours[row], reference.solarize(images[row], thresholds[row].item())) == 0
    assert torch.equal(ours[3], images[3].float()), "256 inverts nothing"


def test_autocontrast_leaves_constant_channels():
    images = bytes_like(3, 3, 20, 24) // 3 + 50
    images[1, 2] = 9
    assert far(after(operations.autocontrast, images), reference.autocontrast(images)) <= 1.01


def test_luma():
    images = bytes_like(3, 3, 20, 24)
    assert far(operations.luma(images.float()), reference.rgb_to_grayscale(images)) <= 1.01


SIGMAS = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.2, 1.5, 1.7, 2.0])


def test_blur_is_pillows():
    """Within the rounding of Pillow's six passes; 6 px from the edge, which Pillow repeats at each
    of them."""
    image = bytes_like(3, 40, 48, seed=1)
    ours = after(operations.gaussian_blur, image.repeat(len(SIGMAS), 1, 1, 1), SIGMAS)
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    for row, sigma in enumerate(SIGMAS.tolist()):
        blurred = np.array(picture.filter(ImageFilter.GaussianBlur(sigma)))
        apart = (ours[row] - torch.from_numpy(blurred).permute(2, 0, 1)).abs()
        assert apart[:, 6:-6, 6:-6].max() <= 3 and apart.mean() < 1.3


def test_blur_has_the_standard_deviation_that_it_is_given():
    """Σ weight · distance² = σ². A Gaussian sampled at pixels has 0.09 px for σ = 0.3."""
    kernel, distance = operations.blur_kernel(SIGMAS), torch.arange(-6, 7)
    torch.testing.assert_close(kernel.sum(1), torch.ones(len(SIGMAS)))
    torch.testing.assert_close((kernel * distance.square()).sum(1).sqrt(), SIGMAS)
    sampled = torch.softmax(-distance.square() / (2 * 0.3**2), 0)
    assert (sampled * distance.square()).sum().sqrt().item() == pytest.approx(0.09, abs=0.003)


CONTRASTS = {0.3: (0.69, 0.97), 0.5: (0.335, 0.33), 0.6: (0.193, 0.114), 1.0: (0.001, 0.0)}
"""σ → what is left of a checkerboard's contrast: ours and Pillow's, torchvision's."""


@pytest.mark.parametrize("sigma", CONTRASTS)
def test_contrast_of_a_blurred_checkerboard(sigma):
    """By hand for σ = 0.3: v = σ²/3 = 0.03, so a box is (e, 1, e) with e = 0.09 / (6 · 0.97) =
    0.0155. Stripes keep (1-2e)/(1+2e) = 0.940 in each of three passes, 0.831; squares keep 0.690.
    """
    ours, theirs = CONTRASTS[sigma]
    place = torch.arange(32)
    board = ((place + place.unsqueeze(1)) % 2 * 255).to(torch.uint8)
    blurred = after(operations.gaussian_blur, board.expand(1, 3, -1, -1), [sigma])[0, 0]
    picture = Image.fromarray(board.numpy()).filter(ImageFilter.GaussianBlur(sigma))
    assert contrast(blurred) == pytest.approx(ours, abs=0.001)
    assert contrast(torch.from_numpy(np.array(picture))) == pytest.approx(ours, abs=0.012)
    for side in (7, 13, 23):
        sampled = reference.gaussian_blur(board[None].float(), [side, side], [sigma, sigma])[0]
        assert contrast(sampled) == pytest.approx(theirs, abs=0.001)


def contrast(board):
    inside = board[8:-8, 8:-8].float()
    return (inside.max() - inside.min()).item() / 255


@pytest.mark.parametrize("sigma", [1.0, 1.5, 2.0])
def test_a_wide_blur_is_nearly_a_sampled_gaussian(sigma):
    """A photograph-like ramp with noise: 2 of 255 levels from torchvision's on average."""
    image = bytes_like(1, 3, 40, 48)
    ours = after(operations.gaussian_blur, image, [sigma])
    sampled = reference.gaussian_blur(image.float(), [23, 23], [sigma, sigma])
    assert (ours - sampled)[..., 12:-12, 12:-12].abs().mean() < 2


def test_jitter_follows_each_rows_order():
    """All 24 orders of four operations, each against torchvision's in that order, rows mixed."""
    image = bytes_like(3, 16, 16)
    uniform = torch.full((24, steps.NUMBERS), 0.9)
    uniform[:, 1] = (torch.randperm(24, generator=torch.Generator().manual_seed(0)) + 0.5) / 24
    drawn = steps.draw_steps(
        uniform, Colours(jitter=(0.4, 0.5, 0.3, 0.2), jitter_chance=1), flip=0.0
    )
    ours = back(steps.apply(drawn, image.repeat(24, 1, 1, 1), NORMALISE))
    parameters = [1 + 0.8 * 0.4, 1 + 0.8 * 0.5, 1 + 0.8 * 0.3, 0.8 * 0.2]
    names = ["adjust_brightness", "adjust_contrast", "adjust_saturation", "adjust_hue"]
    for row, number in enumerate((uniform[:, 1] * 24).long().tolist()):
        expected = image / 255
        for kind in list(permutations(range(4)))[number]:
            expected = getattr(reference, names[kind])(expected, parameters[kind])
        assert far(ours[row], expected * 255) < 0.05
    assert len({tuple(row.flatten().tolist()) for row in ours}) > 12


def test_plain_only_normalises():
    images = bytes_like(2, 3, 8, 8)
    expected = reference.normalize(images / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    torch.testing.assert_close(Augment(size=8).plain(images), expected, atol=1e-5, rtol=1e-5)


# -------------------------------------------------------------------------------------------- draws


def test_rows_draw_independently():
    """The same picture ten times over: every result differs, in the image and in each patch."""
    transform = Jigsaw(size=24, resize=48, patch=12)
    batch = Batch(
        {
            "image": bytes_like(1, 3, 24, 24).repeat(4, 1, 1, 1),
            "patches": bytes_like(1, 1, 3, 12, 12).repeat(4, 9, 1, 1, 1),
        },
        {},
        torch.arange(4),
    )
    done = transform.on_device(batch, Draws(3))
    assert {name: tuple(view.shape[1:]) for name, view in done.views.items()} == transform.shapes
    assert all(view.dtype == torch.float32 for view in done.views.values())
    assert len({tuple(row.flatten().tolist()) for row in done.views["image"]}) == 4
    assert len({tuple(row.flatten().tolist()) for row in done.views["patches"].flatten(0, 1)}) == 36


def test_the_same_draws_give_the_same_pixels():
    view = bytes_like(3, 9, 3, 12, 12)
    first, second, other = (finish(view, Draws(key), preset("official")) for key in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, other)


@pytest.mark.parametrize("colours", Colours.presets)
@pytest.mark.parametrize("shape", [(4, 3, 10, 10), (4, 5, 3, 10, 10)], ids=["images", "patches"])
def test_two_processes_draw_what_one_draws(colours, shape):
    view = bytes_like(*shape)
    whole = finish(view, Draws(7), preset(colours))
    halves = [
        finish(
            view[2 * rank : 2 * rank + 2],
            Draws(7, rank=rank, world=2),
            preset(colours),
            shared=False,
        )
        for rank in (0, 1)
    ]
    torch.testing.assert_close(torch.cat(halves), whole, atol=1e-4, rtol=1e-4)


def test_crops_of_an_image_may_share_their_draws():
    view = bytes_like(1, 1, 3, 12, 12).repeat(6, 4, 1, 1, 1)
    done = finish(view, Draws(0), preset("official"), shared="all")
    assert torch.equal(done, done[:, :1].expand_as(done))
    assert len({tuple(row.flatten().tolist()) for row in done[:, 0]}) == 6


def test_flips_fall_per_patch():
    view = bytes_like(1, 1, 3, 6, 6).repeat(400, 9, 1, 1, 1)
    done = back(finish(view, Draws(0), preset("none"))).round().to(torch.uint8)
    flipped = (done == view.flip(-1)).flatten(2).all(2)
    assert torch.equal(~flipped, (done == view).flatten(2).all(2)), (
        "flipped or untouched, nothing else"
    )
    assert abs(flipped.float().mean() - 0.5) < 0.03
    assert ((flipped.sum(1) > 0) & (flipped.sum(1) < 9)).float().mean() > 0.98, (
        "not one coin for the nine"
    )


def test_gray_and_blur_fall_as_often_as_they_should():
    view = bytes_like(1, 3, 8, 8).repeat(4000, 1, 1, 1)
    gray = back(finish(view, Draws(0), preset("gray"), flip=0.0))
    share = ((gray - gray[:, :1]).abs().amax((1, 2, 3)) < 0.1).float().mean()
    assert abs(share - 0.66) < 0.03
    blur = back(finish(view, Draws(0), Colours(blur=0.5), flip=0.0))
    assert abs((far_rows(blur, view) < 0.1).float().mean() - 0.5) < 0.03


def far_rows(ours, theirs):
    return (ours - theirs.float()).abs().amax((1, 2, 3))


def test_the_photometric_coin_is_one_coin():
    """Rows of low contrast tell who was chosen: autocontrast stretches 66 % to 0 … 255."""
    view = (bytes_like(1, 3, 8, 8) // 4 + 90).repeat(3000, 1, 1, 1)
    done = back(finish(view, Draws(0), Colours(photometric=0.66), flip=0.0))
    chosen = far_rows(done, view) > 0.5
    assert abs(chosen.float().mean() - 0.66) < 0.03
    assert done[chosen].amin((1, 2, 3)).max() < 0.1, "every chosen row was stretched as well"


def test_parameters_of_the_official_list():
    """Ranges and means; each integer and order equally often; no two are correlated."""
    count = 54_000
    drawn = steps.draw_steps(Draws(0).uniform(count, steps.NUMBERS), preset("official"))
    factors, listed = (
        [step.parameter for step in drawn[:4]],
        [step.parameter for step in drawn[16:19]],
    )
    spans = [(0.6, 1.4)] * 3 + [(-0.2, 0.2), (4, 8), (0.1, 1.9), (0, 256)]
    for numbers, (low, high) in zip(factors + listed, spans, strict=True):
        assert (numbers.min(), numbers.max()) == pytest.approx((low, high), abs=1e-3)
        assert numbers.mean() == pytest.approx((low + high) / 2, abs=0.02 * (high - low))
    assert listed[0].unique(return_counts=True)[1].min() > 0.95 * count / 5
    assert len(listed[2].unique(return_counts=True)[1]) == 257
    codes = sum(step.chosen.long() << number for number, step in enumerate(drawn[:16]))
    counts = codes.unique(return_counts=True)[1]
    assert len(counts) == 24 and counts.min() > 0.9 * count / 24
    together = np.corrcoef(
        torch.stack([*factors, *listed, *(step.chosen.float() for step in drawn[19:21]), codes])
    )
    assert (np.abs(together - np.eye(len(together))) < 0.02).all()


# ------------------------------------------------------------------------------------------ cutting


def photo(width, height, seed=0):
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    )


@pytest.mark.parametrize(("width", "height"), [(100, 60), (40, 300), (500, 40)])
@pytest.mark.parametrize("min_area", [0.08, 0.6])
def test_boxes_fall_like_torchvisions(width, height, min_area):
    """Means of left, top, width, height over many draws; the long pictures need the fallback."""
    rng = np.random.default_rng(0)
    ours = np.array([crop_box(width, height, rng, (min_area, 1.0)) for _ in range(3000)])
    assert (ours[:, :2] >= 0).all() and (ours[:, 2] <= width).all() and (ours[:, 3] <= height).all()
    ours[:, 2:] -= ours[:, :2]
    picture = torch.zeros(3, height, width)
    torch.manual_seed(0)
    theirs = np.array(
        [RandomResizedCrop.get_params(picture, [min_area, 1], [3 / 4, 4 / 3]) for _ in range(3000)]
    )[:, [1, 0, 3, 2]]
    error = np.sqrt((ours.var(0) + theirs.var(0)) / 3000)
    assert (np.abs(ours.mean(0) - theirs.mean(0)) <= 5 * error + 1e-9).all()


def test_crop_is_a_bilinear_resize_of_the_box():
    """The same as torchvision's and Pillow's, of images whole and of a part of them."""
    image = photo(90, 70)
    for box in (crop_box(90, 70, np.random.default_rng(5), (0.6, 1.0)), (0, 0, 90, 70)):
        ours = crop(Pixels.of(image), box, 32)
        assert ours.shape == (3, 32, 32) and ours.dtype == torch.uint8 and ours.is_contiguous()
        assert (
            far(
                ours.float(),
                reference.pil_to_tensor(
                    image.crop(box).resize((32, 32), Image.Resampling.BILINEAR)
                ),
            )
            <= 1
        )


def test_a_crop_of_a_reduced_image_is_the_same_place():
    """A ramp tells where; the box is counted in pixels of the whole image."""
    ramp = Image.fromarray(
        np.linspace(0, 255, 400).astype(np.uint8)[None, :, None].repeat(300, 0).repeat(3, 2)
    )
    whole, half = Pixels.of(ramp), Pixels(Pixels.of(ramp.reduce(2)).values, 400, 300)
    for box in ((0, 0, 400, 300), (101, 33, 301, 233), (0, 0, 1, 1), (399, 299, 400, 300)):
        assert far(crop(whole, box, 16).float(), crop(half, box, 16)) <= 2


def test_half_of_all_views_are_flipped():
    view, rng = bytes_like(3, 8, 8), np.random.default_rng(0)
    flipped = [flip_or_not(view, rng) for _ in range(200)]
    assert all(torch.equal(one, view) or torch.equal(one, view.flip(-1)) for one in flipped)
    assert 70 < sum(not torch.equal(one, view) for one in flipped) < 130


@pytest.mark.parametrize("size", [(1, 1), (2, 700), (700, 2)], ids=["1x1", "2x700", "700x2"])
def test_odd_pictures_can_be_cut(size):
    assert Augment(size=24)(photo(*size), np.random.default_rng(0)).views["image"].shape == (
        3,
        24,
        24,
    )


def test_augment():
    transform = Augment(size=24)
    image, again, other = (
        transform(photo(60, 50), np.random.default_rng(seed)).views["image"] for seed in (0, 0, 1)
    )
    assert torch.equal(image, again) and not torch.equal(image, other)
    assert (
        tuple(image.shape) == transform.shapes["image"]
        and transform.num_targets == {}
        and transform.state() == {}
    )


def test_expected_ranges_after_normalisation():
    done = back(finish(bytes_like(200, 3, 16, 16), Draws(0), preset("official")))
    assert done.min() > -0.01 and done.max() < 255.01 and math.isfinite(done.sum())
