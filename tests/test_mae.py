"""MAE: patches, masks, targets, decoder. D is the number of values of a patch."""

import math

import pytest
import torch
from torch.nn import functional as F

from sslkit import recipe
from sslkit.errors import RecipeError, SslkitError
from sslkit.interfaces import Batch, Draws, Parts, Progress
from sslkit.training.build import build
from sslkit_plugins.encoders import Timm
from sslkit_plugins.losses import SquaredError
from sslkit_plugins.methods.mae import Mae, MaeDecoder, chosen, normalised, patchify, unpatchify

SIDE, PATCH = 32, 8
"""16 patches, of which 4 are kept."""


def progress(step=0, rank=0, world=1):
    return Progress(step, 10, 0, 1, Draws(0, step, rank=rank, world=world))


@pytest.fixture
def mae():
    torch.manual_seed(0)
    options = {"patch_size": PATCH, "depth": 1, "img_size": SIDE}
    encoder = Timm((SIDE,), 3, model="vit_tiny_patch16_224", positions="fixed", options=options)
    decoder = MaeDecoder(
        encoder.dim, (3, SIDE, SIDE), patch_size=PATCH, dim=32, depth=1, num_heads=2
    )
    return Mae(Parts(encoder, {"decoder": decoder}, {}, SquaredError(), 10))


def images(count=4, seed=0):
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def batch(views):
    return Batch({"image": views}, {}, torch.arange(len(views)))


