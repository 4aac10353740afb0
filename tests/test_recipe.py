"""A recipe is one whole file; what is read, written and read again is the same."""

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sslkit import recipe
from sslkit.errors import RecipeError
from sslkit.recipe import optimizers, registry
from sslkit.recipe.document import Document, Dumper

VALID = """\
# PIRL on generated images.
name: small
method:    {use: pirl}
data:      {use: shapes}
transform: {use: jigsaw}
encoder:   {use: timm, model: resnet18}
heads:
  image:   {use: linear, out_dim: 128}
  patches: {use: concat_patches, out_dim: 128}
sampler:   {use: memory_bank, negatives: all, momentum: 0.5}
loss:      {use: lambda_nce, lambda: 0.5, temperature: 0.07}
optimizer: {use: sgd, lr: 1e-2, momentum: 0.9}
train:     {epochs: 2, batch_size: 8}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "small.yaml"
    file.write_text(VALID)
    return file


def read(path: Path, *overrides: str, data: str | None = None) -> recipe.Recipe:
    return recipe.read(path, overrides=overrides, data=data)


def test_defaults_are_filled_in(path: Path) -> None:
    small = read(path)
    assert small.method.use == "pirl"
    assert small.sampler is not None
    assert (small.sampler.options["negatives"], small.sampler.options["momentum"]) == ("all", 0.5)
    assert small.loss.options["lambda"] == 0.5
    assert small.loss.arguments["lambda_"] == 0.5
    assert list(small.heads) == ["image", "patches"]
    assert (small.optimizer.lr, small.optimizer.options) == (0.01, {"momentum": 0.9})
    assert (small.schedule.use, small.train.seed, small.train.workers) == ("cosine", 0, "auto")


def test_written_and_read_again_it_is_the_same(path: Path, tmp_path: Path) -> None:
    small = read(path)
    again = tmp_path / "again.yaml"
    again.write_text(small.as_yaml())
    assert read(again) == small
    assert list(small.as_dict()) == [
        "name",
        "method",
        "data",
        "transform",
        "encoder",
        "heads",
        "sampler",
        "loss",
        "optimizer",
        "schedule",
        "train",
    ]
    assert read(again).as_yaml() == small.as_yaml()


def test_every_recipe_that_is_shipped_is_valid() -> None:
    for file in (Path(__file__).parents[1] / "recipes").rglob("*.yaml"):
        recipe.read(file)


def test_set_replaces_one_value_at_a_time(path: Path) -> None:
    changed = read(
        path,
        "loss.lambda=0.7",
        "train.epochs=20",
        "heads.image.out_dim=64",
        "heads.patches.out_dim=64",
        "train.workers=0",
        "name=other",
    )
    assert changed.loss.options["lambda"] == 0.7
    assert changed.heads["patches"].options["out_dim"] == 64
    assert (changed.train.epochs, changed.train.workers, changed.name) == (20, 0, "other")
    assert read(path, "schedule.warmup_epochs=1").schedule.warmup_epochs == 1.0


def test_set_use_drops_the_options_of_the_replaced_part(path: Path) -> None:
    changed = read(
        path, "loss.temperature=0.2", "loss.use=info_nce", "loss={use: info_nce, temperature: 0.3}"
    )
    assert (changed.loss.use, changed.loss.options["temperature"]) == ("info_nce", 0.3)
    assert (
        read(path, "loss.temperature=0.2", "loss.use=info_nce").loss.options["temperature"] == 0.2
    )
    assert "lambda" not in read(path, "loss.use=info_nce").loss.options
    adamw = read(path, "optimizer.use=adamw", "optimizer.momentum=null").optimizer
    assert (adamw.lr, adamw.options) == (0.01, {})


def test_data_replaces_the_data_section(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (tmp_path / "images.npz").touch()
    replaced = read(path, data=str(folder)).data
    assert (replaced.use, str(replaced.options["root"])) == ("image_folder", str(folder))
    assert read(path, data=str(tmp_path / "images.npz")).data.use == "npz"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert str(read(path, data="~/photos").data.options["root"]) == str(folder)
    for use in ("cifar10", "imagenet", "nonsense"):
        assert read(path, f"data.use={use}", data=str(folder)).data.use == "image_folder", (
            "any folder can be swapped in"
        )
    linked = read(
        path, "data.use=image_folder", "data.follow_links=true", data=str(folder)
    ).data.options
    assert linked == {"root": str(folder), "follow_links": True}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1.0e-4", 1e-4),
        ("-.5", -0.5),
        ("3", 3),
        ("-3", -3),
        ("3.", 3.0),
        ("007", "007"),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("yes", "yes"),
        ("True", "True"),
        ("true", True),
        ("null", None),
        ("~", None),
        ("2020-01-01", "2020-01-01"),
        ("'3'", "3"),
        ("<<", "<<"),
        ("{a: [1, x]}", {"a": [1, "x"]}),
    ],
)
def test_plain_scalars(text: str, value: Any) -> None:
    read = Document(text)
    assert not read.faults
    assert (type(read.value), read.value) == (type(value), value)


@given(
    st.text(max_size=30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.integers(-(10**17), 10**17)
    | st.booleans()
    | st.none()
)
def test_every_scalar_survives_writing(value: Any) -> None:
    import yaml

    text = yaml.dump({"key": value}, Dumper=Dumper, allow_unicode=True)
    again = Document(text)
    assert not again.faults
    assert again.value == {"key": value}
    assert type(again.value["key"]) is type(value)


@given(st.text(alphabet="{}[]:,&*!|>'\"-? \n\tab1.~#%@`", max_size=60))
def test_any_text_is_read_or_refused_with_a_line(text: str) -> None:
    for _, line, message in Document(text).faults:
        assert line >= 1
        assert "\n" not in message


def test_lines_are_those_of_the_file(path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        read(path, "train.epochs=0", "loss.lambda=2")
    assert [(fault.file, fault.key, fault.line) for fault in caught.value.faults] == [
        ("--set", "loss.lambda", None),
        ("--set", "train.epochs", None),
    ]
    path.write_text(
        VALID.replace("negatives: all", "negatives: none").replace("epochs: 2", "epochs: 2.5")
    )
    with pytest.raises(RecipeError) as caught:
        read(path)
    assert [(fault.file, fault.key, fault.line) for fault in caught.value.faults] == [
        (str(path), "sampler.negatives", 10),
        (str(path), "train.epochs", 13),
    ]


def test_optimizers_are_those_of_timm() -> None:
    from timm.optim import list_optimizers

    assert "adamw" in list_optimizers()
    assert set(list_optimizers()) <= set(optimizers.names())


def test_the_options_of_optimizers_are_those_of_their_classes() -> None:
    from timm.optim import get_optimizer_info, list_optimizers

    read = 0
    for name in list_optimizers():
        info = get_optimizer_info(name)
        signature = optimizers.signature(name)
        if isinstance(info.opt_class, str):
            assert signature is None, "the classes of apex and bitsandbytes are not installed"
            continue
        parameters = list(inspect.signature(info.opt_class).parameters.values())[1:]
        expected = {one.name: one.default for one in parameters if one.kind is not one.VAR_KEYWORD}
        expected |= optimizers.defaults(name, info.defaults)
        for common in ("lr", "weight_decay"):
            expected.pop(common)
        own = {
            option.name: option.default
            for option in signature.options.values()
            if option.name not in optimizers.common_signature().options
        }
        assert list(own) == list(expected)
        for option, default in own.items():
            # A dtype cannot be read without torch and stays the text of the source.
            assert default == expected[option] or default == str(expected[option])
        read += 1
    assert read > 50


def test_schema_names_every_part_and_option() -> None:
    schema = recipe.json_schema()
    json.dumps(schema, allow_nan=False)
    sections = schema["properties"]
    assert set(schema["required"]) == {
        "name",
        "method",
        "data",
        "transform",
        "encoder",
        "loss",
        "optimizer",
        "train",
    }
    assert {
        choice["properties"]["use"]["const"]
        for choice in sections["heads"]["additionalProperties"]["oneOf"]
    } == {part.name for part in registry.parts("heads")}
    bank = next(
        choice for choice in sections["sampler"]["oneOf"] if choice["title"] == "memory_bank"
    )
    assert bank["properties"]["momentum"] == {
        "type": "number",
        "minimum": 0,
        "maximum": 1,
        "default": 0.5,
        "description": "a number between 0 and 1",
    }
    assert bank["additionalProperties"] is False
    required = {
        choice["title"]: choice["required"]
        for choice in sections["optimizer"]["oneOf"]
        if "title" in choice
    }
    assert (required["sgd"], required["adamw"]) == (["lr"], ["use", "lr"])
    assert sections["train"]["properties"]["epochs"]["exclusiveMinimum"] == 0
