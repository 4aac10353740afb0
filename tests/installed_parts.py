"""Every installed part of a kind, made small; pictures and unit vectors to ask it with."""

import importlib.util

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from sslkit.recipe import registry

KNOWN = {
    "sizes": (64, 32),
    "channels": 3,
    "in_dim": 10,
    "crops": 4,
    "shape": (3, 12, 12),
    "dim": 6,
    "num_images": 30,
    "split": "pretrain",
}
"""A value of each runtime argument but `parts`."""

SMALL = {
    "size": 32,
    "resize": 32,
    "grid": 2,
    "patch": 12,
    "stride": 6,
    "permutations": 5,
    "model": "resnet18",
    "hidden_dim": 16,
    "negatives": 8,
    "steps": 1,
    "skip": 0,
    "base_width": 8,
    "depth": 1,
}


NEEDS = {"scattering": "kymatio"}
"""Parts that need an optional library."""


def every(kind):
    cases = []
    for part in registry.parts(kind):
        library = NEEDS.get(part.name)
        is_absent = library is not None and importlib.util.find_spec(library) is None
        marks = [pytest.mark.skip(reason=f"{library} is not installed")] if is_absent else []
        cases.append(pytest.param(part, id=part.name, marks=marks))
    return pytest.mark.parametrize("part", cases)


def small(part, known=None, **options):
    """Make the part with whatever makes it small, among the options that it has."""
    signature = part.signature()
    known = KNOWN | (known or {})
    given = {n: v for n, v in (SMALL | options).items() if n in signature.options}
    if part.name == "scattering":
        given.pop("model")
    chosen, faults = signature.validate(part.name, given)
    assert not faults
    torch.manual_seed(0)
    runtime = [known[name] for name in signature.runtime]
    return part.load()(*runtime, **signature.arguments(chosen))


def picture(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.fixture(scope="module", name="photos")
def eight_photos(tmp_path_factory):
    """Eight images of two classes."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(8):
        place = folder / "ab"[number % 2]
        place.mkdir(exist_ok=True)
        picture(70, 60, number).save(place / f"{number}.png")
    return folder
