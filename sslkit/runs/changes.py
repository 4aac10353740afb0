"""Checks changes of the recipe of a resumed run."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from sslkit.errors import Fault, RecipeError
from sslkit.recipe import Recipe, Train
from sslkit.recipe.paths import absolute
from sslkit.recipe.words import advice, written

FREE = tuple(
    f"train.{name}"
    for name in (
        "workers",
        "device",
        "save_minutes",
        "keep",
        "log_every",
        "unreadable",
        "on_nan",
        "evaluate",
    )
)
"""Settings that a resumed run may change, because they do not affect the result."""
EPOCHS = "train.epochs"
PLACES = ("data.root", "data.file")
ABSENT = object()


def check_settings(folder: Path, overrides: Sequence[str]) -> None:
    """Raise RecipeError for a `--set` that a resumed run does not allow."""
    keys = [setting.partition("=")[0].strip() for setting in overrides]
    faults = []
    for key in keys:
        if key.startswith("data.") or _is_free(key):
            continue
        remedy = (
            f"start a new run instead: sslkit train {shlex.quote(str(folder / 'recipe.yaml'))} "
            f"--set {shlex.quote(key)}=…"
        )
        if key == EPOCHS:
            remedy = f"to train on: sslkit train --resume {shlex.quote(str(folder))} --epochs N"
        message = (
            f"a resumed run keeps its recipe; --set may change data.* and {', '.join(FREE)}; "
            f"{remedy}"
        )
        faults.append(Fault(key, _misspelt(key) or message, "--set"))
    if faults:
        raise RecipeError(*faults)


def _is_free(key: str) -> bool:
    """Return whether a key is in FREE, or below `train.evaluate`."""
    return key in FREE or key.startswith("train.evaluate.")


def _misspelt(key: str) -> str:
    """Return advice for a key whose section or setting does not exist, else ""."""
    section, _, name = key.partition(".")
    sections = [field.name for field in fields(Recipe)]
    if section not in sections:
        return f"no such section; {advice(section, sections)}"
    settings = [field.name for field in fields(Train)]
    if section == "train" and name not in settings:
        return f"no such setting; {advice(name, settings)}"
    return ""


def check_same(folder: Path, there: Recipe, here: Recipe) -> None:
    """Raise RecipeError with every difference of `here` from the recipe of the run in `folder`.

    The settings in FREE may differ.
    """
    one, other = (dict(_leaves(absolute(made).as_dict())) for made in (there, here))
    replaced = [key for key in one if key.endswith(".use") and one[key] != other.get(key)]
    faults = []
    for key in dict.fromkeys([*one, *other]):
        then, now = one.get(key, ABSENT), other.get(key, ABSENT)
        # The options of another part differ anyway; --data replaces the part and its path.
        section = key.rpartition(".")[0] + ".use"
        if section in replaced and key != section and key not in PLACES:
            continue
        if then != now and not _is_free(key):
            message = f"{_shown(then)} there, {_shown(now)} here"
            faults.append(Fault(key, message, str(folder / "recipe.yaml")))
    if faults:
        raise RecipeError(*faults, Fault("", _remedy(folder, there, here, faults)))


def _leaves(content: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value of nested mappings and lists by its dotted key."""
    items: Any = ()
    if isinstance(content, dict):
        items = content.items()
    elif isinstance(content, list):
        items = enumerate(content)
    if not items:
        yield key, content
    for name, value in items:
        yield from _leaves(value, f"{key}.{name}" if key else str(name))


def _shown(value: Any) -> str:
    return "absent" if value is ABSENT else written(value, 200)


def _remedy(folder: Path, there: Recipe, here: Recipe, faults: list[Fault]) -> str:
    """Return how to start another run, and how to resume this one."""
    run = shlex.quote(str(folder))
    other = f"{folder} holds a run of another recipe; start a new one with another --run DIR"
    if [fault.key for fault in faults] != [EPOCHS]:
        return f"{other}, or resume the run without changes: sslkit train --resume {run}"
    then, now = there.train.epochs, here.train.epochs
    if now > then:
        return f"{other}, or train for more epochs: sslkit train --resume {run} --epochs {now}"
    return f"{other}, or resume this one: --set {EPOCHS}={then}"
