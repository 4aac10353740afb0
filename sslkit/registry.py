"""Parts by kind and name, found by entry point; their options, read from the source without importing it."""

import ast
import difflib
import functools
import importlib
import importlib.util
import inspect
import json
import pathlib
import re
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import annotated_types
import entrypoints
import pydantic
import pydantic.fields
from typing_extensions import TypedDict

from sslkit.errors import PluginError

KINDS = {
    "encoders": "encoder",
    "heads": "head",
    "transforms": "transform",
    "samplers": "sampler",
    "losses": "loss",
    "methods": "method",
    "datasets": "data set",
    "evaluations": "evaluation",
}
"""Every kind of part, and what one of them is called. The entry-point group of a kind is `sslkit.<kind>`."""

REQUIRED = inspect.Parameter.empty
"""The default of an option that has none."""


@dataclass(frozen=True)
class Option:
    """What a recipe may set: its `name` there, the Python `parameter`, the type, the default, and the type in words."""

    name: str
    parameter: str
    annotation: Any
    default: Any
    description: str


@dataclass(frozen=True)
class Signature:
    """What a class says of itself: facts it is given, options by the name they have in recipes, docstring, literal attributes."""

    facts: tuple[str, ...]
    options: dict[str, Option]
    doc: str
    attributes: dict[str, Any]

    @property
    def summary(self) -> str:
        """The first paragraph of the docstring, in one line."""
        return " ".join(self.doc.partition("\n\n")[0].split())

    def arguments(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Options as recipes name them → keyword arguments of the constructor."""
        return {self.options[name].parameter: value for name, value in options.items()}

    def validate(self, owner: str, given: Mapping[str, Any]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
        """(options with every default filled in, [(option, what is wrong with it)]); to be used only if nothing is wrong."""
        faults = [(name, f"no such option of {owner}; {advice(name, self.options)}") for name in given if name not in self.options]
        options = {name: given.get(name, option.default) for name, option in self.options.items()}
        for name, option in self.options.items():
            if options[name] is REQUIRED:
                faults.append((name, f"{owner} needs the option '{name}' ({option.description})"))
                del options[name]
        try:
            return self._adapter(options).validate_json(json.dumps(plain(options)), strict=True), faults
        except pydantic.ValidationError as error:
            wrong = dict.fromkeys(str(detail["loc"][0]) for detail in error.errors(include_url=False, include_context=False))
        except (pydantic.PydanticUserError, TypeError) as error:
            raise PluginError(f"the options of {owner} have types that cannot be checked: {_sentence(error)}") from error
        faults += [(name, f"{written(options[name])} is not {self.options[name].description}") for name in wrong]
        return options, faults

    def _adapter(self, names: Iterable[str]) -> pydantic.TypeAdapter:
        return pydantic.TypeAdapter(TypedDict("Options", {name: self.options[name].annotation for name in names}))  # type: ignore[operator]


@dataclass(frozen=True)
class Part:
    """One entry point: `name` of a `kind`, brought by a `distribution`, to be imported as `object` from `module`."""

    kind: str
    name: str
    distribution: str
    version: str
    module: str
    object: str

    def __str__(self) -> str:
        return f"{KINDS[self.kind]} '{self.name}' of {self.distribution} {self.version}".rstrip()

    def load(self) -> type:
        """Import the class. PluginError where that fails."""
        try:
            found: Any = importlib.import_module(self.module)
            for name in self.object.split("."):
                found = getattr(found, name)
        except (Exception, SystemExit) as error:
            raise PluginError(
                f"{self} cannot be imported from {self.module}: {_sentence(error)}; repair or reinstall {self.distribution}"
            ) from error
        if not isinstance(found, type):
            raise PluginError(f"{self} is no class: {self.module}:{self.object} is {written(found)}")
        return found

    def signature(self) -> Signature:
        """Facts, options, docstring and attributes, from the source where it is plain enough, else from the imported class."""
        return _signature(self)


def parts(kind: str | None = None) -> list[Part]:
    """Every installed part, or those of one kind, by kind and name. Imports none of them. PluginError for an unknown kind."""
    if kind is not None and kind not in KINDS:
        raise PluginError(f"there is no kind '{kind}' of parts; {advice(kind, KINDS)}")
    return [part for part in discover() if kind in (None, part.kind)]


def find(kind: str, name: str) -> Part:
    """The part called `name`. PluginError where there is none, or where two distributions claim the name."""
    installed = parts(kind)
    found = [part for part in installed if part.name == name]
    if not found:
        raise PluginError(
            f"no {KINDS[kind]} named '{name}' is installed; {advice(name, [part.name for part in installed])}; "
            f"if a package should bring it, install or reinstall that package"
        )
    if len(found) > 1:
        claims = " and ".join(f"{part.distribution} ({part.module}:{part.object})" for part in found)
        raise PluginError(f"{KINDS[kind]} '{name}' is claimed by {claims}; uninstall one of them")
    return found[0]


@functools.cache
def discover() -> tuple[Part, ...]:
    """Read the entry points of every distribution on sys.path, once."""
    found: dict[tuple[str, str, str], Part] = {}
    try:
        for config, distribution in entrypoints.iter_files_distros():
            owner = re.sub(r"[-_.]+", "-", distribution.name).lower()
            for kind in KINDS:
                group = f"sslkit.{kind}"
                for name, target in config.items(group) if config.has_section(group) else ():
                    module, _, attribute = target.partition("[")[0].partition(":")
                    part = Part(kind, name, owner, distribution.version or "", module.strip(), attribute.strip())
                    found.setdefault((kind, name, owner), part)
    except entrypoints.configparser.Error as error:
        raise PluginError(f"the entry points of an installed package cannot be read: {_sentence(error)}") from error
    order = list(KINDS)
    return tuple(sorted(found.values(), key=lambda part: (order.index(part.kind), part.name, part.distribution)))


@functools.cache
def _signature(part: Part) -> Signature:
    try:
        return read_class(_source(part.module).stand_in(part.object), str(part))
    except (_UnreadableError, RecursionError):
        return read_class(part.load(), str(part))


def read_class(part: type, owner: str) -> Signature:
    """The signature of a class. PluginError where a parameter is neither positional-only nor keyword-only."""
    lineage = [ancestor for ancestor in part.__mro__ if not _is_foreign(ancestor.__module__)]
    try:
        parameters = list(inspect.signature(part.__init__, eval_str=True).parameters.values())[1:]  # type: ignore[misc]
    except Exception as error:
        raise PluginError(f"the options of {owner} cannot be read: {_sentence(error)}") from error
    facts, options = [], {}
    for parameter in parameters:
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            raise PluginError(
                f"parameter '{parameter.name}' of {owner} must stand before '/', as a fact, or after '*', as an option"
            )
        if parameter.kind is parameter.POSITIONAL_ONLY:
            facts.append(parameter.name)
        if parameter.kind is parameter.KEYWORD_ONLY:
            name = parameter.name.removesuffix("_")
            annotation = Any if parameter.annotation is parameter.empty else parameter.annotation
            options[name] = Option(name, parameter.name, annotation, parameter.default, describe(annotation))
    attributes = {
        name: value
        for ancestor in reversed(lineage)
        for name, value in vars(ancestor).items()
        if not name.startswith("_") and _is_literal(value)
    }
    doc = next((ancestor.__dict__["__doc__"] for ancestor in lineage if ancestor.__dict__.get("__doc__")), "")
    return Signature(tuple(facts), options, inspect.cleandoc(doc), attributes)


# ---------------------------------------------------------------------------------------------------------------- in words


def describe(annotation: Any) -> str:
    """A type in words: "a whole number ≥ 1", "one of 'official', 'blur'", "a number between 0 and 1 or null"."""
    bounds: dict[str, Any] = {}
    while typing.get_origin(annotation) is typing.Annotated:
        annotation, *metadata = typing.get_args(annotation)
        bounds = _bounds(metadata) | bounds
    origin, arguments = typing.get_origin(annotation) or annotation, typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(describe(member) for member in arguments))
    if origin is typing.Literal:
        return ("" if len(arguments) == 1 else "one of ") + ", ".join(written(value) for value in arguments)
    if origin is tuple and arguments and Ellipsis not in arguments:
        items = [describe(member) for member in arguments]
        return f"a list of {len(items)}" + (f", each {items[0]}" if len(set(items)) == 1 else f": {', '.join(items)}")
    words = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "text",
        pathlib.Path: "a path",
        type(None): "null",
        None: "null",
        Any: "anything",
        dict: "a mapping",
    }
    if origin in words:
        return words[origin] + _limits(bounds, whole=origin is int)
    if inspect.isclass(origin) and issubclass(origin, Iterable):
        each = [describe(member) for member in arguments if member is not Ellipsis]
        sizes = {"min_length": "at least", "max_length": "at most"}
        size = " and".join(f" {words} {bounds[key]}" for key, words in sizes.items() if key in bounds)
        return "a list" + (f" of{size}" if size else "") + (f", each {each[0]}" if each else "")
    return str(getattr(annotation, "__name__", annotation))


def _bounds(metadata: Iterable[Any]) -> dict[str, Any]:
    bounds: dict[str, Any] = {}
    for item in metadata:
        if isinstance(item, pydantic.fields.FieldInfo):
            bounds |= _bounds(item.metadata)
        elif isinstance(item, annotated_types.GroupedMetadata):
            bounds |= _bounds(item)
        else:
            for key in ("ge", "gt", "le", "lt", "multiple_of", "min_length", "max_length"):
                if getattr(item, key, None) is not None:
                    bounds[key] = getattr(item, key)
    return bounds


def _limits(bounds: dict[str, Any], *, whole: bool) -> str:
    if whole and "gt" in bounds:
        bounds = {**bounds, "ge": bounds["gt"] + 1}
        del bounds["gt"]
    if whole and "lt" in bounds:
        bounds = {**bounds, "le": bounds["lt"] - 1}
        del bounds["lt"]
    if "ge" in bounds and "le" in bounds:
        words = [f"between {bounds['ge']} and {bounds['le']}"]
    else:
        words = [f"{sign} {bounds[key]}" for key, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<")) if key in bounds]
    if "multiple_of" in bounds:
        words.append(f"a multiple of {bounds['multiple_of']}")
    return " " + " and ".join(words) if words else ""


def written(value: Any) -> str:
    """A value as a recipe would hold it, shortened to fit into a sentence."""
    if isinstance(value, str):
        text = f"'{value}'"
    elif isinstance(value, list | tuple):
        text = f"[{', '.join(map(written, value))}]"
    elif isinstance(value, dict):
        text = f"{{{', '.join(f'{key}: {written(item)}' for key, item in value.items())}}}"
    else:
        text = json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:79]}…"


def plain(value: Any) -> Any:
    """A value of an option as YAML and JSON can hold it."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def nearest(name: str, names: Iterable[str]) -> list[str]:
    """Those of `names` that `name` may have been meant to be, best first."""
    lower = {other.lower(): other for other in names}
    return [lower[match] for match in difflib.get_close_matches(name.lower(), lower, n=3)]


def advice(name: str, names: Iterable[str]) -> str:
    names = list(dict.fromkeys(names))
    if near := nearest(name, names):
        return f"did you mean {' or '.join(repr(other) for other in near)}?"
    return f"there are: {', '.join(names)}" if names else "there are none"


def _sentence(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split()) or 'no reason given'}"


