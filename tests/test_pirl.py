"""PIRL's and NPID's views and wiring."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from sslkit.errors import RecipeError
from sslkit.interfaces import Batch, Draws, Encoder, Loss, NegativeSampler, Parts, Progress
from sslkit_plugins.heads import ConcatPatches, Linear
from sslkit_plugins.losses import LambdaNCE
from sslkit_plugins.methods.npid import Npid
from sslkit_plugins.methods.pirl import Jigsaw, JigsawRotation, Pirl, Rotation
from sslkit_plugins.samplers import MemoryBank
from sslkit_plugins.views import Augment


def photo(width=120, height=90, seed=0):
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    )


def coordinates(side):
    """A picture whose red is the column and whose green is the row."""
    grid = np.stack([*np.meshgrid(np.arange(side), np.arange(side)), np.zeros((side, side))], -1)
    return Image.fromarray(grid.astype(np.uint8))


# --- views


def test_ten_images_of_the_papers_sizes():
    sample = Jigsaw()(photo(400, 300), np.random.default_rng(0))
    assert {name: tuple(view.shape) for name, view in sample.views.items()} == {
        "image": (3, 224, 224),
        "patches": (9, 3, 64, 64),
    }
    assert all(view.dtype == torch.uint8 for view in sample.views.values()) and sample.targets == {}


@pytest.mark.parametrize(
    "transform",
    [
        Jigsaw(size=24, resize=48, patch=12),
        JigsawRotation(size=24, resize=48, patch=12),
        Rotation(size=24),
    ],
    ids=["jigsaw", "jigsaw_rotation", "rotation"],
)
def test_a_sample_is_a_function_of_image_and_generator(transform):
    first, again, other = (transform(photo(), np.random.default_rng(seed)) for seed in (0, 0, 1))
    for name in transform.views:
        assert torch.equal(first.views[name], again.views[name]) and not torch.equal(
            first.views[name], other.views[name]
        )
        assert tuple(first.views[name].shape) == transform.shapes[name]


class Fixed(Jigsaw):
    """Crops are the whole picture; one of coordinates tells where every patch was cut."""

    def boxes(self, width, height, rng):
        return [(0, 0, width, height)] * 2


def cut_positions(transform, side, count):
    """[count,K,2]: column and row of the upper left pixel of each patch, in the order shown."""
    rng = np.random.default_rng(0)
    patches = [
        transform(coordinates(side), rng).views["patches"][:, :2, 0, 0] for _ in range(count)
    ]
    return torch.stack(patches).long()


def test_patches_lie_anywhere_in_their_cells():
    """255 pixels in 3 x 3 cells of 85 with patches of 64: offsets 0 … 21, each equally often on
    each axis.
    """
    where = cut_positions(Fixed(size=8), 255, 1500)
    offset, cell = where % 85, where // 85
    assert offset.unique().tolist() == list(range(22))
    for axis in (0, 1):
        counts = torch.bincount(offset[..., axis].flatten(), minlength=22) / (9 * 1500)
        assert (counts - 1 / 22).abs().max() < 0.01
    assert abs(np.corrcoef(offset[..., 0].flatten(), offset[..., 1].flatten())[0, 1]) < 0.05
    assert (cell[..., 0] + 3 * cell[..., 1]).sort(1).values.eq(torch.arange(9)).all(), (
        "one patch from each cell"
    )


def orders(transform, side, count):
    cells = cut_positions(transform, side, count) // (side // transform.cutter.grid)
    return cells[..., 0] + transform.cutter.grid * cells[..., 1]


def test_all_orders_of_a_small_puzzle_are_drawn():
    drawn = orders(Fixed(size=8, grid=2, resize=16, patch=6), 16, 1200)
    kinds, counts = drawn.unique(dim=0, return_counts=True)
    assert len(kinds) == 24 and counts.min() > 25 and counts.max() < 80


def test_orders_of_nine_patches_are_uniform():
    drawn = orders(Fixed(size=8, resize=24, patch=6), 24, 3000)
    assert len(drawn.unique(dim=0)) > 2980, "hardly any of 362,880 comes twice"
    shares = F.one_hot(drawn).float().mean(0)
    assert (shares - 1 / 9).abs().max() < 0.03, "every cell in every place"


def test_a_limited_set_of_orders_is_told():
    transform = Fixed(size=8, resize=24, patch=6, permutations=5)
    allowed = transform.state()["permutations"].long()
    assert transform.num_targets == {"order": 5} and allowed.shape == (5, 9)
    rng, seen = np.random.default_rng(0), set()
    for _ in range(60):
        sample = transform(coordinates(24), rng)
        cells = sample.views["patches"][:, :2, 0, 0].long() // 8
        assert torch.equal(cells[:, 0] + 3 * cells[:, 1], allowed[sample.targets["order"]])
        seen.add(int(sample.targets["order"]))
    assert seen == set(range(5))
    assert Jigsaw().num_targets == {} and Jigsaw().state() == {}


def test_image_and_puzzle_are_cropped_independently():
    """A ramp tells where a crop lies by its mean."""
    ramp = Image.fromarray(
        np.repeat(np.linspace(0, 255, 200)[None, :, None], 100, 0).repeat(3, 2).astype(np.uint8)
    )
    transform, rng = Jigsaw(size=16, resize=24, patch=8), np.random.default_rng(0)
    samples = [transform(ramp, rng).views for _ in range(600)]
    image = np.array([s["image"].float().mean() for s in samples])
    puzzle = np.array([s["patches"].float().mean() for s in samples])
    assert image.std() > 20 and puzzle.std() > 5
    assert abs(np.corrcoef(image, puzzle)[0, 1]) < 0.13


def test_patch_larger_than_cell_is_a_sentence():
    with pytest.raises(
        RecipeError, match=r"transform\.patch  30 pixels do not fit into a cell of 21"
    ):
        Jigsaw(resize=64, patch=30)


def test_rotation_turns_after_the_flip():
    transform = Rotation(size=8)
    side = np.zeros((8, 8, 3), np.uint8)
    side[:4] = 255  # bright above: flips do not move it, turns do
    seen = []
    for seed in range(80):
        sample = transform(Image.fromarray(side), np.random.default_rng(seed))
        turned = sample.views["rotated"].float()[0]
        seen.append(int(sample.targets["rotation"]))
        if turned.max() - turned.min() == 255:
            undone = torch.rot90(turned, -seen[-1])
            assert undone[0].mean() > undone[-1].mean()
    assert all(8 < seen.count(turn) < 36 for turn in range(4))
    assert transform.num_targets == {"rotation": 4} and {cut.flip for cut in transform.crops} == {0}


def test_jigsaw_rotation_turns_the_puzzle_before_it_is_cut():
    """Three of four puzzles are turned; unturned, the picture is symmetric to flips of nothing."""
    picture = np.zeros((48, 48, 3), np.uint8)
    picture[:, :, 0] = np.linspace(0, 255, 48)[None, :]
    kinds = []
    for seed in range(120):
        whole = torch.from_numpy(picture).permute(2, 0, 1)
        puzzle = (
            JigsawRotation(size=8, resize=48, patch=8)
            .rotated(whole, np.random.default_rng(seed))
            .float()[0]
        )
        across, down = (
            puzzle[:, -1].mean() - puzzle[:, 0].mean(),
            puzzle[-1].mean() - puzzle[0].mean(),
        )
        kinds.append((bool(abs(across) > abs(down)), bool(across + down > 0)))
    assert len(set(kinds)) == 4 and min(kinds.count(kind) for kind in set(kinds)) > 15


# --- wiring


class Means(Encoder):
    """Channel means, through one linear layer; notes the shape of what it is shown."""

    dim = 5

    def __init__(self):
        super().__init__()
        self.project = nn.Linear(3, 5)
        self.shown = []

    def forward(self, images):
        self.shown.append(tuple(images.shape))
        return self.project(images.mean((2, 3)))

    def maps(self, images):
        return {}


class Ledger(NegativeSampler):
    """Notes what is asked of it."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def draw(self, index, draws, terms=1):
        self.calls.append(("draw", terms))
        return ("negatives", terms)

    def recall(self, index):
        self.calls.append(("recall", index.tolist()))
        return F.normalize(torch.ones(len(index), 4), dim=1)

    def update(self, index, keys):
        self.calls.append(("update", index.tolist(), keys))


