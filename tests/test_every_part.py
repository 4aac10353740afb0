"""What `sslkit.interfaces` promises of every kind of part, asked of every part that is
installed.
"""

import inspect
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from installed_parts import KNOWN, eight_photos, every  # noqa: F401  (a fixture)

from sslkit import interfaces, parts, recipe
from sslkit.interfaces import (
    Encoder,
    Evaluation,
    Head,
    ImageSource,
    Loss,
    Method,
    NegativeSampler,
    PretextTransform,
)
from sslkit.recipe import registry, wiring
from sslkit.recipe.document import Document, Dumper
from sslkit.recipe.signature import REQUIRED, plain, read_class, written
from sslkit.training import build, trainer

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


# --- methods

SHIPPED = sorted(RECIPES.glob("*.yaml"))


def test_every_method_of_ours_has_a_recipe():
    ours = {part.name for part in registry.parts("methods") if part.distribution == "sslkit"}
    assert ours <= {recipe.read(path).method.use for path in SHIPPED}


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


# --- evaluations


@every("evaluations")
def test_an_evaluation_can_be_made_from_the_command_line(part):
    options = part.signature().options
    given = {name: written(option.default) for name, option in options.items()}
    choice = recipe.read_evaluation(part.name, given)
    assert choice.options == {name: option.default for name, option in options.items()}
    assert isinstance(parts.make(choice), Evaluation)
