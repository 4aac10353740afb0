"""The numbers of a run: a row for every step, and metrics.jsonl, which holds them."""

import json
from dataclasses import dataclass
from pathlib import Path

from sslkit.runs import files


@dataclass(frozen=True)
class Row:
    """One step in plain numbers, averaged over ranks: what metrics.jsonl holds."""

    step: int
    epoch: int
    lr: float
    loss: float
    metrics: dict[str, float]

    def line(self) -> str:
        return json.dumps(
            {
                "step": self.step,
                "epoch": self.epoch,
                "lr": self.lr,
                "loss": self.loss,
                **self.metrics,
            }
        )


class Metrics:
    """metrics.jsonl: one line a step. A resumed run first drops the lines of steps that it will do again, and what is no such line."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        kept = []
        if path.exists():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    row = json.loads(line)
                    numbers = {name: value + 0.0 for name, value in row.items()}
                    if numbers["step"] <= step:
                        kept.append(line + "\n")
                except (
                    ValueError,
                    KeyError,
                    TypeError,
                    AttributeError,
                    RecursionError,
                    OverflowError,
                ):
                    continue
        files.write_text(path, "".join(kept))

    def add(self, rows: list[Row]) -> None:
        with files.writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.writelines(row.line() + "\n" for row in rows)
