"""What PIRL's paper and its official code state and no other test holds: numbers of the whole
method, worked out by hand.
"""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from sslkit import recipe
from sslkit.errors import RecipeError
from sslkit.interfaces import Batch, Draws, Encoder, Parts, Progress
from sslkit.parts import make
from sslkit.training.optim import make_schedule
from sslkit_plugins.encoders import Timm
from sslkit_plugins.heads import ConcatPatches, Linear, Mlp
from sslkit_plugins.losses import LambdaNCE
from sslkit_plugins.methods import pirl
from sslkit_plugins.methods.pirl import Jigsaw, Pirl, Rotation
from sslkit_plugins.samplers import BankNegatives, MemoryBank
from sslkit_plugins.views import Colours, operations
from sslkit_plugins.views import steps as views

RECIPES = Path(__file__).parents[1] / "recipes"
IMAGENET = 1_281_167
TAU = 0.07

# --- loss


def naive(form, prediction, own, others, mean_exp, share):
    """Each term written as the paper and the official code have it, in float64: prediction [2,B,D],
    own [B,D], others [2,B,M,D].
    """
    unit = prediction.double() / prediction.double().norm(dim=-1, keepdim=True)
    positive = torch.exp((unit * own.double()).sum(-1) / TAU)
    negative = torch.exp(torch.einsum("tbd,tbmd->tbm", unit, others.double()) / TAU)
    total = negative.sum(-1)
    if form == "info_nce":
        terms = -torch.log(positive / (positive + total))
    else:
        constant = (
            total if form == "paper" else torch.full_like(total, negative.shape[-1] * mean_exp)
        )
        terms = -torch.log(positive / (positive + constant))
        terms = terms - torch.log(1 - negative / (negative + constant.unsqueeze(-1))).sum(-1)
    patches, image = terms.mean(-1)
    return share * patches + (1 - share) * image, torch.cat(
        [positive[0].unsqueeze(-1), negative[0]], -1
    ).mean().item()


@pytest.mark.parametrize("form", ["official", "paper", "info_nce"])
def test_values_and_gradients_of_the_first_call_and_of_later_ones(form):
    """The memory moves between the calls; the official constant is the first call's in all of
    them.
    """
    share, index = 0.3, torch.tensor([4, 0, 39])
    torch.manual_seed(0)
    sampler, loss = MemoryBank(8, 40, negatives=16), LambdaNCE(lambda_=share, form=form)
    frozen = None
    for call in range(3):
        prediction = (3 * torch.randn(2, 3, 8)).requires_grad_()
        negatives = sampler.draw(index, Draws(call), terms=2)
        value = loss(prediction, sampler.recall(index), negatives)
        (gradient,) = torch.autograd.grad(value, prediction)
        exact = prediction.detach().double().requires_grad_()
        _, mean_exp = naive(
            form, exact, sampler.bank[index], sampler.bank[negatives.picks], 1.0, share
        )
        frozen = mean_exp if frozen is None else frozen
        expected, _ = naive(
            form, exact, sampler.bank[index], sampler.bank[negatives.picks], frozen, share
        )
        (slope,) = torch.autograd.grad(expected, exact)
        assert value.item() == pytest.approx(expected.item(), rel=1e-5)
        torch.testing.assert_close(gradient.double(), slope, rtol=1e-4, atol=1e-5)
        sampler.update(index, prediction.detach()[1])


@pytest.mark.parametrize("form", ["official", "paper", "info_nce"])
def test_all_other_rows_as_negatives_match_the_closed_form(form):
    index = torch.tensor([2, 0, 5])
    torch.manual_seed(0)
    sampler = MemoryBank(8, 7, negatives="all")
    prediction = torch.randn(2, 3, 8, requires_grad=True)
    negatives = sampler.draw(index, Draws(0), terms=2)
    assert negatives.count == 6
    value = LambdaNCE(form=form)(prediction, sampler.recall(index), negatives)
    (gradient,) = torch.autograd.grad(value, prediction)
    others = torch.stack(
        [sampler.bank[[row for row in range(7) if row != own]] for own in index.tolist()]
    ).expand(2, -1, -1, -1)
    exact = prediction.detach().double().requires_grad_()
    _, mean_exp = naive(form, exact, sampler.bank[index], others, 1.0, 0.5)
    expected, _ = naive(form, exact, sampler.bank[index], others, mean_exp, 0.5)
    (slope,) = torch.autograd.grad(expected, exact)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(gradient.double(), slope, rtol=1e-4, atol=1e-5)


