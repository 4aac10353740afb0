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
from sslkit.recipe.document import LARGEST, Document, Dumper

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
    assert (linked["root"], linked["follow_links"]) == (str(folder), True)


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
    ids=str,
)
def test_plain_scalars(text: str, value: Any) -> None:
    read = Document(text)
    assert not read.faults
    assert (type(read.value), read.value) == (type(value), value)


@given(
    st.text(max_size=30)
    | st.floats(-LARGEST, LARGEST)
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


def settings(path: Path, optimizer: str, schedule: str = "{}") -> recipe.Recipe:
    return read(path, f"optimizer={optimizer}", f"schedule={schedule}")


def test_an_optimizer_has_options_of_its_own(path: Path, tmp_path: Path) -> None:
    lars = settings(path, "{use: lars, lr: 0.1, momentum: 0.9, trust_coeff: 0.02}")
    assert lars.optimizer.options == {"momentum": 0.9, "trust_coeff": 0.02}
    adamw = settings(path, "{use: adamw, lr: 1, betas: [0.9, 0.95], eps: null}")
    assert adamw.optimizer.options == {"betas": (0.9, 0.95)}
    for made in (lars, adamw):
        again = tmp_path / "again.yaml"
        again.write_text(made.as_yaml())
        assert read(again) == made


@pytest.mark.parametrize(
    ("optimizer", "key", "message"),
    [
        ("use: lars, trust_coef: 1", "trust_coef", "no such option of lars; did you mean 'trust_"),
        ("use: lars, trust_coeff: 0", "trust_coeff", "expected float > 0, got 0. Trust"),
        ("use: adamw, betas: [0.9]", "betas", "expected a list of 2, each float ≥ 0 and < 1, got"),
        ("use: adan, betas: [0.9, 0.9]", "betas", "expected a list of 3, each float ≥ 0 and < 1"),
        ("use: adamw, momentum: 0.9", "momentum", "'adamw' has no option 'momentum'; remove it"),
        ("use: lars, weight_decay: -1", "weight_decay", "expected float ≥ 0, got -1. Weight"),
        ("use: 3", "use", "3 is not a name; there are: sgd, momentum"),
        ("options: {momentum: 1}", "options", "no such option of sgd"),
    ],
    ids=[
        "misspelt",
        "zero_trust_coeff",
        "one_beta",
        "two_betas_of_three",
        "momentum_of_adamw",
        "negative_weight_decay",
        "number_as_name",
        "options_as_key",
    ],
)
def test_an_option_that_an_optimizer_does_not_take(
    path: Path, optimizer: str, key: str, message: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        settings(path, f"{{lr: 0.1, {optimizer}}}")
    (fault,) = caught.value.faults
    assert fault.key == f"optimizer.{key}"
    assert fault.message.startswith(message)


@pytest.mark.parametrize("name", ["npid", "pirl_jigsaw"])
def test_another_optimizer_ends_in_a_remedy_that_works(name: str) -> None:
    file = Path(__file__).parents[1] / "recipes" / f"{name}.yaml"
    with pytest.raises(RecipeError) as caught:
        read(file, "optimizer.use=adamw")
    (fault,) = caught.value.faults
    assert (fault.file, fault.line) == (
        str(file),
        1
        + file.read_text()
        .split("\n")
        .index("optimizer: {use: sgd, lr: 0.05, momentum: 0.9, weight_decay: 1.0e-4}"),
    )
    remedy = fault.message.partition("remove it: --set ")[2]
    made = read(file, "optimizer.use=adamw", remedy).optimizer
    assert (made.use, made.options, made.lr) == ("adamw", {}, 0.05)
    kept = read(file, "optimizer.use=lars").optimizer
    assert (kept.use, kept.options) == ("lars", {"momentum": 0.9})


def test_where_the_source_says_nothing_the_class_decides(path: Path, monkeypatch) -> None:
    """As with another version of timm: names and options pass `check`, what all share is
    checked.
    """

    def forget() -> None:
        optimizers._registry.cache_clear()
        optimizers.signature.cache_clear()

    monkeypatch.setattr(optimizers, "FACTORY", "timm.optim.no_such_file")
    forget()
    try:
        made = settings(path, "{use: any, lr: 1, betas: [0.9, 0.95]}").optimizer
        assert (made.use, made.options) == ("any", {"betas": [0.9, 0.95]})
        with pytest.raises(RecipeError, match=r"optimizer.lr  expected float > 0, got 0"):
            settings(path, "{use: any, lr: 0}")
        assert recipe.json_schema()["properties"]["optimizer"] == {"type": "object"}
    finally:
        forget()


def test_null_removes_an_option_and_nothing_else(path: Path) -> None:
    assert read(path, "optimizer.momentum=null").optimizer.options == {}
    with pytest.raises(RecipeError, match=r"no such option of sgd; did you mean 'momentum'"):
        read(path, "optimizer.momemtum=null")
    with pytest.raises(RecipeError, match=r"sgd needs the option 'lr' \(float > 0\). Peak"):
        read(path, "optimizer.lr=null")


def test_a_schedule_has_options_of_its_own(path: Path) -> None:
    sgd = "{lr: 1}"
    assert settings(path, sgd).schedule == recipe.Cosine()
    step = settings(path, sgd, "{use: step, step_epochs: 5, warmup_epochs: 1}").schedule
    assert step == recipe.Step(step_epochs=5, warmup_epochs=1.0)
    multistep = settings(path, sgd, "{use: multistep, milestones: [3, 5], factor: 0.2}").schedule
    assert multistep == recipe.Multistep(milestones=(3, 5), factor=0.2)


@pytest.mark.parametrize(
    ("schedule", "key", "message"),
    [
        (
            "use: cosine, step_epochs: 30",
            "step_epochs",
            "'cosine' has no option 'step_epochs'; remove it: --set schedule.step_epochs=null",
        ),
        (
            "use: step, final_lr: 0.1",
            "final_lr",
            "'step' has no option 'final_lr'; remove it: --set schedule.final_lr=null",
        ),
        ("use: constant, per: step, factor: 1", "factor", "'constant' has no option 'factor';"),
        ("use: multistep", "milestones", "multistep needs the option 'milestones'"),
        ("warmup: 3", "warmup", "no such option of cosine; did you mean 'warmup_lr'"),
        ("use: linear", "use", "no schedule named 'linear'; there are: cosine, constant, step"),
        (
            "final_weight_decay: 0.4",
            "final_weight_decay",
            "changes optimizer.weight_decay, which is 0, so nothing decays; set",
        ),
    ],
    ids=[
        "step_epochs_of_cosine",
        "final_lr_of_step",
        "factor_of_constant",
        "multistep_without_milestones",
        "misspelt",
        "unknown_schedule",
        "no_weight_decay",
    ],
)
def test_an_option_that_a_schedule_would_ignore(
    path: Path, schedule: str, key: str, message: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        settings(path, "{lr: 1}", f"{{{schedule}}}")
    (fault,) = caught.value.faults
    assert fault.key == f"schedule.{key}"
    assert fault.message.startswith(message)


def test_recipes_that_version_0_1_wrote_out_are_read(path: Path) -> None:
    """They hold every option of every schedule, and null for what an optimizer does not have."""
    made = settings(
        path,
        "{use: adamw, lr: 1, momentum: null, nesterov: false, betas: null, eps: 1e-6}",
        "{use: cosine, final_lr: 0.1, warmup_epochs: 2.0, warmup_lr: 0.0, per: step, "
        "milestones: [], factor: 0.1, step_epochs: 30}",
    )
    assert made.optimizer.options == {"eps": 1e-6}
    assert made.schedule == recipe.Cosine(final_lr=0.1, warmup_epochs=2.0)


@pytest.mark.parametrize("text", ["\x85", "a\x85b", "\u2028", "a \u2029"])
def test_line_breaks_of_yaml_survive_writing(text: str) -> None:
    import yaml

    written = yaml.dump({"key": text}, Dumper=Dumper, allow_unicode=True)
    assert Document(written).value == {"key": text}


def test_items_of_lists_have_lines() -> None:
    document = Document("a:\n- 1\n- b: 2\n  c: &x 3\n")
    assert document.lines[("a", "1")] == 3
    assert document.lines[("a", "1", "c")] == 4
    assert document.faults[0][:2] == (("a", "1", "c"), 4)


def test_schema_names_every_part_and_option() -> None:
    schema = recipe.json_schema()
    json.dumps(schema, allow_nan=False)
    sections = schema["properties"]
    assert set(schema["required"]) == {
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
        "description": "Weight of the old row in an update. NPID, PIRL: 0.5.",
    }
    assert bank["additionalProperties"] is False
    required = {
        choice["title"]: choice["required"]
        for choice in sections["optimizer"]["oneOf"]
        if "title" in choice
    }
    assert (required["sgd"], required["adamw"]) == (["lr"], ["use", "lr"])
    assert sections["train"]["properties"]["epochs"]["exclusiveMinimum"] == 0
