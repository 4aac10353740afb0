"""Reads evaluations and data sets from command-line arguments."""

from collections.abc import Mapping, Sequence
from typing import Any

from sslkit.errors import Fault, RecipeError
from sslkit.recipe import registry
from sslkit.recipe.contents import Choice
from sslkit.recipe.document import Document
from sslkit.recipe.paths import opened_by
from sslkit.recipe.words import advice, written, written_path

SET = "--set"


def read_evaluation(name: str, given: Mapping[str, str | bool]) -> Choice:
    """Return an evaluation with options from the command line, parsed like values of `--set`.

    `given` maps an option to its text, or to true or false for a flag. Raises RecipeError with
    every fault.
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


def choose_evaluation(name: str, given: Mapping[str, Any], common: Sequence[str] = ()) -> Choice:
    """Return an evaluation with options from Python values, by parameter name.

    `common` holds more names to suggest for a misspelt option. Raises RecipeError with every fault.
    """
    part = registry.find("evaluations", name)
    signature = part.signature()
    names = {option.parameter: option.name for option in signature.options.values()}
    unknown = [option for option in given if option not in names]
    faults = []
    for option in unknown:
        message = f"no such option of {name}; {advice(option, [*names, *common])}"
        faults.append(Fault(option, message))
    known = {names[option]: value for option, value in given.items() if option in names}
    options, wrong = signature.validate(name, known)
    faults += [Fault(option, message) for option, message in wrong]
    if faults:
        raise RecipeError(*faults)
    return Choice("evaluations", part.name, options, part)


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"


def read_data(data: str, overrides: Sequence[str] = (), *, place: str = "--data") -> Choice:
    """Return the data set that opens a path.

    `overrides` have the form `data.key=value`; `place` is the argument with the path. Raises
    RecipeError if no data set opens the path, or if an option is wrong.
    """
    section = opened_by(data)
    if isinstance(section, str):
        raise RecipeError(Fault("", f"{written_path(data)}: {section}", place))
    faults: list[Fault] = []
    for override in overrides:
        key, equals, text = override.partition("=")
        name = key.strip().removeprefix("data.")
        if not equals or not name or not key.strip().startswith("data."):
            faults.append(Fault("", f"{written(override)} is not of the form data.key=value", SET))
            continue
        document = Document(text)
        section[name] = document.value
        faults += [Fault(f"data.{name}", message, SET) for _, _, message in document.faults]
    part = registry.find("datasets", section.pop("use"))
    options, wrong = part.signature().validate(part.name, section)
    faults += [Fault(f"data.{option}", message, SET) for option, message in wrong]
    if faults:
        raise RecipeError(*faults)
    return Choice("datasets", part.name, options, part)