def test_the_constant_of_a_random_memory_is_that_of_imagenet():
    """ē = exp(1/(2·128·0.07²)) = 2.219, so Z = |D|·ē = 2.84 million; a widely copied constant of
    NPID is 2,876,934.
    """
    torch.manual_seed(0)
    sampler, loss, index = MemoryBank(128, 3000, negatives=2000), LambdaNCE(), torch.arange(256)
    loss(torch.randn(2, 256, 128), sampler.recall(index), sampler.draw(index, Draws(0), terms=2))
    assert loss.log_mean_exp.item() == pytest.approx(1 / (2 * 128 * TAU**2), abs=0.03)
    assert IMAGENET * loss.log_mean_exp.exp().item() == pytest.approx(2.84e6, rel=0.03)


def test_a_perfect_positive_costs_little_among_32_000():
    """log(1 + 32,000·2.219/exp(1/0.07)) = 0.043, and log(1 + 1/(32,000·2.219)) for each negative at
    right angles.
    """
    loss = LambdaNCE()
    loss.log_mean_exp.fill_(math.log(2.219))
    loss.frozen.fill_(True)
    bank = torch.eye(2)
    negatives = BankNegatives(bank, torch.ones(1, 1, 32_000, dtype=torch.int64), torch.tensor([0]))
    value = loss(bank[:1].unsqueeze(0), bank[:1], negatives).item()
    assert value - 1 / 2.219 == pytest.approx(0.043, abs=1e-3)


def test_a_batch_of_one_image():
    torch.manual_seed(0)
    for negatives in (5, "all"):
        sampler = MemoryBank(4, 9, negatives=negatives)
        index = torch.tensor([3])
        assert LambdaNCE()(
            torch.randn(2, 1, 4), sampler.recall(index), sampler.draw(index, Draws(0), terms=2)
        ).isfinite()
        sampler.update(index, torch.randn(1, 4))


# --- memory


def test_update_with_a_momentum_of_its_own():
    """normalize(0.8·(1,0) + 0.2·(0,1)) = (4,1)/√17: the row weighs 0.8, the embedding 0.2. The
    paper's momentum is 0.5.
    """
    memory = MemoryBank(2, 3, momentum=0.8)
    memory.bank.copy_(torch.tensor([[1.0, 0.0]] * 3))
    memory.update(torch.tensor([1]), torch.tensor([[0.0, 3.0]]))
    torch.testing.assert_close(memory.bank[1], torch.tensor([4.0, 1.0]) / math.sqrt(17))
    assert MemoryBank(2, 3).momentum == 0.5


def test_how_often_the_official_draw_holds_the_own_row():
    """1 - (1 - 1/5000)^4096 = 56 % of images, as the official code draws; none as the paper
    says.
    """
    torch.manual_seed(0)
    index = torch.arange(500)
    for exclude, share in ((False, 0.56), (True, 0.0)):
        picks = (
            MemoryBank(2, 5000, negatives=4096, exclude_own=exclude).draw(index, Draws(0)).picks[0]
        )
        assert (picks == index.unsqueeze(1)).any(1).float().mean().item() == pytest.approx(
            share, abs=0.07 * (not exclude)
        )


# --- network


class Normed(Encoder):
    """Batch norm of the pixels, then their means."""

    dim = 3

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, images):
        return self.norm(images).mean((2, 3))

    def maps(self, images):
        return {}


def test_batch_norm_sees_patches_and_images_separately():
    """Patches of value 1, images of 2, PyTorch's 0.1: running mean 0.9·(0.1·1) + 0.1·2 = 0.29,
    after two updates a step.
    """
    heads = {"image": Linear(3, out_dim=4), "patches": ConcatPatches(3, 9, patch_dim=4, out_dim=4)}
    sampler = MemoryBank(4, 9, negatives=5)
    method = Pirl(Parts(Normed(), heads, {"image": sampler}, LambdaNCE(), images=9))
    batch = Batch(
        {"image": torch.full((2, 3, 6, 6), 2.0), "patches": torch.ones(2, 9, 3, 4, 4)},
        {},
        torch.arange(2),
    )
    method(batch, Progress(0, 1, 0, 1, Draws(0)))
    torch.testing.assert_close(method.encoder.norm.running_mean, torch.full((3,), 0.29))
    assert method.encoder.norm.num_batches_tracked == 2


