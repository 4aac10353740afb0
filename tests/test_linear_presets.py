"""Presets of the linear classifier: numbers used, heads, pools, crops, LARS."""

import copy
import math

import pytest
import torch
from noise import CPU, Noise, Tiny, made, network
from torch import nn

from sslkit import recipe
from sslkit.errors import RecipeError, SslkitError
from sslkit.evaluation import store
from sslkit.evaluation.candidates import Network, RawPixels, normaliser
from sslkit.interfaces import Encoder, Normalisation
from sslkit_plugins.evaluations import classifiers
from sslkit_plugins.evaluations.classifiers import (
    Reader,
    batch_of,
    classifier,
    max_pool,
    optimizer_of,
    predict,
    ten_crops,
    train,
)
from sslkit_plugins.evaluations.linear import Linear
from sslkit_plugins.evaluations.protocols import PRESETS

PUBLISHED = {
    "pirl": (0.01, 5e-4, 28),
    "moco": (30, 0, 100),
    "swav": (0.3, 1e-6, 100),
    "simclr": (0.1, 1e-6, 90),
    "byol": (0.2, 0, 80),
    "simsiam": (0.1, 0, 90),
    "barlow": (0.3, 1e-6, 100),
    "vicreg": (0.02, 1e-6, 100),
    "dino": (0.001, 0, 100),
    "mae": (0.1, 0, 90),
    "lightly": (0.1, 0, 90),
    "alexnet": (0.01, 1e-5, 36),
}
"""Rate, weight decay and epochs of the sources."""


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_numbers_of_their_sources(name):
    found = PRESETS[name]
    assert (found.lr, found.weight_decay, found.epochs) == PUBLISHED[name]
    assert ": " in found.source


@pytest.mark.parametrize(
    ("name", "count", "batch", "rate"),
    [
        ("simclr", 10**6, 4096, 1.6),
        ("dino", 10**6, 1024, 0.004),
        ("mae", 10**6, 16_384, 6.4),
        ("moco", 10**6, 256, 30),
        ("moco", 64, 64, 30),
        ("mae", 512, 512, 0.2),
        ("pirl", 128, 128, 0.005),
    ],
)
def test_rates_scale_with_the_batch_where_the_source_does(name, count, batch, rate):
    size, lr = batch_of(PRESETS[name], count)
    assert size == batch and lr == pytest.approx(rate)


