"""Writes the model card of an exported encoder."""

import json
from pathlib import Path
from typing import Any

import yaml

from sslkit.interfaces import Encoder
from sslkit.recipe import Recipe
from sslkit.recipe.signature import plain
from sslkit.runs.state import State
from sslkit.version import __version__

TEMPLATE = """\
---
library_name: {library}
tags:
- image-feature-extraction
- self-supervised-learning
- {method}
---

# {name}

An image encoder trained with `{method}` by sslkit {version}.
{summary}
It maps an image to a vector of {dim} numbers.

## Use

```python
{lines}
features = model(images)  # float32 [N, {dim}]
```

`folder` is the folder of this file; `load.py` has the same code. `images` are float32
[N, {channels}, {size}, {size}]: {scales}.

## Training

{images} images of `{data}`, {steps} steps of {batch_size} images.

```yaml
{recipe}
```

## Evaluation

{results}

## Licence

There is no licence yet. Choose one, and add `license: …` to the header of this file; the terms of
the training images may restrict it.
"""


def write(
    folder: Path,
    recipe: Recipe,
    encoder: Encoder,
    state: State,
    *,
    size: int,
    library: str,
    lines: str,
    scales: str,
) -> str:
    """Return the text of README.md, without folders of this machine.

    `scales` describes the encoder's input (`PretextTransform.scales`).
    """
    return TEMPLATE.format(
        library=library,
        method=recipe.method.use,
        name=recipe.name,
        version=__version__,
        summary=recipe.method.part.signature().summary,
        dim=encoder.dim,
        lines=lines,
        channels=len(encoder.normalisation.mean),
        size=size,
        scales=scales,
        images=f"{state['images']:,}",
        data=recipe.data.use,
        steps=f"{state['step']:,}",
        batch_size=recipe.train.batch_size,
        recipe=_recipe(recipe),
        results=_results(folder),
    )


def _recipe(recipe: Recipe) -> str:
    content = _without_folders(recipe.as_dict())
    text: str = yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=100)
    return text.strip()


def _without_folders(value: Any) -> Any:
    """Return a recipe's value with only the last component of every path."""
    if isinstance(value, dict):
        return {name: _without_folders(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_folders(item) for item in value]
    if isinstance(value, str) and ("/" in value or "\\" in value):
        return value.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return plain(value)


def _results(folder: Path) -> str:
    """Return a table of the run's results, without unreadable ones."""
    rows = []
    for path in sorted((folder / "eval").glob("*.json")):
        try:
            rows += _rows(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    if not rows:
        return "Not evaluated yet."
    head = ["| evaluation | row | candidate | metric | value |", "| --- | --- | --- | --- | --- |"]
    return "\n".join(head + rows)


def _rows(result: dict[str, Any]) -> list[str]:
    """Return a table row for each score of a result."""
    units = {metric["name"]: metric.get("unit", "") for metric in result["metrics"]}
    rows = []
    for entry in result["entries"]:
        for metric, score in entry["scores"].items():
            if score["value"] is None:
                continue
            factor = 100 if units[metric] == "%" else 1
            value = f"{factor * score['value']:.4g}"
            for interval in score.get("intervals", [])[:1]:
                low, high = factor * interval["low"], factor * interval["high"]
                value += f" [{low:.4g}, {high:.4g}]"
            words = [result["evaluation"], entry["row"] or "", entry["candidate"], metric, value]
            rows.append("| " + " | ".join(words) + " |")
    return rows
