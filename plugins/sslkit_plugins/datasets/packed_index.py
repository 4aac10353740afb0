"""The index of a packed set: what packed.json holds."""

import hashlib
from dataclasses import dataclass
from typing import Annotated, Literal

import pydantic
from pydantic import NonNegativeInt, PositiveInt

INDEX = "packed.json"


@dataclass(frozen=True)
class Split:
    """What the index says of one split."""

    images: PositiveInt
    shards: Annotated[int, pydantic.Field(ge=1, le=1_000_000)]
    sha256: str
    classes: list[str]


@dataclass(frozen=True)
class Index:
    """What packed.json holds.

    `skipped` names the images that were left out as unreadable. Of the others, `kept` kept their
    bytes and `coded` were coded anew. `reduced_to` is the short side that larger images were
    reduced to; None where none was larger.
    """

    short_side: PositiveInt
    quality: PositiveInt
    splits: dict[Literal["train", "val"], Split]
    skipped: list[str]
    kept: NonNegativeInt
    coded: NonNegativeInt
    reduced_to: PositiveInt | None = None
    format: Literal["sslkit packed 2"] = "sslkit packed 2"


def list_hash(names: list[str]) -> str:
    """SHA-256 of a list of names, each ended by a zero, as checkpoints keep it."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(name.encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()
