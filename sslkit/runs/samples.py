"""Identifies the data set of a run by names and mean values of a few images."""

from typing import Annotated

import numpy as np
import pydantic
from typing_extensions import TypedDict

from sslkit.data.plain import decoded
from sslkit.data.workers import read
from sslkit.errors import printable
from sslkit.interfaces import ImageSource, Pixels

COUNT = 16
"""Number of evenly spaced images in a checkpoint."""
TOLERANCE = 3 / 255
"""Largest difference of a channel's mean, as a fraction of the range: decoders round."""


class Sample(TypedDict):
    """One image: place in the data set, name, mean of each channel in 0 … 1.

    `mean` is None if the image cannot be read.
    """

    index: pydantic.NonNegativeInt
    name: str
    mean: Annotated[list[pydantic.FiniteFloat], pydantic.Field(max_length=4096)] | None


def take(source: ImageSource) -> list[Sample]:
    """Return a few images of a data set as samples."""
    places = np.unique(np.linspace(0, len(source) - 1, COUNT).round().astype(int)).tolist()
    return [
        Sample(index=index, name=_name(source, index), mean=_mean(source, index))
        for index in places
    ]


def _name(source: ImageSource, index: int) -> str:
    return printable(str(source.names[index]))


def _mean(source: ImageSource, index: int) -> list[float] | None:
    image = read(decoded, source, index)
    if isinstance(image, str):
        return None
    values = image.values if isinstance(image, Pixels) else Pixels.of(image).values
    means = values.numpy().reshape(len(values), -1).mean(1) / (2**source.bits - 1)
    return [round(float(mean), 4) for mean in means]


def other_names(kept: list[Sample], images: int, source: ImageSource) -> str:
    """Describe how the names of `source` differ from those of a run on `images` images."""
    words = [f"{images:,} then, {len(source):,} now"]
    for sample in kept:
        index, name = sample["index"], sample["name"]
        now = _name(source, index) if index < len(source) else None
        if now != name:
            is_now = "there is none now" if now is None else f"is '{now}' now"
            words.append(f"image {index} was '{name}' and {is_now}")
            break
    return "; ".join(words)


def other_content(kept: list[Sample], source: ImageSource) -> str | None:
    """Describe an image of `source` with other pixels than at the start of the run, or None."""
    for sample in kept:
        now = _mean(source, sample["index"]) if sample["index"] < len(source) else None
        if sample["mean"] is None or now is None:
            continue
        then = np.array(sample["mean"])
        if len(now) != len(then) or np.abs(then - now).max() > TOLERANCE:
            return f"'{sample['name']}' shows something else (mean {then.tolist()} then, {now} now)"
    return None
