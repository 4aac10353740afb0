"""Reads `train.evaluate`: evaluations while training."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from typing import Any, NamedTuple

from sslkit.errors import PluginError
from sslkit.recipe import registry
from sslkit.recipe.contents import Choice
from sslkit.recipe.settings import Repeat, Train
from sslkit.recipe.signature import Faults, Signature, read_class
from sslkit.recipe.words import written

KEYS = tuple(field.name for field in fields(Repeat))
"""Keys of an evaluation beside its own options."""


class Repeated(NamedTuple):
    """An evaluation while training: when, on which images, and with which options."""

    repeat: Repeat
    choice: Choice

    @property
    def key(self) -> str:
        """The key in a recipe."""
        return f"train.evaluate.{self.choice.use}"


def read(given: Mapping[str, Any]) -> tuple[dict[str, dict[str, Any]], Faults]:
    """Return the evaluations by name with all of their options, and the faults.

    Keys of faults are dotted.
    """
    found: dict[str, dict[str, Any]] = {}
    faults: Faults = []
    for name, options in given.items():
        if options is not None and not isinstance(options, Mapping):
            message = (
                f"{written(options)} is not a mapping of options, such as {{every_epochs: 10}}"
            )
            faults.append((str(name), message))
            continue
        try:
            known = signature(registry.find("evaluations", name))
            found[name], wrong = known.validate(name, options or {})
            faults += [(f"{name}.{option}", message) for option, message in wrong]
        except PluginError as error:
            faults.append((name, str(error)))
    return found, faults


def signature(part: registry.Part) -> Signature:
    """Return the options of an evaluation while training.

    Raises PluginError if its own options have a name in KEYS.
    """
    own, common = part.signature(), read_class(Repeat, part.name)
    taken = [name for name in own.options if name in KEYS]
    if taken:
        raise PluginError(
            f"{part} has an option '{taken[0]}', which is an option of every evaluation in "
            "train.evaluate; its author must give it another name"
        )
    return replace(own, options={**common.options, **own.options})


def repeated(train: Train) -> Iterator[Repeated]:
    """Yield the evaluations of the section `train`."""
    for name, options in (train.evaluate or {}).items():
        own = {key: value for key, value in options.items() if key not in KEYS}
        common = {key: options[key] for key in KEYS}
        part = registry.find("evaluations", name)
        yield Repeated(Repeat(**common), Choice("evaluations", name, own, part))
