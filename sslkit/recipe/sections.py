"""Reads the sections of settings: optimizer, schedule, train."""

from collections.abc import Mapping
from typing import Any

from sslkit.recipe import optimizers
from sslkit.recipe.settings import SCHEDULES, Optimizer, Train, without_unused
from sslkit.recipe.signature import REQUIRED, Faults, Signature, read_class
from sslkit.recipe.words import advice, written

DEFAULTS = {"optimizer": "sgd", "schedule": "cosine"}
"""What a section uses that does not say."""


def names(section: str) -> tuple[str, ...]:
    """Return what `use` may be in a section; empty where the installed packages do not say."""
    return optimizers.names() if section == "optimizer" else tuple(SCHEDULES)


def signature(section: str, use: str | None = None) -> Signature | None:
    """Return the options of a section besides `use`; None where they cannot be told."""
    if section == "train":
        return read_class(Train, section)
    use = DEFAULTS[section] if use is None else use
    if section == "optimizer":
        return optimizers.signature(use)
    return read_class(SCHEDULES[use], use) if use in SCHEDULES else None


def read(section: str, content: Mapping[str, Any]) -> tuple[Any, Faults]:
    """Return the settings, None where something is wrong, and the faults."""
    if section == "train":
        options, faults = read_class(Train, section).validate(section, content)
        return (None if faults else Train(**options)), faults
    use = content.get("use", DEFAULTS[section])
    known = names(section)
    if not isinstance(use, str):
        return None, [("use", f"{written(use)} is not a name; there are: {', '.join(known)}")]
    if known and use not in known:
        where = " in torch or timm" if section == "optimizer" else ""
        return None, [("use", f"no {section} named {written(use)}{where}; {advice(use, known)}")]
    own = signature(section, use)
    common = optimizers.common_signature()
    given = without_unused(section, content, set(own.options) if own else set())
    given.pop("use", None)
    if own is None:
        options, faults = common.validate(use, _of(common, given))
        extra = {name: value for name, value in given.items() if name not in common.options}
        made = None if faults else Optimizer(use=use, **options, options=extra)
        return made, faults
    faults = []
    for name in [name for name in given if name not in own.options and _elsewhere(section, name)]:
        remedy = f"remove it: --set {section}.{name}=null"
        faults.append((name, f"'{use}' has no option '{name}'; {remedy}"))
        del given[name]
    for name in [name for name in _of(own, given) if given[name] is None]:
        if own.options[name].default is not REQUIRED:
            del given[name]
    options, wrong = own.validate(use, given)
    faults += wrong
    if faults:
        return None, faults
    if section == "schedule":
        return SCHEDULES[use](**options), []
    extra = {name: options[name] for name in given if name not in common.options}
    return Optimizer(use=use, **_of(common, options), options=extra), []


def _of(signature: Signature, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the options that the signature has."""
    return {name: value for name, value in options.items() if name in signature.options}


def _elsewhere(section: str, option: str) -> bool:
    """Tell whether another optimizer or schedule has an option of that name."""
    signatures = (signature(section, use) for use in names(section))
    return any(option in found.options for found in signatures if found is not None)
