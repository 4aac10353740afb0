"""Checks that parts fit together, from their class attributes only."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sslkit.errors import PluginError
from sslkit.recipe import crops, registry, roles
from sslkit.recipe.contents import PARTS, Choice
from sslkit.recipe.roles import Wrong
from sslkit.recipe.settings import Train
from sslkit.recipe.words import nearest

RUNTIME = {
    "encoders": ("sizes", "channels"),
    "heads": ("in_dim", "crops", "shape", "num_images"),
    "transforms": ("channels",),
    "samplers": ("dim", "num_images"),
    "losses": (),
    "methods": ("parts",),
    "datasets": ("split",),
    "evaluations": (),
}
"""Runtime arguments that parts of each kind may require (the table of `sslkit.interfaces`)."""


EVERY = "*"
"""Stands for every head of the recipe in `reads` and `stores`."""


def reads_of(reads: Mapping[str, str], heads: Iterable[str]) -> dict[str, str]:
    """Return `reads` of a method, with the entry `*` repeated for each of the recipe's heads."""
    if EVERY not in reads:
        return dict(reads)
    return {name: reads[EVERY].replace(EVERY, name) for name in heads}


def stores_of(stores: tuple[str, ...], heads: Iterable[str]) -> tuple[str, ...]:
    """Return `stores` of a method, with `*` replaced by the recipe's heads."""
    return tuple(heads) if EVERY in stores else stores


def faults(chosen: Mapping[str, Any], heads: Mapping[str, Choice | None]) -> Iterator[Wrong]:
    """Yield the faults between parts.

    `chosen` maps each valid section to its Choice. It lacks `sampler` if the recipe does.
    """
    for key, choice in _choices(chosen, heads):
        if (wrong := unknown_runtime(choice)) is not None:
            yield (*key, "use"), wrong
    method: Choice | None = chosen.get("method")
    if method is None:
        return
    wiring = dict(method.attributes)
    if EVERY in (wiring.get("reads") or ()):
        if not heads:
            message = f"method '{method.use}' needs heads, one for each segment of the encoder"
            yield ("heads",), message
            return
        wiring["reads"] = reads_of(wiring["reads"], heads)
        wiring["stores"] = stores_of(wiring.get("stores") or (), heads)
    yield from _names(method, wiring)
    yield from _heads(method, wiring, chosen.get("transform"), heads)
    yield from _lengths(method, wiring, heads)
    yield from _sampler(method, wiring, chosen)
    yield from _loss(method, wiring, chosen.get("loss"))
    yield from roles.faults(method, wiring, chosen, heads)
    yield from crops.faults(method, wiring, chosen.get("transform"), heads)
    encoder = chosen.get("encoder")
    if encoder is not None and not encoder.attributes.get("has_weights", True):
        message = (
            f"'{encoder.use}' has no weights to train; evaluate it: sslkit eval linear --encoder "
            f"{encoder.use}:{encoder.options.get('model')} --data DIR"
        )
        yield ("encoder", "use"), message
    train = chosen.get("train")
    if isinstance(train, Train) and train.accumulate > 1 and wiring.get("joins"):
        yield (
            ("train", "accumulate"),
            f"the loss of method '{method.use}' looks across the batch, so micro-batches would "
            "change it; set it to 1",
        )


def unknown_runtime(choice: Choice) -> str | None:
    """Return a message for an unknown runtime argument of a part; None if all are known."""
    allowed = RUNTIME[choice.kind]
    for name in choice.part.signature().runtime:
        if name not in allowed:
            listed = ", ".join(allowed) or "none"
            return (
                f"{choice.use} requires the runtime argument '{name}', which {choice.kind} do not "
                f"get; allowed: {listed}"
            )
    return None


def _choices(
    chosen: Mapping[str, Any], heads: Mapping[str, Choice | None]
) -> Iterator[tuple[tuple[str, ...], Choice]]:
    """Yield the key and Choice of every valid part."""
    for section in PARTS:
        choice = chosen.get(section)
        if isinstance(choice, Choice):
            yield (section,), choice
    for name, head in heads.items():
        if head is not None:
            yield ("heads", name), head


def _names(method: Choice, wiring: Mapping[str, Any]) -> Iterator[Wrong]:
    """Check that class attributes name heads in `reads`, and that names are unambiguous."""
    reads = wiring.get("reads")
    if reads is None:
        return
    for name, source in reads.items():
        if source != name and reads.get(source) == source:
            yield (
                ("method", "use"),
                f"head '{name}' of '{method.use}' reads '{source}', the name of a view and of a "
                "head; give that head another name in `reads`",
            )
    if circle := _circle(reads):
        message = f"the heads of '{method.use}' read each other in a circle: {', '.join(circle)}"
        yield ("method", "use"), message
    for attribute in ("predicts", "compares", "stores"):
        for name in wiring.get(attribute) or ():
            if name not in reads:
                yield (
                    ("method", "use"),
                    f"the class of '{method.use}' names head '{name}' in `{attribute}`, but not in "
                    "`reads`",
                )


def _circle(reads: Mapping[str, str]) -> list[str]:
    """Return a cycle of heads that read each other; [] without one."""
    for name in reads:
        chain = [name]
        while (source := reads[chain[-1]]) in reads and source != chain[-1]:
            if source in chain:
                return sorted(chain)
            chain.append(source)
    return []


