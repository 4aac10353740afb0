"""BiGAN: its loss, its turns, its nets."""

import math

import pytest
import torch

from sslkit.errors import RecipeError
from sslkit.interfaces import Batch, Draws, Parts, Progress
from sslkit_plugins.encoders.alexnet import AlexNet
from sslkit_plugins.heads import Linear
from sslkit_plugins.losses import Binary
from sslkit_plugins.methods.bigan import BiGan, Discriminator, Generator

SIDE, LATENT = 16, 6


def progress(step):
    return Progress(step, 10, 0, 1, Draws(0, step))


@pytest.fixture
def bigan():
    torch.manual_seed(0)
    shape = (3, SIDE, SIDE)
    encoder = AlexNet(3, width=0.5, mean=(0.5,) * 3, std=(0.5,) * 3)
    heads = {
        "latent": Linear(encoder.dim, out_dim=LATENT),
        "generator": Generator(LATENT, shape, channels=4),
        "discriminator": Discriminator(LATENT, shape, channels=4),
    }
    return BiGan(Parts(encoder, heads, {}, Binary(), 10))


def batch():
    views = torch.rand(8, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Batch({"image": views}, {}, torch.arange(8))


def gradients(method):
    """The parts whose weights have gradients."""
    parts = {"encoder": method.encoder, **method.heads}
    found = set()
    for name, part in parts.items():
        grads = {value.grad is not None for value in part.parameters()}
        assert len(grads) == 1, name
        found |= {name} if grads == {True} else set()
    return found


def test_logits_of_zero_lose_log_2(bigan):
    zeros = torch.zeros(5, dtype=torch.float64)
    for loss in bigan.losses(zeros, zeros):
        assert math.isclose(loss.item(), math.log(2), rel_tol=1e-12)
    for step in (0, 1):
        output = bigan(batch(), progress(step))
        found = [
            output.loss,
            output.metrics["loss_discriminator"],
            output.metrics["loss_generator"],
        ]
        assert all(math.isclose(loss.item(), math.log(2), rel_tol=1e-6) for loss in found)
    assert math.isclose(bigan.at_start(8), math.log(2))


def test_losses_of_logits_by_hand(bigan):
    """D of a pair is σ(logit): -log σ(2) of real pairs, -log(1 - σ(-1)) of generated ones."""
    real, fake = torch.tensor([2.0]).double(), torch.tensor([-1.0]).double()
    loss_d, loss_eg = bigan.losses(real, fake)
    assert math.isclose(loss_d, (math.log1p(math.exp(-2)) + math.log1p(math.exp(-1))) / 2)
    assert math.isclose(loss_eg, (math.log1p(math.exp(2)) + math.log1p(math.exp(1))) / 2)


def test_the_best_discriminator_measures_the_jensen_shannon_gap(bigan):
    """V(D*) = 2 JSD - log 4 on a discrete joint distribution; the loss is -V/2."""
    random = torch.Generator().manual_seed(0)
    p, q = (torch.rand(12, generator=random, dtype=torch.float64) for _ in range(2))
    p, q = p / p.sum(), q / q.sum()
    logits = p.log() - q.log()  # σ(logit) = p / (p + q)
    each = [bigan.loss(row.view(1), torch.ones(1)) for row in logits]
    others = [bigan.loss(row.view(1), torch.zeros(1)) for row in logits]
    value = -(p @ torch.stack(each) + q @ torch.stack(others))
    mean = (p + q) / 2
    divergence = (p @ (p / mean).log() + q @ (q / mean).log()) / 2
    torch.testing.assert_close(value, 2 * divergence - math.log(4), rtol=0, atol=1e-14)


def test_each_turn_leaves_the_other_side_without_gradients(bigan):
    torch.nn.init.normal_(bigan.heads["discriminator"].last.weight)
    bigan(batch(), progress(0)).loss.backward()
    assert gradients(bigan) == {"discriminator"}
    bigan.zero_grad()
    bigan(batch(), progress(1)).loss.backward()
    assert gradients(bigan) == {"encoder", "latent", "generator"}
    assert all(value.requires_grad for value in bigan.parameters())


def test_an_optimizer_step_moves_one_side_only(bigan):
    torch.nn.init.normal_(bigan.heads["discriminator"].last.weight)
    optimizer = torch.optim.Adam(bigan.parameters(), weight_decay=0.1)
    for step, moving in [(0, True), (1, False), (2, True), (3, False)]:
        before = {name: value.clone() for name, value in bigan.named_parameters()}
        optimizer.zero_grad()
        bigan(batch(), progress(step)).loss.backward()
        optimizer.step()
        for name, value in bigan.named_parameters():
            is_d = name.startswith("heads.discriminator")
            assert torch.equal(value, before[name]) == (is_d != moving), name


def test_discriminator_steps_precede_one_of_the_others(bigan):
    bigan.discriminator_steps = 2
    torch.nn.init.normal_(bigan.heads["discriminator"].last.weight)
    turns = []
    for step in range(6):
        bigan.zero_grad()
        bigan(batch(), progress(step)).loss.backward()
        turns.append(len(gradients(bigan)))
    assert turns == [1, 1, 3, 1, 1, 3]


def test_both_losses_are_reported_in_both_turns(bigan):
    torch.nn.init.normal_(bigan.heads["discriminator"].last.weight)
    for step, name in enumerate(["loss_discriminator", "loss_generator"]):
        output = bigan(batch(), progress(step))
        assert set(output.metrics) == {
            "loss_discriminator",
            "loss_generator",
            "accuracy_discriminator",
        }
        assert torch.equal(output.metrics[name], output.loss.detach())


def test_latent_vectors_are_uniform_and_differ_by_step(bigan, monkeypatch):
    seen = []

    def spy(latent):
        seen.append(latent)
        return torch.zeros(len(latent), 3, SIDE, SIDE)

    monkeypatch.setattr(bigan, "generated", spy)
    for step in range(60):
        bigan(batch(), progress(step))
    latent = torch.cat(seen)
    assert latent.shape == (480, LATENT) and latent.min() < -0.99 and latent.max() > 0.99
    assert abs(latent.mean()) < 0.03 and abs(latent.var() - 1 / 3) < 0.02
    assert len(latent.unique(dim=0)) == 480


def test_codes_and_images_have_the_range_of_their_counterparts(bigan):
    views = batch().views["image"]
    assert bigan.encoded(100 * views).abs().max() <= 1
    drawn = bigan.generated(torch.rand(8, LATENT) * 2 - 1)
    assert drawn.shape == views.shape and drawn.abs().max() <= 1, "mean and std are 0.5"
    with torch.no_grad():
        torch.nn.init.zeros_(bigan.heads["generator"].last.weight)
        torch.nn.init.constant_(bigan.heads["generator"].last.bias, 50.0)
        white = bigan.generated(torch.zeros(8, LATENT))
    torch.testing.assert_close(white, torch.ones_like(white))


def test_the_discriminator_reads_both_members_of_a_pair(bigan):
    net = bigan.heads["discriminator"].eval()
    torch.nn.init.normal_(net.last.weight)
    views, latent = batch().views["image"].requires_grad_(), torch.rand(8, LATENT).requires_grad_()
    net(views, latent).sum().backward()
    assert (views.grad != 0).any() and (latent.grad != 0).any()


@pytest.mark.parametrize("side, ways", [(8, 0), (16, 1), (64, 3)])
def test_the_nets_fit_images_of_powers_of_two(side, ways):
    generator = Generator(LATENT, (3, side, side), channels=2)
    discriminator = Discriminator(LATENT, (3, side, side), channels=2, hidden_norm=False)
    drawn = generator(torch.rand(4, LATENT))
    assert len(generator.layers) == len(discriminator.layers) == ways
    assert drawn.shape == (4, 3, side, side) and drawn.min() >= 0 and drawn.max() <= 1
    assert discriminator(drawn, torch.rand(4, LATENT)).shape == (4,)


@pytest.mark.parametrize("side", [4, 12, 48, 50])
def test_other_sizes_are_refused(side):
    for net in (Generator, Discriminator):
        with pytest.raises(RecipeError, match=f"needs images of 8, 16, 32, 64, … px, not {side}"):
            net(LATENT, (3, side, side))


def test_the_loss_widens_half_precision_and_leaves_float64():
    logits, target = torch.tensor([1.0, -2.0]), torch.tensor([1, 0])
    exact = (math.log1p(math.exp(-1)) + math.log1p(math.exp(-2))) / 2
    assert Binary()(logits.bfloat16(), target).dtype == torch.float32
    assert Binary()(logits.double(), target).dtype == torch.float64
    assert math.isclose(Binary()(logits.double(), target).item(), exact, rel_tol=1e-12)
