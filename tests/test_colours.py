"""Colours: the lists of the papers counted over thousands of rows, lists per crop, refusals."""

import typing

import pytest
import torch

from sslkit.errors import RecipeError
from sslkit.interfaces import Batch, Draws
from sslkit_plugins.methods.jigsaw import Puzzle
from sslkit_plugins.methods.pirl import Jigsaw
from sslkit_plugins.views import Augment, Colours, Crops, Local, MultiCrop, colours_of, steps
from sslkit_plugins.views.colours import Preset
from sslkit_plugins.views.operations import adjust_contrast

ROWS = 4000

STRONG = {"chance": 0.8, "strengths": (0.8, 0.8, 0.8, 0.2), "gray": 0.2, "blur": 0.5, "solarize": 0}
MOCO = {**STRONG, "strengths": (0.4, 0.4, 0.4, 0.1)}
FIRST = {"chance": 0.8, "strengths": (0.4, 0.4, 0.2, 0.1), "gray": 0.2, "blur": 1, "solarize": 0}
SECOND = {**FIRST, "blur": 0.1, "solarize": 0.2}
INSTANCE = {"chance": 1, "strengths": (0.4, 0.4, 0.4, 0.4), "gray": 0.2, "blur": 0, "solarize": 0}
AMDIM = {"chance": 0.8, "strengths": (0.4, 0.4, 0.4, 0.1), "gray": 0.25, "blur": 0, "solarize": 0}

DINO = MultiCrop(
    size=1,
    colours=("dino_first", "dino_second"),
    local=Local(size=1, count=3, colours="dino_local"),
)
SWAV = MultiCrop(size=1, local=Local(size=1, count=3))

PAPERS = {
    "simclr": (Crops(size=1), "global", [STRONG, STRONG]),
    "moco_v1": (Crops(size=1, colours="moco_v1"), "global", [INSTANCE, INSTANCE]),
    "moco_v2": (Crops(size=1, colours="moco_v2"), "global", [MOCO, MOCO]),
    "byol": (Crops(size=1, colours=("byol_first", "byol_second")), "global", [FIRST, SECOND]),
    "dino": (DINO, "global", [FIRST, SECOND]),
    "dino, local": (DINO, "local", [{**FIRST, "blur": 0.5}] * 3),
    "swav": (SWAV, "global", [STRONG, STRONG]),
    "swav, local": (SWAV, "local", [STRONG] * 3),
    "amdim": (Crops(size=1, colours="amdim", shared="flip"), "global", [AMDIM, AMDIM]),
    "npid": (Augment(size=1, colours="npid"), "image", [INSTANCE]),
}


def drawn(transform, name, rows=ROWS, seed=0):
    """The steps that the device phase draws for a view, with `chosen` and `parameter` [B,K]."""
    seen = {}
    shapes = {view: (rows, *shape) for view, shape in transform.shapes.items()}
    views = {view: torch.zeros(shape, dtype=torch.uint8) for view, shape in shapes.items()}

    def keep(made, images, encode):
        seen[len(seen)] = made
        return images.float()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "apply", keep)
        transform.on_device(Batch(views, {}, torch.arange(rows)), Draws(seed))
    made = seen[list(transform.shapes).index(name)]

    def by_crop(values):
        return values.unflatten(0, (rows, -1))

    return [
        step._replace(chosen=by_crop(step.chosen), parameter=by_crop(step.parameter))
        for step in made
    ]


def named(made, operation):
    return [step for step in made if step.operation.__name__ == operation]


@pytest.mark.parametrize("paper", PAPERS)
def test_coins_and_strengths_are_those_of_the_paper(paper):
    transform, view, lists = PAPERS[paper]
    made = drawn(transform, view)
    jitter, (blur,) = made[:16], named(made, "gaussian_blur")
    jittered = torch.stack([step.chosen for step in jitter]).sum(0)
    gray = made[20]
    assert gray.operation.__name__ == "adjust_saturation" and not gray.parameter.any()
    solarize = named(made, "solarize")[1:]
    assert not named(made, "autocontrast")[0].chosen.any(), "no list of PIRL's"
    (flip,) = named(made, "flip")
    order = [step.operation.__name__ for step in made[20:]]
    assert order[:2] == ["adjust_saturation", "gaussian_blur"] and made[-1] is flip
    assert set(jittered.unique().tolist()) <= {0, 4}, "all four or none"
    for crop, paper_list in enumerate(lists):
        assert (jittered[:, crop] > 0).float().mean() == pytest.approx(
            paper_list["chance"], abs=0.03
        )
        assert gray.chosen[:, crop].float().mean() == pytest.approx(paper_list["gray"], abs=0.03)
        assert blur.chosen[:, crop].float().mean() == pytest.approx(paper_list["blur"], abs=0.03)
        assert flip.chosen[:, crop].float().mean() == pytest.approx(0.5, abs=0.03)
        for kind, strength in enumerate(paper_list["strengths"]):
            change = jitter[kind].parameter[:, crop] - int(kind < 3)
            assert change.abs().max() == pytest.approx(strength, rel=0.01)
            assert change.mean() == pytest.approx(0, abs=0.05 * strength)
        sigma = blur.parameter[:, crop]
        assert (sigma.min(), sigma.max()) == pytest.approx((0.1, 2), abs=0.01)
        assert sigma.mean() == pytest.approx(1.05, abs=0.05)
        solarized = torch.zeros(ROWS, dtype=torch.bool)
        for step in solarize:
            assert (step.parameter == 128).all() and order[2:4] == ["posterize", "solarize"]
            solarized = step.chosen[:, crop]
        assert solarized.float().mean() == pytest.approx(paper_list["solarize"], abs=0.03)