def _heads(
    method: Choice,
    wiring: Mapping[str, Any],
    transform: Choice | None,
    heads: Mapping[str, Choice | None],
) -> Iterator[Wrong]:
    """Check that the recipe has exactly the heads of the method, and that their views exist."""
    reads = wiring.get("reads")
    views = None
    if transform is not None:
        views = transform.attributes.get("views")
        if views is None:
            yield (
                ("transform", "use"),
                f"the class of '{transform.use}' does not name its views; give it a literal "
                "attribute `views`, a tuple of names",
            )
    needed = reads if reads is not None else views
    if needed is None:
        return
    for name in needed:
        if name not in heads:
            near = nearest(name, [other for other in heads if other not in needed])
            remedy = f"; rename '{near[0]}'" if near else ""
            yield ("heads",), f"method '{method.use}' needs a head named '{name}'{remedy}"
    for name in heads:
        if name not in needed:
            yield (
                ("heads", name),
                f"method '{method.use}' has no use for a head named '{name}'; "
                f"it needs: {', '.join(needed)}",
            )
    if views is None or transform is None:
        return
    wanted = list(wiring.get("stores") or ())
    if reads is not None:
        wanted = [view for name in reads if (view := _view(reads, name)) is not None]
    wanted += [views.partition("+")[0] for views in wiring.get("crops") or ()]
    if all(view in views for view in wanted):
        yield from _targets(method, wiring, transform)
    for view in dict.fromkeys(wanted):
        if view not in views:
            able = ", ".join(_transforms_with(view)) or "none that is installed"
            yield (
                ("transform",),
                f"method '{method.use}' reads the view '{view}', which transform "
                f"'{transform.use}' does not make; transforms that do: {able}",
            )


def _targets(method: Choice, wiring: Mapping[str, Any], transform: Choice) -> Iterator[Wrong]:
    """Check that the transform provides the targets; `label` comes from the data set."""
    provided = transform.attributes.get("targets")
    for target in (wiring.get("predicts") or {}).values():
        if provided is not None and target not in ("label", *provided):
            yield (
                ("transform", "use"),
                f"'{transform.use}' provides no target '{target}', which method '{method.use}' "
                "predicts",
            )


def _view(reads: Mapping[str, str], name: str) -> str | None:
    """Return the view that a head reads; None if it reads another head."""
    source = reads[name]
    if source in reads and source != name:
        return None
    return source.partition(".")[0]


def _lengths(
    method: Choice, wiring: Mapping[str, Any], heads: Mapping[str, Choice | None]
) -> Iterator[Wrong]:
    """Check that `out_dim: auto` has a target, and that compared heads have equal `out_dim`."""
    predicts = wiring.get("predicts") or {}
    dims = {}
    for name, head in heads.items():
        if head is None:
            continue
        out_dim = head.options.get("out_dim")
        if out_dim == "auto" and name not in predicts:
            yield (
                ("heads", name, "out_dim"),
                f"'auto' is the number of classes of a target, and method '{method.use}' predicts "
                f"none with head '{name}'; give a number",
            )
        elif isinstance(out_dim, int):
            dims[name] = out_dim
    compared = wiring.get("compares", ())
    if compared is None:
        compared = [name for name in heads if name not in predicts]
    known = {name: dims[name] for name in compared if name in dims}
    if len(set(known.values())) > 1:
        lengths = ", ".join(f"{name} {length}" for name, length in known.items())
        yield ("heads",), f"these heads are compared and must have the same out_dim: {lengths}"


def _sampler(
    method: Choice, wiring: Mapping[str, Any], chosen: Mapping[str, Any]
) -> Iterator[Wrong]:
    stores = wiring.get("stores") or ()
    if not stores and "sampler" in chosen:
        yield (
            ("sampler",),
            f"method '{method.use}' uses no sampler, this one would be ignored; remove the section",
        )
    elif stores and "sampler" not in chosen:
        names = ", ".join(part.name for part in registry.parts("samplers"))
        yield (
            ("sampler",),
            f"method '{method.use}' stores the output of head '{stores[0]}' and needs a sampler; "
            f"there are: {names}",
        )
    sampler = chosen.get("sampler")
    if stores and sampler is not None and wiring.get("recalls"):
        if not sampler.attributes.get("recalls"):
            yield (
                ("sampler", "use"),
                f"method '{method.use}' reads the stored vector of each image, and "
                f"'{sampler.use}' keeps none; take memory_bank",
            )


def _loss(method: Choice, wiring: Mapping[str, Any], loss: Choice | None) -> Iterator[Wrong]:
    if loss is None:
        return
    needs = loss.attributes.get("needs_negatives", False)
    if needs and not wiring.get("contrasts"):
        yield (
            ("loss", "use"),
            f"loss '{loss.use}' needs negatives, and method '{method.use}' has none",
        )
    if needs is False and wiring.get("contrasts"):
        yield (
            ("loss", "use"),
            f"method '{method.use}' compares with negatives, and loss '{loss.use}' takes none",
        )


def _transforms_with(view: str) -> list[str]:
    able = []
    for part in registry.parts("transforms"):
        try:
            views = part.signature().attributes.get("views", ())
        except PluginError:
            continue
        if view in views:
            able.append(part.name)
    return able
