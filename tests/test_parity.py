"""Parity with VISSL, PIRL's code, from the facts of its `nce_loss.py` and its configurations.

Golden losses worked out by hand, gradients, whole steps and the schedule. The references are
written here, in float64, from closed forms. Views are in `test_parity_views.py`.
"""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sslkit import recipe
from sslkit.interfaces import Batch, Draws, Encoder, Parts, Progress
from sslkit.training.optim import make_optimizer, make_schedule
from sslkit_plugins.heads import ConcatPatches, Linear
from sslkit_plugins.losses import LambdaNCE
from sslkit_plugins.methods.pirl import Pirl
from sslkit_plugins.samplers import BankNegatives, MemoryBank

RECIPES = Path(__file__).parents[1] / "recipes" / "imagenet"
IMAGENET = 1_281_167
TAU = 0.07

# ---------------------------------------------------------------------------------- golden losses

BANK = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-1.0, 0.0]])
"""The image is row 1, its negatives are rows 2 and 3."""
OUTPUTS = torch.tensor([[[2.0, 0.0]], [[0.0, 3.0]]])
"""g of the pretext view points along (1, 0), f of the image along (0, 1).

With τ = 1, e of the pretext view is exp(0.6) = 1.8221, exp(0) = 1, exp(-1) = 0.3679; e of the image
is exp(0.8) = 2.2255, exp(1) = 2.7183, exp(0) = 1. ē = 3.1900 / 3 = 1.0633, so K = 2ē = 2.1267.
"""

GOLDEN = {
    # ln(3.1900/1.8221) = 0.5600 and ln(5.9438/2.2255) = 0.9824
    "info_nce": (0.5600, 0.9824),
    # ln(3.9488/1.8221) + ln(3.1267/2.1267) + ln(2.4946/2.1267) = 0.7734 + 0.3854 + 0.1596
    # ln(4.3522/2.2255) + ln(4.8449/2.1267) + ln(3.1267/2.1267) = 0.6707 + 0.8234 + 0.3854
    "official": (1.3184, 1.8795),
    # K = 1.3679, 3.7183: 0.5600 + ln(2.3679/1.3679) + ln(1.7358/1.3679) = 0.5600 + 0.5487 + 0.2382
    # 0.9824 + ln(6.4366/3.7183) + ln(4.7183/3.7183) = 0.9824 + 0.5487 + 0.2382
    "paper": (1.3469, 1.7693),
}
"""Form → terms of the pretext view and of the image."""


@pytest.mark.parametrize("share", [0.5, 0.25])
@pytest.mark.parametrize("form", GOLDEN)
def test_golden_losses(form, share):
    loss = LambdaNCE(lambda_=share, temperature=1.0, form=form)
    negatives = BankNegatives(BANK, torch.tensor([[[2, 3]]]), torch.tensor([1]))
    found = loss(OUTPUTS, BANK[1:2], negatives).item()
    pretext, image = GOLDEN[form]
    assert loss.terms.tolist() == pytest.approx([pretext, image], abs=1e-4)
    assert found == pytest.approx(share * pretext + (1 - share) * image, abs=1e-4)


def drawn(images=400, rows=16, dim=32, negatives=64, seed=0):
    """Bank, index [B], picks [2,B,M] and outputs [2,B,D]: small, and random."""
    generator = torch.Generator().manual_seed(seed)
    bank = F.normalize(torch.randn(images, dim, generator=generator), dim=1)
    picks = torch.randint(images, (2, rows, negatives), generator=generator)
    return bank, torch.arange(rows), picks, torch.randn(2, rows, dim, generator=generator)


def probabilities(bank, index, picks, outputs):
    """exp(cos / τ) as VISSL scores them, the positive first: float64 [2,B,1+M]."""
    unit = outputs.double() / outputs.double().norm(dim=-1, keepdim=True)
    own = index.view(1, -1, 1).expand(2, -1, 1)
    rows = bank.double()[torch.cat([own, picks], 2)]
    return torch.exp((unit.unsqueeze(2) * rows).sum(-1) / TAU)


def test_the_official_form_is_a_binary_cross_entropy():
    """Logits cos/τ - log(M·ē), target 1 for the positive; the sum over 1+M, the mean over B."""
    bank, index, picks, outputs = drawn()
    scores = probabilities(bank, index, picks, outputs)
    logits = scores.log() - math.log(picks.shape[2]) - scores[0].mean().log()
    target = torch.zeros_like(logits)
    target[..., 0] = 1
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    expected = 0.5 * entropy.sum(2).mean(1).sum()
    found = LambdaNCE()(outputs, bank[index], BankNegatives(bank, picks, index))
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_epsilon_of_vissls_nce_is_not_seen():
    """VISSL: h = P / (P + M/n + ε) with P = e/Z and Z = n·ē; ours leaves ε out."""
    bank, index, picks, outputs = drawn()
    scores, epsilon = probabilities(bank, index, picks, outputs), torch.finfo(torch.float32).eps
    for images, count in [(IMAGENET, 32_000), (400, 64)]:
        chance = count / images
        p = scores / (images * scores[0].mean())
        pull = -torch.log(p[..., 0] / (p[..., 0] + chance + epsilon))
        push = -torch.log(chance / (p[..., 1:] + chance + epsilon)).sum(-1)
        exact = F.softplus(math.log(chance) - p.log())[..., 0]
        exact = exact + F.softplus(p[..., 1:].log() - math.log(chance)).sum(-1)
        assert (pull + push).mean().item() == pytest.approx(exact.mean().item(), rel=1e-3)


