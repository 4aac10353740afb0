"""Classes as their source tells of them, read without importing: neither torch nor a stranger's code runs."""

import ast
import functools
import importlib
import importlib.util
import inspect
import sys
import types
import typing
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, NoReturn

import pydantic

READABLE = {
    "typing",
    "typing_extensions",
    "pydantic",
    "pathlib",
    "collections",
    "collections.abc",
    "annotated_types",
}
BUILTINS = {
    kind.__name__: kind
    for kind in (bool, int, float, str, bytes, list, tuple, dict, set, frozenset, object, type)
}


class UnreadableError(Exception):
    """What the source alone does not tell."""


def is_foreign(module: str) -> bool:
    return module.partition(".")[0] in {"torch", *sys.stdlib_module_names}


def is_literal(value: Any) -> bool:
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(is_literal, value))
    if isinstance(value, dict):
        return all(is_literal(item) for pair in value.items() for item in pair)
    return value is None or isinstance(value, bool | int | float | str | bytes)


def is_callable_constant(called: Any) -> bool:
    """Tell whether a call of `called` may be evaluated: pydantic's Field, bounds, stand-ins."""
    if called is pydantic.Field or getattr(called, "__module__", "") == "annotated_types":
        return True
    return isinstance(called, type) and is_dataclass(called)


@functools.cache
def find(module: str) -> "Source":
    """Find and parse the source of a module; unlike importlib.util.find_spec this imports no parent package either."""
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
        name = top
        for part in rest:
            name = f"{name}.{part}"
            finders = (
                finder.find_spec(name, spec.submodule_search_locations)
                for finder in sys.meta_path
                if spec is not None
            )  # type: ignore[union-attr]
            spec = next((found for found in finders if found is not None), None)
        if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
            raise UnreadableError(module)
        return Source(
            module,
            spec.submodule_search_locations is not None,
            ast.parse(Path(spec.origin).read_bytes()),
        )
    except (OSError, ImportError, ValueError, SyntaxError, AttributeError) as error:
        raise UnreadableError(module) from error