class Seen(Loss):
    def forward(self, prediction, target, negatives=None):
        self.got = (prediction, target, negatives)
        return prediction.sum()


def batch(rows=3):
    torch.manual_seed(1)
    return Batch(
        {"image": torch.randn(rows, 3, 8, 8), "patches": torch.randn(rows, 9, 3, 4, 4)},
        {},
        torch.arange(rows) + 2,
    )


PROGRESS = Progress(0, 10, 0, 1, Draws(0))


def pirl(sampler, loss, cls=Pirl):
    torch.manual_seed(0)
    heads = {"image": Linear(5, out_dim=4), "patches": ConcatPatches(5, 9, out_dim=4, patch_dim=4)}
    if cls is Npid:
        del heads["patches"]
    return cls(Parts(Means(), heads, {"image": sampler}, loss, images=20))


def test_the_terms_of_the_loss_are_told_by_view():
    loss = Seen()
    loss.terms = torch.tensor([3.0, 1.0])
    metrics = pirl(Ledger(), loss)(batch(), PROGRESS).metrics
    assert (metrics["loss_patches"], metrics["loss_image"]) == (3, 1)


def test_pretext_view_goes_first_and_both_terms_meet_the_memory():
    sampler, loss = Ledger(), Seen()
    method = pirl(sampler, loss)
    output = method(batch(), PROGRESS)
    assert method.encoder.shown == [(27, 3, 4, 4), (3, 3, 8, 8)], (
        "nine patches of each image in one pass, then the images"
    )
    assert sampler.calls == [("recall", [2, 3, 4]), ("draw", 2)], (
        "nothing is written in the forward pass"
    )
    prediction, target, negatives = loss.got
    features = method.encode(batch().views["image"])
    torch.testing.assert_close(prediction[1], method.heads["image"](features))
    torch.testing.assert_close(
        prediction[0], method.heads["patches"](method.encode(batch().views["patches"]))
    )
    assert negatives == ("negatives", 2) and target.shape == (3, 4)
    assert output.keep.keys() == {"image"} and not output.keep["image"].requires_grad
    torch.testing.assert_close(output.keep["image"], prediction[1].detach())
    assert set(output.metrics) == {"match"}
    assert set(output.feature_std) == {"patches", "image"}
    assert output.metrics["match"] == pytest.approx(
        F.cosine_similarity(prediction[1], target).mean().item(), abs=1e-6
    )
    reported = [*output.metrics.values(), *output.feature_std.values()]
    assert not any(value.requires_grad for value in reported)


