"""Lab: values of the CIE formulas, the way back, and the scales of CMC."""

import numpy as np
import pytest
import torch
from PIL import Image

from sslkit.errors import RecipeError
from sslkit.interfaces import Batch, Draws, Normalisation
from sslkit_plugins.views import Lab
from sslkit_plugins.views.lab import lab_to_rgb, rgb_to_lab


def colour(*values):
    return torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1)


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [
        # Gray of linear luminance Y: L = 116 Y^(1/3) - 16 above Y = 0.008856, 903.3 Y below.
        ((0, 0, 0), (0, 0, 0)),
        ((255, 255, 255), (100, 0, 0)),
        ((119, 119, 119), (116 * 0.184475 ** (1 / 3) - 16, 0, 0)),
        ((5, 5, 5), (903.3 * 5 / 255 / 12.92, 0, 0)),
        # Primaries and yellow, from the columns of the sRGB matrix over the white point.
        ((255, 0, 0), (53.2406, 80.0923, 67.2032)),
        ((0, 255, 0), (87.7351, -86.1827, 83.1795)),
        ((0, 0, 255), (32.2957, 79.1875, -107.8602)),
        ((255, 255, 0), (97.1393, -21.5537, 94.4781)),
        ((255, 0, 255), (60.3242, 98.2352, -60.8255)),
    ],
    ids=["black", "white", "gray", "dark", "red", "green", "blue", "yellow", "magenta"],
)
def test_colours_have_the_values_of_the_formulas(rgb, lab):
    found = rgb_to_lab(colour(*rgb)).flatten().tolist()
    assert found == pytest.approx(lab, abs=0.02)


def test_the_way_back_gives_the_colours_again():
    steps = torch.arange(0, 256, 15, dtype=torch.float32)
    cube = torch.cartesian_prod(steps, steps, steps).T.view(1, 3, -1, 1)
    back = lab_to_rgb(rgb_to_lab(cube))
    assert (back - cube).abs().max() < 0.05


def test_views_are_lab_scaled_as_in_cmc():
    """L = 100 gives 1; a and b of white are 0, so -6.025 / 92.208 and 6.6895 / 101.1675."""
    transform = Lab(size=4)
    white = torch.full((1, 3, 4, 4), 255, dtype=torch.uint8)
    view = transform.on_device(Batch({"image": white}, {}, torch.arange(1)), Draws(0)).views[
        "image"
    ]
    expected = (1.0, -6.025 / 92.208, 6.6895 / 101.1675)
    assert view[0, :, 0, 0].tolist() == pytest.approx(expected, abs=1e-3)
    torch.testing.assert_close(transform.plain(white), view)
    transform.normalisation = Normalisation(mean=(0.1, 0.2, 0.3), std=(9, 9, 9))
    torch.testing.assert_close(transform.plain(white), view)


def test_every_colour_lies_within_the_scales():
    values = torch.randint(256, (1, 3, 200, 200), generator=torch.Generator().manual_seed(0))
    scaled = Lab(size=4).plain(values.to(torch.uint8))
    assert scaled.abs().max() <= 1.0001 and scaled.isfinite().all()


def test_the_first_channel_alone_tells_gray_pictures():
    """Of a gray picture the two channels of colour are constant, the lightness is not."""
    ramp = np.linspace(0, 255, 64).astype(np.uint8)[None, :, None].repeat(64, 0).repeat(3, 2)
    transform = Lab(size=32, min_area=1.0)
    view = transform(Image.fromarray(ramp), np.random.default_rng(0)).views["image"]
    shown = transform.plain(view[None])[0]
    assert shown[0].std() > 0.4 and shown[1:].flatten(1).std(1).max() < 1e-3


def test_other_channels_are_a_sentence():
    with pytest.raises(RecipeError, match="'lab' needs images of 3 channels; the data set has 5"):
        Lab(5)
