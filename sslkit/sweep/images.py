"""Opens the images of a sweep before it starts: counts steps, checks what evaluations need."""

import json
from collections.abc import Callable, Iterable, Sequence

from sslkit.errors import DataError
from sslkit.evaluation.data import Splits, open_splits
from sslkit.parts import make_source
from sslkit.recipe import registry
from sslkit.sweep.cell import Cell


def steps(cells: Iterable[Cell]) -> dict[str, int]:
    """Return the number of training steps of each cell by name.

    Opens each data set once. Raises DataError if it cannot be opened or is smaller than a batch.
    """
    counts: dict[str, int] = {}
    found = {}
    for cell in cells:
        data, chosen = _key(cell), cell.recipe.train
        if data not in counts:
            counts[data] = len(make_source(cell.recipe, "pretrain"))
        if counts[data] < chosen.batch_size:
            raise DataError(
                f"{cell.label}: {counts[data]} images are fewer than a batch of "
                f"{chosen.batch_size}; set train.batch_size"
            )
        found[cell.name] = chosen.epochs * (counts[data] // chosen.batch_size)
    return found


def check(
    cells: Iterable[Cell], evaluations: Sequence[str], show: Callable[[Splits], None]
) -> None:
    """Raise DataError if a data set lacks what an evaluation needs. `show` gets its splits."""
    seen = set()
    for cell in cells:
        if _key(cell) in seen:
            continue
        seen.add(_key(cell))
        for number, name in enumerate(evaluations):
            signature = registry.find("evaluations", name).signature()
            splits = open_splits(
                cell.recipe.data, signature.attributes.get("needs", "labels"), None
            )
            if number == 0:
                show(splits)


def _key(cell: Cell) -> str:
    return json.dumps(cell.recipe.data.as_dict(), sort_keys=True, default=str)
