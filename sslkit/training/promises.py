"""Checks that the outputs of a method fulfil its contract at every step."""

from torch import Tensor

from sslkit import distributed, faults
from sslkit.errors import PluginError
from sslkit.interfaces import Output
from sslkit.runs.run import Run

TAKEN = {"step", "epoch", "lr", "loss", "gradient_norm"}
"""Names of metrics that sslkit reports itself."""


class Promises:
    """Raises PluginError if outputs of a method break the contract, without synchronisation.

    `ranks` is the number of ranks, by default that of this run.
    """

    def __init__(self, run: Run, *, ranks: int | None = None) -> None:
        self.run, self.called = run, faults.called(run.method)
        self.names: set[str] | None = None
        self.kept: set[str] = set()
        self.weights = {}
        if (ranks or distributed.world()) > 1 and run.method.uses_every_parameter:
            named = run.method.named_parameters()
            self.weights = {name: value for name, value in named if value.requires_grad}

    def check_output(self, output: object) -> Output:
        """Return `output`. Raises PluginError if it or one of its tensors breaks the contract."""
        if not isinstance(output, Output):
            kind = type(output).__name__
            raise PluginError(f"{self.called} returned {kind}; it must return an Output")
        for field in ("metrics", "feature_std", "keep"):
            if not isinstance(getattr(output, field), dict):
                raise PluginError(f"{self.called} returned an Output whose {field} is not a dict")
        loss = output.loss
        if not isinstance(loss, Tensor) or loss.dim() > 0 or not loss.is_floating_point():
            raise PluginError(
                f"{faults.called(self.run.method.loss)} returns {_shown(loss)}; the loss of "
                f"{self.called} must be a float scalar: take the mean over images"
            )
        for name, value in {**output.feature_std, **output.metrics}.items():
            if not isinstance(value, Tensor) or value.dim() > 0 or value.requires_grad:
                raise PluginError(
                    f"{self.called} reports '{name}' as {_shown(value)}; it must be a detached "
                    "scalar tensor"
                )
        for name, rows in output.keep.items():
            if not isinstance(rows, Tensor) or rows.dim() == 0:
                raise PluginError(f"{self.called} keeps '{name}' as {_shown(rows)}; it needs rows")
        return output

    def check_names(self, outputs: list[Output]) -> None:
        """Raise PluginError unless all micro-batches of all steps have the same names."""
        for output in outputs:
            names = set(output.metrics) | {f"feature_std/{name}" for name in output.feature_std}
            kept = set(output.keep)
            if self.names is None:
                self._check_free(names)
                self.names, self.kept = names, kept
            if names != self.names:
                raise PluginError(
                    f"{self.called} reports the metrics {_listed(names)} at step "
                    f"{self.run.step + 1}, but {_listed(self.names)} before; an Output must have "
                    "metrics of the same names at every step"
                )
            if kept != self.kept:
                raise PluginError(
                    f"{self.called} keeps {_listed(kept)} at step {self.run.step + 1}, but "
                    f"{_listed(self.kept)} before; an Output must keep the same names at every step"
                )

    def check_gradients(self) -> None:
        """Raise PluginError if ranks would wait for missing gradients."""
        unused = [name for name, value in self.weights.items() if value.grad is None]
        if unused:
            raise PluginError(
                f"{self.called} leaves {len(unused)} weights without gradient, such as "
                f"{unused[0]}; to train it on several ranks, set the class attribute "
                "uses_every_parameter = False of the method"
            )

    def _check_free(self, names: set[str]) -> None:
        if names & TAKEN:
            raise PluginError(
                f"{self.called} reports a metric '{min(names & TAKEN)}', a reserved name; use "
                "another name"
            )


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "(none)"


def _shown(value: object) -> str:
    """Return type and shape of a value that should be a tensor."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    graph = ", with gradient" if value.requires_grad else ""
    return f"{value.dtype} {list(value.shape)}{graph}"
