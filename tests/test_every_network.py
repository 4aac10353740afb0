"""What `sslkit.interfaces` promises of encoders and heads, asked of every installed one."""

import pytest
import torch
from installed_parts import every, small, unit

from sslkit.recipe.signature import REQUIRED

# --- encoders


ONE_SIZE = {"amdim"}
"""Encoders that take images of one size."""


@every("encoders")
def test_an_encoder_gives_vectors_and_maps_from_shallow_to_deep(part):
    sizes = (64,) if part.name in ONE_SIZE else (64, 48)
    encoder = small(part, {"sizes": sizes}).eval()
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        features, maps = encoder(images), encoder.maps(images)
        assert encoder(images[..., : sizes[-1], : sizes[-1]]).shape == (3, encoder.dim)
    assert features.shape == (3, encoder.dim)
    areas = [rows.shape[-1] * rows.shape[-2] for rows in maps.values()]
    assert all(rows.dim() == 4 and len(rows) == 3 for rows in maps.values())
    assert areas == sorted(areas, reverse=True)
    assert sum(value.numel() for value in encoder.weights().values()) == sum(
        v.numel() for v in encoder.state_dict().values()
    )
    assert len(encoder.normalisation.mean) == len(encoder.normalisation.std) == 3
    assert sum(encoder.dims.values()) <= encoder.dim, "segments lie within the vector"


@every("encoders")
def test_an_encoder_takes_images_of_any_number_of_channels(part):
    constants = {"mean": [0.5] * 5, "std": [0.25] * 5}
    known = {"sizes": (64,), "channels": 5}
    encoder = small(part, known, **constants, groups={"two": 2, "three": 3}).eval()
    with torch.no_grad():
        assert encoder(torch.randn(2, 5, 64, 64)).shape == (2, encoder.dim)
    assert len(encoder.normalisation.mean) == len(encoder.normalisation.std) == 5


@every("encoders")
def test_an_encoder_exports_itself_and_opens_its_export(part, tmp_path):
    encoder = small(part, {"sizes": (64,)}).eval()
    images = torch.randn(3, 3, 64, 64)
    for library in encoder.libraries:
        folder = tmp_path / library
        folder.mkdir()
        scope = {"folder": str(folder)}
        exec(encoder.export(library, folder, 64), scope)
        with torch.no_grad():
            torch.testing.assert_close(scope["model"](images), encoder(images))
        if part.load().opens(folder) is None:
            continue
        options, faults = part.signature().validate(part.name, part.load().opens(folder))
        assert not faults and part.load().own_size(options) == 64
        runtime = [{"sizes": (64,), "channels": 3}[name] for name in part.signature().runtime]
        other = part.load()(*runtime, **part.signature().arguments(options)).eval()
        with torch.no_grad():
            torch.testing.assert_close(other(images), encoder(images))


@every("encoders")
def test_options_of_initial_weights_have_defaults(part):
    signature = part.signature()
    for name in signature.attributes["initial_options"]:
        assert signature.options[name].default is not REQUIRED


# --- heads


KEEP_CROPS = {"cpc_context", "cpc_predictor"}
"""Heads that know the number of crops, but have an output for each."""

OTHER_INPUTS = {"mae_decoder", "bigan_generator", "bigan_discriminator"}
"""Heads that read or return something other than vectors; the tests of their methods try them."""


@every("heads")
def test_a_head_leaves_leading_dimensions_free(part):
    if part.name in OTHER_INPUTS:
        pytest.skip("reads or returns something other than vectors")
    head = small(part, out_dim=6).eval()
    over_crops = "crops" in part.signature().runtime
    if part.name in KEEP_CROPS:
        rows = torch.randn(2, 5, 4, 10)
        with torch.no_grad():
            assert head(rows).shape == (2, 5, 4, head.out_dim)
            torch.testing.assert_close(head(rows[1]), head(rows)[1])
        return
    rows = torch.randn(2, 5, 4, 10) if over_crops else torch.randn(2, 5, 10)
    with torch.no_grad():
        together = head(rows)
        assert together.shape == (2, 5, head.out_dim)
        torch.testing.assert_close(head(rows[1]), together[1])
        torch.testing.assert_close(head(rows[1, 3:4]), together[1, 3:4])


@every("heads")
def test_autocast_leaves_the_last_layer_of_a_head_in_float32(part):
    """Outputs rounded to bfloat16 change the gradient of InfoNCE by 1.5 % where images are nearly
    told apart."""
    if not part.load().__module__.startswith("sslkit_plugins") or part.name in OTHER_INPUTS:
        pytest.skip("ours")
    if part.name == "cpc_context":
        pytest.skip("a hidden layer; cpc_predictor is the last")
    head = small(part).eval()
    features = unit(6, 4, 10) if part.name == "concat_patches" else unit(6, 10)
    exact = head(features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = head(features)
    assert found.dtype == torch.float32
    if part.name == "linear":
        assert torch.equal(found, exact)
    torch.testing.assert_close(found, exact, rtol=0.02, atol=0.01)
