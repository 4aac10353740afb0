"""Finds installed parts, reads recipes and checks them. Does not import torch."""

from sslkit.recipe.arguments import choose_evaluation, read_data, read_evaluation
from sslkit.recipe.contents import PARTS, SECTIONS, Choice, Recipe
from sslkit.recipe.reader import placed, read
from sslkit.recipe.schema import json_schema
from sslkit.recipe.settings import (
    SCHEDULES,
    SETTINGS,
    Constant,
    Cosine,
    Multistep,
    Optimizer,
    Repeat,
    Schedule,
    Step,
    Train,
)

__all__ = [
    "PARTS",
    "SCHEDULES",
    "SECTIONS",
    "SETTINGS",
    "Choice",
    "Constant",
    "Cosine",
    "Multistep",
    "Optimizer",
    "Recipe",
    "Repeat",
    "Schedule",
    "Step",
    "Train",
    "choose_evaluation",
    "json_schema",
    "placed",
    "read",
    "read_data",
    "read_evaluation",
]