def test_a_rank_averaged_bank_has_another_constant():
    """VISSL's ranks begin with the mean of 32 banks: norm 1/√32 = 0.177, ē = 1.03, Z = 1.31
    million.
    Ours begin with one bank of unit norm: ē = exp(1/(2·128·τ²)) = 2.22, Z = 2.84 million.
    """
    generator = torch.Generator().manual_seed(0)
    banks = F.normalize(torch.rand(32, 2000, 128, generator=generator) * 2 - 1, dim=-1)
    outputs = torch.randn(2, 64, 128, generator=generator)
    picks = torch.randint(2000, (2, 64, 1000), generator=generator)
    found = {}
    for name, bank in {"averaged": banks.mean(0), "one": banks[0]}.items():
        loss, index = LambdaNCE(), torch.arange(64)
        loss(outputs, bank[index], BankNegatives(bank, picks, index))
        found[name] = (bank.norm(dim=1).mean().item(), loss.log_mean_exp.exp().item())
    assert found["averaged"] == pytest.approx((0.177, 1.025), abs=0.005)
    assert found["one"] == pytest.approx((1.0, 2.219), abs=0.05)
    constants = [IMAGENET * constant / 1e6 for _, constant in found.values()]
    assert constants == pytest.approx([1.31, 2.84], abs=0.07)


@pytest.mark.parametrize("form", ["official", "info_nce"])
def test_gradients(form):
    """d term / d v = [-(1-h₀)·m₀ + Σⱼ hⱼ·mⱼ] / (τ·B), v of unit norm, the bank without gradient."""
    bank, index, picks, outputs = drawn()
    outputs = F.normalize(outputs, dim=-1).requires_grad_()
    loss = LambdaNCE(form=form)(outputs, bank[index], BankNegatives(bank, picks, index))
    loss.backward()
    scores = probabilities(bank, index, picks, outputs.detach())
    constant = picks.shape[2] * scores[0].mean() if form == "official" else 0
    h = scores / (scores + constant)
    if form == "info_nce":
        h = scores / scores.sum(-1, keepdim=True)
    positive = (1 - h[..., :1]) * bank.double()[index]
    others = (h[..., 1:].unsqueeze(-1) * bank.double()[picks]).sum(2)
    slope = 0.5 * (others - positive) / (TAU * len(index))
    unit = outputs.detach().double()
    tangent = slope - (slope * unit).sum(-1, keepdim=True) * unit
    torch.testing.assert_close(outputs.grad.double(), tangent, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------ whole steps


class Means(Encoder):
    """The mean colour of an image, one linear layer, tanh."""

    dim = 5

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 5)

    def forward(self, images):
        return self.layer(images.mean((2, 3))).tanh()

    def maps(self, images):
        return {}


CHOSEN = recipe.read(RECIPES / "pirl_jigsaw.yaml")
B, K, D, N, M = 4, 9, 6, 12, 7
DECAY = 0.05
"""Instead of 1e-4, whose effect is too small to be seen in six steps."""
EPOCHS, STEPS = 3, 2
"""Epochs, and steps of each."""


