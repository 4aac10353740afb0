"""Finds parts by entry point and reads their options from source code."""

import functools
import importlib
import re
from dataclasses import dataclass
from typing import Any

from sslkit.errors import PluginError
from sslkit.recipe import source
from sslkit.recipe.signature import Signature, read_class
from sslkit.recipe.words import advice, joined, sentence, written

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
"""Every kind of part, and its singular.

The entry-point group of a kind is `sslkit.<kind>`.
"""


@dataclass(frozen=True)
class Part:
    """An entry point of a distribution: the class `object` of `module`."""

    kind: str
    name: str
    distribution: str
    version: str
    module: str
    object: str

    def __str__(self) -> str:
        return f"{KINDS[self.kind]} '{self.name}' of {self.distribution} {self.version}".rstrip()

    @property
    def shown(self) -> str:
        """Name of the part in messages, with its distribution unless that is sslkit."""
        if self.distribution == "sslkit":
            return f"{KINDS[self.kind]} '{self.name}'"
        return str(self)

    def load(self) -> type:
        """Import the class. Raises PluginError if that fails."""
        try:
            found: Any = importlib.import_module(self.module)
            for name in self.object.split("."):
                found = getattr(found, name)
        except (Exception, SystemExit) as error:
            remedy = f"repair or reinstall {self.distribution}"
            raise PluginError(
                f"{self} cannot be imported from {self.module}: {sentence(error)}; {remedy}"
            ) from error
        if not isinstance(found, type):
            raise PluginError(
                f"{self} is no class: {self.module}:{self.object} is {written(found)}"
            )
        return found

    def signature(self) -> Signature:
        """Return the signature from the source, or from the imported class if parsing fails.

        Raises PluginError if neither can be read.
        """
        return _signature(self)


def parts(kind: str | None = None) -> list[Part]:
    """Return the installed parts, or those of one kind, by kind and name. Imports none of them.

    Raises PluginError for an unknown kind.
    """
    if kind is not None and kind not in KINDS:
        raise PluginError(f"there is no kind {written(kind)} of parts; {advice(kind, KINDS)}")
    return [part for part in discover() if kind in (None, part.kind)]


def find(kind: str, name: str) -> Part:
    """Return the part of that kind and name.

    Raises PluginError if there is none, or if two distributions claim the name.
    """
    installed = parts(kind)
    found = [part for part in installed if part.name == name]
    if not found:
        near = advice(name, [part.name for part in installed])
        remedy = "if a package should bring it, install or reinstall that package"
        raise PluginError(
            f"no {KINDS[kind]} named {written(name)} is installed; {joined(near, remedy)}"
        )
    if len(found) > 1:
        claims = " and ".join(
            f"{part.distribution} ({part.module}:{part.object})" for part in found
        )
        raise PluginError(f"{KINDS[kind]} '{name}' is claimed by {claims}; uninstall one of them")
    return found[0]


@functools.cache
def discover() -> tuple[Part, ...]:
    """Read the entry points of every distribution on sys.path, once."""
    import entrypoints

    found: dict[tuple[str, str, str], Part] = {}
    try:
        for config, distribution in entrypoints.iter_files_distros():
            owner = re.sub(r"[-_.]+", "-", distribution.name).lower()
            for kind in KINDS:
                group = f"sslkit.{kind}"
                for name, target in config.items(group) if config.has_section(group) else ():
                    module, _, attribute = target.partition("[")[0].partition(":")
                    part = Part(
                        kind,
                        name,
                        owner,
                        distribution.version or "",
                        module.strip(),
                        attribute.strip(),
                    )
                    found.setdefault((kind, name, owner), part)
    except entrypoints.configparser.Error as error:
        raise PluginError(
            f"the entry points of an installed package cannot be read: {sentence(error)}"
        ) from error
    order = list(KINDS)
    return tuple(
        sorted(
            found.values(), key=lambda part: (order.index(part.kind), part.name, part.distribution)
        )
    )


@functools.cache
def _signature(part: Part) -> Signature:
    try:
        return read_class(source.find(part.module).stand_in(part.object), str(part))
    except (source.UnreadableError, RecursionError):
        return read_class(part.load(), str(part))
