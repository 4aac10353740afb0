"""Plans a sweep from the command line, and keeps the plan in sweep.json."""

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sslkit import recipe as recipes
from sslkit.errors import CheckpointError, Fault, PluginError, RecipeError, printable
from sslkit.recipe import Recipe, registry, shipped
from sslkit.recipe.draft import run_name
from sslkit.recipe.paths import absolute
from sslkit.recipe.words import written
from sslkit.runs.changes import ABSENT, FREE
from sslkit.sweep import cell
from sslkit.sweep.axis import SEED, Axis, Range, is_axis, read_axis
from sslkit.sweep.cell import Cell

FORMAT = 1
FILE = "sweep.json"
FOLDERS = {".claims", "logs", "recipes"}
"""Folders that a sweep makes before it writes its plan."""


@dataclass(frozen=True)
class Plan:
    """A checked sweep: recipes by name, axes, training seeds and evaluations."""

    recipes: Mapping[str, str]
    """The source of each recipe: a file or the name of a shipped one."""
    axes: tuple[Axis | Range, ...]
    seeds: int
    evaluations: tuple[str, ...]
    overrides: tuple[str, ...]
    data: str | None
    search: bool
    cells: tuple[Cell, ...]
    """All cells of a grid; for a search, the ends of every range."""

    @property
    def default_name(self) -> str:
        """The name of the folder below sweeps/, from the recipes and the keys."""
        keys = [axis.key for axis in self.axes]
        words = ["+".join(self.recipes), *keys, *(["search"] if self.search else [])]
        name = ",".join(words)
        return name if len(name) <= cell.LONGEST else f"{name[:60]},{cell.digest(name)}"

    def recipe(self, name: str, values: Mapping[str, str]) -> Recipe:
        """Read a recipe with values. Raises RecipeError with every fault."""
        own = [f"{key}={text}" for key, text in values.items()]
        source = self.recipes[name]
        try:
            made = recipes.read(source, overrides=[*self.overrides, *own], data=self.data)
        except RecipeError as error:
            raise RecipeError(*(_placed(fault, source, values) for fault in error.faults)) from None
        return absolute(made)

    def as_dict(self) -> dict[str, Any]:
        """Return the content of sweep.json."""
        first: dict[str, Any] = {}
        for one in self.cells:
            first.setdefault(one.recipe_name, one.recipe.as_dict())
        return {
            "format": FORMAT,
            "search": self.search,
            "values": {axis.key: axis.as_dict() for axis in self.axes},
            "seeds": self.seeds,
            "evaluations": list(self.evaluations),
            "recipes": first,
        }

    def shared(self) -> dict[str, Any]:
        """Return the content that machines without a common folder share: no place of images."""
        found = self.as_dict()
        for content in found["recipes"].values():
            del content["data"]
        return found


def _placed(fault: Fault, source: str, values: Mapping[str, str]) -> Fault:
    """Name the recipe in a fault of a value of the sweep, which was not given with --set."""
    own = any(fault.key == key or fault.key.startswith(f"{key}.") for key in values)
    return replace(fault, file=source) if own and fault.file == "--set" else fault


def read(
    words: Sequence[str],
    *,
    seeds: int = 1,
    evaluations: Sequence[str] = ("knn",),
    overrides: Sequence[str] = (),
    data: str | None = None,
    search: bool = False,
) -> Plan:
    """Read the words of a command line: recipes, and axes of the form key=values.

    Checks the recipe of every cell. Raises RecipeError with every fault. Imports no torch.
    """
    sources = [word for word in words if not is_axis(word)]
    axes, faults = _axes([word for word in words if is_axis(word)], search)
    names, wrong = _names(sources)
    faults += [*wrong, *_other_faults(evaluations, overrides, names, axes, search)]
    plan = Plan(names, tuple(axes), seeds, tuple(evaluations), tuple(overrides), data, search, ())
    cells: list[Cell] = []
    for name, values in _combinations(plan):
        try:
            made = plan.recipe(name, values)
        except RecipeError as error:
            faults += error.faults
            continue
        cells += [cell.make(name, values, seed, made) for seed in range(seeds)]
    if faults:
        raise RecipeError(*dict.fromkeys(faults))
    # Seeds vary slowest, so that a table of all values exists early.
    cells.sort(key=lambda one: one.seed)
    return replace(plan, cells=tuple(cells))


