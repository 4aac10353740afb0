"""Creates the parts of a recipe with their runtime arguments, and checks that they fit."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Literal

import torch

from sslkit import faults
from sslkit.data.contract import check_source
from sslkit.draws import Draws
from sslkit.errors import Fault, PluginError, RecipeError, SslkitError
from sslkit.interfaces import (
    Encoder,
    Evaluation,
    Head,
    ImageSource,
    Loss,
    Method,
    NegativeSampler,
    Normalisation,
    Parts,
    PretextTransform,
)
from sslkit.recipe import Choice, Recipe, wiring

MEMORIES = 1000
"""First random stream of additional samplers, above those of training."""

CONTRACTS: dict[str, tuple[type, dict[str, type]]] = {
    "encoders": (Encoder, {"dim": int, "dims": dict, "normalisation": Normalisation}),
    "heads": (Head, {"out_dim": int}),
    "transforms": (PretextTransform, {"size": int, "shapes": dict, "num_targets": dict}),
    "samplers": (NegativeSampler, {"candidates": int}),
    "losses": (Loss, {}),
    "methods": (Method, {}),
    "datasets": (ImageSource, {"names": object}),
    "evaluations": (Evaluation, {}),
}
"""Base class of each kind, and the required attributes of instances with their types."""


@dataclass(frozen=True)
class DataFormat:
    """Number of images, channels, bits and classes of a data set."""

    images: int
    channels: int = 3
    bits: Literal[8, 16] = 8
    classes: int | None = None
    """None if the images have no labels, or if the data set is not available."""

    @classmethod
    def of(cls, source: ImageSource) -> "DataFormat":
        """Return the format of `source`."""
        classes = None
        if source.labels is not None and len(source.labels):
            classes = max(len(source.classes), int(source.labels.max()) + 1)
        return cls(len(source), source.channels, source.bits, classes)

    @classmethod
    def published(cls, data: Choice) -> "DataFormat | None":
        """Return the format of a known data set without its images; None for other data sets."""
        nominal = getattr(data.part.load(), "nominal", {})
        if "pretrain" not in nominal:
            return None
        return cls(nominal["pretrain"], classes=nominal.get("classes"))


def make(choice: Choice, *, place: str = "", **runtime: object):
    """Create the part that a recipe chose, with the runtime arguments that it requires.

    `place` is the recipe key in messages, if it differs from the kind. Raises RecipeError for a
    runtime argument that the kind does not have. Raises PluginError if the constructor raises or
    the part breaks the contract of its kind.
    """
    wrong = wiring.unknown_runtime(choice)
    if wrong is not None:
        raise RecipeError(Fault(choice.kind, wrong))
    arguments = [runtime[name] for name in choice.part.signature().runtime]
    cls = choice.part.load()
    called = f"{choice.part.shown}{f' ({place})' if place else ''}"
    with faults.telling(f"{called} fails in __init__"):
        made = cls(*arguments, **choice.arguments)
    faults.label(made, called)
    with faults.telling():
        _check_contract(made, choice.kind, called)
    return made


def _check_contract(made: object, kind: str, called: str) -> None:
    """Raise PluginError if a part has another base class or lacks an attribute."""
    base, required = CONTRACTS[kind]
    if not isinstance(made, base):
        raise PluginError(
            f"{called} is not a subclass of sslkit.interfaces.{base.__name__}; derive it from that"
        )
    for name, cls in required.items():
        if not hasattr(made, name):
            raise PluginError(f"{called} has no attribute '{name}'; set it in __init__")
        value = getattr(made, name)
        if not isinstance(value, Integral if cls is int else cls):
            raise PluginError(f"{called} has {name} = {value!r}; it must be of type {cls.__name__}")


def make_source(recipe: Recipe, split: str) -> ImageSource:
    """Open the recipe's data set: split `pretrain`, `train` or `val`."""
    source = make(recipe.data, split=split)
    with faults.telling():
        check_source(source, recipe.data.part.shown)
    return source