def test_vissls_initialisation():
    """PyTorch's default is uniform within 1/√fan-in, of deviation 1/√(3·fan-in): 0.0476 for 7×7×3,
    0.0241 for 3×3×64. Scales are 1.
    """
    torch.manual_seed(0)
    model = Timm((64,), 3, model="resnet18", conv_init="uniform").model
    assert model.conv1.weight.std().item() == pytest.approx(0.0476, rel=0.02)
    assert model.layer1[0].conv1.weight.std().item() == pytest.approx(0.0241, rel=0.02)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 20 and all(
        (norm.weight == 1).all() and (norm.bias == 0).all() for norm in norms
    )


def test_pretrained_weights_are_not_overwritten():
    with pytest.raises(
        RecipeError, match=r"encoder\.conv_init  'uniform' would overwrite the pretrained weights"
    ):
        Timm((64,), 3, model="resnet18", pretrained=True, conv_init="uniform")


def test_heads_are_linear_with_biases_and_the_patches_share_one():
    """f: 2048·128 + 128. g: as much once for all nine patches, then 9·128·128 + 128."""

    def count(head):
        return sum(value.numel() for value in head.parameters())

    f = Linear(2048)
    g = ConcatPatches(2048, 9)
    assert (count(f), count(g)) == (262_272, 262_272 + 147_584)
    with torch.no_grad():
        g.patch.weight.zero_()[0, 0] = 1
        g.patch.bias.fill_(-1)
        g.join.weight.zero_()[0, ::128] = 10.0 ** torch.arange(9)
        g.join.bias.fill_(0.5)
    features = torch.zeros(1, 9, 2048)
    features[0, :, 0] = torch.arange(2, 11)
    assert g(features)[0, 0].item() == pytest.approx(987_654_321.5), (
        "patch k in place k, and no ReLU: nothing is lost below 0"
    )
    assert g(-features)[0, 0].item() < 0


def test_heads_of_the_mlp_models():
    """f ends linear; g has a ReLU after the patch projection too. Three hidden units, all first
    weights 1, no biases.
    """
    f, g = (
        Mlp(1, hidden_dim=3, out_dim=1),
        ConcatPatches(1, 2, patch_dim=1, out_dim=1, hidden_dim=3),
    )
    with torch.no_grad():
        for name, value in [*f.named_parameters(), *g.named_parameters()]:
            value.fill_(float(name.endswith("weight")))
        for last in (f.project[2], g.patch[2]):
            last.weight.fill_(-1)
    assert f(torch.tensor([[2.0], [-2.0]])).flatten().tolist() == [-6, 0], (
        "-(2 + 2 + 2), and nothing of what is below 0"
    )
    assert g(torch.tensor([[2.0], [5.0]])).item() == 0, (
        "-6 and -15 end in the ReLU before they are joined"
    )
    with torch.no_grad():
        g.patch[2].weight.fill_(1)
    assert g(torch.tensor([[2.0], [5.0]])).item() == 21


# --- views


def test_crops_of_the_paper():
    """The image 224 px of at least 8 %; the puzzle another crop, 255 px of at least 60 %; a rotated
    view is cut like the image.
    """
    for transform in (Jigsaw(), pirl.JigsawRotation()):
        assert [(cut.size, cut.area) for cut in transform.crops] == [
            (224, (0.08, 1.0)),
            (255, (0.6, 1.0)),
        ]
        assert all((cut.flip, cut.shared) == (0.5, "none") for cut in transform.crops)
    assert [(cut.size, cut.area) for cut in Rotation().crops] == [(224, (0.08, 1.0))] * 2
    assert all(cut.shared == "none" for cut in Rotation().crops)
    for transform in (Jigsaw(), Rotation()):
        first, second = transform.boxes(300, 260, np.random.default_rng(0))
        assert first != second