# ------------------------------------------------------------------------------------------------- reading without importing

_READABLE = {"typing", "typing_extensions", "pydantic", "pathlib", "collections", "collections.abc", "annotated_types"}
_BUILTINS = {kind.__name__: kind for kind in (bool, int, float, str, bytes, list, tuple, dict, set, frozenset, object, type)}


class _UnreadableError(Exception):
    """What the source alone does not tell."""


def _is_foreign(module: str) -> bool:
    return module.partition(".")[0] in {"torch", *sys.stdlib_module_names}


def _is_literal(value: Any) -> bool:
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(_is_literal, value))
    if isinstance(value, dict):
        return all(_is_literal(item) for pair in value.items() for item in pair)
    return value is None or isinstance(value, bool | int | float | str | bytes)


@functools.cache
def _source(module: str) -> "_Source":
    """Find and parse the source of a module; unlike importlib.util.find_spec this imports no parent package either."""
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
        name = top
        for part in rest:
            name = f"{name}.{part}"
            finders = (finder.find_spec(name, spec.submodule_search_locations) for finder in sys.meta_path if spec is not None)  # type: ignore[union-attr]
            spec = next((found for found in finders if found is not None), None)
        if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
            raise _UnreadableError(module)
        return _Source(module, spec.submodule_search_locations is not None, ast.parse(Path(spec.origin).read_bytes()))
    except (OSError, ImportError, ValueError, SyntaxError, AttributeError) as error:
        raise _UnreadableError(module) from error


