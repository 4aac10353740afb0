"""Records the versions of plugins and packages of a run, and compares them on resume."""

import json
import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from sslkit import distributed
from sslkit.errors import Fault, RecipeError
from sslkit.recipe import PARTS, Choice, Recipe, registry
from sslkit.recipe.document import MAX_BYTES, Document
from sslkit.recipe.signature import written
from sslkit.runs.run import Run
from sslkit.version import __version__

FILE = "environment.json"
"""The file of a run folder that holds it."""
OWN = "sslkit"
"""The distribution whose new options keep the behaviour of older versions by default."""


def environment(run: Run) -> dict[str, Any]:
    """Return the environment of a run: versions, device, ranks."""
    packages = ["torch", "torchvision", "timm", "numpy", "pillow", "safetensors", "pydantic"]
    device = f"{run.device.type} ({platform.machine()})"
    if run.device.type == "cuda":
        device = torch.cuda.get_device_name(run.device)
    return {
        "sslkit": __version__,
        "plugins": installed(),
        "parts": {key: choice.part.distribution for key, choice in _choices(run.recipe)},
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in packages},
        "platform": platform.platform(),
        "device": device,
        "precision": str(run.precision).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "processes": distributed.world(),
        "command": sys.argv,
    }


def installed() -> dict[str, str]:
    """Return the version of every distribution with parts."""
    return {part.distribution: part.version for part in registry.parts()}


def _choices(recipe: Recipe) -> Iterator[tuple[str, Choice]]:
    """Yield every part of a recipe by its dotted key."""
    for section in PARTS:
        chosen = getattr(recipe, section)
        if isinstance(chosen, Choice):
            yield section, chosen
        elif isinstance(chosen, dict):
            for name, head in chosen.items():
                yield f"{section}.{name}", head


def recorded(folder: Path) -> dict[str, dict[str, str]]:
    """Return `plugins` and `parts` of a run folder; empty if the file does not say."""
    found: dict[str, dict[str, str]] = {"plugins": {}, "parts": {}}
    try:
        with (folder / FILE).open("rb") as file:
            content = json.loads(file.read(MAX_BYTES))
    except (OSError, ValueError, RecursionError):
        return found
    if isinstance(content, dict):
        for name in found:
            if isinstance(content.get(name), dict):
                found[name] = {key: str(value) for key, value in content[name].items()}
    return found


def gone(folder: Path) -> list[Fault]:
    """Return a fault for each distribution of plugins that is not installed as it was."""
    now, faults = installed(), []
    for name, version in recorded(folder)["plugins"].items():
        if name != OWN and now.get(name) != version:
            held = f"{name} {now[name]} is" if name in now else f"no {name} is"
            message = f"the run began with {name} {version}, and {held} installed"
            faults.append(Fault("", message, str(folder / FILE)))
    return faults


def changes(folder: Path, recipe: Recipe) -> list[str]:
    """Return a sentence for each part whose distribution or version is another one now."""
    then, notes = recorded(folder), []
    for key, choice in _choices(recipe):
        part = choice.part
        before = then["parts"].get(key, part.distribution)
        version = then["plugins"].get(before, part.version)
        if (before, version) != (part.distribution, part.version):
            notes.append(
                f"{part.shown} made this run with {before} {version}, and goes on with "
                f"{part.distribution} {part.version}"
            )
    return list(dict.fromkeys(notes))


def check_options(folder: Path, recipe: Recipe) -> None:
    """Raise RecipeError where a plugin has options that it did not have when the run began.

    recipe.yaml holds every option. sslkit's own new options keep what a run did without them.
    """
    path = folder / "recipe.yaml"
    document = Document(path.read_text(encoding="utf-8-sig"))
    plugins = recorded(folder)["plugins"]
    faults = []
    for key, choice in _choices(recipe):
        content = document.value
        for name in key.split("."):
            content = content.get(name) if isinstance(content, dict) else None
        part = choice.part
        changed = plugins.get(part.distribution, part.version) != part.version
        if (
            part.distribution == OWN
            or not changed
            or not isinstance(content, dict)
            or content.get("use") != choice.use
        ):
            continue
        for name, option in part.signature().options.items():
            if name not in content and choice.options[name] == option.default:
                faults.append(
                    Fault(
                        f"{key}.{name}",
                        f"{part} has this option, and {part.distribution} "
                        f"{plugins[part.distribution]}, which began the run, had not; write it "
                        f"into this file ({written(option.default)} if left out), or install that "
                        "version",
                        str(path),
                    )
                )
    if faults:
        raise RecipeError(*faults)