def test_image_and_rotated_view_are_different_crops():
    """A ramp tells where a crop lies by its mean, whatever its turn and flip."""
    ramp = np.repeat(np.linspace(0, 255, 200)[None, :, None], 100, 0).repeat(3, 2).astype(np.uint8)
    rng, transform = np.random.default_rng(0), Rotation(size=16)
    samples = [transform(Image.fromarray(ramp), rng).views for _ in range(600)]
    image, rotated = (
        np.array([views[name].float().mean() for views in samples]) for name in ("image", "rotated")
    )
    assert image.std() > 20 and rotated.std() > 20
    assert abs(np.corrcoef(image, rotated)[0, 1]) < 0.13


def drawn(rows, colours):
    uniform = Draws(0).uniform(rows, views.NUMBERS)
    return views.draw_steps(uniform, Colours(**Colours.presets[colours]))


@pytest.mark.parametrize(
    ("colours", "chances"),
    [
        (
            "official",
            {"jitter": 1, "photometric": 0.66, "gray": 0.2, "gaussian_blur": 0, "flip": 0.5},
        ),
        ("blur", {"jitter": 0.8, "photometric": 0, "gray": 0.2, "gaussian_blur": 0.5, "flip": 0.5}),
        ("npid", {"jitter": 1, "photometric": 0, "gray": 0.2, "gaussian_blur": 0, "flip": 0.5}),
        ("gray", {"jitter": 0, "photometric": 0, "gray": 0.66, "gaussian_blur": 0, "flip": 0.5}),
    ],
    ids=["official", "blur", "npid", "gray"],
)
def test_colours_come_in_their_order_as_often_as_they_should(colours, chances):
    steps = drawn(9000, colours)
    jitter, photometric, last = (
        steps[:16],
        steps[16:20],
        dict(zip(("gray", "gaussian_blur", "flip"), steps[20:], strict=True)),
    )
    for place in range(0, 16, 4):
        assert [step.operation for step in jitter[place : place + 4]] == list(views.JITTER)
    times = torch.stack([step.chosen for step in jitter]).sum(0)
    assert set(times.unique().tolist()) <= {0, 4}, "all four or none"
    listed = ["posterize", "adjust_sharpness", "solarize", "autocontrast"]
    assert [step.operation.__name__ for step in photometric] == listed
    assert all(torch.equal(step.chosen, photometric[0].chosen) for step in photometric), "one coin"
    assert (
        last["gray"].operation is operations.adjust_saturation and not last["gray"].parameter.any()
    )
    assert (
        last["gaussian_blur"].operation is operations.gaussian_blur
        and last["flip"].operation is operations.flip
    )
    seen = {
        "jitter": times > 0,
        "photometric": photometric[0].chosen,
        **{name: step.chosen for name, step in last.items()},
    }
    assert {name: rows.float().mean().item() for name, rows in seen.items()} == pytest.approx(
        chances, abs=0.02
    )
    together = (seen["gray"] & seen["flip"]).float().mean().item()
    assert together == pytest.approx(chances["gray"] * chances["flip"], abs=0.02), (
        "coins of their own"
    )
    sigma = last["gaussian_blur"].parameter
    assert sigma.min() == pytest.approx(0.1, abs=0.01) and sigma.max() == pytest.approx(2, abs=0.01)


@pytest.mark.parametrize(
    ("colours", "strengths"),
    [("blur", (0.8, 0.8, 0.8, 0.2)), ("npid", (0.4, 0.4, 0.4, 0.4))],
    ids=["blur", "npid"],
)
def test_jitter_is_as_strong_as_it_should_be(colours, strengths):
    middle = (1, 1, 1, 0)
    reach = [
        (step.parameter - m).abs().max().item()
        for step, m in zip(drawn(4000, colours)[:4], middle, strict=True)
    ]
    assert reach == pytest.approx(strengths, abs=0.01)


def test_photometric_operations_in_their_order():
    """Two pixels, 104 and 40: to 4 bits 96 and 32; solarized from 90 on 159 and 32; stretched 255
    and 0.
    """
    pixels = torch.tensor([104.0, 40.0]).view(1, 1, 1, 2).repeat(1, 3, 1, 1)
    seen = []
    for step, parameter in zip(drawn(1, "official")[16:20], (4.0, 1.0, 90.0, 0.0), strict=True):
        step.operation(pixels, torch.tensor(parameter).view(1, 1, 1, 1))
        seen.append(pixels[0, 0, 0].tolist())
    assert seen == [[96, 32], [96, 32], [159, 32], [255, 0]]


