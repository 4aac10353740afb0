"""Evaluations and data sets as the command line names them."""

from collections.abc import Mapping
from typing import Any

from sslkit.errors import Fault, RecipeError
from sslkit.recipe import registry
from sslkit.recipe.contents import Choice
from sslkit.recipe.document import Document
from sslkit.recipe.paths import opened_by
from sslkit.recipe.words import written


def read_evaluation(name: str, given: Mapping[str, str | bool]) -> Choice:
    """Return an evaluation with its options, whose values are read as those of `--set`.

    `given` are texts by option; a flag is true or false. RecipeError with every fault.
    """
    part = registry.find("evaluations", name)
    values: dict[str, Any] = {}
    faults: list[Fault] = []
    for option, text in given.items():
        if isinstance(text, bool) or not text.strip():
            values[option] = text or None
            continue
        document = Document(text)
        values[option] = document.value
        faults += [Fault(_flag(option), message) for _, _, message in document.faults]
    options, wrong = part.signature().validate(name, values)
    faults += [Fault(_flag(option), message) for option, message in wrong]
    if faults:
        raise RecipeError(*faults)
    return Choice("evaluations", part.name, options, part)


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"


def read_data(data: str) -> Choice:
    """Return the data set that `--data` names. RecipeError where it names none."""
    section = opened_by(data)
    if isinstance(section, str):
        raise RecipeError(Fault("", f"{written(data)}: {section}", "--data"))
    part = registry.find("datasets", section.pop("use"))
    options, wrong = part.signature().validate(part.name, section)
    if wrong:
        raise RecipeError(*(Fault(option, message, "--data") for option, message in wrong))
    return Choice("datasets", part.name, options, part)
