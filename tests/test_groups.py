"""Groups: options within options, with presets, without importing the part."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sslkit import recipe
from sslkit.errors import PluginError, RecipeError
from sslkit.recipe import registry
from sslkit.recipe.signature import read_class

MODULE = '''
    """A transform with groups of options; no torch behind it."""

    from dataclasses import dataclass
    from typing import Annotated, Any, ClassVar, Literal

    from pydantic import Field, PositiveInt

    Chance = Annotated[float, Field(ge=0, le=1)]
    Preset = Literal["strong", "weak", "none"]


    @dataclass(frozen=True, kw_only=True)
    class Colours:
        """Photometric changes."""

        jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
        blur: Annotated[Chance, Field(description="Chance of a blur; SimCLR: 0.5.")] = 0.0
        solarize: Chance = 0.0
        presets: ClassVar[dict[str, dict[str, Any]]] = {
            "strong": {"jitter": (0.8, 0.8, 0.8, 0.2), "blur": 0.5},
            "weak": {"jitter": (0.4, 0.4, 0.4, 0.1)},
            "none": {},
        }


    ColourLists = Preset | Colours | tuple[Preset | Colours, ...]


    @dataclass(frozen=True, kw_only=True)
    class Local:
        """Small views."""

        count: PositiveInt = 6
        colours: ColourLists = "strong"
        lambda_: float = 0.5


    class Cut:
        """Cuts views."""

        views: ClassVar = ("image", "patches")

        def __init__(
            self,
            *,
            size: PositiveInt = 224,
            colours: ColourLists = "weak",
            pair: tuple[Colours, Colours] | None = None,
            local: Local = Local(),
        ) -> None:
            self.colours, self.pair, self.local = colours, pair, local
'''
RECIPE = """\
name: small
method:    {use: pirl}
data:      {use: shapes}
transform:
  use: cut
  size: 32
encoder:   {use: timm, model: resnet18}
heads:
  image:   {use: linear}
  patches: {use: concat_patches}
