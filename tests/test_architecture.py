"""Who may import whom, and what may stand nowhere, read from the source."""

import ast
import functools
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def modules(root, package):
    """The files of a package by the name of their module."""
    found = {}
    for path in sorted((root / package).rglob("*.py")):
        name = ".".join(path.relative_to(root).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


CORE = modules(ROOT, "sslkit")
PLUGINS = modules(ROOT / "plugins", "sslkit_plugins")
TREES = {name: ast.parse(path.read_bytes()) for name, path in (CORE | PLUGINS).items()}
WITHOUT_TORCH = {"torch", "torchvision", "timm", "safetensors", "matplotlib"}


def module_names(name, path, tree, *, top_level_only):
    """The modules that `tree` imports; `if TYPE_CHECKING:` does not count, function bodies only if
    asked for.
    """
    found = set()

    def visit(nodes):
        for node in nodes:
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    parts = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
                    base = ".".join(filter(None, [*parts[: len(parts) - node.level + 1], base]))
                found.update({base, *(f"{base}.{alias.name}" for alias in node.names)})
            elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                visit(node.orelse)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and top_level_only:
                continue
            else:
                visit(ast.iter_child_nodes(node))

    visit(tree.body)
    return found


@functools.cache
def imports(name, *, top_level_only=False):
    path = (CORE | PLUGINS)[name]
    return frozenset(module_names(name, path, TREES[name], top_level_only=top_level_only))


def below(names, package):
    return {name for name in names if name == package or name.startswith(f"{package}.")}


def calls(name):
    """Each call in a module: the function as it is written, and the node."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def faults(names, of):
    """The modules that have faults, with their faults `of(name)`."""
    found = {name: of(name) for name in names}
    return {name: faults for name, faults in found.items() if faults}


def test_the_core_never_imports_the_plugins():
    assert not faults(CORE, lambda name: below(imports(name), "sslkit_plugins"))


def imports_beyond_the_interfaces(name):
    """The modules of the core that a plugin imports and should not."""
    allowed = {"sslkit", "sslkit.interfaces", "sslkit.errors", "sslkit.distributed", "sslkit.draws"}
    if name.startswith("sslkit_plugins.evaluations."):
        allowed.add("sslkit.evaluation")
    others = (below(imports(name), "sslkit") & set(CORE)) - allowed
    return others - below(others, "sslkit.interfaces")


def test_plugins_import_only_the_interfaces_the_errors_and_ranks():
    assert not faults(PLUGINS, imports_beyond_the_interfaces)


@pytest.mark.parametrize("package", [CORE, PLUGINS], ids=["sslkit", "sslkit_plugins"])
def test_no_circle_of_imports(package):
    """Imports in functions and for type checkers count as well."""
    graph = {}
    for name in set(package) - {"sslkit"}:
        found = {
            node for node in ast.walk(TREES[name]) if isinstance(node, ast.Import | ast.ImportFrom)
        }
        needs = module_names(name, package[name], ast.Module([*found], []), top_level_only=False)
        needs &= set(package) - {"sslkit"}
        # `from sslkit.recipe import source` inside sslkit.recipe imports the module alone.
        graph[name] = {other for other in needs if not below({name}, other)}
    while ready := [name for name, needs in graph.items() if not needs & set(graph)]:
        for name in ready:
            del graph[name]
    assert not graph, f"these import each other: {graph}"


def mentions_of_torch_distributed(name):
    source = (CORE | PLUGINS)[name].read_text(encoding="utf-8")
    return below(imports(name), "torch.distributed") or "torch.distributed." in source


def test_only_one_file_knows_torch_distributed():
    assert set(faults(CORE | PLUGINS, mentions_of_torch_distributed)) == {"sslkit.distributed"}


def reached(name):
    """Everything of ours that importing `name` imports, itself included."""
    seen, waiting = set(), {name}
    while waiting:
        module = waiting.pop()
        seen.add(module)
        waiting |= (imports(module, top_level_only=True) & set(CORE)) - seen
    return seen


@pytest.mark.parametrize(
    "name",
    ["sslkit.cli", "sslkit.console", "sslkit.errors", "sslkit.recipe", "sslkit.recipe.registry"],
)
def test_checking_a_recipe_imports_no_torch(name):
    for module in reached(name):
        tops = {imported.partition(".")[0] for imported in imports(module, top_level_only=True)}
        assert not tops & WITHOUT_TORCH, module


def test_the_interfaces_import_nothing_of_ours_but_errors_and_draws():
    reachable = {name for name in reached("sslkit.interfaces") if name != "sslkit.interfaces"}
    outside = {name for name in reachable if not below({name}, "sslkit.interfaces")}
    assert outside <= {"sslkit", "sslkit.errors", "sslkit.draws"}


ORDER = [
    (
        "sslkit",
        "sslkit.version",
        "sslkit.errors",
        "sslkit.launcher",
        "sslkit.faults",
        "sslkit.draws",
        "sslkit.installation",
    ),
    ("sslkit.interfaces", "sslkit.recipe", "sslkit.distributed"),
    ("sslkit.device", "sslkit.memory", "sslkit.data"),
    ("sslkit.parts",),
    ("sslkit.runs",),
    ("sslkit.report",),
    ("sslkit.evaluation",),
    ("sslkit.training",),
    ("sslkit.sweep",),
    ("sslkit.console", "sslkit.screen"),
    ("sslkit.api", "sslkit.cli"),
    ("sslkit.__main__",),
]
"""The floors of the house, lowest first. A module imports from its own floor and from lower
ones.
"""


def floor(name):
    """The floor of a module: that of the longest prefix."""
    places = {prefix: level for level, prefixes in enumerate(ORDER) for prefix in prefixes}
    while name not in places:
        name = name.rpartition(".")[0]
    return places[name]


def imports_from_above(name):
    return {other for other in imports(name) & set(CORE) if floor(other) > floor(name)}


def test_no_arrow_runs_back_up():
    assert not faults(CORE, imports_from_above)


def test_the_package_names_its_roof_and_imports_nothing_of_it():
    """`import sslkit` runs no module of ours but the version; other names load when used.

    So everything may import `sslkit`, which stands on the lowest floor.
    """
    import sslkit

    assert below(imports("sslkit"), "sslkit") <= {"sslkit.version", "sslkit.version.__version__"}
    assert set(sslkit._PLACES) | {"__version__"} == set(sslkit.__all__)
    assert set(sslkit._PLACES.values()) <= set(CORE)


def test_nothing_below_the_roof_uses_the_public_functions():
    public = {"sslkit.api", *(f"sslkit.{name}" for name in sslkit_functions())}
    assert not faults((CORE | PLUGINS).keys() - {"sslkit"}, lambda name: imports(name) & public)


def sslkit_functions():
    """The names that `sslkit` loads from its roof."""
    import sslkit

    return {name for name, place in sslkit._PLACES.items() if place == "sslkit.api"}


def test_nothing_prints_but_the_console():
    printing = faults(CORE | PLUGINS, lambda name: "print" in dict(calls(name)))
    assert set(printing) <= {"sslkit.console"}


UNSAFE_MODULES = {"pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib"}
UNSAFE_CALLS = {
    "torch.save",
    "torch.load",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "eval",
    "exec",
    "compile",
    "os.system",
}


def ways_to_run_code_from_files(name):
    modules = {imported.partition(".")[0] for imported in imports(name)} & UNSAFE_MODULES
    return modules | dict(calls(name)).keys() & UNSAFE_CALLS


def test_no_code_is_run_from_files():
    """Neither pickles nor torch's files of them, nor YAML with tags, nor eval."""
    assert not faults(CORE | PLUGINS, ways_to_run_code_from_files)


def loads_that_may_unpickle(name):
    """Lines of `np.load` without `allow_pickle=False`."""
    for function, node in calls(name):
        words = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if function in ("np.load", "numpy.load") and words.get("allow_pickle") != "False":
            yield node.lineno


def test_numpy_archives_are_read_without_pickles():
    assert not faults(CORE | PLUGINS, lambda name: list(loads_that_may_unpickle(name)))


def test_every_module_begins_with_a_docstring():
    bare = faults(CORE | PLUGINS, lambda name: ast.get_docstring(TREES[name]) is None)
    assert set(bare) <= {"sslkit.__main__", "sslkit"}


def test_all_that_is_imported_is_declared():
    """Imported with a module: a dependency. Imported in a function: that, or in an extra."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    needed = " ".join(project["dependencies"]).lower()
    optional = " ".join([str(extra) for name, extra in extras.items() if name != "dev"]).lower()
    for name in CORE | PLUGINS:
        for imported in third_party(imports(name, top_level_only=True)):
            assert imported in needed, f"{name} imports {imported}"
        for imported in third_party(imports(name)):
            assert imported in f"{needed} {optional}", f"{name} imports {imported}"


def third_party(names):
    """The distributions of modules that are neither ours nor Python's, in lower case."""
    distribution = {
        "PIL": "pillow",
        "sklearn": "scikit-learn",
        "yaml": "pyyaml",
        "annotated_types": "pydantic",
        "faster_coco_eval": "faster-coco-eval",
        "typing_extensions": "pydantic",
    }
    tops = {name.partition(".")[0] for name in names}
    others = tops - set(sys.stdlib_module_names) - {"sslkit", "sslkit_plugins"}
    return [distribution.get(name, name).lower() for name in sorted(others)]