class Reference:
    """PIRL as one reads it, in float64: f and g, NCE, SGD with momentum, a bank."""

    def __init__(self, method: Pirl, form: str) -> None:
        self.weights = {n: v.detach().double().clone() for n, v in method.named_parameters()}
        self.momenta = {name: torch.zeros_like(value) for name, value in self.weights.items()}
        self.bank = method.samplers["image"].bank.double().clone()
        self.form, self.mean_exp = form, None

    def outputs(self, weights, image, patches):
        """f(image) and g(patches), both [B,D]."""

        def linear(name, rows):
            return rows @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

        def encode(images):
            return torch.tanh(linear("encoder.layer", images.mean((2, 3))))

        f = linear("heads.image.project", encode(image))
        each = linear("heads.patches.patch", encode(patches.flatten(0, 1)))
        return f, linear("heads.patches.join", each.reshape(B, -1))

    def term(self, output, index, picks):
        total = 0.0
        for row in range(B):
            v = output[row] / output[row].norm()
            e0 = torch.exp(v @ self.bank[index[row]] / TAU)
            e = torch.exp(self.bank[picks[row]] @ v / TAU)
            if self.form == "info_nce":
                total = total - torch.log(e0 / (e0 + e.sum()))
            else:
                k = M * self.mean_exp
                total = total - torch.log(e0 / (e0 + k)) - torch.log(k / (e + k)).sum()
        return total / B

    def freeze(self, output, index, picks):
        """ē over the pretext term of the first batch, positives too."""
        seen = []
        for row in range(B):
            v = output[row] / output[row].norm()
            rows = torch.cat([index[row : row + 1], picks[row]])
            seen.append(torch.exp(self.bank[rows] @ v / TAU))
        self.mean_exp = torch.cat(seen).mean().item()

    def step(self, image, patches, index, picks, lr):
        """One step; returns the loss before it."""
        weights = {n: v.clone().requires_grad_() for n, v in self.weights.items()}
        f, g = self.outputs(weights, image.double(), patches.double())
        if self.mean_exp is None:
            self.freeze(g.detach(), index, picks[0])
        loss = 0.5 * self.term(g, index, picks[0]) + 0.5 * self.term(f, index, picks[1])
        gradients = torch.autograd.grad(loss, list(weights.values()))
        for name, gradient in zip(weights, gradients, strict=True):
            decay = DECAY if name.endswith("weight") else 0.0
            slope = gradient + decay * self.weights[name]
            self.momenta[name] = 0.9 * self.momenta[name] + slope
            self.weights[name] = self.weights[name] - lr * self.momenta[name]
        for row in range(B):
            key = f[row].detach() / f[row].detach().norm()
            moved = 0.5 * self.bank[index[row]] + 0.5 * key
            self.bank[index[row]] = moved / moved.norm()
        return loss.item()


@pytest.mark.parametrize("form", ["official", "info_nce"])
def test_whole_steps(form):
    """Six steps: loss, gradient, rate by epoch, momentum, weight decay of weights alone, bank."""
    torch.manual_seed(0)
    heads = {"image": Linear(5, out_dim=D), "patches": ConcatPatches(5, K, patch_dim=4, out_dim=D)}
    bank = MemoryBank(D, N, negatives=M)
    method = Pirl(Parts(Means(), heads, {"image": bank}, LambdaNCE(form=form), images=N))
    reference = Reference(method, form)
    optimizer = make_optimizer(method, replace(CHOSEN.optimizer, weight_decay=DECAY))
    set_rate = make_schedule(optimizer, CHOSEN.schedule, EPOCHS, STEPS)
    for number in range(EPOCHS * STEPS):
        index = torch.randperm(N)[:B]
        image, patches = torch.randn(B, 3, 2, 2), torch.randn(B, K, 3, 2, 2)
        batch = Batch({"image": image, "patches": patches}, {}, index)
        epoch = number // STEPS
        progress = Progress(number, EPOCHS * STEPS, epoch, EPOCHS, Draws(1, number))
        picks = bank.draw(index, Draws(1, number), terms=2).picks
        set_rate(number)
        optimizer.zero_grad()
        output = method(batch, progress)
        output.loss.backward()
        optimizer.step()
        method.after_step(index, output.keep, progress)
        lr = 1.2e-4 + (0.12 - 1.2e-4) * (1 + math.cos(math.pi * epoch / EPOCHS)) / 2
        expected = reference.step(image, patches, index, picks, lr)
        assert output.loss.item() == pytest.approx(expected, rel=1e-4)
        for name, value in method.named_parameters():
            wanted = reference.weights[name]
            torch.testing.assert_close(value.detach().double(), wanted, rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(bank.bank.double(), reference.bank, rtol=1e-4, atol=2e-5)


# --------------------------------------------------------------------------------------- schedule

RATES = {
    0: 0.12,
    100: 0.115437,  # (1 + cos 22.5°)/2 = 0.961940
    200: 0.102444,  # (1 + cos 45°)/2 = 0.853553
    400: 0.06006,
    600: 0.017676,  # (1 + cos 135°)/2 = 0.146447
    799: 0.00012046,  # (π/1600)² = 3.86e-6 of the way is left
}
"""Epoch of 800 → learning rate: 1.2e-4 + (0.12 - 1.2e-4) · (1 + cos(π·epoch/800)) / 2."""


@pytest.mark.parametrize("epoch", RATES)
def test_the_rate_of_an_epoch_of_800(epoch):
    """The same at its first, middle and last step: VISSL changes it by epochs."""
    steps = IMAGENET // CHOSEN.train.batch_size
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=CHOSEN.optimizer.lr)
    rate = make_schedule(optimizer, CHOSEN.schedule, CHOSEN.train.epochs, steps)
    assert steps == 1251
    for place in (0, 700, 1250):
        assert rate(epoch * steps + place) == pytest.approx(RATES[epoch], rel=1e-4)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(RATES[epoch], rel=1e-4)