sampler:   {use: memory_bank, negatives: all}
loss:      {use: lambda_nce}
optimizer: {use: sgd, lr: 1e-2}
train:     {epochs: 2, batch_size: 8}
"""
WEAK = {"jitter": (0.4, 0.4, 0.4, 0.1), "blur": 0.0, "solarize": 0.0}


@pytest.fixture(autouse=True)
def folder(install) -> Path:
    sys.modules.pop("cutting", None)
    return install("outside", "[sslkit.transforms]\ncut = cutting:Cut\n", cutting=MODULE)


@pytest.fixture
def write(tmp_path: Path):
    """`write("colours: weak")`: a recipe with these lines in its transform, which has four."""

    def written(*lines: str) -> Path:
        path = tmp_path / "small.yaml"
        more = "".join(f"  {line}\n" for line in lines)
        path.write_text(RECIPE.replace("  size: 32\n", f"  size: 32\n{more}"))
        return path

    return written


def options(path: Path, *overrides: str) -> dict:
    return recipe.read(path, overrides=overrides).transform.options


def faults(path: Path, *overrides: str) -> list[tuple[str, int | None, str]]:
    with pytest.raises(RecipeError) as caught:
        recipe.read(path, overrides=overrides)
    return [(fault.key, fault.line, fault.message) for fault in caught.value.faults]


def test_reading_imports_neither_the_part_nor_torch(folder: Path, write) -> None:
    code = (
        "import sys; from sslkit import recipe\n"
        f"recipe.read({str(write('colours: {preset: weak}'))!r}); recipe.json_schema()\n"
        "print({'cutting', 'torch', 'numpy'} & set(sys.modules))"
    )
    environment = os.environ | {"PYTHONPATH": str(folder)}
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert (run.stdout, run.stderr) == (b"set()\n", b"")


def test_the_source_says_the_same_as_the_class() -> None:
    part = registry.find("transforms", "cut")
    read, imported = part.signature(), read_class(part.load(), "imported")
    assert "cutting" in sys.modules
    words = {name: option.words for name, option in read.options.items()}
    assert words == {name: option.words for name, option in imported.options.items()}
    assert words["colours"] == "a preset, a mapping or a list, each a preset or a mapping"
    assert words["pair"] == "a list of 2, each a mapping or null"
    for name, option in read.options.items():
        assert repr(option.annotation) == repr(imported.options[name].annotation)
        assert repr(option.default) == repr(imported.options[name].default)


def test_defaults_are_filled_in(write) -> None:
    assert options(write()) == {
        "size": 32,
        "colours": "weak",
        "pair": None,
        "local": {"count": 6, "colours": "strong", "lambda": 0.5},
    }


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("none", "none"),
        ("{}", {"jitter": (0.0, 0.0, 0.0, 0.0), "blur": 0.0, "solarize": 0.0}),
        ("{preset: weak}", WEAK),
        ("{preset: weak, blur: 1}", WEAK | {"blur": 1.0}),
        ("[]", ()),
        ("[weak, {preset: weak, solarize: 0.2}]", ("weak", WEAK | {"solarize": 0.2})),
    ],
    ids=["name", "empty", "preset", "preset_and_option", "empty_list", "list"],
)
def test_a_preset_a_mapping_or_a_list(write, given: str, read: object) -> None:
    assert options(write(f"colours: {given}"))["colours"] == read
    assert options(write(f"local: {{colours: {given}}}"))["local"]["colours"] == read


def test_written_and_read_again_it_is_the_same(write, tmp_path: Path) -> None:
    lines = ("colours: [weak, {preset: strong, blur: 1}]", "pair: [{}, {preset: weak}]")
    made = recipe.read(write(*lines, "local: {count: 3, lambda: 2}"))
    again = tmp_path / "again.yaml"
    again.write_text(made.as_yaml())
    assert "preset" not in made.as_yaml()
    assert recipe.read(again) == made
    assert recipe.read(again).as_yaml() == made.as_yaml()


def test_the_part_gets_instances_of_its_own_classes(write) -> None:
    choice = recipe.read(write("colours: [none, {preset: weak}]", "pair: [{}, {}]")).transform
    part = choice.part.load()(**choice.arguments)
    module = sys.modules["cutting"]
    assert part.colours == ("none", module.Colours(**WEAK))
    assert part.pair == (module.Colours(), module.Colours())
    assert part.local == module.Local()
    assert part.local.lambda_ == 0.5
    named = recipe.read(write("colours: strong")).transform
    assert named.arguments["colours"] == "strong", "the name of a preset stays a name"


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        (
            ["colours:", "  preset: weak", "  blurr: 0.5"],
            ("colours.blurr", 9, "no such option of colours; did you mean 'blur'?"),
        ),
        (
            ["colours:", "  - weak", "  - {blur: 2}"],
            (
                "colours.1.blur",
                9,
                "expected float between 0 and 1, got 2. Chance of a blur; SimCLR: 0.5.",
            ),
        ),
        (["colours: stron"], ("colours", 7, "no preset 'stron'; did you mean 'strong'?")),
        (
            ["colours:", "  preset: weakk"],
            ("colours.preset", 8, "no preset 'weakk'; did you mean 'weak'?"),
        ),
        (
            ["colours: [weak, 3]"],
            (
                "colours.1",
                7,
                "expected a preset or a mapping, got 3; presets: strong, weak, none; "
                "options of a mapping: jitter, blur, solarize",
            ),
        ),
        (
            ["local:", "  colours:", "  - jitter: [1]"],
            ("local.colours.0.jitter", 9, "expected a list of 4, each float, got [1]"),
        ),
        (
            ["local: strong"],
            (
                "local",
                7,
                "expected a mapping, got 'strong'; options of a mapping: count, colours, lambda",
            ),
        ),
        (
            ["local: {preset: strong}"],
            ("local.preset", 7, "no such option of local; there are: count, colours, lambda"),
        ),
        (["pair: [{}]"], ("pair", 7, "expected a list of 2, each a mapping or null, got [{}]")),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_faults_have_key_line_and_advice(write, lines: list[str], fault: tuple) -> None:
    key, line, message = fault
    assert faults(write(*lines)) == [(f"transform.{key}", line, message)]


JITTER = (0.1, 0.1, 0.1, 0.0)


@pytest.mark.parametrize(
    ("lines", "setting", "option", "value"),
    [
        (["colours: strong"], "colours.solarize=0.2", "colours", {"blur": 0.5, "solarize": 0.2}),
        ([], "colours.jitter=[0.1, 0.1, 0.1, 0.0]", "colours", {"jitter": JITTER, "blur": 0.0}),
        ([], "colours.preset=strong", "colours", {"blur": 0.5}),
        (["colours: {blur: 1}"], "colours.blur=0.3", "colours", {"blur": 0.3}),
        (["colours: strong"], "colours.jitter.3=0", "colours", {"jitter": (0.8, 0.8, 0.8, 0)}),
        ([], "local.count=4", "local", {"count": 4, "colours": "strong", "lambda": 0.5}),
        (["local: {lambda: 2}"], "local.count=4", "local", {"count": 4, "lambda": 2.0}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_set_reaches_into_groups(write, lines, setting, option, value) -> None:
    held = options(write(*lines), f"transform.{setting}")[option]
    assert held | value == held


def test_set_reaches_into_lists(write) -> None:
    path = write("colours: [weak, strong]")
    first, second = options(path, "transform.colours.1.solarize=0.4")["colours"]
    assert (first, second["blur"], second["solarize"]) == ("weak", 0.5, 0.4)
    assert options(path, "transform.colours.0=none")["colours"] == ("none", "strong")
    nested = options(write(), "transform.local.colours.blur=1")["local"]
    assert (nested["count"], nested["colours"]["blur"]) == (6, 1.0)
    assert nested["colours"]["jitter"] == (0.8, 0.8, 0.8, 0.2), "the default preset is kept"


@pytest.mark.parametrize(
    ("setting", "key", "message"),
    [
        (
            "colours.2.blur=1",
            "colours.2.blur",
            "'transform.colours' is a list of 2, counted from 0",
        ),
        ("colours.blur=1", "colours.blur", "'transform.colours' is a list of 2, counted from 0"),
        ("colours.2=weak", "colours.2", "'transform.colours' is a list of 2, counted from 0"),
        (
            "colours.1.solarise=1",
            "colours.1.solarise",
            "no such option of colours; did you mean 'solarize'?",
        ),
        ("size.x=1", "size.x", "'transform.size' has no options; it is 32"),
    ],
)
def test_a_set_that_leads_nowhere(write, setting: str, key: str, message: str) -> None:
    path = write("colours: [weak, strong]")
    assert faults(path, f"transform.{setting}") == [(f"transform.{key}", None, message)]


def test_the_schema_writes_groups_out(write) -> None:
    choices = recipe.json_schema()["properties"]["transform"]["oneOf"]
    cut = next(choice for choice in choices if choice["title"] == "cut")
    name, mapping, items = cut["properties"]["colours"]["anyOf"]
    assert name["enum"] == ["strong", "weak", "none"]
    assert mapping["properties"]["preset"]["enum"] == ["strong", "weak", "none"]
    assert mapping["properties"]["blur"] == {
        "type": "number",
        "minimum": 0,
        "maximum": 1,
        "default": 0.0,
        "description": "Chance of a blur; SimCLR: 0.5.",
    }
    assert items["items"]["anyOf"] == [name, mapping]
    assert cut["properties"]["local"]["properties"]["colours"]["anyOf"][1] == mapping
    assert cut["properties"]["local"]["default"]["lambda"] == 0.5
    assert "$ref" not in json.dumps(cut)


def test_the_command_line_shows_groups_in_tables(folder: Path, write) -> None:
    def run(*words: object) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "sslkit", *map(str, words)]
        environment = os.environ | {"PYTHONPATH": str(folder)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    shown = run("plugins", "show", "cut").stdout
    assert "Colours, for colours, pair, local.colours: Photometric changes." in shown
    assert "strong   jitter [0.8, 0.8, 0.8, 0.2], blur 0.5" in shown
    assert "Chance of a blur; SimCLR: 0.5." in shown
    refused = run("check", write("colours: [weak]"), "--set", "transform.colours.0.blurr=1")
    assert refused.returncode == 2
    sentence = "no such option of colours; did you mean 'blur'?"
    assert refused.stderr == f"--set  transform.colours.0.blurr  {sentence}\n"


def test_two_groups_in_one_option_are_refused() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class One: ...

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Other: ...

    class Part:
        def __init__(self, *, either: One | Other) -> None: ...

    with pytest.raises(PluginError, match="'either' of part is One and Other"):
        read_class(Part, "part")


def test_a_list_of_groups_keeps_its_bounds() -> None:
    from typing import Annotated

    from pydantic import Field

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class One:
        size: int = 1

    class Part:
        def __init__(self, *, some: Annotated[list[One], Field(min_length=1)] | None) -> None: ...

    signature = read_class(Part, "part")
    assert signature.validate("part", {"some": [{}]}) == ({"some": [{"size": 1}]}, [])
    (fault,) = signature.validate("part", {"some": []})[1]
    assert fault[1].startswith("expected a list of at least 1, each a mapping or null, got []")


def test_a_group_that_cannot_be_read_is_imported(install) -> None:
    source = """
        import dataclasses

        @dataclasses.dataclass(frozen=True, kw_only=True)
        class Noise:
            levels: list[float] = dataclasses.field(default_factory=lambda: [0.5, 1.0])

        class Head:
            '''A head.'''
            def __init__(self, *, noise: Noise = Noise()) -> None: ...
    """
    install("other", "[sslkit.heads]\nnoisy = noisy:Head\n", noisy=source)
    signature = registry.find("heads", "noisy").signature()
    assert signature.validate("noisy", {"noise": {}}) == ({"noise": {"levels": [0.5, 1.0]}}, [])
