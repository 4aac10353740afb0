"""Recipes and checkpoints with random damage: one sentence or the same as before, never another
exception, never a hang.

The cases are the same each time (`derandomize`), and none are kept on disk (`database=None`).
"""

import hashlib
import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import TINY, new_folder
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from sslkit import recipe
from sslkit.cli import app
from sslkit.errors import CheckpointError, PluginError, RecipeError, printable
from sslkit.recipe.document import Dumper
from sslkit.runs import checkpoint
from sslkit.training.build import build
from sslkit.training.trainer import train

RECIPES = [
    path.read_text(encoding="utf-8")
    for path in sorted((Path(__file__).parents[1] / "recipes").rglob("*.yaml"))
]
DATA = [yaml.safe_load(text) for text in RECIPES]
SECONDS = 2.0


def cases(count: int) -> settings:
    return settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


def check(file: Path, text: bytes, overrides: tuple[str, ...] = ()) -> None:
    """`read` returns, or tells its faults in clean lines; what it took is written and read again
    unchanged.
    """
    file.write_bytes(text)
    begun = time.process_time()
    try:
        made = recipe.read(file, overrides=overrides)
    except (RecipeError, PluginError) as error:
        faults = error.faults if isinstance(error, RecipeError) else [error]
        assert faults and all(str(fault) == printable(str(fault)) for fault in faults)
    else:
        file.write_text(made.as_yaml(), encoding="utf-8")
        assert recipe.read(file) == made
    assert time.process_time() - begun < SECONDS


# --- the text

SNIPPETS = [
    *(
        "{",
        "}",
        "[",
        "]",
        ":",
        ": ",
        ",",
        "#",
        "&a ",
        "*a",
        "!!str ",
        "!!python/object:os.system ",
        "|",
        ">",
        "-",
        "- ",
        "? ",
        "'",
        '"',
    ),
    *(
        "\n",
        "\n  ",
        "\t",
        "\0",
        "\x1b[31m",
        "\r",
        "\u2028",
        "\ufeff",
        "%YAML 1.1\n",
        "---\n",
        "...\n",
        "<<: ",
        "~",
        "null",
        "true",
    ),
    *(
        "1e999",
        ".nan",
        "-.inf",
        "0x10",
        "1_000",
        "9" * 30,
        "-1",
        "0",
        "1e-400",
        "\\ud800",
        '"\\udfff"',
        '"\\U00110000"',
        "../..",
        "é",
        "𝒳",
    ),
    *(
        "use: pirl",
        "use: jigsaw",
        "use: memory_bank",
        "lr: 0.1",
        "epochs: 1",
        "heads:",
        "sampler: {}",
        "a" * 200,
        "{" * 30,
        "[" * 30,
    ),
]


@st.composite
def texts(draw: st.DrawFn) -> bytes:
    """A shipped recipe with up to six cuts, copies, insertions, exchanges and raw bytes."""
    text = draw(st.sampled_from(RECIPES))
    for _ in range(draw(st.integers(1, 6))):
        place, length = draw(st.integers(0, len(text))), draw(st.integers(0, 40))
        match draw(st.integers(0, 3)):
            case 0:
                text = text[:place] + text[place + length :]
            case 1:
                text = text[:place] + draw(st.sampled_from(SNIPPETS)) + text[place:]
            case 2:
                text = text[:place] + draw(st.sampled_from(SNIPPETS)) + text[place + length :]
            case 3:
                other = draw(st.integers(0, len(text)))
                text = text[:place] + text[other : other + length] + text[place:]
    content = text.encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 9)) == 0:
        place = draw(st.integers(0, len(content)))
        content = content[:place] + draw(st.binary(min_size=1, max_size=4)) + content[place:]
    return content


# --- the data

SCALARS: st.SearchStrategy[Any] = (
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.integers(-2, 300)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(
        [
            "pirl",
            "npid",
            "jigsaw",
            "linear",
            "all",
            "auto",
            "sgd",
            "adamw",
            "cosine",
            "",
            "..",
            "image",
            "patches",
            "timm",
        ]
    )
    | st.text(max_size=12)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)
KEYS = st.sampled_from(
    [
        "use",
        "name",
        "method",
        "data",
        "heads",
        "sampler",
        "loss",
        "train",
        "lr",
        "epochs",
        "betas",
        "lambda",
        "grid",
        "root",
        "file",
    ]
) | st.text(max_size=10)


def places(value: Any, path: tuple = ()) -> list[tuple]:
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [path, *(place for key, item in inner for place in places(item, (*path, key)))]


@st.composite
def documents(draw: st.DrawFn) -> bytes:
    """A shipped recipe of which up to four values are replaced, removed, or joined by others."""
    data = yaml.safe_load(yaml.safe_dump(draw(st.sampled_from(DATA))))
    for _ in range(draw(st.integers(1, 4))):
        *path, last = draw(
            st.sampled_from([place for place in places(data) if place] or [("name",)])
        )
        target = data
        for key in path:
            target = target[key]
        match draw(st.integers(0, 3)):
            case 0 | 1:
                target[last] = draw(VALUES)
            case 2:
                del target[last]
            case 3 if isinstance(target, dict):
                target[draw(KEYS)] = draw(VALUES)
    return yaml.dump(data, Dumper=Dumper, allow_unicode=True).encode("utf-8", "surrogatepass")


