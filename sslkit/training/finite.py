"""Numbers that are not finite: found, described, written down."""

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
"""Beside the metrics: all that is known of a step whose numbers were not finite."""

CHUNK = 2**20
"""Numbers that are looked at at once: a copy of a large bank would need its memory again."""

TOLD = 3
"""Skipped steps that are told of one by one."""

REMEDY = (
    "Nothing was saved after it; lower the rate (--set optimizer.lr=…), warm up "
    "(--set schedule.warmup_epochs=…), clip (--set train.clip_grad=1.0) or skip such steps "
    "(--set train.on_nan=skip), then start anew, or write it into {0}/recipe.yaml and go on: "
    "sslkit train --resume {1}"
)


def check_finite(rows: list[Row], steps: list[trainer.Step], run: Run, folder: Path) -> list[str]:
    """Return a sentence for each step that was skipped; TrainingError at one that was not."""
    skipped = []
    for row, step in zip(rows, steps, strict=True):
        if step.skipped:
            skipped.append(f"skipped {_describe(row, step, run, folder)}")
        elif _not_finite(row):
            raise TrainingError(f"{_describe(row, step, run, folder)}. {_remedy(folder)}")
    return skipped


def seldom(sentences: list[str], before: int) -> list[str]:
    """Keep the first TOLD sentences of a run, then one at every power of two, with the count.

    `before` counts the sentences of earlier steps.
    """
    kept = []
    for count, sentence in enumerate(sentences, before + 1):
        if count <= TOLD:
            kept.append(sentence)
        elif count.bit_count() == 1:
            kept.append(f"{sentence}; {count:,} steps skipped so far")
    return kept


def check_weights(run: Run, folder: Path) -> None:
    """Raise TrainingError where a weight is not finite.

    The last loss predates the last update, so the weights are checked before saving.
    """
    tensors = run.method.state_dict().items()
    values = {name: value for name, value in tensors if value.is_floating_point()}
    finite = torch.stack([_finite(value) for value in values.values()]).tolist()
    wrong = [name for name, fine in zip(values, finite, strict=True) if not fine]
    if wrong:
        raise TrainingError(
            f"step {run.step} left {counted(len(wrong), 'tensor')} not finite, {wrong[0]} the "
            f"first. {_remedy(folder)}"
        )


def _remedy(folder: Path) -> str:
    """Return what to do about numbers that are not finite."""
    return REMEDY.format(folder, shlex.quote(str(folder)))


def _finite(value: Tensor) -> Tensor:
    """Return a bool scalar on the device: whether all numbers are finite."""
    if value.numel() <= CHUNK:
        return value.isfinite().all()
    rows = max(1, CHUNK * len(value) // value.numel())
    return torch.stack([part.isfinite().all() for part in value.split(rows)]).all()


def _not_finite(row: Row) -> list[str]:
    numbers = {"loss": row.loss, **row.metrics}
    return [name for name, value in numbers.items() if not math.isfinite(value)]


def _describe(row: Row, step: trainer.Step, run: Run, folder: Path) -> str:
    """Return what was not finite, at which rate, in which images; write down all images.

    Every rank calls it.
    """
    index = distributed.gather(step.index).tolist()
    names = [str(run.source.names[place]) for place in index]
    if distributed.rank() == 0:
        values = {name: repr(value) for name, value in {"loss": row.loss, **row.metrics}.items()}
        known = {"step": row.step, "lr": row.lr, "values": values, "images": names}
        files.write_text(folder / NOT_FINITE, json.dumps(known, indent=1))
    shown = ", ".join(map(printable, names[:8]))
    if len(names) > 8:
        shown += f" and {len(names) - 8} more"
    return (
        f"step {row.step}: {', '.join(_not_finite(row))} not finite "
        f"(learning rate {row.lr:.3g}; images {shown}, see {NOT_FINITE})"
    )