def test_one_fixed_order_is_a_set_of_orders():
    """The paper's figure 7 begins with a single permutation."""
    transform = Jigsaw(size=8, grid=2, resize=16, patch=6, permutations=1)
    assert transform.num_targets == {"order": 1} and transform.state()["permutations"].shape == (
        1,
        4,
    )
    assert transform(Image.new("RGB", (20, 20)), np.random.default_rng(0)).targets["order"] == 0


# --- recipes

PAPERS = [*(RECIPES / "imagenet").glob("pirl_[jr]*.yaml")]


@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in PAPERS])
def test_the_papers_recipes_hold_the_papers_numbers(path):
    """Table of the optimisation: SGD 0.9 without Nesterov, 1e-4 on weights alone, 0.12 → 1.2e-4 by
    epochs, 1024, 800, N = 32,000.
    """
    read = recipe.read(path)
    chosen = read.optimizer
    assert (chosen.use, chosen.lr, chosen.options["momentum"]) == ("sgd", 0.12, 0.9)
    assert not chosen.options.get("nesterov", False)
    assert (chosen.weight_decay, chosen.exempt_norms_and_biases, read.train.sync_batchnorm) == (
        1e-4,
        True,
        False,
    )
    assert (read.train.batch_size, read.train.epochs) == (1024, 800)
    assert (read.sampler.options["negatives"], read.sampler.options["momentum"]) == (32_000, 0.5)
    assert (read.sampler.options["init"], read.sampler.options["draws"]) == ("random", "term")
    assert (read.encoder.options["model"], read.encoder.options["conv_init"]) == (
        "resnet50",
        "uniform",
    )
    tau, form = (0.1, "info_nce") if path.stem == "pirl_jigsaw_mlp" else (0.07, "official")
    assert read.loss.options == {"lambda": 0.5, "temperature": tau, "form": form}
    assert read.transform.options["colours"] == (
        "blur" if path.stem == "pirl_jigsaw_mlp" else "official"
    )
    heads = {name: make(choice, in_dim=2048, crops=9) for name, choice in read.heads.items()}
    assert all(head.out_dim == 128 and head.norm is None for head in heads.values())

    steps = IMAGENET // 1024
    rate = make_schedule(
        torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=chosen.lr), read.schedule, 800, steps
    )
    assert rate(0) == rate(steps - 1) == pytest.approx(0.12)
    assert rate(400 * steps) == pytest.approx((0.12 + 1.2e-4) / 2)
    assert rate(799 * steps) == pytest.approx(
        1.2e-4 + (0.12 - 1.2e-4) * (1 + math.cos(math.pi * 799 / 800)) / 2
    )


def test_no_patch_is_standardised_by_itself():
    """A picture of one colour stays of that colour in the image and in each patch."""
    transform = Jigsaw(size=24, resize=48, patch=12, colours="none")
    sample = transform(Image.new("RGB", (60, 50), (10, 20, 30)), np.random.default_rng(0))
    batch = Batch({name: view[None] for name, view in sample.views.items()}, {}, torch.arange(1))
    expected = (
        torch.tensor([10.0, 20.0, 30.0]) / 255 - torch.tensor([0.485, 0.456, 0.406])
    ) / torch.tensor([0.229, 0.224, 0.225])
    for view in transform.on_device(batch, Draws(0)).views.values():
        torch.testing.assert_close(
            view.flatten(-2).mean(-1), expected.expand(*view.shape[:-2]), rtol=1e-4, atol=1e-4
        )


def test_cosines_not_lengths_are_compared():
    """Ten times the output, the same loss."""
    torch.manual_seed(0)
    sampler, prediction, index = (
        MemoryBank(4, 20, negatives=8),
        torch.randn(2, 3, 4),
        torch.arange(3),
    )
    values = [
        LambdaNCE()(
            scale * prediction, sampler.recall(index), sampler.draw(index, Draws(0), 2)
        ).item()
        for scale in (1, 10)
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-6)
    assert F.normalize(sampler.bank).allclose(sampler.bank)