def test_coins_of_both_crops_are_independent():
    made = drawn(Crops(size=1, colours=("byol_second", "byol_second")), "global")
    coins = [made[20], *named(made, "gaussian_blur"), named(made, "solarize")[1], made[-1]]
    coins = torch.cat([step.chosen.float().T for step in coins])
    sigma = named(made, "gaussian_blur")[0].parameter.T
    together = torch.corrcoef(torch.cat([coins, sigma]))
    assert (together - torch.eye(len(together))).abs().max() < 0.07


def test_a_shared_flip_leaves_colours_independent():
    made = drawn(Crops(size=1, colours="amdim", shared="flip"), "global")
    flip = made[-1].chosen
    assert torch.equal(flip[:, 0], flip[:, 1]) and 0.45 < flip.float().mean() < 0.55
    assert (made[20].chosen[:, 0] != made[20].chosen[:, 1]).any()
    assert not torch.equal(made[0].parameter[:, 0], made[0].parameter[:, 1])


def test_shared_draws_are_the_same_in_all_crops():
    made = drawn(Crops(size=1, colours="byol_second", shared="all", count=3), "global", rows=200)
    for step in made:
        for crop in (1, 2):
            assert torch.equal(step.chosen[:, 0], step.chosen[:, crop])
            assert torch.equal(step.parameter[:, 0], step.parameter[:, crop])


@pytest.mark.parametrize(("chance", "share"), [(0.0, 0.0), (0.3, 0.3), (1.0, 1.0)])
def test_flips_fall_as_often_as_the_option_says(chance, share):
    made = drawn(Crops(size=1, flip=chance), "global")
    assert made[-1].chosen.float().mean() == pytest.approx(share, abs=0.02)


def test_presets_and_their_type_name_the_same():
    assert set(typing.get_args(Preset)) == set(Colours.presets)
    assert {
        name for name in Colours.presets if Colours.presets[name] == Colours.presets["blur"]
    } == {
        "blur",
        "simclr",
        "swav",
    }


def shown(colours, value, rows=3000, seed=0):
    """What becomes of pixels of one value, in 0 … 255: float32 [rows]."""
    transform = Crops(size=2, count=1, colours=colours)
    view = torch.full((rows, 1, 3, 2, 2), value, dtype=torch.uint8)
    done = transform.on_device(Batch({"global": view}, {}, torch.arange(rows)), Draws(seed))
    return (255 * transform.picture(done.views["global"][:, 0]))[:, 0, 0, 0]


def test_solarize_inverts_from_its_threshold_on():
    bright = shown(Colours(solarize=0.2), 200).round()
    assert set(bright.tolist()) == {200, 55}
    assert (bright == 55).float().mean() == pytest.approx(0.2, abs=0.02)
    assert set(shown(Colours(solarize=0.2), 127).round().tolist()) == {127}
    at_all = shown(Colours(solarize=1.0, solarize_from=(0, 255)), 100).round()
    assert (at_all == 155).float().mean() == pytest.approx(101 / 256, abs=0.03)


def test_posterize_keeps_the_bits_that_the_list_says():
    kept = shown(Colours(posterize=0.5, posterize_bits=(2, 3)), 255).round()
    counts = {value: (kept == value).float().mean().item() for value in set(kept.tolist())}
    assert counts == pytest.approx({255: 0.5, 192: 0.25, 224: 0.25}, abs=0.03)


def test_a_jitter_of_one_kind_does_nothing_else():
    made = drawn(Augment(size=1, colours=Colours(jitter=(0.0, 0.3, 0.0, 0.0))), "image", rows=100)
    chosen = {step.operation.__name__ for step in made if step.chosen.any()}
    assert chosen == {"adjust_contrast", "flip"}
    assert not any(
        step.chosen.any() for step in drawn(Augment(size=1, colours="none", flip=0.0), "image")
    )


