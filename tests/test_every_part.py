"""What `sslkit.interfaces` promises of every kind of part, asked of every part that is
installed.
"""

import importlib.util
import inspect
import math
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch.nn import functional as F
from voc_folder import random_voc

from sslkit import interfaces, parts, recipe
from sslkit.errors import DataError, RecipeError
from sslkit.interfaces import (
    Batch,
    Draws,
    Encoder,
    Evaluation,
    Head,
    ImageSource,
    Loss,
    Method,
    NegativeSampler,
    Normalisation,
    Pixels,
    PretextTransform,
)
from sslkit.recipe import registry, wiring
from sslkit.recipe.document import Document, Dumper
from sslkit.recipe.signature import REQUIRED, plain, read_class, written
from sslkit.training import build, trainer
from sslkit_plugins.samplers import KeyNegatives, MemoryBank

RECIPES = Path(__file__).parents[1] / "recipes"

PROMISE = {
    "encoders": Encoder,
    "heads": Head,
    "transforms": PretextTransform,
    "samplers": NegativeSampler,
    "losses": Loss,
    "methods": Method,
    "datasets": ImageSource,
    "evaluations": Evaluation,
}
"""Kind → class."""

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


# --- all kinds

every_part = pytest.mark.parametrize(
    "part", [pytest.param(p, id=f"{p.kind}-{p.name}") for p in registry.parts()]
)


def test_every_kind_has_a_part():
    assert {part.kind for part in registry.parts()} == set(PROMISE) == set(registry.KINDS)


def test_the_table_of_runtime_arguments_matches_the_checks():
    """`| heads | `in_dim`, `crops` (K …), … |` in the docstring of `sslkit.interfaces`."""
    rows = re.findall(r"^\| (\w+) +\| (.*?)\s*\|$", interfaces.__doc__, re.MULTILINE)
    table = {kind: tuple(re.findall(r"`(\w+)`", text)) for kind, text in rows[1:]}
    assert table == wiring.RUNTIME
    assert set(sum(table.values(), ())) == {*KNOWN, "parts"}


@every_part
def test_it_is_of_its_kind_and_requires_runtime_arguments_of_its_kind(part):
    assert issubclass(part.load(), PROMISE[part.kind])
    assert set(part.signature().runtime) <= set(wiring.RUNTIME[part.kind])


@every_part
def test_its_docstring_says_what_it_is(part):
    summary = part.signature().summary
    assert len(summary) > 30, summary
    assert summary.endswith("."), "a whole sentence"
    if part.kind == "methods":
        assert "arXiv" in part.signature().doc + (
            sys.modules[part.load().__module__].__doc__ or ""
        ), "a method names its paper"


@every_part
def test_its_constructor_takes_no_free_arguments(part):
    kinds = {
        parameter.kind for parameter in inspect.signature(part.load().__init__).parameters.values()
    }
    assert not kinds & {
        inspect.Parameter.VAR_KEYWORD,
        inspect.Parameter.VAR_POSITIONAL,
    } or "__init__" not in vars(part.load())


@every_part
def test_its_source_says_the_same_as_the_imported_class(part):
    read, imported = part.signature(), read_class(part.load(), part.name)
    assert read.runtime == imported.runtime
    assert read.doc == imported.doc
    assert [(o.name, plain(o.default), o.words) for o in read.options.values()] == [
        (o.name, plain(o.default), o.words) for o in imported.options.values()
    ]


@every_part
def test_its_options_are_typed_and_survive_yaml(part):
    signature = part.signature()
    assert all(option.words not in ("", "anything") for option in signature.options.values()), (
        "every option has a type"
    )
    given = {
        name: "text" for name, option in signature.options.items() if option.default is REQUIRED
    }
    options, faults = signature.validate(part.name, given)
    assert not faults
    written = yaml.dump(plain(options), Dumper=Dumper)
    again, faults = signature.validate(part.name, Document(written).value or {})
    assert not faults
    assert again == options


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


# --- transforms


