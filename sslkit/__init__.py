"""Self-supervised learning on images: a recipe is a method.

    import sslkit

    run = sslkit.train("pirl_jigsaw", data="photos")
    names, labels, vectors = sslkit.embed(run, "photos")
    result = sslkit.evaluate(run, "linear", data="labelled")

The import is cheap: PyTorch is loaded when a function needs it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from sslkit.version import __version__

if TYPE_CHECKING:
    from sslkit.api import embed, evaluate, load, plan_evaluation, read_recipe, train
    from sslkit.errors import RecipeError, SslkitError
    from sslkit.evaluation.embedding import Embeddings
    from sslkit.evaluation.plan import EvaluationPlan
    from sslkit.evaluation.result import EvaluationResult
    from sslkit.recipe import Recipe
    from sslkit.runs.trained import TrainedRun

__all__ = [
    "Embeddings",
    "EvaluationPlan",
    "EvaluationResult",
    "Recipe",
    "RecipeError",
    "SslkitError",
    "TrainedRun",
    "__version__",
    "embed",
    "evaluate",
    "load",
    "plan_evaluation",
    "read_recipe",
    "train",
]

_PLACES = {
    "Embeddings": "sslkit.evaluation.embedding",
    "EvaluationPlan": "sslkit.evaluation.plan",
    "EvaluationResult": "sslkit.evaluation.result",
    "Recipe": "sslkit.recipe",
    "RecipeError": "sslkit.errors",
    "SslkitError": "sslkit.errors",
    "TrainedRun": "sslkit.runs.trained",
    "embed": "sslkit.api",
    "evaluate": "sslkit.api",
    "load": "sslkit.api",
    "plan_evaluation": "sslkit.api",
    "read_recipe": "sslkit.api",
    "train": "sslkit.api",
}
"""The module of each public name, which is imported when the name is first used."""

if not TYPE_CHECKING:  # A type checker would take any name for an attribute.

    def __getattr__(name: str) -> object:
        if name not in _PLACES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = getattr(import_module(_PLACES[name]), name)
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
