"""Runs an evaluation, and writes its result as JSON with a figure."""

import itertools
import json
import os
from collections.abc import Mapping
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
"""Option that selects another folder of results."""


def measure(choice: Choice, probe: ImageProbe) -> EvaluationResult:
    """Run an evaluation. Raises PluginError if it fails or breaks its contract.

    The protocol gets the options of the evaluation, as `options`.
    """
    evaluation: Evaluation = make(choice)
    try:
        with faults.telling(f"{choice.part.shown} fails in measure"):
            found = evaluation.measure(probe)
    except PluginError as error:
        raise PluginError(f"{choice.part}: {error}") from error
    wrong = fault(found)
    if wrong is not None:
        raise PluginError(f"{choice.part} returned {wrong}")
    options = choice.as_dict()
    del options["use"]
    return EvaluationResult(
        found.metrics,
        found.entries,
        {"options": options, **found.protocol},
        found.figures,
        found.files,
        evaluation=choice.use,
        owner=str(choice.part),
    )


def run(choice: Choice, probe: ImageProbe) -> dict[str, Any]:
    """Run an evaluation and return the result as plain data. Raises PluginError if it fails."""
    return measure(choice, probe).as_dict()


def check_place(home: Path) -> None:
    """Raise CheckpointError if results cannot be written to `home`. Creates nothing."""
    folders.check_place(home, "the folder of results", OPTION)


def write(home: Path, result: dict[str, Any], texts: Mapping[str, str] | None = None) -> Path:
    """Write `<evaluation>.json`, its figure and `texts` (name → content) to `home`.

    An existing result with another protocol is renamed with its figure, to the next free number.
    """
    path = home / f"{result['evaluation']}.json"
    made = [folder for folder in (home, *home.parents) if not os.path.exists(folder)]
    try:
        with files.writing(path, OPTION):
            home.mkdir(parents=True, exist_ok=True)
            if path.exists() and _protocol(path) != result["protocol"]:
                _keep(path)
        files.write_text(path, json.dumps(result, indent=1, ensure_ascii=False), OPTION)
        results.picture(result, path.with_suffix(".png"), OPTION)
        for name, text in (texts or {}).items():
            files.write_text(home / name, text, OPTION)
    except files.WriteError:
        # rmdir does not remove folders with earlier results.
        with suppress(OSError):
            for folder in made:
                folder.rmdir()
        raise
    return path


def _keep(path: Path) -> None:
    """Rename a result and its figure to the next free number."""
    both = [path, path.with_suffix(".png")]
    for number in itertools.count(1):
        kept = [one.with_suffix(f".{number}{one.suffix}") for one in both]
        if not any(one.exists() for one in kept):
            break
    for one, other in zip(both, kept, strict=True):
        if one.exists():
            one.replace(other)


def _protocol(path: Path) -> Any:
    """Return the protocol of a result file; None if the file is not a result."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))["protocol"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