def make_transform(recipe: Recipe, data: DataFormat | None = None) -> PretextTransform:
    """Create the recipe's transform for images of a format, by default RGB.

    Raises RecipeError if the images have other channels and the transform accepts only RGB.
    """
    channels = 3 if data is None else data.channels
    if channels != 3 and "channels" not in recipe.transform.part.signature().runtime:
        message = (
            f"'{recipe.transform.use}' needs images of 3 channels; the data set has {channels}"
        )
        raise RecipeError(Fault("transform", message))
    return make(recipe.transform, channels=channels)


def encoder_faults(recipe: Recipe, data: DataFormat) -> tuple[Fault, ...]:
    """Return the encoder's faults for images that the transform has rejected.

    Uses the sizes of the views of RGB images.
    """
    try:
        sizes = sides(make_transform(recipe))
    except SslkitError:
        return ()
    try:
        choice = without_initial_weights(recipe.encoder)
        make(choice, sizes=sizes, channels=data.channels)
    except RecipeError as error:
        return error.faults
    except SslkitError:
        return ()
    return ()


def read_by(cls: type[Method], transform: PretextTransform, heads: Iterable[str]) -> dict[str, str]:
    """Return the input of each head: a view, a `view.segment`, or another head."""
    if cls.reads is None:
        return {view: view for view in transform.views}
    return wiring.reads_of(cls.reads, heads)


def sides(transform: PretextTransform) -> tuple[int, ...]:
    """Return the sides of all images that the encoder receives, px, largest first."""
    found = {transform.size}
    for shape in transform.shapes.values():
        found |= set(shape[-2:])
    return tuple(sorted(found, reverse=True))


def make_method(
    recipe: Recipe, transform: PretextTransform, data: DataFormat, *, restored: bool = False
) -> Method:
    """Create the method with encoder, heads, samplers and loss, from the recipe's seed.

    The encoder comes first, so its initial weights do not depend on the other parts. `restored`
    skips the encoder's initial weights, because a checkpoint will be loaded. Sets the normalisation
    of `transform` to the encoder's. Raises RecipeError if parts do not fit together.
    """
    torch.manual_seed(recipe.train.seed)
    cls: type[Method] = recipe.method.part.load()
    choice = without_initial_weights(recipe.encoder) if restored else recipe.encoder
    encoder = make(choice, sizes=sides(transform), channels=data.channels)
    transform.normalisation = encoder.normalisation
    reads = read_by(cls, transform, recipe.heads)
    heads: dict[str, Head] = {}
    for name in _in_order({name: reads[name] for name in recipe.heads}):
        heads[name] = _make_head(recipe, cls, transform, data, reads, heads, encoder, name)
    _check_compared(cls, heads)
    samplers = _make_samplers(recipe, cls, heads, data.images)
    loss = make(recipe.loss)
    parts = Parts(encoder, heads, samplers, loss, data.images, dict(transform.shapes))
    return make(recipe.method, parts=parts)


def without_initial_weights(encoder: Choice) -> Choice:
    """Return the choice with the defaults of the options that select initial weights."""
    signature = encoder.part.signature()
    names = signature.attributes.get("initial_options", ())
    defaults = {name: signature.options[name].default for name in names}
    return replace(encoder, options=encoder.options | defaults)


def _in_order(reads: dict[str, str]) -> list[str]:
    """Return the heads in an order in which each follows the head that it reads."""
    ordered: list[str] = []
    waiting = dict(reads)
    while waiting:
        for name, source in list(waiting.items()):
            if source == name or source not in waiting:
                ordered.append(name)
                del waiting[name]
    return ordered


