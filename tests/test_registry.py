"""Parts are found by entry point, and say the same whether read or imported."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, NonNegativeFloat, PositiveInt

from sslkit.errors import PluginError
from sslkit.recipe import registry, source
from sslkit.recipe.signature import REQUIRED, Signature, read_class
from sslkit.recipe.words import describe, plain

Install = Callable[..., None]


def comparable(signature: Signature) -> Any:
    """pydantic's FieldInfo has no equality, hence types by what they print."""
    options = [
        (o.name, o.parameter, repr(o.annotation), plain(o.default), o.words, o.description)
        for o in signature.options.values()
    ]
    return signature.runtime, options, signature.doc, signature.attributes


@pytest.mark.parametrize("part", registry.parts(), ids=lambda part: f"{part.kind}-{part.name}")
def test_what_is_read_is_what_would_be_imported(part: registry.Part) -> None:
    static = read_class(source.find(part.module).stand_in(part.object), "read")
    imported = read_class(part.load(), "imported")
    assert comparable(static) == comparable(imported)
    assert static.summary, f"{part} has no docstring"


def test_every_part_is_read_without_importing_torch() -> None:
    code = (
        "import sys; from sslkit import cli, recipe, console\n"
        "from sslkit.recipe import registry, source\n"
        "for part in registry.parts(): source.find(part.module).stand_in(part.object)\n"
        "recipe.json_schema()\n"
        "print([name for name in sys.modules if name.partition('.')[0] in ('torch', 'timm', "
        "'numpy', 'sslkit_plugins')])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


def test_the_built_in_parts_come_by_entry_point() -> None:
    names = {(part.kind, part.name) for part in registry.parts()}
    expected = {
        ("encoders", "timm"),
        ("transforms", "jigsaw"),
        ("samplers", "memory_bank"),
        ("losses", "lambda_nce"),
        ("methods", "pirl"),
    }
    assert expected <= names
    assert {part.distribution for part in registry.parts("losses")} >= {"sslkit"}


def test_unknown_names_and_kinds() -> None:
    with pytest.raises(
        PluginError,
        match=r"no sampler named 'memory_bnak' is installed; did you mean "
        r"'memory_bank'.*reinstall that package",
    ):
        registry.find("samplers", "memory_bnak")
    with pytest.raises(PluginError, match="no kind 'head' of parts; did you mean 'heads'"):
        registry.parts("head")


def test_two_claims_harm_only_their_name(install: Install) -> None:
    install("first", "[sslkit.heads]\nshared = alpha:Head\n")
    install("second", "[sslkit.heads]\nshared = beta:Head\n")
    assert registry.find("heads", "linear").distribution == "sslkit"
    with pytest.raises(
        PluginError,
        match=r"head 'shared' is claimed by first \(alpha:Head\) and second \(beta:Head\)",
    ):
        registry.find("heads", "shared")


def test_one_distribution_seen_twice_is_no_clash(install: Install) -> None:
    install("twice", "[sslkit.heads]\nsame = alpha:Head\n")
    older = Path(sys.path[0]) / "more"
    (older / "Twice-0.9.dist-info").mkdir(parents=True)
    (older / "Twice-0.9.dist-info" / "entry_points.txt").write_text(
        "[sslkit.heads]\nsame = alpha:Head\n"
    )
    sys.path.append(str(older))
    registry.discover.cache_clear()
    assert registry.find("heads", "same").version == "1.0"


@pytest.mark.parametrize(
    ("target", "source", "sentence"),
    [
        (
            "broken:Head",
            "raise ImportError('no libfoo here')",
            "head 'x' of outside 1.0 cannot be imported from broken: ImportError: no libfoo",
        ),
        ("broken:Head", "def f(:", "cannot be imported from broken: SyntaxError"),
        ("broken:Head", "raise SystemExit(3)", "cannot be imported from broken: SystemExit: 3"),
        (
            "broken:Head",
            "value = 1",
            "cannot be imported from broken: AttributeError: .*has no attribute 'Head'",
        ),
        ("broken:Head", "Head = 3", "is no class: broken:Head is 3"),
        ("absent_module:Head", "", "cannot be imported from absent_module: ModuleNotFoundError"),
        ("broken", "", "cannot be imported from broken"),
    ],
)
def test_a_broken_part_says_what_is_broken(
    install: Install, target: str, source: str, sentence: str
) -> None:
    sys.modules.pop("broken", None)
    install("outside", f"[sslkit.heads]\nx = {target}\n", broken=source)
    part = registry.find("heads", "x")
    with pytest.raises(PluginError, match=sentence) as caught:
        part.load()
    assert "\n" not in str(caught.value)
    with pytest.raises(PluginError):
        part.signature()
    assert registry.find("heads", "linear").signature().runtime[0] == "in_dim"


PLAIN = '''
    """Parts of a stranger."""
    import pydantic as pd
    from typing import Annotated, Literal
    from pydantic import Field
    from sslkit.interfaces import Head
    from shared_names import Fraction, Mixed

    raise RuntimeError("this module must not be imported")

    DEFAULT = -3
    Side = Literal["left", "right"]

    class Parent(Mixed, Head):
        """Parent."""
        inherited = {"a": ("b", 1)}
        def __init__(
            self, in_dim: int, crops: "Nothing", /, *,
            side: Side = "left", low: "int | None" = DEFAULT, share: Fraction,
            sizes: list[Annotated[int, Field(ge=1)]] = [1], lambda_: pd.NonNegativeFloat = 0.5,
        ) -> None: ...
        def forward(self, features): ...

    class Child(Parent):
        own: int = 5
        _private = object()
'''
NAMES = """
    from typing import Annotated
    from pydantic import Field
    Fraction = Annotated[float, Field(ge=0, le=1)]
    class Mixed:
        mixed = True
"""


def test_reading_follows_names_and_bases_without_importing(install: Install) -> None:
    install("outside", "[sslkit.heads]\nx = stranger:Child\n", stranger=PLAIN, shared_names=NAMES)
    signature = registry.find("heads", "x").signature()
    assert signature.runtime == ("in_dim", "crops")
    assert {name: option.default for name, option in signature.options.items()} == {
        "side": "left",
        "low": -3,
        "share": REQUIRED,
        "sizes": [1],
        "lambda": 0.5,
    }
    assert signature.options["lambda"].parameter == "lambda_"
    assert signature.options["share"].words == "float between 0 and 1"
    assert signature.options["low"].words == "int or null"
    own = {"mixed": True, "inherited": {"a": ("b", 1)}, "own": 5}
    of_head = {"roles": None, "special": False, "joins_crops": None, "notes": ()}
    assert signature.attributes == own | of_head
    assert signature.doc == "Parent."
    assert signature.arguments({"lambda": 1.0}) == {"lambda_": 1.0}
    assert "stranger" not in sys.modules


def test_what_cannot_be_read_is_imported(install: Install) -> None:
    source = """
        WORDS = "a b".split()
        class Head:
            '''A head.'''
            def __init__(self, /, *, word: str = WORDS[1]) -> None: ...
    """
    install("outside", "[sslkit.heads]\nx = computed:Head\n", computed=source)
    assert registry.find("heads", "x").signature().options["word"].default == "b"


def test_a_parameter_must_be_a_fact_or_an_option(install: Install) -> None:
    install(
        "outside",
        "[sslkit.heads]\nx = vague:Head\n",
        vague="class Head:\n    def __init__(self, size: int = 1): ...\n",
    )
    with pytest.raises(
        PluginError,
        match=r"parameter 'size' of head 'x' of outside 1\.0 must stand before '/', as a runtime "
        r"argument",
    ):
        registry.find("heads", "x").signature()


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (PositiveInt, "int ≥ 1"),
        (NonNegativeFloat, "float ≥ 0"),
        (Annotated[float, Field(gt=0, lt=1)], "float > 0 and < 1"),
        (Annotated[int, Field(ge=2, lt=9)], "int between 2 and 8"),
        (Literal["official", "blur", "none"], "one of 'official', 'blur', 'none'"),
        (PositiveInt | Literal["all"], "int ≥ 1 or 'all'"),
        (tuple[float, float] | None, "a list of 2, each float or null"),
        (tuple[int, str], "a list of 2: int, text"),
        (tuple[PositiveInt, ...], "a list, each int ≥ 1"),
        (
            Annotated[list[str], Field(min_length=1, max_length=3)],
            "a list of at least 1 and at most 3, each text",
        ),
        (bool, "true or false"),
        (Path | None, "a path or null"),
        (dict[str, int], "a mapping"),
        (Any, "anything"),
    ],
)
def test_types_in_words(annotation: Any, words: str) -> None:
    assert describe(annotation) == words


