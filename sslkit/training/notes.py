"""Sentences about a run that a session shows at its start."""

from torch import nn

from sslkit.interfaces import Method
from sslkit.runs.run import Run
from sslkit.training.optim import learning_rate


def part_notes(method: Method) -> list[str]:
    """Return the notes of a method and of its parts, each with the part's key in recipes."""
    parts: dict[str, nn.Module] = {"method": method}
    parts |= {f"heads.{name}": head for name, head in method.heads.items()}
    if method.samplers:
        parts["sampler"] = next(iter(method.samplers.values()))
    found = []
    for key, part in parts.items():
        found += [f"{key}: {note}" for note in getattr(part, "notes", ())]
    return found


def change_of_rate(run: Run, before: int) -> str:
    """Describe the change of the learning rate of a run that had `before` epochs."""
    chosen, per_epoch = run.recipe, run.loader.steps_per_epoch
    peak = chosen.optimizer.lr
    last = learning_rate(run.step - 1, peak, chosen.schedule, before, per_epoch)
    following = learning_rate(run.step, peak, chosen.schedule, chosen.train.epochs, per_epoch)
    return (
        f"learning rate: {last:.3g} at step {run.step:,} of {before * per_epoch:,}, and now "
        f"{following:.3g} at step {run.step + 1:,} of {run.steps:,}"
    )
