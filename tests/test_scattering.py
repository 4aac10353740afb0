"""The scattering transform as a frozen encoder."""

import importlib.util
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from sslkit import recipe
from sslkit.cli import app
from sslkit.errors import RecipeError, SslkitError
from sslkit.evaluation.foreign import read_encoder
from sslkit_plugins.encoders.scattering import Scattering

needs_kymatio = pytest.mark.skipif(
    importlib.util.find_spec("kymatio") is None, reason="kymatio is not installed"
)


def test_without_kymatio_one_sentence_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "kymatio", None)
    for name in [name for name in sys.modules if name.startswith("kymatio.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(SslkitError, match=r"pip install 'sslkit\[scattering\]'") as caught:
        Scattering((32,), 3)
    assert "\n" not in str(caught.value)


def test_training_it_is_refused_with_the_command_to_evaluate_it():
    settings = ["encoder.use=scattering"]
    with pytest.raises(RecipeError, match="has no weights to train; evaluate it: sslkit eval") as e:
        recipe.read("rotnet", overrides=settings)
    assert "--encoder scattering:j2 --data DIR" in str(e.value)


def test_it_takes_no_weights():
    assert read_encoder("scattering:j3", None).choice.options["model"] == "j3"
    with pytest.raises(RecipeError, match="has no weights; remove the option"):
        read_encoder("scattering:j2", "none")
    with pytest.raises(RecipeError, match="expected one of 'j1', 'j2', 'j3', 'j4'"):
        read_encoder("scattering:resnet18", None)


@needs_kymatio
@pytest.mark.parametrize(
    ("model", "order", "channels"),
    [("j2", 2, 81), ("j2", 1, 17), ("j3", 2, 217), ("j4", 2, 417)],
)
def test_channels_are_one_plus_lj_plus_pairs(model, order, channels):
    encoder = Scattering((32,), 3, model=model, order=order, grid=2)
    maps = encoder.maps(torch.randn(2, 3, 32, 32))["scattering"]
    side = 32 // 2 ** int(model[1:])
    assert encoder.coefficients == channels and maps.shape == (2, 3 * channels, side, side)
    assert encoder(torch.randn(2, 3, 32, 32)).shape == (2, 3 * channels * 4)


@needs_kymatio
def test_it_has_no_parameters_and_does_not_expand():
    encoder = Scattering((32,), 1, mean=(0.5,), std=(0.5,))
    assert not list(encoder.parameters())
    image = torch.zeros(1, 1, 32, 32)
    image[..., 8:24, 8:24] = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
    coefficients = encoder.maps(image)["scattering"]
    cell = 4**2  # pixels for each coefficient
    assert cell * coefficients.square().sum() <= image.square().sum() * 1.01


@needs_kymatio
def test_a_shift_by_a_pixel_changes_it_less_than_the_image():
    encoder = Scattering((32,), 1, mean=(0.5,), std=(0.5,))
    image = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    other = image.roll(1, -1)

    def change(before, after):
        return (after - before).norm() / before.norm()

    first, second = (encoder.maps(each)["scattering"] for each in (image, other))
    assert change(first, second) < change(image, other) / 4


@needs_kymatio
def test_images_of_another_size_are_refused():
    encoder = Scattering((32, 48), 3)
    assert encoder(torch.randn(1, 3, 48, 48)).shape == (1, encoder.dim)
    with pytest.raises(SslkitError, match="made for squares of 32, 48 px"):
        encoder(torch.randn(1, 3, 40, 40))
    with pytest.raises(SslkitError, match="needs images of at least 16 px, not 8"):
        Scattering((8,), 3, model="j4")


@needs_kymatio
def test_it_is_evaluated_like_any_encoder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for number in range(20):
        place = tmp_path / "photos" / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 60 + 190 * (number % 2), (40, 44, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number:02}.png")
    words = ["eval", "knn", "--encoder", "scattering:j2", "--data", "photos", "--size", "32"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "scattering:j2" in done.output and "100" in done.output
