"""One cell of a sweep: a recipe with its values and training seed, and its run folder."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from sslkit.recipe import Recipe

SAFE = re.compile(r"[a-z0-9._+-]{1,40}")
LONGEST = 150
"""Longest name of a folder. Longer ones are replaced by a hash."""


@dataclass(frozen=True)
class Cell:
    """A run of a sweep. `values` are texts for `--set`, by key."""

    name: str
    """Name of the run folder, equal on all machines."""
    recipe_name: str
    values: Mapping[str, str]
    seed: int
    recipe: Recipe

    @property
    def label(self) -> str:
        """The recipe, the values and the seed, for messages."""
        values = [f"{key}={text}" for key, text in self.values.items()]
        return " ".join([self.recipe_name, *values, f"seed {self.seed}"])


def make(recipe_name: str, values: Mapping[str, str], seed: int, recipe: Recipe) -> Cell:
    """Return the cell of `recipe`, a recipe with these values, with another training seed."""
    seeded = replace(recipe, train=replace(recipe.train, seed=seed))
    return Cell(folder_name(recipe_name, values, seed), recipe_name, values, seed, seeded)


def folder_name(recipe_name: str, values: Mapping[str, str], seed: int) -> str:
    """Return the name of a cell's folder, such as pirl_jigsaw,loss.lambda=0.5,seed=0."""
    parts = [f"{key}={safe(text)}" for key, text in values.items()]
    name = ",".join([recipe_name, *parts, f"seed={seed}"])
    if len(name) <= LONGEST:
        return name
    return f"{recipe_name[:60]},{digest(','.join(parts))},seed={seed}"


def safe(text: str) -> str:
    """Return a text that can stand in the name of a folder on every system.

    Long texts, capital letters and other characters are replaced by the start and a hash.
    """
    if SAFE.fullmatch(text):
        return text
    start = re.sub(r"[^a-z0-9._+-]+", "_", text.lower()).strip("_")[:20]
    return "-".join(filter(None, (start, digest(text))))


def digest(text: str) -> str:
    """Return the first 8 hexadecimal digits of the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]
