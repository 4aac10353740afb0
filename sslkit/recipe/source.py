"""Reads class signatures with `ast`, without importing the module.

Runs no code of torch or of other packages' parts.
"""

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
"""Modules whose names an annotation may use."""
BUILTINS = {
    kind.__name__: kind
    for kind in (bool, int, float, str, bytes, list, tuple, dict, set, frozenset, object, type)
}


class UnreadableError(Exception):
    """The source is missing, or too complex to evaluate without importing it."""


def is_foreign(module: str) -> bool:
    """Return whether a module belongs to torch or the standard library."""
    return module.partition(".")[0] in {"torch", *sys.stdlib_module_names}


def is_literal(value: Any) -> bool:
    """Return whether a value is a constant or a container of constants."""
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(is_literal, value))
    if isinstance(value, dict):
        return all(map(is_literal, value.keys())) and all(map(is_literal, value.values()))
    return value is None or isinstance(value, bool | int | float | str | bytes)


def may_call(called: Any) -> bool:
    """Return whether a call is allowed: pydantic's Field, bounds and stand-ins of dataclasses."""
    if called is pydantic.Field or getattr(called, "__module__", "") == "annotated_types":
        return True
    return isinstance(called, type) and is_dataclass(called)


@functools.cache
def find(module: str) -> "Source":
    """Find and parse the source of a module. Raises UnreadableError if there is none.

    Unlike importlib.util.find_spec, it does not import parent packages.
    """
    try:
        spec = _spec(module)
        if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
            raise UnreadableError(module)
        tree = ast.parse(Path(spec.origin).read_bytes())
    except (OSError, ImportError, ValueError, SyntaxError, AttributeError) as error:
        raise UnreadableError(module) from error
    return Source(module, spec.submodule_search_locations is not None, tree)


def _spec(module: str) -> Any:
    name, *rest = module.split(".")
    spec = importlib.util.find_spec(name)
    for part in rest:
        if spec is None:
            return None
        name = f"{name}.{part}"
        places, spec = spec.submodule_search_locations, None
        for finder in sys.meta_path:
            spec = spec or finder.find_spec(name, places)
    return spec


