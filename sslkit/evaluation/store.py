"""Evaluations run and their results kept: JSON, and a picture made from it."""

import itertools
import json
from pathlib import Path
from typing import Any

from sslkit import faults
from sslkit.errors import CheckpointError, PluginError
from sslkit.evaluation.probe import ImageProbe
from sslkit.evaluation.result import document
from sslkit.interfaces import Evaluation
from sslkit.parts import make
from sslkit.recipe import Choice
from sslkit.report import results
from sslkit.runs import files


def run(choice: Choice, probe: ImageProbe) -> dict[str, Any]:
    """Measure, and return the checked result as plain data. PluginError where the part fails."""
    evaluation: Evaluation = make(choice)
    try:
        with faults.telling(f"{choice.part.shown} fails in measure"):
            result = evaluation.measure(probe)
    except PluginError as error:
        raise PluginError(f"{choice.part}: {error}") from error
    return document(result, choice.use, str(choice.part))


def write(home: Path, result: dict[str, Any]) -> Path:
    """Write `<evaluation>.json` and its picture into `home`.

    A result of another protocol that stands there is kept under the next free number.
    """
    path = home / f"{result['evaluation']}.json"
    try:
        home.mkdir(parents=True, exist_ok=True)
        if path.exists() and _protocol(path) != result["protocol"]:
            numbers = itertools.count(1)
            number = next(n for n in numbers if not path.with_suffix(f".{n}.json").exists())
            path.replace(path.with_suffix(f".{number}.json"))
    except OSError as error:
        raise CheckpointError(f"cannot keep or replace {path}: {error}") from error
    files.write_text(path, json.dumps(result, indent=1, ensure_ascii=False))
    results.picture(result, path.with_suffix(".png"))
    return path


def _protocol(path: Path) -> Any:
    """Return the protocol of a written result; None where the file holds no result."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))["protocol"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