class Tunable:
    def __init__(
        self,
        /,
        *,
        count: PositiveInt,
        rate: float = 1,
        pair: tuple[int, int] = (1, 2),
        root: Path | None = None,
        lambda_: bool = True,
    ) -> None: ...


def test_validation_fills_defaults_and_takes_lists_for_tuples() -> None:
    options, faults = read_class(Tunable, "t").validate(
        "t", {"count": 3, "pair": [3, 4], "root": "a/b"}
    )
    assert not faults
    assert options == {"count": 3, "rate": 1.0, "pair": (3, 4), "root": Path("a/b"), "lambda": True}
    assert isinstance(options["rate"], float)


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({}, ("count", "t needs the option 'count' (int ≥ 1)")),
        ({"count": 1, "cuont": 2}, ("cuont", "no such option of t; did you mean 'count'?")),
        (
            {"count": 1, "zzz": 2},
            ("zzz", "no such option of t; there are: count, rate, pair, root, lambda"),
        ),
        ({"count": True}, ("count", "expected int ≥ 1, got true")),
        ({"count": 1.0}, ("count", "expected int ≥ 1, got 1.0")),
        ({"count": "abc"}, ("count", "expected int ≥ 1, got 'abc'")),
        ({"count": 1, "rate": "1"}, ("rate", "expected float, got '1'")),
        ({"count": 1, "rate": False}, ("rate", "expected float, got false")),
        ({"count": 1, "pair": [1]}, ("pair", "expected a list of 2, each int, got [1]")),
        ({"count": 1, "root": 7}, ("root", "expected a path or null, got 7")),
        ({"count": 1, "lambda": 1}, ("lambda", "expected true or false, got 1")),
        ({"count": 1, "lambda_": True}, ("lambda_", "no such option of t; did you mean 'lambda'?")),
    ],
    ids=[
        "required",
        "misspelt",
        "unknown",
        "bool_as_int",
        "float_as_int",
        "text_as_int",
        "text_as_float",
        "bool_as_float",
        "short_list",
        "number_as_path",
        "int_as_bool",
        "name_in_python",
    ],
)
def test_validation_says_what_is_wrong_once(given: dict[str, Any], fault: tuple[str, str]) -> None:
    assert read_class(Tunable, "t").validate("t", given)[1] == [fault]
