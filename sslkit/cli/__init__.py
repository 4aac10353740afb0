"""The command line. Commands import the modules that do the work only when they run."""

from sslkit.cli import data, embed, evaluate, export, inspect, recipes, sweep, train
from sslkit.cli.app import app

__all__ = ["app", "data", "embed", "evaluate", "export", "inspect", "recipes", "sweep", "train"]