def _make_head(
    recipe: Recipe,
    cls: type[Method],
    transform: PretextTransform,
    data: DataFormat,
    reads: dict[str, str],
    made: dict[str, Head],
    encoder: Encoder,
    name: str,
) -> Head:
    """Create one head; `made` has the heads that it may read."""
    source = reads[name]
    if source in made and source != name:
        in_dim = made[source].out_dim
    else:
        in_dim = _length(recipe, encoder, source.partition(".")[2])
    view = _view(reads, name)
    if view not in transform.shapes:
        message = f"'{recipe.transform.use}' has no view '{view}', which head '{name}' reads"
        raise RecipeError(Fault("transform", message))
    shape = transform.shapes[view]
    crops = shape[0] if len(shape) == 4 else 1
    choice = recipe.heads[name]
    classes = None
    if name in cls.predicts:
        classes = _targets(recipe, transform, data, cls.predicts[name])
        if choice.options.get("out_dim") == "auto":
            choice = replace(choice, options={**choice.options, "out_dim": classes})
    place = f"heads.{name}"
    head: Head = make(
        choice,
        place=place,
        in_dim=in_dim,
        crops=crops,
        shape=shape[-3:],
        num_images=data.images,
    )
    if classes is not None and head.out_dim != classes:
        raise RecipeError(
            Fault(
                f"heads.{name}.out_dim",
                f"is {head.out_dim}, but target '{cls.predicts[name]}' has {classes} classes; "
                "set it to auto",
            )
        )
    return head


def _make_samplers(
    recipe: Recipe, cls: type[Method], heads: dict[str, Head], images: int
) -> dict[str, NegativeSampler]:
    """Create one sampler per stored head, each with different initial rows."""
    samplers: dict[str, NegativeSampler] = {}
    for number, name in enumerate(wiring.stores_of(cls.stores, heads)):
        assert recipe.sampler is not None, "reading the recipe checks this"
        with torch.random.fork_rng(devices=[], enabled=number > 0):
            if number > 0:
                seed = Draws(recipe.train.seed, MEMORIES + number).seed
                torch.default_generator.manual_seed(seed)
            samplers[name] = make(recipe.sampler, dim=heads[name].out_dim, num_images=images)
    return samplers


def _length(recipe: Recipe, encoder: Encoder, segment: str) -> int:
    """Return the length of a segment of the features, or of all features for ""."""
    if not segment:
        return encoder.dim
    if segment not in encoder.dims:
        names = ", ".join(encoder.dims) or "none"
        raise RecipeError(
            Fault(
                "encoder",
                f"method '{recipe.method.use}' reads the segment '{segment}' of the features, "
                f"which '{recipe.encoder.use}' does not have; it has: {names}",
            )
        )
    return encoder.dims[segment]


def _view(reads: dict[str, str], name: str) -> str:
    """Return the view that a head reads, directly or through other heads."""
    source = reads[name]
    while source in reads and source != name:
        name, source = source, reads[source]
    return source.partition(".")[0]


def _targets(recipe: Recipe, transform: PretextTransform, data: DataFormat, target: str) -> int:
    """Return the number of classes of a target. Raises RecipeError if nothing provides it."""
    if target == "label":
        if data.classes is None:
            raise RecipeError(
                Fault(
                    "data",
                    f"method '{recipe.method.use}' predicts labels, but the images of "
                    f"'{recipe.data.use}' have none; name a folder with one subfolder per class: "
                    "--data DIR",
                )
            )
        return data.classes
    if target not in transform.num_targets:
        raise RecipeError(
            Fault(
                "transform",
                f"'{recipe.transform.use}' provides no target '{target}', which method "
                f"'{recipe.method.use}' predicts",
            )
        )
    return transform.num_targets[target]


def _check_compared(cls: type[Method], heads: dict[str, Head]) -> None:
    """Raise RecipeError if compared heads have outputs of different lengths."""
    compared = cls.compares
    if compared is None:
        compared = tuple(name for name in heads if name not in cls.predicts)
    dims = {name: heads[name].out_dim for name in compared}
    if len(set(dims.values())) > 1:
        lengths = ", ".join(f"{name} {length}" for name, length in dims.items())
        message = f"these heads are compared and must have the same out_dim: {lengths}"
        raise RecipeError(Fault("heads", message))


def sharded_rows(method: Method) -> dict[str, tuple[int, int, int]]:
    """Return the sharded buffers of all samplers: name in `method` → first, last, count.

    This rank stores rows first … last-1 of count.
    """
    found = {}
    for place, module in method.named_modules():
        if isinstance(module, NegativeSampler):
            for name, rows in module.shard().items():
                found[f"{place}.{name}"] = rows
    return found
