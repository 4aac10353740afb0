"""Reads names and options of optimizers from the source of timm and torch.

Imports neither package. If the source cannot be parsed, `names` returns () and `signature` None.
The optimizer's constructor then checks the options.
"""

import ast
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import GenericAlias
from typing import Annotated, Any

from pydantic import Field

from sslkit.recipe import source
from sslkit.recipe.settings import Optimizer
from sslkit.recipe.signature import REQUIRED, Option, Signature, read_class
from sslkit.recipe.source import Source, UnreadableError

FACTORY = "timm.optim._optim_factory"
ARGUMENT = re.compile(r" {2,4}(\w+)(?: \([^:]*\))?: *(.*)")
GIVEN = {"params", "lr", "weight_decay"}
"""Parameters of every optimizer that have recipe settings instead of options."""

Beta = Annotated[float, Field(ge=0, lt=1)]
KNOWN = {
    "momentum": Annotated[Beta, Field(description="Momentum, usually 0.9.")],
    "nesterov": Annotated[bool, Field(description="Use Nesterov momentum.")],
    "eps": Annotated[float, Field(gt=0, description="Constant added to the denominator.")],
    "trust_coeff": Annotated[
        float, Field(gt=0, description="Trust coefficient of LARS, usually 0.001.")
    ],
}
"""Bounds and descriptions that the source lacks."""
COMMON = {
    "alpha": "Decay rate of the moving average of squared gradients, usually 0.99 or 0.9.",
    "amsgrad": "Use the maximum of past squared gradients (AMSGrad).",
    "bias_correction": "Correct the bias of the moving averages.",
    "capturable": "Allow the step in a CUDA graph.",
    "caution": "Skip updates whose sign differs from the gradient's (arXiv:2411.16085).",
    "centered": "Normalise the gradient by an estimate of its variance.",
    "corrected_weight_decay": "Decay weights by lr² / peak lr in place of lr.",
    "dampening": "Dampening of the momentum, usually 0.",
    "decoupled_decay": "Decouple weight decay from the gradient, as AdamW does.",
    "decoupled_weight_decay": "Decouple weight decay from the gradient, as AdamW does.",
    "differentiable": "Allow a derivative through the step.",
    "foreach": "Update all parameters in one call per operation. null: torch decides.",
    "fused": "Use one fused kernel. null: torch decides.",
    "initial_accumulator_value": "Initial value of the sum of squared gradients.",
    "lr_decay": "Decay of the learning rate per step.",
    "maximize": "Maximise the loss instead of minimising it.",
    "momentum_decay": "Decay of the momentum per step.",
    "rho": "Decay rate of the moving average of squared gradients, usually 0.9.",
}
"""Descriptions of options that several optimizers share; others come from docstrings."""
DESCRIPTIONS = {"sgd": "Stochastic gradient descent, without Nesterov's momentum by default"}
BETAS = "Decay rates of the moving averages; the last one is that of the squared gradient."


@dataclass(frozen=True)
class Entry:
    """An entry of timm's registry: the class of an optimizer, by module and name, and defaults."""

    module: str
    name: str
    defaults: dict[str, Any]
    description: str

    def definition(self) -> tuple[Source, ast.ClassDef]:
        """Return the class definition. Raises UnreadableError if the source cannot be parsed."""
        return source.find(self.module).definition(self.name)


def names() -> tuple[str, ...]:
    """Return timm's names of all optimizers; () if its source cannot be parsed."""
    return tuple(_registry())


@functools.cache
def signature(name: str) -> Signature | None:
    """Return all options of an optimizer, common ones first; None if they cannot be read."""
    try:
        entry = _registry()[name]
        options = dict(_options(*entry.definition()))
    except (KeyError, UnreadableError):
        return None
    for option, default in defaults(name, entry.defaults).items():
        if option in options:
            options[option] = replace(options[option], default=default)
    common = common_signature()
    about = DESCRIPTIONS.get(name, entry.description) or name
    doc = f"{about} ({entry.module}.{entry.name})"
    return Signature((), common.options | options, doc, {})


def defaults(name: str, timms: dict[str, Any] | None) -> dict[str, Any]:
    """Return the defaults of a name that differ from its class, such as trust_clip of `larc`.

    `sgd` has torch's default: no Nesterov momentum.
    """
    found = dict(timms or {})
    if name == "sgd":
        found.pop("nesterov", None)
    return found


@functools.cache
def common_signature() -> Signature:
    """Return the settings that all optimizers share."""
    read = read_class(Optimizer, "optimizer")
    own = ("use", "options")
    common = {name: option for name, option in read.options.items() if name not in own}
    return replace(read, options=common)


def having(option: str) -> Iterator[str]:
    """Yield the names of optimizers with this option."""
    for name in names():
        found = signature(name)
        if found is not None and option in found.options:
            yield name


