"""The shape of the code: flat expressions, docstrings, plain words; and readable names of tests."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted([*ROOT.glob("sslkit/**/*.py"), *ROOT.glob("plugins/sslkit_plugins/**/*.py")])
TREES = {str(path.relative_to(ROOT)): ast.parse(path.read_text("utf-8")) for path in MODULES}
TESTS = sorted((ROOT / "tests").glob("test_*.py"))

COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)

LONGEST_NAME = 60

DIALECT = (
    "afresh",
    "anew",
    "hence",
    "in silence",
    "lest",
    "meanwhile",
    "nobody",
    "of its own",
    "of their own",
    "passed over",
    "thrown away",
    "told of",
    "whoever",
    "whole number",
    "whole numbers",
)
"""Phrases that have a plainer equivalent, in docstrings and messages."""

WORDS = re.compile(rf"\b({'|'.join(DIALECT)})\b", re.IGNORECASE)


def nested(node: ast.AST, kinds: tuple[type[ast.AST], ...]) -> bool:
    return any(child is not node and isinstance(child, kinds) for child in ast.walk(node))


def shape_faults(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, COMPREHENSIONS):
            if len(node.generators) > 1:
                yield f"{node.lineno}: a comprehension with two for"
            if any(len(generator.ifs) > 1 for generator in node.generators):
                yield f"{node.lineno}: a comprehension with two if"
            if nested(node, COMPREHENSIONS):
                yield f"{node.lineno}: a comprehension in a comprehension"
        if isinstance(node, ast.IfExp) and nested(node, (ast.IfExp,)):
            yield f"{node.lineno}: a conditional expression in another one"


def definitions(tree: ast.Module) -> Iterator[tuple[ast.AST, bool]]:
    """Yield public functions, classes and methods, and whether a class has bases.

    Functions in functions, and members of private classes, are left out.
    """
    waiting: list[tuple[ast.AST, bool]] = [(tree, False)]
    while waiting:
        parent, derived = waiting.pop()
        for node in ast.iter_child_nodes(parent):
            if isinstance(node, DEFINITIONS) and not node.name.startswith("_"):
                yield node, derived
                if isinstance(node, ast.ClassDef):
                    waiting.append((node, bool(node.bases)))


def docstring_faults(tree: ast.Module) -> Iterator[str]:
    for node, derived in definitions(tree):
        assert isinstance(node, DEFINITIONS)
        text = ast.get_docstring(node)
        is_override = derived and isinstance(node, ast.FunctionDef)
        if text is None and not is_override:
            yield f"{node.lineno}: {node.name} has no docstring"
    for node in ast.walk(tree):
        text = ast.get_docstring(node) if isinstance(node, (*DEFINITIONS, ast.Module)) else None
        if text is not None and not text.partition("\n")[0].endswith((".", ":")):
            yield f"{getattr(node, 'lineno', 1)}: the first line is no sentence: {text[:60]}"


def sentences(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield docstrings and other strings of several words."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, " ".join(node.value.split())


def dialect_faults(tree: ast.Module) -> Iterator[str]:
    for line, text in sentences(tree):
        if WORDS.search(text):
            yield f"{line}: {text}"


@pytest.mark.parametrize("faults", [shape_faults, docstring_faults, dialect_faults])
def test_modules_have_no_faults_of_style(faults):
    found = {name: list(faults(tree)) for name, tree in TREES.items()}
    assert not {name: lines for name, lines in found.items() if lines}


def test_names_of_tests_are_short():
    for path in TESTS:
        names = re.findall(r"^ *def test_(\w+)", path.read_text("utf-8"), re.MULTILINE)
        assert not [name for name in names if len(name) > LONGEST_NAME], path.name


@pytest.mark.parametrize(
    "code, fault",
    [
        ("[a for b in c for a in b]", "two for"),
        ("[a for a in b if a if c]", "two if"),
        ("[[a for a in b] for b in c]", "comprehension in a"),
        ("a if b else c if d else e", "conditional expression in"),
    ],
    ids=["two_for", "two_if", "nested_comprehension", "nested_conditional"],
)
def test_faults_of_shape_are_found(code, fault):
    (found,) = shape_faults(ast.parse(code))
    assert fault in found


@pytest.mark.parametrize(
    "code",
    ["def f(): ...", "class A: ...", 'def f():\n    """No full stop"""'],
    ids=["function", "class", "first_line"],
)
def test_faults_of_docstrings_are_found(code):
    assert list(docstring_faults(ast.parse(code)))
