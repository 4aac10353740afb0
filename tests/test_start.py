"""What starts quickly: help, lists and checks import neither torch nor what else is heavy."""

import subprocess
import sys
from pathlib import Path

import pytest

RECIPE = Path(__file__).parents[1] / "recipes" / "pirl_jigsaw.yaml"
HEAVY = (
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "PIL",
    "matplotlib",
    "safetensors",
    "sslkit_plugins",
)


def imported(*arguments: object, code: int = 0) -> set[str]:
    """The packages that a command has imported when it ends with that exit code."""
    program = (
        "import sys; from sslkit.cli import app\n"
        "try: app(sys.argv[1:], prog_name='sslkit')\n"
        f"except SystemExit as ended: assert (ended.code or 0) == {code}, ended.code\n"
        "print('\\n' + ' '.join({name.partition('.')[0] for name in sys.modules}))"
    )
    words = [sys.executable, "-c", program, *map(str, arguments)]
    return set(
        subprocess.run(words, capture_output=True, text=True, check=True)
        .stdout.splitlines()[-1]
        .split()
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("--version",),
        ("train", "--help"),
        ("plugins",),
        ("plugins", "show", "memory_bank"),
        ("check", RECIPE, "--quick"),
        ("check", RECIPE, "--quick", "--set", "train.epochs=3", "--data", RECIPE.parent),
        ("schema",),
    ],
    ids=lambda arguments: " ".join(str(word) for word in arguments if word != RECIPE),
)
def test_it_imports_no_torch(arguments):
    assert not imported(*arguments) & set(HEAVY)


def test_a_fault_of_a_recipe_imports_no_torch():
    found = imported("check", RECIPE, "--set", "loss.temprature=1", code=2)
    assert not found & {"torch", "timm", "numpy"}


def test_help_and_a_check_that_finds_nothing_import_no_rich():
    assert "rich" not in imported("--help") | imported("check", RECIPE, "--quick")


def test_a_session_imports_matplotlib_only_when_it_draws():
    code = "import sys; from sslkit.training import session; print('matplotlib' in sys.modules)"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "False\n"
    )