class Source:
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
                        self.imported[alias.asname or alias.name] = (
                            ".".join(filter(None, (start, module))),
                            alias.name,
                        )
                case ast.ClassDef(name=bound):
                    self.bound[bound] = node
                case ast.Assign([ast.Name(bound)], value) | ast.AnnAssign(
                    ast.Name(bound), _, ast.expr() as value
                ):
                    self.bound[bound] = value

    def value(self, name: str) -> Any:
        """What a name stands for: a type, an alias of one, or a constant."""
        if name in self.imported:
            module, attribute = self.imported[name]
            if module in READABLE:
                found = importlib.import_module(module)
                return found if attribute is None else getattr(found, attribute)
            if attribute is None or is_foreign(module):
                raise UnreadableError(name)
            return find(module).value(attribute)
        if name in self.bound:
            return self.evaluate(self.bound[name])
        if name in BUILTINS:
            return BUILTINS[name]
        raise UnreadableError(name)

    def evaluate(self, node: ast.AST) -> Any:
        """A literal or a type expression; nothing is called but pydantic's Field and the bounds of annotated_types."""
        match node:
            case ast.Constant(value):
                return value
            case ast.Name(name):
                return self.value(name)
            case ast.Attribute(owner, name):
                module = self.evaluate(owner)
                if isinstance(module, types.ModuleType) and module.__name__ in READABLE:
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
                return dict(
                    zip(
                        map(self.evaluate, typing.cast(list[ast.expr], keys)),
                        map(self.evaluate, values),
                        strict=True,
                    )
                )
            case ast.ClassDef(name) if self.is_group(node):
                return self.stand_in(name)
            case ast.Call(function, items, keywords):
                called = self.evaluate(function)
                if is_callable_constant(called):
                    return called(
                        *map(self.evaluate, items),
                        **{str(word.arg): self.evaluate(word.value) for word in keywords},
                    )
        raise UnreadableError(ast.unparse(node))

    def stand_in(self, name: str) -> type:
        """A class with the bases, docstring, literals and constructor's signature of the one in the source, and no code."""
        if name not in self.stand_ins:
            if name in self.imported and (attribute := self.imported[name][1]) is not None:
                self.stand_ins[name] = find(self.imported[name][0]).stand_in(attribute)
            else:
                node = self.bound.get(name)
                if not isinstance(node, ast.ClassDef):
                    raise UnreadableError(name)
                if node.decorator_list and not self.is_group(node):
                    raise UnreadableError(name)
                try:
                    self.stand_ins[name] = self._build(node)
                except (TypeError, ValueError, AttributeError, SyntaxError) as error:
                    raise UnreadableError(name) from error
        return self.stand_ins[name]

    def is_group(self, node: ast.ClassDef) -> bool:
        """Tell whether the only decorator of a class is `@dataclass(frozen=True, kw_only=True)`."""
        decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
        imported = self.imported.get("dataclass") == ("dataclasses", "dataclass")
        return imported and decorators == ["dataclass(frozen=True, kw_only=True)"]

    def _build(self, node: ast.ClassDef) -> type:
        is_group = self.is_group(node)
        body: dict[str, Any] = {"__doc__": ast.get_docstring(node), "__module__": self.name}
        if is_group:
            body["__annotations__"] = self._fields(node)
        for statement in node.body:
            match statement:
                case ast.FunctionDef(name="__init__"):
                    body["__init__"] = self._constructor(statement)
                case ast.Assign([ast.Name(name)], value) | ast.AnnAssign(
                    ast.Name(name), _, ast.expr() as value
                ):
                    if not name.startswith("_"):
                        body[name] = self.evaluate(value)
                case (
                    ast.FunctionDef()
                    | ast.AsyncFunctionDef()
                    | ast.ClassDef()
                    | ast.Pass()
                    | ast.Expr()
                    | ast.AnnAssign()
                ):
                    pass
                case _:
                    _refuse(statement)
        bases = [base for base in map(self._ancestor, node.bases) if base is not None]
        built = type(node.name, tuple(bases), body)
        return dataclass(frozen=True, kw_only=True)(built) if is_group else built

    def _fields(self, node: ast.ClassDef) -> dict[str, Any]:
        """Return the annotations of a dataclass."""
        fields = {}
        for statement in node.body:
            match statement:
                case ast.AnnAssign(ast.Name(name), annotation):
                    fields[name] = self._annotation(annotation)
        return fields

    def _annotation(self, node: ast.expr) -> Any:
        """Evaluate an annotation, also one in quotes."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node = ast.parse(node.value, mode="eval").body
        return self.evaluate(node)

    def _ancestor(self, node: ast.expr) -> type | None:
        """None for classes that bring neither options nor attributes: those of torch and of the standard library."""
        if isinstance(node, ast.Subscript):
            node = node.value
        first, *rest = ast.unparse(node).split(".")
        module, attribute = self.imported.get(
            first, (self.name if first in self.bound else "builtins", None)
        )
        if is_foreign(module):
            return None
        if not rest:
            return self.stand_in(first)
        return find(".".join(filter(None, (module, attribute, *rest[:-1])))).stand_in(rest[-1])

    def _constructor(self, node: ast.FunctionDef) -> Any:
        if node.decorator_list:
            _refuse(node)
        kinds, empty = inspect.Parameter, inspect.Parameter.empty
        parameters = [
            kinds(argument.arg, kinds.POSITIONAL_ONLY) for argument in node.args.posonlyargs
        ]
        parameters += [
            kinds(argument.arg, kinds.POSITIONAL_OR_KEYWORD) for argument in node.args.args
        ]
        for argument, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
            annotation = argument.annotation
            parameters.append(
                kinds(
                    argument.arg,
                    kinds.KEYWORD_ONLY,
                    annotation=empty if annotation is None else self._annotation(annotation),
                    default=empty if default is None else self.evaluate(default),
                )
            )

        def __init__(self: Any) -> None: ...  # noqa: N807

        __init__.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return __init__


def _refuse(node: ast.AST) -> NoReturn:
    raise UnreadableError(ast.unparse(node))