@pytest.mark.parametrize("patch", [1, 4, 8, 16])
def test_unpatchify_inverts_patchify(patch):
    pictures = images().double()
    patches = patchify(pictures, patch)
    assert patches.shape == (4, (SIDE // patch) ** 2, 3 * patch**2)
    assert torch.equal(unpatchify(patches, patch), pictures)


def test_patches_are_numbered_row_by_row_like_those_of_the_encoder():
    picture = torch.arange(16.0).view(1, 1, 4, 4)
    assert patchify(picture, 2)[0].tolist() == [
        [0, 1, 4, 5],
        [2, 3, 6, 7],
        [8, 9, 12, 13],
        [10, 11, 14, 15],
    ]
    colours = torch.stack([torch.zeros(2, 2), torch.ones(2, 2), 2 * torch.ones(2, 2)])[None]
    assert patchify(colours, 2)[0, 0].tolist() == 4 * [0, 1, 2], "channels last"


def test_restore_undoes_shuffle_and_masks_have_one_sum():
    shuffle = progress().draws.uniform(5, 16).argsort(1)
    restore = shuffle.argsort(1)
    assert torch.equal(restore.gather(1, shuffle), torch.arange(16).expand(5, -1))
    mask = torch.ones(5, 16)
    mask[:, :4] = 0
    assert chosen(mask.unsqueeze(-1), restore).sum((1, 2)).tolist() == 5 * [12]


@pytest.mark.parametrize("masked, kept", [(0.75, 4), (0.5, 8), (0.9, 1), (0.01, 15)])
def test_the_number_of_kept_patches_is_rounded_down(mae, masked, kept):
    parts = Parts(mae.encoder, dict(mae.heads), {}, mae.loss, 10)
    assert Mae(parts, masked=masked).kept == kept
    with pytest.raises(RecipeError, match=r"method\.masked  keeps 0 of 16 patches"):
        Mae(parts, masked=0.95)


def masks(mae, monkeypatch, views, where):
    """The kept patches of a step."""
    seen = []
    tokens = mae.encoder.tokens

    def spy(images, kept=None):
        seen.append(kept)
        return tokens(images, kept)

    with monkeypatch.context() as patched:
        patched.setattr(mae.encoder, "tokens", spy)
        mae(batch(views), where)
    return seen[0]


def test_masks_differ_by_image_and_step_but_not_by_rank(mae, monkeypatch):
    views = images(1).expand(4, -1, -1, -1)
    one = masks(mae, monkeypatch, views, progress())
    assert one.shape == (4, 4) and len({tuple(row) for row in one.tolist()}) == 4
    halves = [masks(mae, monkeypatch, views[:2], progress(rank=rank, world=2)) for rank in (0, 1)]
    assert torch.equal(torch.cat(halves), one)
    assert not torch.equal(masks(mae, monkeypatch, views, progress(step=1)), one)


def test_the_encoder_sees_nothing_of_masked_patches(mae):
    kept = torch.tensor([[0, 5, 10, 15]])
    picture, patches = images(1), patchify(images(1), PATCH)
    hidden = [place for place in range(16) if place not in kept]
    patches[:, hidden] = 9.0
    same = mae.encoder.tokens(unpatchify(patches, PATCH), kept)
    torch.testing.assert_close(same, mae.encoder.tokens(picture, kept))


def loss_of(mae, predicted, views, monkeypatch):
    """The loss of a given prediction of all patches [N,L,D]."""
    with monkeypatch.context() as patched:
        patched.setattr(MaeDecoder, "forward", lambda self, tokens, restore, prefix: predicted)
        return mae(batch(views), progress()).loss


def test_predictions_of_kept_patches_do_not_change_the_loss(mae, monkeypatch):
    views = images().double()
    mae = mae.double()
    predicted = torch.randn(4, 16, 192, dtype=torch.float64)
    kept = masks(mae, monkeypatch, views, progress())
    before = loss_of(mae, predicted, views, monkeypatch)
    changed = predicted.scatter(1, kept.unsqueeze(-1).expand(-1, -1, 192), 7.0)
    assert torch.equal(loss_of(mae, changed, views, monkeypatch), before)
    assert not torch.equal(loss_of(mae, predicted + 1, views, monkeypatch), before)
    errors = (predicted - normalised(patchify(views, PATCH))).square().mean(-1)
    mask = torch.ones(4, 16, dtype=torch.float64).scatter(1, kept, 0.0)
    torch.testing.assert_close(before, (errors * mask).sum() / mask.sum())


@pytest.mark.parametrize("patch, expected", [(16, 0.9987), (8, 0.9948), (4, 0.9792)])
def test_the_zero_prediction_loses_one_in_d(patch, expected):
    """The variance is unbiased: Σ x² = D - 1."""
    target = normalised(patchify(torch.randn(2, 3, SIDE, SIDE, dtype=torch.float64), patch))
    numbers = 3 * patch**2
    loss = SquaredError()(torch.zeros_like(target), target).item()
    assert math.isclose(loss, (numbers - 1) / numbers, rel_tol=1e-5)
    assert round(loss, 4) == expected


def test_flat_patches_have_target_0_and_chance_is_prediction_0(mae, monkeypatch):
    assert (normalised(torch.full((1, 2, 12), 3.0)) == 0).all()
    loss = loss_of(mae, torch.zeros(4, 16, 192), images(), monkeypatch).item()
    assert math.isclose(loss, mae.at_chance(4)["loss"], rel_tol=1e-4)
    mae.norm_pix = False
    assert torch.equal(mae.target(images()), patchify(images(), PATCH))
    assert mae.at_chance(4) == {} and mae.at_start(4) is None


def test_positions_are_distinct_rows_of_squared_norm_half_the_width():
    decoder = MaeDecoder(8, (3, 64, 64), patch_size=8, dim=32, depth=1, num_heads=2)
    rows = decoder.positions
    torch.testing.assert_close(rows.square().sum(1), torch.full((64,), 16.0))
    distances = torch.cdist(rows, rows) + torch.eye(64) * 9
    assert rows.shape == (64, 32) and distances.min() > 0.1


def test_fixed_positions_of_the_encoder_are_not_trained(mae):
    embeddings = mae.encoder.model.pos_embed
    assert not embeddings.requires_grad and (embeddings[0, 0] == 0).all()
    torch.testing.assert_close(embeddings[0, 1:].square().sum(1), torch.full((16,), 192 / 2))
    with pytest.raises(RecipeError, match=r"encoder\.positions  'test_resnet' has no position"):
        Timm((32,), 3, model="test_resnet", positions="fixed")


def test_the_decoder_is_given_the_place_of_every_kept_patch(mae, monkeypatch):
    """restore[shuffle] = arange, with the shuffle of the step: kept patches come first."""
    given = []

    def spy(self, tokens, restore, prefix):
        given.append(restore)
        return torch.zeros(4, 16, 192)

    monkeypatch.setattr(MaeDecoder, "forward", spy)
    kept = masks(mae, monkeypatch, images(), progress())
    (restore,) = given
    assert torch.equal(restore.gather(1, kept), torch.arange(4).expand(4, -1))
    assert torch.equal(restore.sort(1).values, torch.arange(16).expand(4, -1))


def test_the_decoder_begins_with_xavier_weights():
    decoder = MaeDecoder(8, (3, 64, 64), patch_size=8, dim=64, depth=1, num_heads=2)
    bound = math.sqrt(6 / (64 + 192))
    assert 0.95 * bound < decoder.predict.weight.abs().max() <= bound
    assert (decoder.predict.bias == 0).all() and (decoder.blocks[0].attn.qkv.bias == 0).all()


def test_the_decoder_puts_tokens_back_in_their_places():
    torch.manual_seed(0)
    decoder = MaeDecoder(8, (3, 16, 16), patch_size=8, dim=16, depth=1, num_heads=2)
    decoder.blocks, decoder.predict = torch.nn.Identity(), torch.nn.Identity()
    tokens = torch.randn(1, 3, 8)  # a class token and the patches 2 and 0
    restore = torch.tensor([[2, 0, 3, 1]]).argsort(1)
    found = decoder(tokens, restore, 1) - decoder.positions
    rows, masked = decoder.embed(tokens)[0], decoder.mask_token[0, 0]
    torch.testing.assert_close(found[0], torch.stack([rows[2], masked, rows[1], masked]))


def test_every_weight_gets_a_gradient(mae):
    mae(batch(images()), progress()).loss.backward()
    named = [(name, value) for name, value in mae.named_parameters() if value.requires_grad]
    assert not [name for name, value in named if value.grad is None]


def test_it_learns_a_repeated_ramp(mae):
    optimizer = torch.optim.AdamW(mae.parameters(), lr=1e-3)
    views = F.interpolate(images(2), scale_factor=0.125).repeat_interleave(8, 2)
    views = views.repeat_interleave(8, 3) + torch.linspace(0, 1, SIDE)
    for step in range(100):
        optimizer.zero_grad()
        loss = mae(batch(views), progress(step)).loss
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.85 * mae.at_chance(2)["loss"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            ["encoder={use: timm, model: resnet18}"],
            "'resnet18' has no tokens; use a vision transformer",
        ),
        (["heads.decoder.patch_size=16"], "is 16, but the encoder cuts 64 patches of 8 px"),
        (["heads.decoder.patch_size=7"], "7 does not divide the image side, 64 px"),
        (
            ["heads.decoder={use: linear}"],
            "role 'decoder', which 'linear' does not have; use: mae_decoder",
        ),
        (["heads.decoder.num_heads=5"], "5 does not divide the width, 128"),
    ],
    ids=["resnet", "patch", "side", "head", "heads"],
)
def test_what_does_not_fit_is_one_sentence(settings, words):
    with pytest.raises(SslkitError, match=words) as caught:
        build(recipe.read("mae", overrides=[*settings, "train.device=cpu"]))
    assert "\n" not in str(caught.value)