def rates(name, steps, per_epoch):
    """Rates of each step, relative to the peak."""
    heads = nn.ModuleDict({"features": classifier(4, 4, 3, PRESETS[name])})
    optimizer, schedule = optimizer_of(heads, PRESETS[name], 1.0, per_epoch)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_rates_follow_the_schedules():
    moco = rates("moco", 200, 2)
    assert [moco[step] for step in (0, 119, 120, 159, 160)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    swav = rates("swav", 200, 2)
    assert swav[100] == swav[101] == pytest.approx(0.5), "one rate per epoch"
    simclr = rates("simclr", 180, 2)
    assert simclr[90] == pytest.approx(0.5) and simclr[91] < simclr[90], "a rate per step"
    mae = rates("mae", 180, 2)
    assert mae[0] == 0 and mae[10] == 0.5 and mae[20] == 1 and mae[100] == pytest.approx(0.5)


def test_given_epochs_keep_the_fractions_of_drops():
    found = Linear(preset="moco", epochs=10).protocol
    heads = nn.ModuleDict({"features": classifier(4, 4, 3, found)})
    _, schedule = optimizer_of(heads, found, 1.0, 1)
    assert dict(schedule.milestones) == {6: 1, 8: 1}


@pytest.mark.parametrize("name", PRESETS)
def test_classifiers_begin_as_in_the_source(name):
    torch.manual_seed(0)
    protocol = PRESETS[name]
    norm, last = classifier(500, 500, 20, protocol)
    rows = torch.randn(64, 500)
    if protocol.initial == "zeros":
        loss = nn.functional.cross_entropy(last(norm(rows)), torch.arange(64) % 20)
        assert loss.item() == pytest.approx(math.log(20)), "a zero head knows nothing"
    if protocol.initial in ("normal", "truncated"):
        assert last.weight.std().item() == pytest.approx(0.01, rel=0.05)
        assert not last.bias.any()
    affine = {"none": None, "affine": True, "fixed": False}[protocol.norm]
    assert getattr(norm, "affine", None) is affine


def test_heads_are_independent():
    """A loss on one head, or another head's zeros, changes no other gradient."""
    probe = made()
    read = Reader(probe.candidates[0], PRESETS["pirl"], layers=True)
    heads = train(probe, read, PRESETS["pirl"].__class__("x", 0.1, 1, norm="affine"), 0).train()
    (images, index), *_ = probe.images(probe.train)
    labels = torch.as_tensor(probe.train.labels)[index]

    def gradient():
        heads.zero_grad()
        losses = [
            nn.functional.cross_entropy(heads[name](rows), labels)
            for name, rows in read(images).items()
        ]
        torch.stack(losses).sum().backward()
        return heads["conv"][1].weight.grad.clone()

    before = gradient()
    nn.init.zeros_(heads["features"][1].weight)
    assert torch.equal(before, gradient())


# --------------------------------------------------------------------------------------- LARS


def moved(name, gradient):
    """Weights and bias before and after one step with a fixed gradient at rate 1."""
    torch.manual_seed(0)
    head = classifier(6, 6, 4, PRESETS[name])
    with torch.no_grad():
        head[1].bias.fill_(0.5)
    optimizer, _ = optimizer_of(nn.ModuleDict({"features": head}), PRESETS["simsiam"], 1.0, 1)
    if name == "mae":
        optimizer, _ = optimizer_of(nn.ModuleDict({"features": head}), PRESETS[name], 1.0, 1)
        for group in optimizer.param_groups:
            group["lr"] = 1.0
    last = head[1]
    before = last.weight.detach().clone(), last.bias.detach().clone()
    last.weight.grad = torch.full_like(last.weight, gradient)
    last.bias.grad = torch.full_like(last.bias, gradient)
    optimizer.step()
    return before, (last.weight.detach(), last.bias.detach())


@pytest.mark.parametrize("name", ["simsiam", "mae"])
def test_lars_steps_by_the_norm_of_the_weights(name):
    """|Δw| = 0.001 · |w| whatever the gradient; MAE's biases take plain steps."""
    for gradient in (0.1, 10.0):
        (weight, bias), (new_weight, new_bias) = moved(name, gradient)
        step = (new_weight - weight).norm()
        torch.testing.assert_close(step, 0.001 * weight.norm(), rtol=1e-3, atol=0)
        expected = 0.001 * bias.norm() if name == "simsiam" else torch.tensor(2 * gradient)
        torch.testing.assert_close((new_bias - bias).norm(), expected, rtol=1e-3, atol=0)


# --------------------------------------------------------------------------- pools and crops


@pytest.mark.parametrize(
    ("name", "channels", "side", "numbers"),
    [
        ("conv1", 96, 55, 9600),
        ("conv2", 256, 27, 9216),
        ("conv3", 384, 13, 9600),
        ("conv4", 384, 13, 9600),
        ("conv5", 256, 13, 9216),
        ("conv1", 96, 15, 9600),
        ("conv5", 256, 3, 2304),
    ],
)
def test_maps_of_alexnet_are_pooled_as_in_the_probes(name, channels, side, numbers):
    assert max_pool(name, torch.zeros(2, channels, side, side)).shape == (2, numbers)


def test_ten_crops_are_corners_centre_and_their_mirrors():
    images = torch.arange(16).view(1, 1, 4, 4)
    crops = ten_crops(images, 2)
    first = [crop[0, 0, 0, 0].item() for crop in crops]
    assert first == [0, 2, 8, 10, 5, 1, 3, 9, 11, 6] and len(crops) == 10


def test_logits_of_ten_crops_are_their_mean():
    """An image whose crops are all the same has the logits of one crop."""
    probe = made(val=Noise(3))
    probe.val.arrays[:] = probe.val.arrays[:, :, :1, :1]
    torch.manual_seed(0)
    ten, one = PRESETS["alexnet"], Linear(preset="alexnet").protocol
    one = type(ten)(ten.source, ten.lr, ten.epochs, norm="fixed", test_crops=1)
    heads = nn.ModuleDict({"features": classifier(4, 4, 3, ten)}).eval()
    candidate = probe.candidates[0]
    found = [
        predict(probe, Reader(candidate, protocol, layers=False), heads)["features"]
        for protocol in (ten, one)
    ]
    torch.testing.assert_close(*found)


# ------------------------------------------------------------------------------ class tokens


class Blocks(Tiny):
    """A transformer of three blocks, whose tokens are numbered: block · 100 + token."""

    prefix_tokens = 1

    def __init__(self, width):
        super().__init__()
        self.width = width

    def blocks(self, images, count):
        numbers = torch.arange(5.0).view(1, 5, 1).expand(len(images), 5, self.width)
        return [100 * block + numbers for block in (1, 2, 3)][-count:]


def of(encoder: Encoder) -> Network:
    plain = normaliser(Normalisation(), 8, CPU)
    return Network("trained", encoder, plain, size=16, device=CPU)


def test_dino_reads_class_tokens_of_the_last_blocks():
    images = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    narrow = Reader(of(Blocks(4)), PRESETS["dino"], layers=False)(images)["features"]
    assert narrow[0].unique().tolist() == [100, 200, 300] and narrow.shape == (2, 12)
    wide = Reader(of(Blocks(768)), PRESETS["dino"], layers=False)(images)["features"]
    assert wide.shape == (2, 1536) and wide[0].unique().tolist() == [300, 302.5]


def test_a_vision_transformer_returns_its_last_blocks():
    from sslkit_plugins.encoders.timm_encoder import Timm

    encoder = Timm((160,), 3, model="test_vit").eval()
    images = torch.randn(1, 3, 160, 160)
    with torch.no_grad():
        blocks = encoder.blocks(images, 2)
        torch.testing.assert_close(blocks[-1], encoder.tokens(images))
    assert len(blocks) == 2 and blocks[0].shape == blocks[1].shape
    with pytest.raises(SslkitError, match="has no blocks of tokens; use a vision transformer"):
        Timm((32,), 3, model="test_resnet").blocks(images, 2)


# --------------------------------------------------------------------------------- as a whole


def result(candidates=None, **options):
    choice = recipe.read_evaluation("linear", options)
    probe = made(candidates)
    return store.run(choice, probe)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_trains_and_leaves_the_encoder_alone(name):
    probe = made([network(), RawPixels()])
    before = copy.deepcopy(probe.candidates[0].encoder.state_dict())
    choice = recipe.read_evaluation("linear", {"preset": name, "epochs": "1", "layers": "all"})
    found = store.run(choice, probe)
    after = probe.candidates[0].encoder.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    protocol = found["protocol"]
    rows = [(entry["row"], entry["candidate"]) for entry in found["entries"]]
    assert rows[:3] == [("features", "trained"), ("conv", "trained"), (None, "raw pixels")]
    assert (protocol["preset"], protocol["replaced"]) == (name, ["epochs"])
    assert protocol["source"] == PRESETS[name].source and protocol["batch_size"] == 30
    note = f"fewer than {PRESETS[name].batch_size:,} (preset {name})"
    assert note in protocol["notes"][0] and "all 30 training images" in protocol["notes"][0]


def test_what_the_encoder_lacks_is_said():
    said = result([network(), RawPixels()], preset="dino", epochs="1")["protocol"]["notes"]
    assert "trained: the encoder has no class tokens, so its features are classified" in said


def test_given_options_win_over_the_preset():
    options = {"lr": "0.5", "batch_size": "10", "weight_decay": "0.1", "seeds": "2"}
    protocol = result([network()], preset="mae", epochs="1", **options)["protocol"]
    found = {name: protocol[name] for name in ("lr", "batch_size", "weight_decay", "seeds")}
    assert found == {"lr": 0.5, "batch_size": 10, "weight_decay": 0.1, "seeds": 2}
    assert protocol["replaced"] == ["batch_size", "epochs", "lr", "weight_decay"]
    assert not protocol["notes"], "ten images are a batch that was asked for"


def test_sgd_is_the_preset_pirl_with_three_seeds():
    one, other = Linear(solver="sgd"), Linear(preset="pirl")
    assert (one.seeds, other.seeds) == (3, 1)
    assert batch_of(one.protocol, 10**6) == batch_of(other.protocol, 10**6) == (256, 0.01)
    assert batch_of(one.protocol, 64) == (64, 0.01)


def test_a_preset_and_another_solver_are_refused():
    with pytest.raises(RecipeError, match="leave out one of --preset and --solver"):
        Linear(preset="moco", solver="lbfgs")
    with pytest.raises(RecipeError, match="--batch-size  is an option of --solver sgd only"):
        Linear(batch_size=4)


def test_large_batches_are_embedded_in_pieces(monkeypatch):
    monkeypatch.setattr(classifiers, "EMBEDDED", 7)
    probe, seen = made(), []
    embed = probe.candidates[0].embed

    def spy(images, *, layers=False):
        seen.append(len(images))
        return embed(images, layers=layers)

    whole = embed(next(probe.images(probe.train))[0])["features"]
    probe.candidates[0].embed = spy
    read = Reader(probe.candidates[0], PRESETS["mae"], layers=False)
    pieces = read(next(probe.images(probe.train))[0])["features"]
    assert seen == [7, 7, 7, 7, 2]
    torch.testing.assert_close(pieces, whole)


def test_large_batches_are_read_in_pieces(monkeypatch):
    def batches():
        probe = made()
        return list(probe.augmented(probe.train, batch_size=30, steps=2, seed=0, size=16))

    whole = batches()
    monkeypatch.setattr("sslkit.evaluation.probe.PIECE", 8)
    monkeypatch.setattr("sslkit.evaluation.images.PIECE", 8)
    for (images, index), (others, rows) in zip(whole, batches(), strict=True):
        assert torch.equal(images, others) and torch.equal(index, rows)
