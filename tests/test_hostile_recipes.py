"""Recipes, names and places that a stranger may send run no code and write nowhere else."""

import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY
from hostile import BOMB, VALID, in_home, needs_alarms, never_for_long, refused  # noqa: F401  (fixtures)

pytestmark = needs_alarms


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (BOMB, "anchor &a is not allowed"),
        (
            VALID + "more: !!python/object/apply:os.system ['touch pwned']\n",
            "tag tag:yaml.org,2002:python/object/apply:os.system",
        ),
        (
            VALID + "more: !<tag:yaml.org,2002:python/name:os.system> x\n",
            "tag tag:yaml.org,2002:python/name:os.system",
        ),
        (VALID.replace("name: tiny", "name: &n tiny\nmore: *n"), "alias *n is not allowed"),
        (VALID + "more: {<<: {a: 1}}\n", "more  no such section"),
        (VALID + "more: " + "{a: " * 3000 + "}" * 3000, "is nested deeper than 20 levels"),
        (VALID + "- " * 20_000, "is not valid YAML"),
        (VALID + "#" * 20_000_000, "is larger than 64 KiB"),
        (VALID + "a\0: 1", "is not valid YAML: special characters are not allowed"),
        (VALID + 'more: "\\ud800"', "more  '\\ud800' is no Unicode text"),
        (VALID + 'more: "\\U00110000"', "a character that does not exist"),
        (VALID + '"\\e]0;title\\a\\e[31m": 1', "\\x1b]0;title\\x07\\x1b[31m  no such section"),
        (VALID + f"{'a' * 900}: {'9' * 40_000}", "is too large a number"),
        (VALID + "more: [" + "x, " * 20_000 + "]", "more  no such section"),
    ],
    ids=[
        "anchors",
        "tag_object_apply",
        "tag_name",
        "alias",
        "merge_key",
        "deep_mappings",
        "deep_lists",
        "large_file",
        "nul_byte",
        "surrogate",
        "no_code_point",
        "escape_sequence",
        "long_number",
        "long_list",
    ],
)
def test_a_recipe_that_is_a_trap(text: str, sentence: str) -> None:
    Path("trap.yaml").write_text(text)
    assert sentence in refused("check", "trap.yaml")


@pytest.mark.parametrize(
    "name",
    [
        "../../outside/x",
        "/tmp/x",
        "..",
        ".",
        ".hidden",
        "~",
        "a/b",
        "a\\\\b",
        "a\\0b",
        "a\\nb",
        "a\\n",
        "\\e[31m",
        "a" * 101,
        "ａ",
        "",
    ],
    ids=[
        "parent",
        "absolute",
        "two_dots",
        "dot",
        "hidden",
        "home",
        "slash",
        "backslash",
        "nul_byte",
        "line_break",
        "final_line_break",
        "escape_sequence",
        "long",
        "fullwidth",
        "empty",
    ],
)
def test_a_name_cannot_climb_out_of_the_folder_of_runs(name: str) -> None:
    Path("trap.yaml").write_text(VALID.replace("name: tiny", f'name: "{name}"'))
    assert "cannot name a folder" in refused("train", "trap.yaml")
    assert [path.name for path in Path().iterdir()] == ["trap.yaml"]


@pytest.mark.parametrize(
    "name",
    ["../x", "a.b", "", "image\\n", "\\e[31m", "0"],
    ids=["parent", "dot", "empty", "line_break", "escape_sequence", "digit"],
)
def test_a_head_cannot_have_any_name(name: str) -> None:
    Path("trap.yaml").write_text(VALID.replace("  image: ", f'  "{name}": '))
    assert "cannot name a head" in refused("check", "trap.yaml")


@pytest.mark.parametrize(
    "use",
    [
        "trap",
        "trap:Loss",
        "trap.Loss",
        "../trap",
        "os.system",
        "sslkit_plugins.losses:LambdaNCE",
        "\\e[2J",
    ],
)
def test_a_part_is_found_by_entry_point_alone(use: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(".")
    Path("trap.py").write_text("open('pwned', 'w')\nclass Loss: ...\n")
    Path("trap.yaml").write_text(VALID.replace("use: lambda_nce", f'use: "{use}"'))
    for command in ("check", "plan", "views", "train"):
        assert "no loss named" in refused(command, "trap.yaml")
    refused("plugins", "show", use)
    refused("plugins", use)
    refused("eval", use)
    assert "trap" not in sys.modules


@pytest.mark.parametrize(
    "model",
    [
        "resnet18'); open('pwned', 'w') #",
        "resnet18.x'); open('pwned', 'w') #",
        "hf-hub:trap/model",
        "local-dir:trap",
        "../trap",
        "*[",
        "",
    ],
    ids=["code", "code_in_tag", "hub", "local_dir", "parent", "pattern", "empty"],
)
def test_a_model_is_one_that_timm_knows(model: str, images: Path) -> None:
    Path("trap.yaml").write_text(
        TINY.format(root=images).replace("model: test_resnet", f'model: "{model}"')
    )
    assert "encoder" in refused("plan", "trap.yaml")


def test_lines_that_load_an_encoder_quote_its_name() -> None:
    from sslkit_plugins.encoders import Timm

    encoder = Timm((64,), 3, model="test_resnet", norm="group")
    encoder.name = "x'); open('pwned', 'w') #"
    scope: dict[str, Any] = {}
    lines = encoder.export("timm", Path(), 64).splitlines()
    line = next(line for line in lines if "create_model" in line)
    with pytest.raises(RuntimeError, match="Unknown model"):
        exec("import timm\n" + line, scope)


@pytest.mark.parametrize(
    "place",
    ["a\0b", "x" * 5000, "~nosuchuser/x", "\ud800", "no\nsuch", "no\x1b[31msuch"],
    ids=["nul_byte", "long", "no_user", "surrogate", "line_break", "escape_sequence"],
)
def test_places_that_are_none(place: str) -> None:
    Path("good.yaml").write_text(VALID)
    refused("check", place)
    refused("check", "good.yaml", "--data", place)
    refused("train", "--resume", place)
    refused("eval", "knn", place)
    refused("export", place)
    refused("train", "good.yaml", "--set", f"data.root={place}")
    Path("good.yaml").write_text(
        VALID.replace("use: image_folder, root: 'images'", "use: npz, file: 'images'")
    )
    refused("train", "good.yaml", "--set", f"data.file={place}")


@pytest.mark.parametrize(
    "runs", ["a\0b", "x" * 5000, "good.yaml"], ids=["nul_byte", "long", "file"]
)
def test_places_for_runs_that_are_none(runs: str, images: Path) -> None:
    Path("good.yaml").write_text(TINY.format(root=images))
    said = refused("train", "good.yaml", "--runs", runs)
    assert "cannot make the run folder" in said or "embedded null byte" in said
