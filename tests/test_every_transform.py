"""What `sslkit.interfaces` promises of transforms, asked of every installed one."""

import numpy as np
import pytest
import torch
from installed_parts import equal, every, picture, small

from sslkit.errors import RecipeError
from sslkit.interfaces import (
    Batch,
    Draws,
    Normalisation,
    Pixels,
)


@every("transforms")
@pytest.mark.parametrize("width, height", [(50, 40), (20, 90), (5, 1), (1, 1)])
def test_a_transform_cuts_fixed_views_from_an_image_of_any_size(part, width, height):
    transform = small(part)
    assert set(transform.shapes) == set(transform.views)
    sample = transform(picture(width, height), np.random.default_rng(1))
    assert {name: tuple(view.shape) for name, view in sample.views.items()} == transform.shapes
    assert all(view.dtype == torch.uint8 for view in sample.views.values())
    assert sample.targets.keys() == transform.num_targets.keys()


@every("transforms")
def test_a_transform_cuts_five_channels_or_refuses_them(part):
    try:
        transform = small(part, {"channels": 5}, colours="none")
    except RecipeError as error:
        assert "5" in str(error) and "\n" not in str(error), "one sentence"
        return
    values = torch.randint(256, (5, 40, 50), dtype=torch.uint8)
    sample = transform(Pixels(values, 50, 40), np.random.default_rng(1))
    assert {name: tuple(view.shape) for name, view in sample.views.items()} == transform.shapes
    assert {shape[-3] for shape in transform.shapes.values()} == {5}


@every("transforms")
def test_a_transform_is_a_function_of_image_and_generator(part):
    transform, image = small(part), picture(50, 40)
    before = image.tobytes()
    first = transform(image, np.random.default_rng(1))
    torch.manual_seed(99)
    np.random.seed(99)
    again = transform(image, np.random.default_rng(1))
    assert equal(first.views, again.views) and equal(first.targets, again.targets)
    assert not equal(first.views, transform(image, np.random.default_rng(2)).views)
    assert image.tobytes() == before


@every("transforms")
def test_its_answers_bound_its_targets(part):
    transform, image = small(part), picture(50, 40)
    seen = {name: set() for name in transform.num_targets}
    for seed in range(100):
        for name, target in transform(image, np.random.default_rng(seed)).targets.items():
            assert target.dtype == torch.int64
            seen[name] |= set(target.flatten().tolist())
    assert seen == {name: set(range(count)) for name, count in transform.num_targets.items()}


@every("transforms")
def test_its_device_phase_normalises_with_draws_of_its_own(part):
    transform = small(part)
    samples = [transform(picture(50, 40, seed), np.random.default_rng(seed)) for seed in range(6)]
    views = {
        name: torch.stack([sample.views[name] for sample in samples]) for name in transform.views
    }
    targets = {
        name: torch.stack([sample.targets[name] for sample in samples])
        for name in transform.num_targets
    }
    given = {name: view.clone() for name, view in views.items()}
    batch = transform.on_device(Batch(views, targets, torch.arange(6)), Draws(1))
    assert equal(views, given), "what comes from the loader is left alone"
    assert equal(batch.targets, targets)
    torch.manual_seed(99)
    assert equal(
        batch.views, transform.on_device(Batch(views, targets, torch.arange(6)), Draws(1)).views
    )
    for name, view in batch.views.items():
        assert view.shape == views[name].shape
        assert view.dtype == torch.float32 and view.isfinite().all()
        assert -3 < view.min() < 0 < view.max() < 3, "ImageNet's normalisation"


OWN_SCALES = {"lab", "ycbcr"}
"""Transforms that scale their values themselves, whatever the encoder's normalisation."""


@every("transforms")
def test_plain_normalises_as_the_encoder_says(part):
    if part.name in OWN_SCALES:
        pytest.skip("scales its values itself")
    transform = small(part)
    images = torch.stack([torch.zeros(3, 8, 8), torch.full((3, 8, 8), 255)]).to(torch.uint8)
    for numbers in (Normalisation(), Normalisation(mean=(0.5, 0.4, 0.3), std=(0.5, 1.0, 0.25))):
        transform.normalisation = numbers
        low, high = transform.plain(images)
        mean, std = torch.tensor(numbers.mean), torch.tensor(numbers.std)
        torch.testing.assert_close(low[:, 0, 0], -mean / std, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(high[:, 0, 0], (1 - mean) / std, rtol=1e-4, atol=1e-4)
    assert images[1].eq(255).all()


@every("transforms")
def test_pictures_of_plain_images_are_the_images(part):
    transform = small(part)
    image = torch.from_numpy(np.array(picture(16, 12))).permute(2, 0, 1)[None]
    shown = transform.picture(transform.plain(image))
    torch.testing.assert_close(shown, image / 255, rtol=1e-3, atol=1e-3)


@every("transforms")
def test_its_state_is_the_same_in_every_process(part):
    assert equal(small(part).state(), small(part).state())
