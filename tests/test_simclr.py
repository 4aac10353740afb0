"""SimCLR: NT-Xent by hand, its closed forms, two ranks, and what is refused."""

import math

import pytest
import torch
from bare import Layer, bare, crops, mean_gradients, progress, random
from conftest import sslkit
from torch.nn import functional as F

from sslkit_plugins.methods.simclr import SimClr

TAU = 0.5


def loss_of(first, second, temperature=TAU):
    """The loss of features [B,D] of two crops."""
    method = bare(SimClr, first.shape[1], temperature=temperature)
    return method(crops(first, second), progress()).loss


def by_hand(first, second, temperature):
    """Equation 1 as a double loop over all 2B rows, in plain floats."""
    rows = F.normalize(torch.cat([first, second]), dim=1).tolist()
    count, total = len(rows), 0.0
    for i, row in enumerate(rows):
        partner = (i + count // 2) % count
        exponentials = {}
        for k, other in enumerate(rows):
            if k != i:
                cosine = sum(a * b for a, b in zip(row, other, strict=True))
                exponentials[k] = math.exp(cosine / temperature)
        total -= math.log(exponentials[partner] / sum(exponentials.values()))
    return total / count


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_the_loss_is_equation_1(temperature):
    first, second = random(5, 8), random(5, 8, seed=1)
    found = loss_of(first, second, temperature)
    assert found.dtype == torch.float64
    assert found.item() == pytest.approx(by_hand(first, second, temperature), rel=1e-12)


@pytest.mark.parametrize("images", [2, 3, 8])
def test_equal_rows_give_log_of_the_other_rows(images):
    same = torch.ones(images, 4, dtype=torch.float64)
    assert loss_of(same, same).item() == pytest.approx(math.log(2 * images - 1), rel=1e-12)


@pytest.mark.parametrize("images", [2, 3, 8])
def test_aligned_orthonormal_rows_have_a_closed_form(images):
    """A row that is its own negative would give log(2 + (2B - 2)·exp(-1/τ))."""
    rows = torch.eye(images, dtype=torch.float64)
    expected = math.log(1 + (2 * images - 2) * math.exp(-1 / TAU))
    assert loss_of(rows, rows).item() == pytest.approx(expected, rel=1e-12)


def test_the_order_of_the_batch_changes_nothing():
    first, second = random(6, 8), random(6, 8, seed=1)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    expected = loss_of(first, second)
    torch.testing.assert_close(loss_of(first[order], second[order]), expected)
    torch.testing.assert_close(loss_of(second, first), expected)


def test_two_ranks_have_the_gradients_of_one(ranks, tmp_path):
    """Rows of all ranks are negatives, and their gradients are summed."""
    batch = crops(random(6, 5), random(6, 5, seed=1))

    def gradient():
        method = bare(SimClr, 5, ("projector", Layer(5)), temperature=0.2)
        return mean_gradients(method, batch)

    def work(folder):
        torch.save(gradient(), folder / f"{torch.distributed.get_rank()}.pt")

    (expected,) = gradient()
    assert ranks(work) == [0, 0]
    for rank in (0, 1):
        (found,) = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_metrics_by_hand():
    """Cosines of the crops: 1 and 0.6; two orthogonal images use half of the directions."""
    first = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    second = torch.tensor([[2.0, 0.0], [0.8, 0.6]], dtype=torch.float64)
    output = bare(SimClr, 2)(crops(first, second), progress())
    assert output.metrics["match"].item() == pytest.approx(0.8)
    assert 0.5 < output.feature_std["projector"].item() < 1
    same = torch.ones(3, 2, dtype=torch.float64)
    collapsed = bare(SimClr, 2)(crops(same, same), progress())
    assert collapsed.feature_std["projector"].item() == pytest.approx(0, abs=1e-7)


def test_expected_values():
    """At first ln(2B - 2) + 1/(2·D·τ²) = 7.71 for 512 images; at chance ln(2B - 1)."""
    method = bare(SimClr, 64, temperature=0.1)
    assert method.at_start(512) == pytest.approx(7.71, abs=0.02)
    assert method.at_chance(512)["loss"] == pytest.approx(math.log(1023))
    assert method.at_start(1) == method.at_chance(1)["loss"] == 0, "one image has no negatives"


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        (
            "transform.count=3",
            "transform.count  method 'simclr' compares 2 crops of an image, not 3; set it to 2",
        ),
        (
            "train.accumulate=2",
            "train.accumulate  the loss of method 'simclr' looks across the batch",
        ),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(setting, sentence, images, tmp_path):
    options = ["--data", images, "--run", tmp_path / "run", "--set", setting]
    options += ["--set", "train.batch_size=8", "--set", "transform.size=32"]
    code, _, err = sslkit("train", "simclr", *options)
    assert code == 2 and sentence in err, err
    assert "Traceback" not in err and not (tmp_path / "run").exists()
