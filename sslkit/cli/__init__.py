"""The command line. Commands are thin: what they do lies in modules that they import when run."""

from sslkit.cli import data, embed, evaluate, export, inspect, recipes, train
from sslkit.cli.app import app

__all__ = ["app", "data", "embed", "evaluate", "export", "inspect", "recipes", "train"]