class Source:
    """Parsed source of a module: evaluates the names that it binds at the top level."""

    def __init__(self, name: str, is_package: bool, tree: ast.Module) -> None:
        self.name = name
        self.tree = tree
        self.stand_ins: dict[str, type] = {}
        self.imported: dict[str, tuple[str, str | None]] = {}
        self.bound: dict[str, ast.AST] = {}
        self._package = name.split(".") if is_package else name.split(".")[:-1]
        for node in tree.body:
            match node:
                case ast.Import(names):
                    for alias in names:
                        self._import(alias)
                case ast.ImportFrom(module, names, level):
                    for alias in names:
                        place = (self._absolute(module, level), alias.name)
                        self.imported[alias.asname or alias.name] = place
                case ast.ClassDef(name=bound):
                    self.bound[bound] = node
                case ast.Assign([ast.Name(bound)], value) | ast.AnnAssign(
                    ast.Name(bound), _, ast.expr() as value
                ):
                    self.bound[bound] = value

    def _import(self, alias: ast.alias) -> None:
        top = alias.name.partition(".")[0]
        if alias.asname:
            self.imported[alias.asname] = (alias.name, None)
        else:
            self.imported[top] = (top, None)

    def _absolute(self, module: str | None, level: int) -> str:
        """Return the absolute name of the module in `from module import …`."""
        start = self._package[: len(self._package) - level + 1] if level else []
        return ".".join([*start, *([module] if module else [])])

    def place(self, node: ast.expr) -> tuple[str, str]:
        """Return the module and name of a class from `Name` or `module.Name`.

        Raises UnreadableError for other expressions and unknown names.
        """
        first, *rest = ast.unparse(node).split(".")
        if not rest and first in self.bound:
            return self.name, first
        if first not in self.imported:
            raise UnreadableError(first)
        module, attribute = self.imported[first]
        *path, name = [module, *([attribute] if attribute else []), *rest]
        return ".".join(path), name

    def definition(self, name: str) -> tuple["Source", ast.ClassDef]:
        """Return a class definition and the source of the module that contains it."""
        if name in self.imported:
            module, attribute = self.imported[name]
            if attribute is not None:
                return find(module).definition(attribute)
        node = self.bound.get(name)
        if not isinstance(node, ast.ClassDef):
            raise UnreadableError(name)
        return self, node

    def value(self, name: str) -> Any:
        """Return the value of a name: a type, a type alias, or a constant."""
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

    def annotation(self, node: ast.expr) -> Any:
        """Evaluate an annotation, which may be quoted."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node = ast.parse(node.value, mode="eval").body
        return self.evaluate(node)

    def evaluate(self, node: ast.AST) -> Any:
        """Evaluate a literal or a type expression. Makes only calls that `may_call` allows."""
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
                names = map(self.evaluate, typing.cast(list[ast.expr], keys))
                return dict(zip(names, map(self.evaluate, values), strict=True))
            case ast.ClassDef(name) if self._is_group(node):
                return self.stand_in(name)
            case ast.Call(function, items, keywords):
                called = self.evaluate(function)
                if may_call(called):
                    options = {str(word.arg): self.evaluate(word.value) for word in keywords}
                    return called(*map(self.evaluate, items), **options)
        raise UnreadableError(ast.unparse(node))

    def stand_in(self, name: str) -> type:
        """Build a class without code, with the bases, docstring, literals and signature of a class.

        The only decorator allowed is `@dataclass(frozen=True, kw_only=True)`.
        """
        if name not in self.stand_ins:
            self.stand_ins[name] = self._stand_in(name)
        return self.stand_ins[name]

    def _stand_in(self, name: str) -> type:
        if name in self.imported:
            module, attribute = self.imported[name]
            if attribute is not None:
                return find(module).stand_in(attribute)
        node = self.bound.get(name)
        if not isinstance(node, ast.ClassDef):
            raise UnreadableError(name)
        if node.decorator_list and not self._is_group(node):
            raise UnreadableError(name)
        try:
            return self._build(node)
        except (TypeError, ValueError, AttributeError, SyntaxError) as error:
            raise UnreadableError(name) from error

    def _is_group(self, node: ast.ClassDef) -> bool:
        """Return whether `@dataclass(frozen=True, kw_only=True)` is the only decorator."""
        decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
        imported = self.imported.get("dataclass") == ("dataclasses", "dataclass")
        return imported and decorators == ["dataclass(frozen=True, kw_only=True)"]

    def _build(self, node: ast.ClassDef) -> type:
        is_group = self._is_group(node)
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
        """Return the evaluated annotations of a dataclass's fields."""
        fields = {}
        for statement in node.body:
            match statement:
                case ast.AnnAssign(ast.Name(name), annotation):
                    fields[name] = self.annotation(annotation)
        return fields

    def _ancestor(self, node: ast.expr) -> type | None:
        """Return the stand-in of a base; None for bases from torch and the standard library.

        Those bases have neither options nor attributes.
        """
        if isinstance(node, ast.Subscript):
            node = node.value
        first = ast.unparse(node).partition(".")[0]
        if first not in self.imported and first not in self.bound:
            return None
        module, name = self.place(node)
        return None if is_foreign(module) else find(module).stand_in(name)

    def _constructor(self, node: ast.FunctionDef) -> Any:
        """Return an empty `__init__` with the signature of the original."""
        if node.decorator_list:
            _refuse(node)
        kinds = inspect.Parameter
        parameters = [kinds(one.arg, kinds.POSITIONAL_ONLY) for one in node.args.posonlyargs]
        parameters += [kinds(one.arg, kinds.POSITIONAL_OR_KEYWORD) for one in node.args.args]
        for one, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
            parameter = kinds(one.arg, kinds.KEYWORD_ONLY)
            if one.annotation is not None:
                parameter = parameter.replace(annotation=self.annotation(one.annotation))
            if default is not None:
                parameter = parameter.replace(default=self.evaluate(default))
            parameters.append(parameter)

        def __init__(self: Any) -> None: ...  # noqa: N807

        __init__.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return __init__


def _refuse(node: ast.AST) -> NoReturn:
    raise UnreadableError(ast.unparse(node))
