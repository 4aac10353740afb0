"""Checks that parts have the roles that a method needs, from their class attributes only."""

from collections.abc import Iterator, Mapping
from typing import Any

from sslkit.errors import PluginError
from sslkit.recipe import registry
from sslkit.recipe.contents import Choice

Wrong = tuple[tuple[str, ...], str]
"""Key and message of a fault."""

WORDS = {"encoders": "an encoder", "heads": "a head", "samplers": "a sampler", "losses": "a loss"}


def faults(
    method: Choice,
    wiring: Mapping[str, Any],
    chosen: Mapping[str, Any],
    heads: Mapping[str, Choice | None],
) -> Iterator[Wrong]:
    """Yield parts without the role that `needs` names, and special heads without need for them.

    Accepts parts whose class states no roles (None).
    """
    needs = dict(wiring.get("needs") or {})
    if any("." in source for source in (wiring.get("reads") or {}).values()):
        needs.setdefault("encoder", "segments")
    places: dict[tuple[str, ...], Choice | None] = {}
    for section in ("encoder", "sampler", "loss"):
        places[section,] = chosen.get(section)
    loss = chosen.get("loss")
    if loss is not None and loss.attributes.get("needs_negatives") and not wiring.get("contrasts"):
        del places["loss",]  # The wiring reports this.
    for name, head in heads.items():
        places["heads", name] = head
    for place, choice in places.items():
        if choice is None:
            continue
        role = needs.get(".".join(place))
        own = choice.attributes.get("roles")
        if role is not None and own is not None and role not in own:
            message = (
                f"method '{method.use}' needs {WORDS[choice.kind]} with the role '{role}', which "
                f"'{choice.use}' does not have; use: {_with_role(choice.kind, role)}"
            )
            yield (*place, "use"), message
        elif choice.attributes.get("special") and role not in (own or ()):
            message = (
                f"'{choice.use}' serves as '{' or '.join(own or ())}' only, which method "
                f"'{method.use}' does not need here; use another head, such as linear or mlp"
            )
            yield (*place, "use"), message


def _with_role(kind: str, role: str) -> str:
    """List the installed parts of a kind with a role."""
    able = []
    for part in registry.parts(kind):
        try:
            roles = part.signature().attributes.get("roles")
        except PluginError:
            continue
        if role in (roles or ()):
            able.append(part.name)
    return ", ".join(able) or "none that is installed"