OVERRIDES = st.lists(
    st.builds(
        "{}={}".format,
        st.sampled_from(
            [".".join(map(str, place)) for data in DATA for place in places(data) if place]
        )
        | st.text(max_size=20),
        SCALARS.map(str) | st.sampled_from(SNIPPETS),
    ),
    max_size=3,
).map(tuple)


@pytest.mark.parametrize("count", [100, pytest.param(4000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("contents", [texts(), documents()], ids=["text", "data"])
def test_recipes(tmp_path: Path, contents: st.SearchStrategy[bytes], count: int) -> None:
    @cases(count)
    @given(contents)
    def whatever(content: bytes) -> None:
        check(tmp_path / "x.yaml", content)

    whatever()


@pytest.mark.parametrize("count", [50, pytest.param(2000, marks=pytest.mark.slow)])
def test_settings(tmp_path: Path, count: int) -> None:
    @cases(count)
    @given(st.sampled_from(RECIPES), OVERRIDES)
    def whatever(text: str, overrides: tuple[str, ...]) -> None:
        check(tmp_path / "x.yaml", text.encode(), overrides)

    whatever()


# --- checkpoints


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """A run folder with the checkpoints of steps 1 and 2."""
    place = tmp_path_factory.mktemp("fuzz")
    data = place / "data"
    for number, image in enumerate(sorted(images.iterdir())):
        target = data / f"class {number % 2}" / image.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, target)
    (place / "tiny.yaml").write_text(
        TINY.format(root=data).replace("use: sgd", "use: adamw").replace(", momentum: 0.9", "")
    )
    made = recipe.read(place / "tiny.yaml")
    run, folder = build(made), new_folder(place / "runs", made)
    for _ in zip(range(2), train(run)):  # noqa: B905
        checkpoint.save(run, folder)
    return folder


def damage(content: bytes, chance: random.Random) -> bytes:
    """Up to four changes, of which half fall into the first 4 KiB, where headers are."""
    changed = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        place = (
            chance.randrange(min(len(changed), 4096) if chance.random() < 0.5 else len(changed))
            if changed
            else 0
        )
        length = chance.choice((1, 1, 2, 8, 100))
        match chance.randrange(5):
            case 0:
                changed[place : place + 1] = (
                    bytes([changed[place] ^ 1 << chance.randrange(8)]) if changed else b"x"
                )
            case 1:
                del changed[place : place + length]
            case 2:
                changed[place:place] = chance.randbytes(length)
            case 3:
                changed[place : place + length] = chance.randbytes(length)
            case 4:
                changed[place : place + 1] = chance.choice(
                    (b"9", b"0", b"-", b"[", b"}", b'"', b"\xff", b"e9")
                )
    return bytes(changed)


@pytest.mark.parametrize("signed", [False, True], ids=["by_accident", "by_intent"])
@pytest.mark.parametrize("count", [60, pytest.param(500, marks=pytest.mark.slow)])
def test_checkpoints(trained: Path, tmp_path: Path, signed: bool, count: int) -> None:
    """By accident: the checksum tells, and the one before is taken. By intent: somebody has written
    the checksums anew.
    """
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    newest = folder / "checkpoints" / "step-00000002"
    whole = {name: (newest / name).read_bytes() for name in (*checkpoint.FILES, "SHA256SUMS")}
    run = build(recipe.read(folder / "recipe.yaml"))
    for case in range(count):
        chance = random.Random(f"{case} {signed}")
        name = chance.choice([*whole][: 3 if signed else 4])
        (newest / name).write_bytes(damage(whole[name], chance))
        changed = (newest / name).read_bytes() != whole[name]
        if signed:
            lines = [
                f"{hashlib.sha256((newest / file).read_bytes()).hexdigest()}  {file}\n"
                for file in checkpoint.FILES
            ]
            (newest / "SHA256SUMS").write_text("".join(lines))
        begun = time.process_time()
        try:
            notes = checkpoint.resume(run, folder)
            if changed and not signed:
                assert (
                    run.step == 1
                    and len(notes) == 1
                    and notes[0].endswith("using the previous one")
                ), (case, name)
            assert all("\n" not in note for note in notes)
        except CheckpointError as error:
            assert signed, (case, name, error)
            assert str(error).startswith(str(folder))
        assert time.process_time() - begun < SECONDS, (case, name)
        for file, content in whole.items():
            (newest / file).write_bytes(content)


@pytest.mark.parametrize("case", range(3))
def test_damaged_checkpoints_on_the_command_line(trained: Path, tmp_path: Path, case: int) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    file = folder / "checkpoints" / "step-00000002" / checkpoint.FILES[case]
    file.write_bytes(damage(file.read_bytes(), random.Random(case)))
    result = CliRunner().invoke(app, ["eval", "knn", str(folder), "--k", "2"])
    assert (
        result.exit_code == 0
        and "step-00000002" in result.stderr
        and "using the previous one" in result.stderr
    )
