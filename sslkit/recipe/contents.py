"""A validated recipe: its parts, with every option filled in."""

from dataclasses import dataclass
from typing import Any

import yaml

from sslkit.recipe.document import Dumper
from sslkit.recipe.groups import has_group
from sslkit.recipe.registry import Part
from sslkit.recipe.settings import SETTINGS, Optimizer, Schedule, Train
from sslkit.recipe.signature import read_class
from sslkit.recipe.words import plain

PARTS = {
    "method": "methods",
    "data": "datasets",
    "transform": "transforms",
    "encoder": "encoders",
    "heads": "heads",
    "sampler": "samplers",
    "loss": "losses",
}
"""Kind of part of each section that names parts."""
SECTIONS = ("name", *PARTS, *SETTINGS)
OPTIONAL = ("name", "heads", "sampler", "schedule")
NAME = "[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}"
HEAD = "[A-Za-z_][A-Za-z0-9_]{0,99}"


@dataclass(frozen=True)
class Choice:
    """A part of a recipe, with every option filled in. Options have their names in recipes."""

    kind: str
    use: str
    options: dict[str, Any]
    part: Part

    @property
    def arguments(self) -> dict[str, Any]:
        """Return keyword arguments for the part's constructor, with groups as dataclasses.

        Imports the part if it has groups.
        """
        signature = self.part.signature()
        if any(has_group(option.annotation) for option in signature.options.values()):
            signature = read_class(self.part.load(), str(self.part))
        return signature.arguments(self.options)

    @property
    def attributes(self) -> dict[str, Any]:
        """Return the literal class attributes of the part."""
        return self.part.signature().attributes

    def as_dict(self) -> dict[str, Any]:
        """Return the choice as plain data."""
        return {"use": self.use, **plain(self.options)}


@dataclass(frozen=True, repr=False)
class Recipe:
    """A complete method: parts, options and training settings."""

    name: str
    method: Choice
    data: Choice
    transform: Choice
    encoder: Choice
    heads: dict[str, Choice]
    sampler: Choice | None
    loss: Choice
    optimizer: Optimizer
    schedule: Schedule
    train: Train

    def __repr__(self) -> str:
        """Name the recipe, its method, data, encoder and length. `as_yaml` shows everything."""
        model = self.encoder.options.get("model", self.encoder.use)
        return (
            f"<Recipe {self.name}: method {self.method.use}, data {self.data.use}, encoder "
            f"{model}, {self.train.epochs} epochs in batches of {self.train.batch_size}>"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the recipe as plain data with all defaults."""
        sections: dict[str, Any] = {"name": self.name}
        for section in PARTS:
            chosen = getattr(self, section)
            if section == "heads":
                sections[section] = {name: head.as_dict() for name, head in chosen.items()}
            elif chosen is not None:
                sections[section] = chosen.as_dict()
        for section in SETTINGS:
            sections[section] = plain(getattr(self, section).as_dict())
        return sections

    def as_yaml(self) -> str:
        """Return a recipe file with all defaults; `read` returns an equal recipe."""
        return yaml.dump(
            self.as_dict(),
            Dumper=Dumper,
            sort_keys=False,
            default_flow_style=None,
            allow_unicode=True,
            width=132,
        )
