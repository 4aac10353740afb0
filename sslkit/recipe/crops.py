"""Checks that a transform makes the crops that a method compares, from class attributes only."""

from collections.abc import Iterator, Mapping
from typing import Any

from sslkit.recipe.contents import Choice
from sslkit.recipe.roles import Wrong


def faults(
    method: Choice,
    wiring: Mapping[str, Any],
    transform: Choice | None,
    heads: Mapping[str, Choice | None],
) -> Iterator[Wrong]:
    """Yield wrong numbers of crops, and heads that do not fit the crops of their view."""
    compared = wiring.get("crops")
    if transform is None or compared is None:
        return
    options = transform.attributes.get("counts")
    if options is None:
        return
    for views, (fewest, most) in compared.items():
        keys = [options[view] for view in views.split("+") if view in options]
        known = [key for key in keys if key is not None]
        if not keys or len(known) < len(keys):
            continue
        counts = [_count(transform, key) for key in known]
        numbers = [count for count in counts if count is not None]
        if len(numbers) < len(counts):
            continue
        made = sum(numbers)
        if made < fewest or (most is not None and made > most):
            number = f"{fewest}" if most == fewest else f"at least {fewest}"
            yield (
                ("transform", *known[0].split(".")),
                f"method '{method.use}' compares {number} crops of an image, not {made}; set it "
                f"to {max(fewest, 2)}",
            )
    alone = "+".join(compared).split("+")
    for name, head in heads.items():
        view = _view(wiring.get("reads") or {name: name}, name)
        if head is None or view not in transform.attributes.get("views", ()):
            continue
        joins = head.attributes.get("joins_crops")
        needed = view in options and view not in alone
        if joins is None or joins == needed:
            continue
        message = (
            f"'{head.use}' joins the crops of a view, but it gets one image of '{view}' at a time; "
            "use another head, such as linear or mlp"
        )
        if needed:
            message = (
                f"'{head.use}' keeps the crops of the view '{view}' apart, but method "
                f"'{method.use}' needs one vector for all; use a head that joins them, such as "
                "concat_patches"
            )
        yield ("heads", name, "use"), message


def _count(transform: Choice, option: str) -> int | None:
    """Return the value of a dotted option of a transform; None if it is no number."""
    value: Any = transform.options
    for key in option.split("."):
        value = value.get(key) if isinstance(value, Mapping) else getattr(value, key, None)
    return value if isinstance(value, int) else None


def _view(reads: Mapping[str, str], name: str) -> str | None:
    """Return the view that a head reads, directly or through other heads."""
    seen: set[str] = set()
    while name not in seen:
        seen.add(name)
        source = reads.get(name, name)
        if source == name or source not in reads:
            return source.partition(".")[0]
        name = source
    return None
