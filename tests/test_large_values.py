"""Options with huge or wrong numbers: one sentence with a remedy, without exhausted memory."""

import pytest
from conftest import sslkit

from sslkit import memory, recipe
from sslkit.errors import RecipeError

SMALL = ("--set", "encoder={use: timm, model: test_resnet}")


@pytest.mark.parametrize("key", ["optimizer.weight_decay", "loss.temperature"])
def test_numbers_beyond_float32_are_refused(key):
    fault = "1e300 is too large a number; the largest is 3.4e+38"
    with pytest.raises(RecipeError, match=f"^--set  {key}  {fault.replace('+', '.')}$"):
        recipe.read("simclr", overrides=[f"{key}=1e300"])
    section, option = key.split(".")
    made = recipe.read("simclr").as_dict()
    made[section][option] = 1e39
    with pytest.raises(RecipeError, match="is too large a number"):
        recipe.read(made)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("moco", "heads.projector.layers", 1_000_000),
        ("cpc", "heads.context.blocks", 1_000_000),
        ("mae", "heads.decoder.depth", 1_000_000),
        ("amdim", "encoder.depth", 1_000_000),
        ("dino", "transform.local.count", 1_000_000),
        ("swav", "method.iterations", 1_000_000),
        ("deepcluster", "method.iterations", 1_000_000),
        ("simsiam", "transform.count", 0),
        ("nnclr", "heads.predictor.out_dim", -1),
        ("cpc", "heads.target.out_dim", 0),
    ],
)
def test_a_wrong_number_is_one_fault(name, key, value):
    with pytest.raises(RecipeError) as caught:
        recipe.read(name, overrides=[f"{key}={value}"])
    (fault,) = caught.value.faults
    assert fault.key == key and f"got {value}" in fault.message


@pytest.mark.parametrize(
    ("name", "value", "subject"),
    [
        ("moco", "heads.projector.hidden_dim=100000000", "head 'mlp' (heads.projector)"),
        ("vicreg", "heads.projector.out_dim=100000000", "head 'mlp' (heads.projector)"),
    ],
)
def test_more_than_the_memory_is_refused_in_one_line(monkeypatch, name, value, subject):
    monkeypatch.setattr(memory, "total", lambda: 8 * 2**30)
    code, out, err = sslkit("check", name, *SMALL, "--set", value)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith(f"{subject} fails in __init__") and "not enough memory for a" in err
    assert "use smaller values for its options" in err and "batch_size" not in err


def test_the_limit_of_memory_ends_with_the_rehearsal():
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with memory.limited():
        limit = resource.getrlimit(resource.RLIMIT_DATA)[0]
        assert memory.total() <= limit <= memory.total() + memory.promised() + 2**30
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
