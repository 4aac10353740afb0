"""Evaluations run and their results kept: JSON, and a picture made from it."""

import itertools
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from sslkit import faults
from sslkit.errors import PluginError
from sslkit.evaluation.probe import ImageProbe
from sslkit.evaluation.result import EvaluationResult, fault
from sslkit.interfaces import Evaluation
from sslkit.parts import make
from sslkit.recipe import Choice
from sslkit.report import results
from sslkit.runs import files, folders

OPTION = "--out DIR"
"""What chooses another folder of results."""


def measure(choice: Choice, probe: ImageProbe) -> EvaluationResult:
    """Measure, and return the result. PluginError where the part fails or breaks its contract."""
    evaluation: Evaluation = make(choice)
    try:
        with faults.telling(f"{choice.part.shown} fails in measure"):
            found = evaluation.measure(probe)
    except PluginError as error:
        raise PluginError(f"{choice.part}: {error}") from error
    wrong = fault(found)
    if wrong is not None:
        raise PluginError(f"{choice.part} returned {wrong}")
    return EvaluationResult(
        found.metrics,
        found.entries,
        found.protocol,
        found.figures,
        evaluation=choice.use,
        owner=str(choice.part),
    )


def run(choice: Choice, probe: ImageProbe) -> dict[str, Any]:
    """Measure, and return the checked result as plain data. PluginError where the part fails."""
    return measure(choice, probe).as_dict()


def check_place(home: Path) -> None:
    """Raise CheckpointError where `home` can hold no result. Makes nothing."""
    folders.check_place(home, "the folder of results", OPTION)


def write(home: Path, result: dict[str, Any]) -> Path:
    """Write `<evaluation>.json` and its picture into `home`.

    A result of another protocol that stands there is kept under the next free number.
    """
    path = home / f"{result['evaluation']}.json"
    made = [folder for folder in (home, *home.parents) if not folder.exists()]
    try:
        with files.writing(path, OPTION):
            home.mkdir(parents=True, exist_ok=True)
            if path.exists() and _protocol(path) != result["protocol"]:
                numbers = itertools.count(1)
                number = next(n for n in numbers if not path.with_suffix(f".{n}.json").exists())
                path.replace(path.with_suffix(f".{number}.json"))
        files.write_text(path, json.dumps(result, indent=1, ensure_ascii=False), OPTION)
        results.picture(result, path.with_suffix(".png"), OPTION)
    except files.WriteError:
        # Folders that hold a result stay.
        with suppress(OSError):
            for folder in made:
                folder.rmdir()
        raise
    return path


def _protocol(path: Path) -> Any:
    """Return the protocol of a written result; None where the file holds no result."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))["protocol"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
