"""Projection heads: the layers of `mlp`, and prototypes."""

import numpy as np
import pytest
import torch
from conftest import sslkit
from PIL import Image
from torch import nn
from torch.nn import functional as F

from sslkit_plugins.heads import Mlp, Projection, Prototypes


def layers(head):
    return [type(layer) for layer in head.project]


@pytest.mark.parametrize("count", [2, 3, 4])
def test_an_mlp_has_as_many_linear_layers_as_asked(count):
    head = Mlp(6, hidden_dim=5, out_dim=3, layers=count)
    assert layers(head) == [nn.Linear, nn.ReLU] * (count - 1) + [Projection]
    shapes = [tuple(layer.weight.shape) for layer in head.project if hasattr(layer, "weight")]
    assert shapes == [(5, 6)] + [(5, 5)] * (count - 2) + [(3, 5)]
    assert head(torch.randn(4, 6)).shape == (4, 3)


def test_hidden_norm_precedes_each_activation_and_replaces_biases():
    head = Mlp(6, hidden_dim=5, out_dim=3, layers=3, hidden_norm=True)
    block = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert layers(head) == [*block, *block, Projection]
    assert [layer.bias is None for layer in head.project[::3]] == [True, True, False]
    assert all(layer.affine for layer in head.project if isinstance(layer, nn.BatchNorm1d))


def test_the_activation_is_relu_or_gelu():
    assert nn.GELU in layers(Mlp(6, activation="gelu")) and nn.ReLU in layers(Mlp(6))
    with torch.no_grad():
        head = Mlp(1, hidden_dim=1, out_dim=1, activation="gelu")
        for value in head.parameters():
            value.zero_() if value.dim() == 1 else value.fill_(1)
    expected = torch.tensor([[-1.0], [2.0]]) * torch.tensor([[0.15866], [0.97725]])
    torch.testing.assert_close(head(torch.tensor([[-1.0], [2.0]])), expected, atol=1e-4, rtol=0)


def test_bias_belongs_to_the_last_layer():
    assert Mlp(6, bias=False).project[-1].bias is None
    assert Mlp(6, bias=False).project[0].bias is not None
    assert Mlp(6).project[-1].bias is not None


def test_defaults_are_the_head_of_moco_v2():
    head = Mlp(512)
    assert layers(head) == [nn.Linear, nn.ReLU, Projection] and head.norm is None
    assert head.project[0].out_features == 2048 and head.out_dim == 128


@pytest.mark.parametrize("hidden_norm", [False, True], ids=["plain", "hidden norm"])
def test_crops_are_projected_like_rows(hidden_norm):
    """Batch-norm statistics are over all crops of all images."""
    head = Mlp(6, hidden_dim=5, out_dim=3, hidden_norm=hidden_norm, batch_norm=True)
    crops = torch.randn(4, 2, 6)
    expected = head(crops.flatten(0, 1)).unflatten(0, (4, 2))
    torch.testing.assert_close(head(crops), expected)


def test_batch_norm_of_the_output_has_no_scale():
    head = Mlp(6, hidden_dim=50, out_dim=3, batch_norm=True)
    found = head(torch.randn(200, 6))
    torch.testing.assert_close(found.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.var(0, correction=0), torch.ones(3), atol=1e-3, rtol=0)
    assert not head.norm.affine


def test_the_last_layer_is_exact_under_autocast():
    head = Mlp(6, hidden_dim=5, out_dim=3, hidden_norm=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head(torch.randn(4, 6)).dtype == torch.float32


def test_float64_stays_float64():
    rows = torch.randn(4, 6, dtype=torch.float64)
    assert Mlp(6, hidden_dim=5, out_dim=3).double()(rows).dtype == torch.float64
    assert Prototypes(6, 100, out_dim=5).double()(rows).dtype == torch.float64


def test_prototypes_have_unit_norm_and_give_cosines():
    head = Prototypes(6, 100, out_dim=20)
    torch.testing.assert_close(head.weight.norm(dim=1), torch.ones(20))
    rows = torch.randn(8, 6)
    expected = F.cosine_similarity(rows.unsqueeze(1), head.weight, dim=2)
    torch.testing.assert_close(head(rows), expected)
    torch.testing.assert_close(head(5 * rows), expected)
    assert head(rows.view(4, 2, 6)).shape == (4, 2, 20)


def test_prototypes_are_normalised_again_after_a_step():
    head = Prototypes(6, 100, out_dim=20)
    before = head.weight.detach().clone()
    with torch.no_grad():
        head.weight.mul_(torch.arange(1.0, 21).unsqueeze(1))
    head.normalise()
    torch.testing.assert_close(head.weight.detach(), before)


def test_prototypes_are_exact_under_autocast():
    head, rows = Prototypes(6, 100, out_dim=20), torch.randn(8, 6)
    expected = head(rows)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head(rows), expected)


def test_gradients_of_weight_norm_are_orthogonal_to_prototypes():
    """A step along a prototype would not change its cosines."""
    rows, target = torch.randn(8, 6).double(), torch.randn(8, 20).double()
    for weight_norm in (True, False):
        head = Prototypes(6, 100, out_dim=20, weight_norm=weight_norm).double()
        with torch.no_grad():
            head.weight.mul_(3)
        (head(rows) * target).sum().backward()
        along = (head.weight.grad * head.weight).sum(1).abs().max()
        assert along < 1e-12 if weight_norm else along > 1e-3
        assert (head(rows).abs() <= 1).all() == weight_norm


def test_there_are_at_most_as_many_prototypes_as_images():
    head = Prototypes(6, 40, out_dim=3000)
    assert head.out_dim == 40 and head.weight.shape == (40, 6)
    assert head.notes == (
        "out_dim has 3,000 prototypes, more than the 40 images, so 40 are used; "
        "set a few per expected class",
    )
    assert Prototypes(6, 40, out_dim=40).notes == ()


def test_the_command_says_that_prototypes_are_capped(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(12):
        pixels = rng.integers(0, 256, (40, 44, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number:02}.png")
    given = ["heads.prototypes.out_dim=300", "encoder.model=test_resnet", "train.epochs=1"]
    given += ["train.batch_size=8", "train.workers=0", "train.device=cpu", "transform.size=32"]
    words = ["train", "swav", "--data", tmp_path, "--runs", tmp_path / "runs"]
    for setting in given:
        words += ["--set", setting]
    code, out, err = sslkit(*words)
    assert code == 0, err
    told = "heads.prototypes: out_dim has 300 prototypes, more than the 12 images, so 12 are used"
    assert told in " ".join((out + err).split())
