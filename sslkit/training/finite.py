"""Detects and reports non-finite numbers."""

import json
import math
import shlex
from pathlib import Path

import torch
from torch import Tensor

from sslkit import distributed
from sslkit.errors import TrainingError, counted, printable
from sslkit.runs import files
from sslkit.runs.metrics import Row
from sslkit.runs.run import Run
from sslkit.training import trainer

NOT_FINITE = "not_finite.json"
"""File in the run folder with the details of a step with non-finite numbers."""

CHUNK = 2**20
"""Elements that are checked together, since a check of a large bank would double its memory."""

REPORTED = 3
"""Number of skipped steps that are reported individually."""

REMEDY = (
    "Nothing was saved after it. Lower the learning rate (--set optimizer.lr=…), warm up "
    "(--set schedule.warmup_epochs=…), clip (--set train.clip_grad=1.0) or skip such steps "
    "(--set train.on_nan=skip). Then start a new run, or change {0}/recipe.yaml and resume: "
    "sslkit train --resume {1}"
)


def check_finite(rows: list[Row], steps: list[trainer.Step], run: Run, folder: Path) -> list[str]:
    """Return a sentence for each skipped step.

    Raises TrainingError for a step with non-finite numbers that was not skipped.
    """
    skipped = []
    for row, step in zip(rows, steps, strict=True):
        if step.skipped:
            skipped.append(f"skipped {_describe(row, step, run, folder)}")
        elif _not_finite(row):
            raise TrainingError(f"{_describe(row, step, run, folder)}. {_remedy(folder)}")
    return skipped


def thinned(sentences: list[str], before: int) -> list[str]:
    """Keep the first REPORTED sentences of a run, then one at every power of two.

    `before` is the number of sentences for earlier steps.
    """
    kept = []
    for count, sentence in enumerate(sentences, before + 1):
        if count <= REPORTED:
            kept.append(sentence)
        elif count.bit_count() == 1:
            kept.append(f"{sentence}; {count:,} steps skipped so far")
    return kept


def check_weights(run: Run, folder: Path) -> None:
    """Raise TrainingError if a weight is not finite.

    The last loss predates the last update, so check the weights before saving.
    """
    tensors = run.method.state_dict().items()
    values = {name: value for name, value in tensors if value.is_floating_point()}
    finite = torch.stack([_finite(value) for value in values.values()]).tolist()
    wrong = [name for name, fine in zip(values, finite, strict=True) if not fine]
    if wrong:
        raise TrainingError(
            f"{counted(len(wrong), 'tensor')} not finite after step {run.step}, such as "
            f"{wrong[0]}. {_remedy(folder)}"
        )


def _remedy(folder: Path) -> str:
    """Return the remedy for non-finite numbers."""
    return REMEDY.format(folder, shlex.quote(str(folder)))


def _finite(value: Tensor) -> Tensor:
    """Return whether all elements are finite, as a bool scalar on the device."""
    if value.numel() <= CHUNK:
        return value.isfinite().all()
    rows = max(1, CHUNK * len(value) // value.numel())
    return torch.stack([chunk.isfinite().all() for chunk in value.split(rows)]).all()


def _not_finite(row: Row) -> list[str]:
    numbers = {"loss": row.loss, **row.metrics}
    return [name for name, value in numbers.items() if not math.isfinite(value)]


def _describe(row: Row, step: trainer.Step, run: Run, folder: Path) -> str:
    """Describe a step with non-finite numbers, and write all details to NOT_FINITE.

    A collective: every rank calls it.
    """
    index = distributed.gather(step.index).tolist()
    names = [str(run.source.names[place]) for place in index]
    if distributed.rank() == 0:
        values = {name: repr(value) for name, value in {"loss": row.loss, **row.metrics}.items()}
        details = {"step": row.step, "lr": row.lr, "values": values, "images": names}
        files.write_text(folder / NOT_FINITE, json.dumps(details, indent=1))
    shown = ", ".join(map(printable, names[:8]))
    if len(names) > 8:
        shown += f" and {len(names) - 8} more"
    return (
        f"step {row.step}: {', '.join(_not_finite(row))} not finite "
        f"(learning rate {row.lr:.3g}; images {shown}, see {NOT_FINITE})"
    )