def picture(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


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


# --- samplers


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def snapshot(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def remembers(part):
    return part.load().recall is not NegativeSampler.recall


@every("samplers")
def test_drawing_does_not_update_and_gives_count_candidates(part):
    sampler, index = small(part), torch.tensor([3, 0, 29])
    before = snapshot(sampler)
    for shape in [(3, 6), (2, 3, 6)]:
        terms = shape[0] if len(shape) == 3 else 1
        negatives = sampler.draw(index, Draws(1), terms)
        cosines = negatives.similarity(unit(*shape))
        assert cosines.shape[:-1] == shape[:-1]
        assert cosines.dtype == torch.float32 and cosines.max() <= 1 + 1e-5
        assert negatives.count <= cosines.shape[-1] <= negatives.count + 1
        same = sampler.draw(index, Draws(1), terms).similarity(unit(*shape))
        assert torch.equal(cosines, same), "a draw is a function of its key"
    assert equal(snapshot(sampler), before)


@every("samplers")
def test_the_own_image_is_no_negative(part):
    if not remembers(part):
        pytest.skip("remembers no image")
    sampler, index = small(part), torch.arange(30)
    for key in range(20):
        assert sampler.draw(index, Draws(key)).similarity(sampler.recall(index)).max() < 0.9999


@every("samplers")
def test_updates_keep_unit_norms_and_touch_no_other_image(part):
    if not remembers(part):
        pytest.skip("remembers no image")
    sampler, index, everyone = small(part), torch.tensor([3, 0, 29]), torch.arange(30)
    before = sampler.recall(everyone).clone()
    sampler.update(index, 5 * unit(3, 6))
    after = sampler.recall(everyone)
    torch.testing.assert_close(after.norm(dim=1), torch.ones(30))
    assert [i for i in range(30) if not torch.equal(before[i], after[i])] == [0, 3, 29]
    sampler.fill(index, 5 * unit(3, 6, seed=1))
    torch.testing.assert_close(sampler.recall(index), unit(3, 6, seed=1))


@every("samplers")
def test_all_its_memory_is_in_its_state(part):
    sampler, index = small(part), torch.tensor([3, 0, 29])
    sampler.update(index, unit(3, 6))
    other = small(part)
    other.load_state_dict(sampler.state_dict())
    query = unit(2, 3, 6, seed=2)
    one, two = (each.draw(index, Draws(5), 2).similarity(query) for each in (sampler, other))
    assert torch.equal(one, two)
    kept = {name for name, value in vars(sampler).items() if isinstance(value, torch.Tensor)}
    assert not kept, "tensors outside of the state dictionary are lost by a resume"


# --- losses

ANSWERS = {
    "cross_entropy": torch.arange(8),
    "soft_cross_entropy": torch.full((8, 10), 0.1),
    "binary": torch.arange(8) % 2,
}
"""Targets of losses that take logits; all others compare vectors, most of them with memory."""

LOGITS = {"cross_entropy": (8, 10), "soft_cross_entropy": (8, 10), "binary": (8,)}
"""Shapes of their logits."""


def question(part, dtype=torch.float32):
    """prediction, target and negatives that the loss may be asked with."""
    if part.name in ANSWERS:
        logits = torch.zeros(LOGITS[part.name], dtype=dtype, requires_grad=True)
        return logits, ANSWERS[part.name], None
    if part.load().needs_negatives is False:
        return unit(8, 128, seed=3).to(dtype).requires_grad_(), unit(8, 128, seed=4), None
    sampler = registry.find("samplers", "memory_bank").load()(128, 400, negatives=300)
    prediction = unit(2, 8, 128, seed=3).to(dtype).requires_grad_()
    return prediction, unit(8, 128, seed=4), sampler.draw(torch.arange(8), Draws(1), 2)


@every("losses")
def test_a_loss_is_a_finite_differentiable_scalar(part):
    prediction, target, negatives = question(part)
    if part.name in ANSWERS:
        prediction = unit(*LOGITS[part.name]).requires_grad_()
    value = small(part)(prediction, target, negatives)
    value.backward()
    assert value.shape == () and value.dtype == torch.float32 and value.isfinite()
    assert prediction.grad.isfinite().all() and prediction.grad.abs().sum() > 0


SHARED = {"term": {}, "image": {"draws": "image"}, "batch": {"draws": "batch"}}
CANDIDATES = {**SHARED, "all": {"negatives": "all"}, "vectors": None}
"""Options of a bank by the form of its negatives; None: vectors at hand."""


def step_of(part, form, dtype, *, autocast):
    """Value and gradient of a loss."""
    prediction, target, negatives = question(part, dtype)
    if part.name in ANSWERS:
        prediction = (5 * unit(*LOGITS[part.name])).to(dtype).requires_grad_()
    if negatives is not None and CANDIDATES[form] is None:
        negatives = KeyNegatives(unit(40, 128, seed=5).to(dtype))
    elif negatives is not None:
        options = {"negatives": 300, **CANDIDATES[form]}
        torch.manual_seed(0)
        bank = MemoryBank(128, 400, **options)
        negatives = bank.draw(torch.arange(8), Draws(1), 2)
    loss = small(part)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        value = loss(prediction, target, negatives)
    value.backward()
    return value, prediction.grad


@pytest.mark.parametrize("form", CANDIDATES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@every("losses")
def test_autocast_changes_no_bit_of_a_loss(part, dtype, form):
    """Value and gradient: logits, products with memory and their sums are float32."""
    value, gradient = step_of(part, form, dtype, autocast=True)
    exact, slope = step_of(part, form, dtype, autocast=False)
    assert value.dtype == torch.float32 and gradient.dtype == dtype
    assert torch.equal(value, exact) and torch.equal(gradient, slope)


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


@every("losses")
def test_a_loss_is_at_first_what_it_says(part):
    prediction, target, negatives = question(part)
    loss = small(part)
    answers = 10 if part.name in ANSWERS else 128
    expected = loss.at_start(dim=answers, negatives=7 if negatives is None else 300)
    if expected is not None:
        found = loss(prediction, target, negatives).item()
        assert math.isclose(found, expected, rel_tol=0.15, abs_tol=0.1)


# --- methods

SHIPPED = sorted(RECIPES.glob("*.yaml"))


def test_every_method_of_ours_has_a_recipe():
    ours = {part.name for part in registry.parts("methods") if part.distribution == "sslkit"}
    assert ours <= {recipe.read(path).method.use for path in SHIPPED}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Eight images of two classes."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(8):
        place = folder / "ab"[number % 2]
        place.mkdir(exist_ok=True)
        picture(70, 60, number).save(place / f"{number}.png")
    return folder


@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in SHIPPED])
def test_every_shipped_recipe_trains_a_step(path, photos):
    settings = [
        "train.batch_size=4",
        "train.epochs=1",
        "train.workers=0",
        "train.device=cpu",
        "train.precision=fp32",
    ]
    run = build.build(recipe.read(path, overrides=settings, data=str(photos)))
    before = {name: value.detach().clone() for name, value in run.method.encoder.named_parameters()}
    steps = trainer.train(run)
    first, second = next(steps), next(steps)
    for step in (first, second):
        assert step.loss.shape == () and step.loss.isfinite() and not step.loss.requires_grad
        assert step.metrics
        assert all(
            v.shape == () and v.isfinite() and not v.requires_grad for v in step.metrics.values()
        )
    moved = [
        name
        for name, value in run.method.encoder.named_parameters()
        if not torch.equal(value, before[name])
    ]
    assert moved, "the encoder learns"
    expected = run.method.at_start(run.recipe.train.batch_size)
    if expected is not None:
        assert 0.2 * expected - 0.5 < first.loss.item() < 3 * expected + 2


# --- datasets


@pytest.fixture(scope="module")
def sets(photos, tmp_path_factory):
    """Options that lead the data sets which need one to images: two halves of two classes."""
    root = tmp_path_factory.mktemp("sets")
    for number, path in enumerate(sorted(photos.glob("*/*.png"), key=lambda path: path.name)):
        folder = root / "folder" / ("val" if number > 5 else "train") / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 9, 3), dtype=np.uint8)
    np.savez(
        root / "a.npz",
        images=pixels[:6],
        labels=np.arange(6) % 2,
        images_val=pixels[6:],
        labels_val=np.arange(2),
    )
    folder = parts.make(recipe.read_data(str(root / "folder")), split="train")
    registry.find("datasets", "packed").load().write({"train": folder}, str(root / "packed"))
    return {
        "root": {"packed": str(root / "packed"), "voc": str(random_voc(root / "voc", 4, 2))},
        "file": {"npz": str(root / "a.npz")},
        "folder": str(root / "folder"),
    }


