"""The state of a run at a checkpoint: the content of state.json."""

from pathlib import Path
from typing import Annotated, Literal, NotRequired

import pydantic
from typing_extensions import TypedDict

from sslkit.errors import CheckpointError
from sslkit.parts import DataFormat
from sslkit.runs import samples

STEP = "step-{:08d}"
"""Name of a checkpoint."""
FORMAT = 1
"""The format of checkpoints. A newer one is an error."""

Number = bool | int | pydantic.FiniteFloat | str | None


class OptimizerState(TypedDict):
    """The class name of an optimizer, and the numbers in its state by parameter or group."""

    name: str
    state: dict[str, dict[str, Number | list[Number]]]


class Format(TypedDict):
    """The part of state.json that every version of sslkit reads."""

    format: NotRequired[pydantic.PositiveInt]


class State(Format):
    """Content of state.json."""

    step: pydantic.NonNegativeInt
    skipped: NotRequired[pydantic.NonNegativeInt]
    images: Annotated[int, pydantic.Field(ge=1, lt=2**40)]
    channels: NotRequired[Annotated[int, pydantic.Field(ge=1, le=4096)]]
    bits: NotRequired[Literal[8, 16]]
    classes: NotRequired[Annotated[int, pydantic.Field(ge=1, lt=2**31)] | None]
    fingerprint: str
    samples: NotRequired[list[samples.Sample]]
    unreadable: dict[str, str]
    optimizer: OptimizerState


def data_format(state: State) -> DataFormat:
    """Return the format of the training data of a run."""
    return DataFormat(
        state["images"],
        state.get("channels", 3),
        state.get("bits", 8),
        state.get("classes"),
    )


class NewerFormatError(CheckpointError):
    """A checkpoint that a newer sslkit wrote."""


STATE_BYTES = 2**26
"""Largest state.json that is read."""


def _text(checkpoint: Path) -> bytes:
    with (checkpoint / "state.json").open("rb") as file:
        return file.read(STATE_BYTES)


def check_format(checkpoint: Path) -> None:
    """Raise NewerFormatError for a format of a newer version, or ValueError if there is none."""
    found = pydantic.TypeAdapter(Format).validate_json(_text(checkpoint)).get("format", FORMAT)
    if found > FORMAT:
        raise NewerFormatError(
            f"{checkpoint} has format {found}, and this sslkit reads format {FORMAT}; upgrade: "
            "pip install -U sslkit"
        )


def read(checkpoint: Path) -> State:
    """Return the state of a checkpoint, whose other files are not read.

    Raises NewerFormatError for a format of a newer version, OSError or ValueError if the file is
    damaged.
    """
    try:
        check_format(checkpoint)
        state = pydantic.TypeAdapter(State).validate_json(_text(checkpoint), strict=True)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(
            f"state.json: {'.'.join(map(str, first['loc']))} {first['msg']}"
        ) from error
    if checkpoint.name != STEP.format(state["step"]):
        raise ValueError(f"state.json is that of step {state['step']}")
    return state
