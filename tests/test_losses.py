"""What all losses share: first values, number formats, negatives."""

import math

import pytest
import torch
from torch.nn import functional as F

from sslkit_plugins.losses import (
    Cosine,
    CrossEntropy,
    InfoNCE,
    LambdaNCE,
    SoftCrossEntropy,
    SquaredError,
)
from sslkit_plugins.samplers import KeyNegatives

D = 8


@pytest.mark.parametrize("temperature", [0.5, 0.05, 0.03, 0.02, 0.01])
def test_first_loss_is_right_at_every_temperature(temperature):
    """Against 64 random unit vectors of 128 numbers, the mean of many batches."""
    generator = torch.Generator().manual_seed(1)
    rows = F.normalize(torch.randn(30, 256, 128, generator=generator), dim=-1)
    bank = F.normalize(torch.randn(30, 65, 128, generator=generator), dim=-1)
    logits = rows @ bank.transpose(1, 2) / temperature
    positive, others = logits[..., 0], logits[..., 1:]
    mean = (logits.logsumexp(-1) - positive).mean().item()
    for loss in (
        InfoNCE(temperature=temperature),
        LambdaNCE(form="info_nce", temperature=temperature),
    ):
        expected = loss.at_start(dim=128, negatives=64)
        assert expected == pytest.approx(mean, rel=0.02)
        assert expected == loss.at_start(dim=128, negatives=64) < math.log(65) + 2 / temperature
    nce = [
        LambdaNCE(form="official", temperature=temperature)._nce(p[None], o[None], 64).item()
        for p, o in zip(positive, others, strict=True)
    ]
    expected = LambdaNCE(temperature=temperature).at_start(dim=128, negatives=64)
    assert expected == pytest.approx(sum(nce) / len(nce), rel=0.05)


@pytest.mark.parametrize("loss", [InfoNCE(), LambdaNCE()], ids=["info_nce", "lambda_nce"])
def test_losses_that_need_negatives_say_so_before_torch(loss):
    """`needs_negatives` is a literal, from which `check` refuses a method without negatives."""
    assert type(loss).needs_negatives is True and CrossEntropy.needs_negatives is False


FLOATS = {
    "info_nce": (InfoNCE(temperature=0.2), lambda rows: rows),
    "lambda_nce": (LambdaNCE(form="info_nce", temperature=0.2), lambda rows: rows),
    "cross_entropy": (CrossEntropy(), lambda rows: torch.arange(len(rows))),
    "soft_cross_entropy": (SoftCrossEntropy(), lambda rows: rows.softmax(-1)),
    "cosine": (Cosine(), lambda rows: rows),
    "squared_error": (SquaredError(), lambda rows: rows),
}


@pytest.mark.parametrize(("loss", "target_of"), FLOATS.values(), ids=FLOATS.keys())
def test_losses_keep_float64_and_widen_half_precision(loss, target_of):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2, 6, D, dtype=torch.float64, generator=generator)
    prediction, other = F.normalize(rows, dim=-1)
    vectors = F.normalize(torch.randn(9, D, dtype=torch.float64, generator=generator), dim=-1)
    values = {}
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        negatives = KeyNegatives(vectors.to(dtype)) if type(loss).needs_negatives else None
        given = prediction.to(dtype)
        given = given.expand(2, -1, -1) if isinstance(loss, LambdaNCE) else given
        values[dtype] = loss(given, target_of(other.to(dtype)), negatives)
    assert values[torch.float64].dtype == torch.float64
    assert values[torch.float32].dtype == values[torch.bfloat16].dtype == torch.float32
    exact = values[torch.float64].item()
    assert values[torch.float32].item() == pytest.approx(exact, rel=1e-5)
    assert values[torch.bfloat16].item() == pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize(
    "loss", [SoftCrossEntropy(), Cosine(), SquaredError()], ids=lambda loss: type(loss).__name__
)
def test_half_precision_widens_to_float32(loss):
    prediction, target = torch.rand(4, 6), torch.rand(4, 6).softmax(1)
    expected = loss(prediction.half().float(), target.half().float())
    found = loss(prediction.half(), target.half())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