@functools.cache
def _registry() -> dict[str, Entry]:
    """Parse the calls of `OptimInfo(…)` and `register_alias(…)` in timm's factory module."""
    try:
        factory = source.find(FACTORY)
    except UnreadableError:
        return {}
    entries: dict[str, Entry] = {}
    aliases: dict[str, str] = {}
    for node in ast.walk(factory.tree):
        match node:
            case ast.Call(ast.Name("OptimInfo"), arguments, keywords):
                words = {word.arg: word.value for word in keywords}
                words |= dict(zip(("name", "opt_class"), arguments, strict=False))
                _add(entries, factory, words)
            case ast.Call(
                ast.Attribute(_, "register_alias"),
                [ast.Constant(str(alias)), ast.Constant(str(target))],
            ):
                aliases[alias] = target
    known = {alias: entries[target] for alias, target in aliases.items() if target in entries}
    return entries | known


def _add(entries: dict[str, Entry], factory: Source, words: dict[str | None, ast.expr]) -> None:
    """Add the entry of one `OptimInfo` call; skip calls whose arguments are not literals."""
    try:
        name = str(ast.literal_eval(words["name"])).lower()
        given = words.get("defaults")
        timms = (None if given is None else ast.literal_eval(given)) or {}
        about = words.get("description")
        description = "" if about is None else str(ast.literal_eval(about))
        module, class_name = _class(factory, words["opt_class"])
    except (KeyError, ValueError, UnreadableError):
        return
    entries[name] = Entry(module, class_name, timms, description)


def _class(factory: Source, node: ast.expr) -> tuple[str, str]:
    """Return the module and name of a class from a name, an attribute or a string."""
    if isinstance(node, ast.Constant):
        module, _, name = str(node.value).rpartition(".")
        return module, name
    return factory.place(node)


def _options(module: Source, node: ast.ClassDef) -> Iterator[tuple[str, Option]]:
    """Yield name and option for each constructor parameter that is not in GIVEN."""
    constructor = _constructor(module, node)
    if constructor is None:
        return
    described = _arguments(node) | _arguments(constructor[1])
    module, arguments = constructor[0], constructor[1].args
    positional = [*arguments.posonlyargs, *arguments.args]
    missing = [None] * (len(positional) - len(arguments.defaults))
    pairs = zip(positional, [*missing, *arguments.defaults], strict=True)
    keyword = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    for argument, default in [*list(pairs)[1:], *keyword]:
        if argument.arg not in GIVEN:
            option = _option(module, argument, default)
            text = COMMON.get(argument.arg) or described.get(argument.arg)
            if text and not option.description:
                annotation: Any = Annotated[option.annotation, Field(description=text)]
                option = replace(option, annotation=annotation)
            yield argument.arg, option


def _arguments(node: ast.ClassDef | ast.FunctionDef) -> dict[str, str]:
    """Return the descriptions of arguments in a Google-style docstring."""
    found: dict[str, str] = {}
    name = None
    doc = ast.get_docstring(node) or ""
    for line in re.split(r"^(?:Args|Arguments):\n", doc, flags=re.MULTILINE)[-1].split("\n"):
        if match := ARGUMENT.fullmatch(line):
            name = match[1]
            found[name] = match[2]
        elif name is not None and line.startswith(" " * 6):
            found[name] += f" {line.strip()}"
        else:
            name = None
    return {name: _sentence(text) for name, text in found.items()}


def _sentence(text: str) -> str:
    """Capitalise a description, end it with a full stop and remove the default."""
    text = re.sub(r"\s*\(default[^()]*(\([^()]*\))?[^()]*\)", "", text).strip()
    return f"{text[:1].upper()}{text[1:].rstrip('.')}." if text else ""


def _constructor(module: Source, node: ast.ClassDef) -> tuple[Source, ast.FunctionDef] | None:
    """Return the constructor of a class or its nearest base, and the source module."""
    for statement in node.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
            return module, statement
    for base in node.bases:
        place, name = module.place(base)
        found = _constructor(*source.find(place).definition(name))
        if found is not None:
            return found
    return None


def _option(module: Source, argument: ast.arg, node: ast.expr | None) -> Option:
    name = argument.arg
    default: Any = REQUIRED
    if node is not None:
        try:
            default = module.evaluate(node)
        except UnreadableError:
            default = ast.unparse(node)
    return Option(name, name, _annotation(module, argument, default), default)


def _annotation(module: Source, argument: ast.arg, default: Any) -> Any:
    """Return the type of an option: from KNOWN, from its annotation, or from its default."""
    if argument.arg in KNOWN:
        return KNOWN[argument.arg]
    if argument.arg == "betas" and isinstance(default, tuple):
        betas: Any = GenericAlias(tuple, (Beta,) * len(default))
        return Annotated[betas, Field(description=BETAS)]
    try:
        if argument.annotation is not None:
            return module.annotation(argument.annotation)
    except UnreadableError:
        pass
    if isinstance(default, bool):
        return bool
    return int | float if isinstance(default, int | float) else Any
