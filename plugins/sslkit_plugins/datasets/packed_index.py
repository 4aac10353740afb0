"""The index of a packed set: what packed.json holds."""

import hashlib
from dataclasses import dataclass
from typing import Annotated, Literal

import pydantic
from pydantic import NonNegativeInt, PositiveInt

INDEX = "packed.json"


@dataclass(frozen=True)
class Split:
    """Entry of one split in the index."""

    images: PositiveInt
    shards: Annotated[int, pydantic.Field(ge=1, le=1_000_000)]
    sha256: str
    classes: list[str]


@dataclass(frozen=True)
class Index:
    """Content of packed.json.

    `skipped` names the images that were left out as unreadable. Of the others, `kept` images have
    their original bytes and `coded` images were re-encoded. `reduced_to` is the short side of
    images that were reduced, px; None if there are none.
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
    """Return the SHA-256 of zero-terminated names, the hash that checkpoints store."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(name.encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()
