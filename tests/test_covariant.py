"""Jigsaw and RotNet: the tasks whose answer has to be told."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from sslkit.interfaces import Batch, Draws, Encoder, Parts, Progress
from sslkit_plugins.heads import ConcatPatches, Linear
from sslkit_plugins.losses import CrossEntropy
from sslkit_plugins.methods.jigsaw import Cutter, Jigsaw, Puzzle, hamming_permutations
from sslkit_plugins.methods.rotnet import Rotate, RotNet

PROGRESS = Progress(0, 10, 0, 1, Draws(0))


def photo(width=60, height=50, seed=0):
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    )


def smallest_distance(orders):
    return min((a != b).sum() for a, b in combinations(orders, 2))


@pytest.mark.parametrize(
    ("count", "smallest", "mean"),
    [(24, 7, 8.25), (100, 6, 8.06), pytest.param(1000, 5, 8.01, marks=pytest.mark.slow)],
)
def test_hamming_sets_are_those_of_a_greedy_search(count, smallest, mean):
    """A search for the largest sum reaches a smallest distance of 2 only, as random orders do.

    Ties are broken at random, so the mean stays at that of random orders (8); the first one in
    lexicographic order would lead to 8.03 for 100 and 7.91 for 1000.
    """
    orders = hamming_permutations(9, count)
    assert orders.shape == (count, 9) and (np.sort(orders, 1) == np.arange(9)).all()
    assert len(np.unique(orders, axis=0)) == count
    distances = [(a != b).sum() for a, b in combinations(orders, 2)]
    assert min(distances) == smallest
    assert np.mean(distances) == pytest.approx(mean, abs=0.03)


def test_a_larger_set_begins_with_the_smaller_one_and_seeds_differ():
    assert np.array_equal(hamming_permutations(6, 40)[:10], hamming_permutations(6, 10))
    assert np.array_equal(hamming_permutations.__wrapped__(6, 10), hamming_permutations(6, 10))
    assert not np.array_equal(hamming_permutations(6, 10, seed=1), hamming_permutations(6, 10))


def test_each_pick_is_as_far_as_any_order_can_be():
    everything, chosen = hamming_permutations(5, 120), hamming_permutations(5, 12)
    for number in range(1, 12):
        reach = (everything[:, None] != chosen[None, :number]).sum(2).min(1).max()
        assert (chosen[number] != chosen[:number]).sum(1).min() == reach


@pytest.mark.parametrize("count", [24, 1000])
def test_all_orders_where_more_are_asked_for(count):
    assert len(np.unique(hamming_permutations(4, count), axis=0)) == 24


def test_sixteen_patches_have_too_many_orders_to_list_and_are_sampled():
    orders = hamming_permutations(16, 5)
    assert (
        orders.shape == (5, 16)
        and (np.sort(orders, 1) == np.arange(16)).all()
        and smallest_distance(orders) >= 15
    )


def test_puzzle_tells_the_order():
    transform = Puzzle(size=8, resize=24, patch=8, min_area=1, permutations=6)
    picture = (
        np.arange(9, dtype=np.uint8).reshape(3, 3).repeat(8, 0).repeat(8, 1)[..., None].repeat(3, 2)
        * 20
    )
    allowed, seen = transform.state()["permutations"].long(), set()
    for seed in range(80):
        sample = transform(Image.fromarray(picture), np.random.default_rng(seed))
        cells = (sample.views["patches"][:, 0, 4, 4].float() / 20).round().long()
        mirrored = 3 * (cells // 3) + 2 - cells % 3
        expected = allowed[sample.targets["order"]]
        assert torch.equal(cells, expected) or torch.equal(mirrored, expected), (
            "the whole crop was flipped, or nothing"
        )
        seen.add(int(sample.targets["order"]))
    assert seen == set(range(6)) and transform.num_targets == {"order": 6}
    assert transform.shapes == {"patches": (9, 3, 8, 8)}


def test_patches_without_room_tile_the_crop_and_argsort_restores_them():
    """Bit for bit: cells of 8 px, patches of 8 px."""
    pixels = np.random.default_rng(1).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    whole = torch.from_numpy(pixels).permute(2, 0, 1)
    tiles = whole.unfold(1, 8, 8).unfold(2, 8, 8).permute(1, 2, 0, 3, 4).flatten(0, 1)
    assert torch.equal(torch.stack(Cutter(3, 24, 8)(whole, np.random.default_rng(0))), tiles)
    transform = Puzzle(size=8, resize=24, patch=8, min_area=1, permutations=6, flip=0.0)
    sample = transform(Image.fromarray(pixels), np.random.default_rng(0))
    order = transform.permutations[sample.targets["order"]]
    assert not torch.equal(sample.views["patches"], tiles)
    assert torch.equal(sample.views["patches"][order.argsort()], tiles)


def test_puzzle_is_gray_as_a_whole_or_not_at_all():
    transform = Puzzle(size=8, resize=24, patch=8, permutations=4)
    view = torch.randint(
        256, (1, 9, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    ).repeat(500, 1, 1, 1, 1)
    done = transform.on_device(Batch({"patches": view}, {}, torch.arange(500)), Draws(0)).views[
        "patches"
    ]
    colourful = transform.plain(view.flatten(0, 1)).view_as(done)
    gray = (done != colourful).flatten(2).any(2)
    assert torch.equal(gray, gray[:, :1].expand_as(gray)) and abs(gray.float().mean() - 0.66) < 0.06


def test_four_turns_of_one_crop():
    transform = Rotate(size=12, colours="official")
    sample = transform(photo(), np.random.default_rng(0))
    assert sample.targets["rotation"].tolist() == [0, 1, 2, 3] and transform.shapes["rotated"] == (
        4,
        3,
        12,
        12,
    )
    for turns, copy in enumerate(sample.views["rotated"]):
        assert torch.equal(torch.rot90(copy, -turns, (1, 2)), sample.views["rotated"][0])
    done = transform.on_device(
        Batch({"rotated": sample.views["rotated"][None]}, {}, torch.arange(1)), Draws(0)
    ).views["rotated"][0]
    for turns, copy in enumerate(done):
        torch.testing.assert_close(torch.rot90(copy, -turns, (1, 2)), done[0], atol=1e-3, rtol=1e-3)


def test_turns_are_exact_and_those_of_the_official_code():
    """90°: flipud(transpose). The labels of a batch are uniform."""
    copies = Rotate(size=12)(photo(), np.random.default_rng(0)).views["rotated"].numpy()
    upright = copies[0].transpose(1, 2, 0)
    turned = [copy.transpose(1, 2, 0) for copy in copies]
    assert (turned[1] == np.flipud(upright.transpose(1, 0, 2))).all()
    assert (turned[2] == np.fliplr(np.flipud(upright))).all()
    assert (turned[3] == np.flipud(upright).transpose(1, 0, 2)).all()
    assert (np.rot90(turned[3]) == upright).all()
    assert (np.flipud(upright) == np.rot90(np.fliplr(upright), 2)).all(), "a vertical flip lies"


def test_one_turn():
    transform = Rotate(size=12, copies="one", min_area=1)
    upright = np.zeros((12, 12, 3), np.uint8)
    upright[:6] = 255
    seen = []
    for seed in range(80):
        sample = transform(Image.fromarray(upright), np.random.default_rng(seed))
        seen.append(int(sample.targets["rotation"]))
        undone = torch.rot90(sample.views["rotated"], -seen[-1], (1, 2)).float()
        assert undone[:, 0].mean() > 250 and undone[:, -1].mean() < 5
    assert set(seen) == {0, 1, 2, 3} and transform.shapes["rotated"] == (3, 12, 12)


class Pixels(Encoder):
    """The pixels themselves."""

    def __init__(self, dim):
        super().__init__()
        self.dim = dim

    def forward(self, images):
        return images.flatten(1)

    def maps(self, images):
        return {}


def test_jigsaw_predicts_the_order():
    torch.manual_seed(0)
    head = ConcatPatches(12, 9, out_dim=6)
    method = Jigsaw(Parts(Pixels(12), {"order": head}, {}, CrossEntropy(), images=5))
    patches, order = torch.randn(5, 9, 3, 2, 2), torch.tensor([0, 5, 2, 2, 1])
    output = method(Batch({"patches": patches}, {"order": order}, torch.arange(5)), PROGRESS)
    logits = head(patches.flatten(2))
    torch.testing.assert_close(output.loss, F.cross_entropy(logits, order))
    assert (
        output.metrics["accuracy"] == (logits.argmax(1) == order).float().mean()
        and output.keep == {}
    )
    assert method.at_start(64) == pytest.approx(math.log(6))


@pytest.mark.parametrize("copies", [1, 4])
def test_rotnet_predicts_the_turn_of_every_copy(copies):
    torch.manual_seed(0)
    head = Linear(12, out_dim=4)
    method = RotNet(Parts(Pixels(12), {"rotation": head}, {}, CrossEntropy(), images=5))
    shape = (5,) if copies == 1 else (5, 4)
    rotated, turns = torch.randn(*shape, 3, 2, 2), torch.randint(4, shape)
    output = method(Batch({"rotated": rotated}, {"rotation": turns}, torch.arange(5)), PROGRESS)
    logits = head(rotated.flatten(-3)).flatten(0, -2)
    torch.testing.assert_close(output.loss, F.cross_entropy(logits, turns.flatten()))
    assert output.metrics["accuracy"] == (logits.argmax(1) == turns.flatten()).float().mean()
    assert method.at_start(64) == pytest.approx(math.log(4))


@pytest.mark.parametrize(
    ("upright", "expected"), [(False, 0.25), (True, 1.0)], ids=["noise", "ramp"]
)
def test_turns_of_noise_stay_at_chance(upright, expected):
    """New images at every step: of noise alone, or of noise on a ramp that stands upright."""
    torch.manual_seed(0)
    head = Linear(75, out_dim=4)
    method = RotNet(Parts(Pixels(75), {"rotation": head}, {}, CrossEntropy(), images=64))
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    ramp = torch.linspace(-2, 2, 5).unsqueeze(1) if upright else 0.0
    truth, found = torch.arange(4).repeat(64, 1), []
    for _ in range(60):
        images = torch.randn(64, 3, 5, 5) + ramp
        copies = torch.stack([images.rot90(turns, (2, 3)) for turns in range(4)], 1)
        output = method(Batch({"rotated": copies}, {"rotation": truth}, truth), PROGRESS)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        found.append(output.metrics["accuracy"].item())
    assert np.mean(found[20:]) == pytest.approx(expected, abs=0.02)


def test_untrained_answers_cost_log_of_their_number():
    assert CrossEntropy().at_start(dim=4, negatives=1) == pytest.approx(math.log(4))
