"""Checks of what a method promises of every step."""

from sslkit import distributed
from sslkit.errors import PluginError
from sslkit.interfaces import Output
from sslkit.runs.run import Run

TAKEN = {"step", "epoch", "lr", "loss", "gradient_norm"}
"""Names of numbers that the toolkit reports itself."""


class Promises:
    """Refuses a method whose outputs break the contract, in one sentence."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.names: set[str] | None = None
        self.weights = {}
        if distributed.world() > 1 and run.method.uses_every_parameter:
            named = run.method.named_parameters()
            self.weights = {name: value for name, value in named if value.requires_grad}

    def check_names(self, outputs: list[Output]) -> None:
        """PluginError unless all micro-batches of all steps report metrics of the same names."""
        for output in outputs:
            names = set(output.metrics) | {f"feature_std/{name}" for name in output.feature_std}
            if self.names is None:
                self._check_free(names)
                self.names = names
            if names != self.names:
                raise PluginError(
                    f"method '{self.run.recipe.method.use}' reports the metrics {_listed(names)} "
                    f"at step {self.run.step + 1} and {_listed(self.names)} before; an Output "
                    "must have metrics of the same names at every step"
                )

    def check_gradients(self) -> None:
        """PluginError where ranks would wait for gradients that do not come."""
        unused = [name for name, value in self.weights.items() if value.grad is None]
        if unused:
            raise PluginError(
                f"method '{self.run.recipe.method.use}' leaves {len(unused)} weights without "
                f"gradient, {unused[0]} the first; to train it on several ranks, set the class "
                "attribute uses_every_parameter = False of the method"
            )

    def _check_free(self, names: set[str]) -> None:
        if names & TAKEN:
            raise PluginError(
                f"method '{self.run.recipe.method.use}' names a metric "
                f"'{min(names & TAKEN)}', a name that is taken; take another one"
            )


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "(none)"