@every("datasets")
def test_a_dataset_holds_named_images(part, sets, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    signature = part.signature()
    options = {
        name: sets.get(name, {}).get(part.name, sets["folder"])
        for name, option in signature.options.items()
        if option.default is REQUIRED or (part.name == "imagenet" and name == "root")
    }
    try:
        source = part.load()("pretrain", **signature.arguments(options))
    except DataError:
        pytest.skip("its images are not at hand")
    assert len(source) == len(source.names) == len(set(map(str, source.names)))
    image = source.image(len(source) - 1)
    assert image.mode == "RGB"
    again = part.load()("pretrain", **signature.arguments(options))
    assert list(again.names) == list(source.names)
    assert again.image(len(source) - 1).tobytes() == image.tobytes()
    if source.labels is not None:
        assert len(source.labels) == len(source) and source.labels.dtype == np.int64
        assert set(source.labels.tolist()) <= set(range(len(source.classes)))
    if source.has_val:
        val = part.load()("val", **signature.arguments(options))
        assert list(val.classes) == list(source.classes)
        assert val.image(0).tobytes() != source.image(0).tobytes()


@every("datasets")
def test_a_dataset_that_is_not_there_says_so(part, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    signature = part.signature()
    options = {
        name: str(tmp_path / "nowhere")
        for name, o in signature.options.items()
        if o.default is REQUIRED
    }
    try:
        part.load()("pretrain", **signature.arguments(options))
    except DataError as error:
        assert len(str(error)) > 20 and "\n" not in str(error), "one sentence"
    assert not list(tmp_path.iterdir()), "nothing is made"


# --- evaluations


@every("evaluations")
def test_an_evaluation_can_be_made_from_the_command_line(part):
    options = part.signature().options
    given = {name: written(option.default) for name, option in options.items()}
    choice = recipe.read_evaluation(part.name, given)
    assert choice.options == {name: option.default for name, option in options.items()}
    assert isinstance(parts.make(choice), Evaluation)
