"""YAML → Recipe: what is installed, what it takes, what is wrong. Imports no torch."""

from sslkit.recipe.contents import PARTS, SECTIONS, Choice, Recipe
from sslkit.recipe.reader import optimizers, read, read_data, read_evaluation
from sslkit.recipe.schema import json_schema
from sslkit.recipe.settings import SETTINGS, Optimizer, Schedule, Train

__all__ = [
    "PARTS",
    "SECTIONS",
    "SETTINGS",
    "Choice",
    "Optimizer",
    "Recipe",
    "Schedule",
    "Train",
    "json_schema",
    "optimizers",
    "read",
    "read_data",
    "read_evaluation",
]