def _combinations(plan: Plan) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield every recipe with every combination of values.

    A search yields every value in some combination.
    """
    keys = [axis.key for axis in plan.axes]
    lists = [axis.values for axis in plan.axes]
    chosen: Iterable[tuple[str, ...]] = itertools.product(*lists)
    if plan.search:
        longest = max((len(values) for values in lists), default=1)
        chosen = [_row(lists, number) for number in range(longest)]
    for values in chosen:
        for name in plan.recipes:
            yield name, dict(zip(keys, values, strict=True))


def _row(lists: Sequence[Sequence[str]], number: int) -> tuple[str, ...]:
    return tuple(values[number % len(values)] for values in lists)


def _axes(words: Sequence[str], search: bool) -> tuple[list[Axis | Range], list[Fault]]:
    axes: list[Axis | Range] = []
    faults = []
    for word in words:
        axis, wrong = read_axis(word, search=search)
        faults += wrong
        if axis is None:
            continue
        if axis.key in [other.key for other in axes]:
            faults.append(Fault(axis.key, "is given twice; list all its values in one word"))
        axes.append(axis)
    return axes, faults


def _names(sources: Sequence[str]) -> tuple[dict[str, str], list[Fault]]:
    """Return the recipes by a unique name for folders."""
    names: dict[str, str] = {}
    faults = []
    for source in sources:
        name = run_name(Path(shipped.short_name(source)).name)
        if name in names:
            name = run_name(shipped.short_name(source))
        if name in names:
            faults.append(Fault(source, "is given twice; name each recipe once"))
        names[name] = source
    if not sources:
        message = "name a recipe first, such as: sslkit sweep pirl_jigsaw loss.lambda=0,0.5,1"
        faults.append(Fault("RECIPE", message))
    return names, faults


def _other_faults(
    evaluations: Sequence[str],
    overrides: Sequence[str],
    names: Mapping[str, str],
    axes: Sequence[Axis | Range],
    search: bool,
) -> list[Fault]:
    faults = []
    for name in evaluations:
        try:
            registry.find("evaluations", name)
        except PluginError as error:
            faults.append(Fault("--evaluate", str(error)))
        if evaluations.count(name) > 1:
            faults.append(Fault("--evaluate", f"{name} is given twice; name each once"))
    keys = [override.partition("=")[0].strip() for override in overrides]
    for key in keys:
        if key == SEED:
            faults.append(Fault(key, "--seeds N sets the training seeds; remove this", "--set"))
        if key in [axis.key for axis in axes]:
            faults.append(Fault(key, "is an axis of the sweep as well; remove one", "--set"))
    if search and len(names) > 1:
        faults.append(Fault("--search", f"takes one recipe, not {', '.join(names)}"))
    if search and not axes:
        faults.append(Fault("--search", "name what to vary, such as optimizer.lr=log:0.01..0.3"))
    return faults


# ------------------------------------------------------------------------------- sweep.json


def stored(home: Path) -> dict[str, Any] | None:
    """Return the plan in a folder; None without one. Raises CheckpointError if it is unreadable."""
    path = home / FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}; name another folder: --out DIR"
        ) from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no plan of this version; name another folder: --out DIR")
    return found


def check_same(home: Path, plan: Plan) -> None:
    """Raise RecipeError with every difference from the plan in a folder, if it has one.

    Raises CheckpointError if the folder has other content instead of a plan.
    """
    there = stored(home)
    if there is not None:
        differences(there, plan.as_dict(), str(home / FILE))
        return
    others = {path.name for path in home.glob("*")} - FOLDERS
    if others:
        raise CheckpointError(
            f"{home} is not empty and holds no sweep ('{printable(min(others))}' is in it); name "
            "a new folder: --out DIR"
        )


def differences(there: Mapping[str, Any], here: Mapping[str, Any], place: str) -> None:
    """Raise RecipeError with every difference of `here` from the plan `there` at `place`."""
    both = set(there.get("recipes", {})) & set(here["recipes"])
    one, other = _leaves(_comparable(there, both)), _leaves(_comparable(here, both))
    faults = []
    for key in dict.fromkeys([*one, *other]):
        then, now = one.get(key, ABSENT), other.get(key, ABSENT)
        if then != now:
            faults.append(Fault(key, f"{_shown(then)} there, {_shown(now)} here", place))
    if faults:
        remedy = f"{place} is another sweep; name another folder: --out DIR"
        raise RecipeError(*faults, Fault("", remedy))


def _comparable(content: Mapping[str, Any], both: set[str]) -> dict[str, Any]:
    """Return a plan with the names of its recipes, and the content of those in both plans."""
    found = dict(content)
    found["names"] = list(content.get("recipes", {}))
    found["recipes"] = {name: content["recipes"][name] for name in sorted(both)}
    return found


def _leaves(content: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Return the values of nested mappings by dotted key, without the settings in FREE."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        place = f"{above}.{key}" if above else str(key)
        if isinstance(value, Mapping) and value:
            found |= _leaves(value, place)
        elif not place.endswith(tuple(f".{name}" for name in (*FREE, SEED))):
            found[place] = value
    return found


def _shown(value: Any) -> str:
    return "absent" if value is ABSENT else written(value, 200)