def test_memory_is_written_once_with_f():
    sampler = Ledger()
    method = pirl(sampler, Seen())
    output = method(batch(), PROGRESS)
    sampler.calls.clear()
    method.after_step(torch.tensor([2, 3, 4]), output.keep, PROGRESS)
    assert sampler.calls == [("update", [2, 3, 4], output.keep["image"])]


@pytest.mark.parametrize(("share", "silent"), [(0.0, "patches"), (1.0, "image")])
def test_lambda_of_0_and_1_leave_one_head_without_gradient(share, silent):
    method = pirl(MemoryBank(4, 20, negatives=6), LambdaNCE(lambda_=share))
    before = method.sampler.bank.clone()
    method(batch(), PROGRESS).loss.backward()
    for name, head in method.heads.items():
        moved = max(parameter.grad.abs().max().item() for parameter in head.parameters())
        assert (moved == 0) == (name == silent)
    assert torch.equal(method.sampler.bank, before)


def test_bank_rows_keep_unit_norm_and_only_those_of_the_batch_move():
    method = pirl(MemoryBank(4, 20, negatives=6), LambdaNCE())
    before = method.sampler.bank.clone()
    output = method(batch(), PROGRESS)
    method.after_step(batch().index, output.keep, PROGRESS)
    moved = (method.sampler.bank != before).any(1).nonzero().flatten().tolist()
    assert moved == [2, 3, 4]
    torch.testing.assert_close(method.sampler.bank.norm(dim=1), torch.ones(20))
    keys = F.normalize(output.keep["image"], dim=1)
    expected = F.normalize(0.5 * before[2:5] + 0.5 * keys, dim=1)
    torch.testing.assert_close(method.sampler.bank[2:5], expected)


def test_npid_is_the_image_term_of_pirl():
    """λ = 0 of the same weights and negatives shared by the terms: the same loss, hence the same
    method.
    """
    common = {"negatives": 6, "draws": "image"}
    both = pirl(MemoryBank(4, 20, **common), LambdaNCE(lambda_=0, form="info_nce"))
    alone = pirl(MemoryBank(4, 20, **common), LambdaNCE(form="info_nce"), Npid)
    alone.encoder.load_state_dict(both.encoder.state_dict())
    alone.heads.load_state_dict(
        {k: v for k, v in both.heads.state_dict().items() if k.startswith("image")}
    )
    alone.sampler.load_state_dict(both.sampler.state_dict())
    images = replace(batch(), views={"image": batch().views["image"]})
    first = both(batch(), replace(PROGRESS, draws=Draws(5)))
    second = alone(images, replace(PROGRESS, draws=Draws(5)))
    assert alone.encoder.shown == [(3, 3, 8, 8)]
    assert set(second.metrics) == {"match"} and set(second.feature_std) == {"image"}
    torch.testing.assert_close(first.loss, second.loss)
    assert Npid.reads == {"image": "image"} and Npid.stores == ("image",)


def test_pirl_without_an_image_is_a_sentence():
    with pytest.raises(RecipeError, match="needs a view 'image'"):
        heads = {"patches": ConcatPatches(5, 9)}
        Pirl(Parts(Means(), heads, {"image": Ledger()}, Seen(), images=20))


def test_the_first_loss_is_that_of_random_vectors_and_bank():
    """Four numbers, six negatives, τ = 2: ln(1 + 6) + 1/(2·4·4); one more for NCE."""
    loss = LambdaNCE(form="info_nce", temperature=2)
    method = pirl(MemoryBank(4, 20, negatives=6), loss)
    assert method.at_start(64) == pytest.approx(math.log(7) + 0.03, abs=0.03)
    method = pirl(MemoryBank(4, 20, negatives="all"), LambdaNCE(temperature=2))
    assert method.at_start(64) == pytest.approx(math.log(20) + 1.03, abs=0.05)


def test_augment_feeds_npid():
    transform = Augment(size=8, colours="npid")
    views = {
        "image": torch.stack(
            [transform(photo(seed=i), np.random.default_rng(i)).views["image"] for i in range(3)]
        )
    }
    done = transform.on_device(Batch(views, {}, torch.arange(3)), Draws(0))
    output = pirl(MemoryBank(4, 20, negatives=6), LambdaNCE(), Npid)(done, PROGRESS)
    assert math.isfinite(output.loss.item())