def test_differing_lists_change_only_their_own_crop():
    """Lists [a, b] give crop 0 what [a, a] gives it, and crop 1 what [b, b] gives it."""
    first, second = Colours(gray=1.0), Colours(jitter=(0.4, 0.4, 0.4, 0.1), blur=0.5)
    view = torch.randint(256, (50, 2, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    batch = Batch({"global": view.to(torch.uint8)}, {}, torch.arange(50))
    both, only_first, only_second = (
        Crops(size=8, colours=colours).on_device(batch, Draws(3)).views["global"]
        for colours in ((first, second), first, second)
    )
    torch.testing.assert_close(both[:, 0], only_first[:, 0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(both[:, 1], only_second[:, 1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("colours", ["byol_second", ("byol_first", "byol_second")])
def test_two_ranks_draw_what_one_draws_with_further_numbers(colours):
    view = torch.randint(256, (6, 2, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    view, transform = view.to(torch.uint8), Crops(size=8, colours=colours)

    def done(rows, **rank):
        batch = Batch({"global": view[rows]}, {}, torch.arange(6)[rows])
        return transform.on_device(batch, Draws(7, **rank)).views["global"]

    halves = [done(slice(3 * rank, 3 * rank + 3), rank=rank, world=2) for rank in (0, 1)]
    torch.testing.assert_close(torch.cat(halves), done(slice(0, 6)), atol=1e-4, rtol=1e-4)


# ----------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: Crops(colours=("byol_first", "byol_second"), count=3),
            "transform.colours  holds 2 lists of colours for 3 crops; write 3, or a single preset "
            "or mapping for all crops",
        ),
        (
            lambda: Augment(colours=("npid", "npid")),
            "transform.colours  holds 2 lists of colours for 1 crop; write a preset or a mapping",
        ),
        (
            lambda: MultiCrop(local=Local(count=3, colours=("swav",))),
            "transform.local.colours  holds 1 list of colours for 3 crops; write 3, or a single "
            "preset or mapping for all crops",
        ),
        (
            lambda: Crops(min_area=0.6, max_area=0.3),
            "transform.min_area  0.6 exceeds max_area, 0.3; use a smaller value",
        ),
        (
            lambda: MultiCrop(local=Local(min_area=0.2)),
            "transform.local.min_area  0.2 exceeds max_area, 0.14; use a smaller value",
        ),
        (
            lambda: Crops(aspect=(1.4, 0.7)),
            "transform.aspect  [1.4, 0.7] descends; write the smaller number first: [0.7, 1.4]",
        ),
        (
            lambda: Crops(colours=("simclr", Colours(blur_sigma=(2.0, 0.1)))),
            "transform.colours.1.blur_sigma  [2.0, 0.1] descends; write the smaller number first: "
            "[0.1, 2.0]",
        ),
        (
            lambda: Crops(5),
            "transform.colours  colours 'simclr' change saturation, hue and gray and need 3 "
            "channels; the data set has 5; set these to 0 (saturation and hue are the "
            "last two numbers of jitter), or set colours: none",
        ),
        (
            lambda: Crops(1, colours=("none", Colours(gray=0.2))),
            "transform.colours.1  these colours change gray and need 3 channels; the data set has "
            "1; set these to 0 (saturation and hue are the "
            "last two numbers of jitter), or set colours: none",
        ),
    ],
    ids=["crops", "one crop", "local", "area", "local area", "aspect", "sigma", "rgb", "gray"],
)
def test_options_that_do_not_fit_are_a_sentence(make, sentence):
    with pytest.raises(RecipeError) as caught:
        make()
    assert str(caught.value) == sentence


def test_a_name_that_is_no_preset_is_a_sentence():
    with pytest.raises(RecipeError, match=r"transform\.colours  no preset 'byol'; there are: off"):
        colours_of("byol")


def test_colours_without_rgb_suit_any_channels():
    safe = Colours(jitter=(0.4, 0.4, 0.0, 0.0), photometric=0.5, blur=0.5, solarize=0.2)
    assert not safe.rgb_only
    for transform in (
        Crops(5, size=8, colours=safe),
        Jigsaw(1, size=8, resize=24, patch=8, colours=safe),
    ):
        views = {name: torch.randint(256, (9, *shape)) for name, shape in transform.shapes.items()}
        views = {name: view.to(torch.uint8) for name, view in views.items()}
        done = transform.on_device(Batch(views, {}, torch.arange(9)), Draws(0))
        assert all(view.isfinite().all() for view in done.views.values())
    with pytest.raises(RecipeError, match="'gray' change gray and need 3 channels"):
        Puzzle(2)


def test_contrast_of_many_channels_keeps_their_mean():
    """Each value is half as far from the mean of all channels."""
    pixels = torch.tensor([10.0, 20.0, 30.0, 40.0, 100.0]).view(1, 5, 1, 1).repeat(1, 1, 2, 2)
    adjust_contrast(pixels, torch.tensor(0.5).view(1, 1, 1, 1))
    assert pixels[0, :, 0, 0].tolist() == [25, 30, 35, 40, 70]
