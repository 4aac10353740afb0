"""The encoder AlexNet."""

import pytest
import torch
import torchvision

from sslkit.errors import RecipeError
from sslkit.interfaces import Normalisation
from sslkit_plugins.encoders.alexnet import AlexNet

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_its_layers_are_those_of_torchvision():
    """With torchvision's weights the maps are torchvision's, at 224 px and at 64 px."""
    ours = AlexNet(3, batch_norm=False).eval()
    theirs = torchvision.models.alexnet(weights=None).eval().features
    convolutions = {"conv1": 0, "conv2": 3, "conv3": 6, "conv4": 8, "conv5": 10}
    for name, place in convolutions.items():
        layer = getattr(ours, name)[-2]
        layer.load_state_dict(theirs[place].state_dict())
    for side in (64, 224):
        images = torch.randn(1, 3, side, side)
        with torch.no_grad():
            maps = ours.maps(images)
            for name, place in convolutions.items():
                torch.testing.assert_close(maps[name], theirs[: place + 2](images))
            torch.testing.assert_close(ours(images), theirs(images).mean((2, 3)))


def test_parameters_of_torchvision_and_of_half_width():
    count = sum(value.numel() for value in AlexNet(3, batch_norm=False).parameters())
    theirs = torchvision.models.alexnet(weights=None).features
    assert count == sum(value.numel() for value in theirs.parameters())
    full, half = AlexNet(3), AlexNet(3, width=0.5)
    for name, layer in half.maps(IMAGES).items():
        assert 2 * layer.shape[1] == full.maps(IMAGES)[name].shape[1]
    assert (full.dim, half.dim) == (256, 128)


def test_deepcluster_has_the_filters_of_2012():
    maps = AlexNet(3, filters="deepcluster", sobel=True).maps(IMAGES)
    assert [layer.shape[1] for layer in maps.values()] == [96, 256, 384, 384, 256]


def test_sobel_sees_edges_of_the_mean_colour_only():
    encoder = AlexNet(3, sobel=True)
    image = torch.zeros(1, 3, 8, 8)
    image[..., 4:] = 3.0
    across, down = encoder.sobel(image)[0]
    assert across[4, 3] == across[4, 4] == -12 and across[4, 1] == across[4, 6] == 0
    assert (down[2:6] == 0).all()
    shifted = image + torch.tensor([1.0, -1.0, 0.0]).view(1, 3, 1, 1)
    torch.testing.assert_close(encoder.sobel(shifted), encoder.sobel(image), rtol=0, atol=1e-5)
    with pytest.raises(RecipeError, match="needs RGB images; these have 4 channels"):
        AlexNet(4, sobel=True, mean=(0.5,) * 4, std=(0.5,) * 4)


def test_fc_are_the_features_and_the_sequence_is_the_trunk():
    encoder = AlexNet(3, fc=24, sobel=True).eval()
    assert encoder.dim == 24 and encoder(IMAGES).shape == (2, 24)
    assert list(encoder.stages()) == ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7"]
    values, maps = IMAGES, encoder.maps(IMAGES)
    for name, layer in encoder.sequence().items():
        values = layer(values)
        assert torch.equal(values, maps[name])


@pytest.mark.parametrize("side", [7, 32, 63])
def test_small_images_skip_poolings(side):
    images = torch.randn(2, 3, side, side)
    encoder = AlexNet(3).eval()
    assert encoder(images).shape == (2, 256) and encoder(images).isfinite().all()


@pytest.mark.parametrize("options", [{"fc": 16, "sobel": True}, {"width": 0.5}])
def test_an_export_is_an_encoder_again(options, tmp_path):
    encoder = AlexNet(3, **options, mean=(0.5,) * 3, std=(0.2,) * 3).eval()
    scope = {"folder": str(tmp_path)}
    exec(encoder.export("torch", tmp_path, 64), scope)
    given = AlexNet.opens(tmp_path)
    again = AlexNet(3, **given).eval()
    with torch.no_grad():
        torch.testing.assert_close(scope["model"](IMAGES), encoder(IMAGES))
        assert torch.equal(again(IMAGES), encoder(IMAGES))
    assert again.normalisation == Normalisation(mean=(0.5,) * 3, std=(0.2,) * 3)
    assert AlexNet.own_size(given) == 64 and AlexNet.opens(tmp_path / "nowhere") is None
    with pytest.raises(RecipeError, match=r"encoder\.weights  cannot load"):
        AlexNet(3, fc=7, weights=str(tmp_path))