class _Source:
    """The names that a module binds at its top level, and what they stand for as far as that can be told without running it."""

    def __init__(self, name: str, is_package: bool, tree: ast.Module) -> None:
        self.name = name
        self.stand_ins: dict[str, type] = {}
        self.imported: dict[str, tuple[str, str | None]] = {}
        self.bound: dict[str, ast.AST] = {}
        package = name.split(".") if is_package else name.split(".")[:-1]
        for node in tree.body:
            match node:
                case ast.Import(names):
                    for alias in names:
                        self.imported[alias.asname or alias.name.partition(".")[0]] = (
                            alias.name if alias.asname else alias.name.partition(".")[0],
                            None,
                        )
                case ast.ImportFrom(module, names, level):
                    start = ".".join(package[: len(package) - (level or 1) + 1]) if level else ""
                    for alias in names:
                        self.imported[alias.asname or alias.name] = (".".join(filter(None, (start, module))), alias.name)
                case ast.ClassDef(name=bound):
                    self.bound[bound] = node
                case ast.Assign([ast.Name(bound)], value) | ast.AnnAssign(ast.Name(bound), _, ast.expr() as value):
                    self.bound[bound] = value

    def value(self, name: str) -> Any:
        """What a name stands for: a type, an alias of one, or a constant."""
        if name in self.imported:
            module, attribute = self.imported[name]
            if module in _READABLE:
                found = importlib.import_module(module)
                return found if attribute is None else getattr(found, attribute)
            if attribute is None or _is_foreign(module):
                raise _UnreadableError(name)
            return _source(module).value(attribute)
        if name in self.bound:
            return self.evaluate(self.bound[name])
        if name in _BUILTINS:
            return _BUILTINS[name]
        raise _UnreadableError(name)

    def evaluate(self, node: ast.AST) -> Any:
        """A literal or a type expression; nothing is called but pydantic's Field and the bounds of annotated_types."""
        match node:
            case ast.Constant(value):
                return value
            case ast.Name(name):
                return self.value(name)
            case ast.Attribute(owner, name):
                module = self.evaluate(owner)
                if isinstance(module, types.ModuleType) and module.__name__ in _READABLE:
                    return getattr(module, name)
            case ast.Subscript(owner, index):
                return self.evaluate(owner)[self.evaluate(index)]
            case ast.BinOp(left, ast.BitOr(), right):
                return self.evaluate(left) | self.evaluate(right)
            case ast.UnaryOp(ast.USub(), operand):
                return -self.evaluate(operand)
            case ast.Tuple(items):
                return tuple(map(self.evaluate, items))
            case ast.List(items):
                return list(map(self.evaluate, items))
            case ast.Dict(keys, values) if None not in keys:
                return dict(zip(map(self.evaluate, typing.cast(list[ast.expr], keys)), map(self.evaluate, values), strict=True))
            case ast.Call(function, items, keywords):
                called = self.evaluate(function)
                if called is pydantic.Field or getattr(called, "__module__", "") == "annotated_types":
                    return called(*map(self.evaluate, items), **{str(word.arg): self.evaluate(word.value) for word in keywords})
        raise _UnreadableError(ast.unparse(node))

    def stand_in(self, name: str) -> type:
        """A class with the bases, docstring, literals and constructor's signature of the one in the source, and no code."""
        if name not in self.stand_ins:
            if name in self.imported and (attribute := self.imported[name][1]) is not None:
                self.stand_ins[name] = _source(self.imported[name][0]).stand_in(attribute)
            else:
                node = self.bound.get(name)
                if not isinstance(node, ast.ClassDef) or node.decorator_list:
                    raise _UnreadableError(name)
                try:
                    self.stand_ins[name] = self._build(node)
                except (TypeError, ValueError, AttributeError, SyntaxError) as error:
                    raise _UnreadableError(name) from error
        return self.stand_ins[name]

    def _build(self, node: ast.ClassDef) -> type:
        body: dict[str, Any] = {"__doc__": ast.get_docstring(node), "__module__": self.name}
        for statement in node.body:
            match statement:
                case ast.FunctionDef(name="__init__"):
                    body["__init__"] = self._constructor(statement)
                case ast.Assign([ast.Name(name)], value) | ast.AnnAssign(ast.Name(name), _, ast.expr() as value):
                    if not name.startswith("_"):
                        body[name] = self.evaluate(value)
                case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef() | ast.Pass() | ast.Expr() | ast.AnnAssign():
                    pass
                case _:
                    _refuse(statement)
        bases = [base for base in map(self._ancestor, node.bases) if base is not None]
        return type(node.name, tuple(bases), body)

    def _ancestor(self, node: ast.expr) -> type | None:
        """None for classes that bring neither options nor attributes: those of torch and of the standard library."""
        if isinstance(node, ast.Subscript):
            node = node.value
        first, *rest = ast.unparse(node).split(".")
        module, attribute = self.imported.get(first, (self.name if first in self.bound else "builtins", None))
        if _is_foreign(module):
            return None
        if not rest:
            return self.stand_in(first)
        return _source(".".join(filter(None, (module, attribute, *rest[:-1])))).stand_in(rest[-1])

    def _constructor(self, node: ast.FunctionDef) -> Any:
        if node.decorator_list:
            _refuse(node)
        kinds, empty = inspect.Parameter, inspect.Parameter.empty
        parameters = [kinds(argument.arg, kinds.POSITIONAL_ONLY) for argument in node.args.posonlyargs]
        parameters += [kinds(argument.arg, kinds.POSITIONAL_OR_KEYWORD) for argument in node.args.args]
        for argument, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
            annotation: Any = argument.annotation
            if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
                annotation = ast.parse(annotation.value, mode="eval").body
            parameters.append(
                kinds(
                    argument.arg,
                    kinds.KEYWORD_ONLY,
                    annotation=empty if annotation is None else self.evaluate(annotation),
                    default=empty if default is None else self.evaluate(default),
                )
            )

        def __init__(self: Any) -> None: ...  # noqa: N807

        __init__.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return __init__


def _refuse(node: ast.AST) -> NoReturn:
    raise _UnreadableError(ast.unparse(node))
