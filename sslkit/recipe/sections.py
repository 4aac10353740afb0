"""Reads the sections of settings: optimizer, schedule, train."""

from collections.abc import Mapping
from typing import Any

from sslkit.recipe import evaluations, optimizers
from sslkit.recipe.settings import SCHEDULES, Optimizer, Train
from sslkit.recipe.signature import REQUIRED, Faults, Signature, read_class
from sslkit.recipe.words import advice, written

DEFAULTS = {"optimizer": "sgd", "schedule": "cosine"}
"""Default of `use` in each section."""


WRITTEN = {"final_lr", "milestones", "factor", "step_epochs"}
"""Schedule options that sslkit 0.1 wrote into every recipe.yaml, even if unused."""


def names(section: str) -> tuple[str, ...]:
    """Return the valid values of `use` in a section; () if they are unknown."""
    return optimizers.names() if section == "optimizer" else tuple(SCHEDULES)


def signature(section: str, use: str | None = None) -> Signature | None:
    """Return the options of a section without `use`; None if they are unknown."""
    if section == "train":
        return read_class(Train, section)
    use = DEFAULTS[section] if use is None else use
    if section == "optimizer":
        return optimizers.signature(use)
    return read_class(SCHEDULES[use], use) if use in SCHEDULES else None


def read(section: str, content: Mapping[str, Any]) -> tuple[Any, Faults]:
    """Return the settings and the faults; the settings are None if there are faults."""
    if section == "train":
        return _train(content)
    use = content.get("use", DEFAULTS[section])
    wrong = _wrong_use(section, use)
    if wrong:
        return None, [("use", wrong)]
    given = {name: value for name, value in content.items() if name != "use"}
    return (_optimizer if section == "optimizer" else _schedule)(use, given)


def _train(content: Mapping[str, Any]) -> tuple[Train | None, Faults]:
    options, faults = read_class(Train, "train").validate("train", content)
    if not any(name == "evaluate" for name, _ in faults) and options["evaluate"] is not None:
        options["evaluate"], wrong = evaluations.read(options["evaluate"])
        faults += [(f"evaluate.{name}", message) for name, message in wrong]
    return (None if faults else Train(**options)), faults


def _wrong_use(section: str, use: Any) -> str:
    """Return a message for an invalid `use`; "" if it is valid."""
    known = names(section)
    if not isinstance(use, str):
        return f"{written(use)} is not a name; there are: {', '.join(known)}"
    if not known or use in known:
        return ""
    where = " in torch or timm" if section == "optimizer" else ""
    return f"no {section} named {written(use)}{where}; {advice(use, known)}"


def _schedule(use: str, given: Mapping[str, Any]) -> tuple[Any, Faults]:
    own = read_class(SCHEDULES[use], use)
    if set(given) >= WRITTEN:
        given = _of(own, given)
    given, faults = _without_others("schedule", use, own, given)
    options, wrong = own.validate(use, given)
    faults += wrong
    return (None if faults else SCHEDULES[use](**options)), faults


def _optimizer(use: str, given: Mapping[str, Any]) -> tuple[Any, Faults]:
    common, own = optimizers.common_signature(), optimizers.signature(use)
    if own is None:
        options, faults = common.validate(use, _of(common, given))
        options |= {name: value for name, value in given.items() if name not in common.options}
    else:
        given, faults = _without_others("optimizer", use, own, given)
        options, wrong = own.validate(use, given)
        faults += wrong
    if faults:
        return None, faults
    # Pass only options that the recipe sets: other defaults differ between versions of torch.
    extra = {name: options[name] for name in given if name not in common.options}
    return Optimizer(use=use, **_of(common, options), options=extra), []


def _without_others(
    section: str, use: str, own: Signature, given: Mapping[str, Any]
) -> tuple[dict[str, Any], Faults]:
    """Drop null options, and refuse options of other optimizers or schedules.

    Null means the default. Null or false is accepted for another optimizer's option.
    """
    kept: dict[str, Any] = {}
    faults = []
    for name, value in given.items():
        option = own.options.get(name)
        if option is None and _elsewhere(section, name):
            if value is not None and value is not False:
                remedy = f"remove it: --set {section}.{name}=null"
                faults.append((name, f"'{use}' has no option '{name}'; {remedy}"))
        elif option is None or option.default is REQUIRED or value is not None:
            kept[name] = value
    return kept, faults


def _of(signature: Signature, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that the signature contains."""
    return {name: value for name, value in options.items() if name in signature.options}


def _elsewhere(section: str, option: str) -> bool:
    """Return whether any optimizer or schedule has this option."""
    signatures = (signature(section, use) for use in names(section))
    return any(option in found.options for found in signatures if found is not None)
