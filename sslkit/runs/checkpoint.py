"""Run folders and checkpoints: safetensors and JSON, written beside and renamed, so that a kill at any moment loses nothing.

runs/<recipe>/<time>/                 `latest` beside it points to the newest
  recipe.yaml  environment.json  metrics.jsonl  encoder.safetensors  curves.png  views.png  eval/…
  checkpoints/step-00000120/          method.safetensors  optimizer.safetensors  state.json  SHA256SUMS (as `sha256sum -c` reads it)
"""

import copy
import json
import re
import shutil
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

import pydantic
import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor
from typing_extensions import TypedDict

from sslkit import distributed
from sslkit.errors import CheckpointError
from sslkit.interfaces import Method
from sslkit.parts import DataFormat, sharded_rows
from sslkit.runs import samples
from sslkit.runs.files import checksum, replacing, save_tensors, write_text
from sslkit.runs.run import Run

STEP = "step-{:08d}"
FILES = ("method.safetensors", "optimizer.safetensors", "state.json")


GROUP = "group "
"""Begins the key of what an optimizer added to a group of parameters (LAMB counts its steps there)."""


def _flatten_optimizer(
    optimizer: torch.optim.Optimizer,
) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    given = {"params", "initial_lr", *optimizer.defaults}
    added = {
        f"{GROUP}{number}": {name: value for name, value in group.items() if name not in given}
        for number, group in enumerate(optimizer.param_groups)
    }
    for key, values in (optimizer.state_dict()["state"] | added).items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{key}.{name}"] = value
            else:
                numbers.setdefault(str(key), {})[name] = value
    return tensors, numbers


def _restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], numbers: dict[str, dict[str, Any]]
) -> None:
    """ValueError for keys and names that `_flatten_optimizer` does not write."""
    state: dict[int, dict[str, Any]] = {}
    groups = optimizer.state_dict()["param_groups"]
    parameters = [value for group in optimizer.param_groups for value in group["params"]]
    given = {"params", "initial_lr", *optimizer.defaults}
    entries = [
        (key, name, value) for key, values in numbers.items() for name, value in values.items()
    ]
    for key, entry, value in entries + [
        (*name.partition(".")[::2], value) for name, value in tensors.items()
    ]:
        number, known = key.removeprefix(GROUP), groups if key.startswith(GROUP) else parameters
        if (
            not number.isdecimal()
            or int(number) >= len(known)
            or (known is groups and entry in given)
        ):
            raise ValueError(f"the optimizer has no place for {key}.{entry}")
        if known is groups:
            groups[int(number)][entry] = value
            continue
        owner = parameters[int(number)]
        if isinstance(value, Tensor) and value.shape == owner.shape:
            value = torch.empty_like(owner, dtype=value.dtype).copy_(value)
        state.setdefault(int(number), {})[entry] = value
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _rehearse(optimizer: torch.optim.Optimizer) -> None:
    """Try a step with a copy: raises whatever the restored state would raise in the first step of training."""
    trial = copy.deepcopy(optimizer)
    for parameter in (value for group in trial.param_groups for value in group["params"]):
        parameter.grad = torch.zeros_like(parameter)
    trial.step()


def _parts(run: Run) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, str]]:
    """What the method keeps: the tensors that all processes hold alike, this one's rows of those that are spread, and which rows."""
    sharded = sharded_rows(run.method)
    tensors = {f"method.{name}": value for name, value in run.method.state_dict().items()}
    own = {f"method.{name}": tensors.pop(f"method.{name}") for name in sharded}
    rows = {f"method.{name}": " ".join(map(str, rows)) for name, rows in sharded.items()}
    return tensors, own, rows


def tensors(run: Run) -> dict[str, Tensor]:
    """Return every tensor that a checkpoint of `run` holds on this rank."""
    method, own, _ = _parts(run)
    transform = {f"transform.{name}": value for name, value in run.transform.state().items()}
    moments, _ = _flatten_optimizer(run.optimizer)
    optimizer = {f"optimizer.{name}": value for name, value in moments.items()}
    return method | own | transform | optimizer


def save(run: Run, folder: Path) -> Path:
    """Write the checkpoint of `run.step`; keep the newest `train.keep`. Atomic: a checkpoint is there whole or not at all.

    Every process calls it: rank 0 writes what all hold alike, and each its own rows of a memory that is spread over them.
    """
    home = folder / "checkpoints"
    final, beside = home / STEP.format(run.step), home / f".writing-{run.step}"
    leader = distributed.rank() == 0
    method, own, rows = _parts(run)
    try:
        if leader:
            home.mkdir(parents=True, exist_ok=True)
            for left in home.glob(".writing-*"):
                shutil.rmtree(left, ignore_errors=True)
            beside.mkdir()
        if own:
            distributed.barrier()
            save_tensors(own, beside / f"rows-{distributed.rank():05d}.safetensors", rows)
            distributed.barrier()
        if not leader:
            return final
        if run.samples is None:
            run.samples = samples.take(run.source)
        transform = {f"transform.{name}": value for name, value in run.transform.state().items()}
        moments, numbers = _flatten_optimizer(run.optimizer)
        state = {
            "step": run.step,
            "skipped": run.skipped,
            "images": run.data.images,
            "channels": run.data.channels,
            "bits": run.data.bits,
            "classes": run.data.classes,
            "fingerprint": run.fingerprint,
            "samples": run.samples,
            "unreadable": run.unreadable,
            "optimizer": {"name": type(run.optimizer).__name__, "state": numbers},
        }
        save_tensors(method | transform, beside / "method.safetensors")
        save_tensors(moments, beside / "optimizer.safetensors")
        write_text(beside / "state.json", json.dumps(state, indent=1))
        names = [*FILES, *sorted(path.name for path in beside.glob("rows-*.safetensors"))]
        write_text(
            beside / "SHA256SUMS", "".join(f"{checksum(beside / name)}  {name}\n" for name in names)
        )
        if final.exists():
            shutil.rmtree(final)
        beside.replace(final)
    except (OSError, CheckpointError, safetensors.SafetensorError) as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise CheckpointError(
            f"cannot write the checkpoint of step {run.step} into {home}: {error}; the checkpoints before it are untouched"
        ) from error
    _prune(home, final.name, run.recipe.train.keep)
    return final


def _prune(home: Path, newest: str, keep: int) -> None:
    """Leave the `keep` newest up to `newest`; later ones are damaged, or else the run would have gone on from them."""
    steps = sorted(path for path in home.glob("step-*"))
    for old in [path for path in steps if path.name > newest] + [
        path for path in steps if path.name <= newest
    ][:-keep]:
        shutil.rmtree(old, ignore_errors=True)


Number = bool | int | pydantic.FiniteFloat | str | None


class OptimizerState(TypedDict):
    """Of an optimizer what is no tensor: its class's name, and numbers by parameter or group."""

    name: str
    state: dict[str, dict[str, Number | list[Number]]]


class State(TypedDict):
    """What state.json holds."""

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
    """Return the format of the images that a run was trained on."""
    return DataFormat(
        state["images"],
        state.get("channels", 3),
        state.get("bits", 8),
        state.get("classes"),
    )


STATE_BYTES = 2**26
"""Largest state.json that is read."""


def _checked_state(checkpoint: Path) -> State:
    with (checkpoint / "state.json").open("rb") as file:
        text = file.read(STATE_BYTES)
    try:
        state = pydantic.TypeAdapter(State).validate_json(text, strict=True)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(
            f"state.json: {'.'.join(map(str, first['loc']))} {first['msg']}"
        ) from error
    if checkpoint.name != STEP.format(state["step"]):
        raise ValueError(f"state.json is that of step {state['step']}")
    return state


def read_state(checkpoint: Path) -> State:
    """The state of a checkpoint whose files are whole; CheckpointError says what is wrong with them."""
    try:
        sums = (checkpoint / "SHA256SUMS").read_text(encoding="utf-8").split()
        present = {path.name for path in checkpoint.glob("rows-*.safetensors")}
        for name in [
            *FILES,
            *sorted(
                present | {word for word in sums if re.fullmatch(r"rows-\d+\.safetensors", word)}
            ),
        ]:
            if sums.count(name) != 1 or sums[sums.index(name) - 1] != checksum(checkpoint / name):
                raise CheckpointError(
                    f"{checkpoint / name} is not what was written (its checksum differs)"
                )
        return _checked_state(checkpoint)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{checkpoint} is damaged ({type(error).__name__}: {error})"
        ) from error


def exists(folder: Path) -> bool:
    """Tell whether a run folder holds a checkpoint, whole or damaged."""
    return any((folder / "checkpoints").glob("step-*"))


def newest(folder: Path) -> tuple[Path, State, list[str]]:
    """The newest checkpoint that is whole, its state, and a sentence for each damaged one that was passed over."""
    passed_over: list[str] = []
    for checkpoint in sorted((folder / "checkpoints").glob("step-*"), reverse=True):
        try:
            return checkpoint, read_state(checkpoint), passed_over
        except CheckpointError as error:
            passed_over.append(f"{error}; taking the one before it")
    raise CheckpointError(
        "\n".join(
            [
                *passed_over,
                f"{folder} holds no checkpoint to go on from; start it anew: sslkit train {folder}/recipe.yaml",
            ]
        )
    )


def load_method(method: Method, checkpoint: Path) -> dict[str, Tensor]:
    """Put a checkpoint's weights into `method`; returns the transform's part of it."""
    try:
        tensors = load_file(checkpoint / "method.safetensors") | _rows(method, checkpoint)
        given = {
            name.removeprefix("method."): value
            for name, value in tensors.items()
            if name.startswith("method.")
        }
        own = method.state_dict()
        for name in own | given:
            then, now = (
                f"{held[name].dtype} {list(held[name].shape)}" if name in held else "absent"
                for held in (given, own)
            )
            if then != now:
                raise ValueError(f"{name} is {then} there and {now} here")
        method.load_state_dict(given)
    except Exception as error:
        raise _misfit(checkpoint, error) from error
    return {
        name.removeprefix("transform."): value
        for name, value in tensors.items()
        if name.startswith("transform.")
    }


def _misfit(checkpoint: Path, error: Exception) -> CheckpointError:
    first = next(iter(str(error).splitlines()), type(error).__name__)
    return CheckpointError(
        f"{checkpoint} does not fit the recipe beside it ({first}); was recipe.yaml or a plugin changed since?"
    )


def _rows(method: Method, checkpoint: Path) -> dict[str, Tensor]:
    """Of tensors whose rows were spread over processes, the rows that `method` holds here, however many processes there were."""
    wanted = sharded_rows(method)
    found: dict[str, list[Tensor]] = {}
    for path in sorted(checkpoint.glob("rows-*.safetensors")):
        with safetensors.safe_open(path, "pt") as file:
            for name, text in (file.metadata() or {}).items():
                first, last, count = map(int, text.split())
                low, high, total = wanted.get(name.removeprefix("method."), (0, count, count))
                if total != count:
                    raise ValueError(f"{name} had {count} rows and has {total} now")
                low, high = max(first, low), min(last, high)
                if low < high:
                    found.setdefault(name, []).append(
                        file.get_slice(name)[low - first : high - first]
                    )
    return {name: torch.cat(parts) for name, parts in found.items()}


def resume(run: Run, folder: Path) -> list[str]:
    """Bring `run` to the newest whole checkpoint of `folder`, exactly. Returns what should be told about it.

    Where the run ended before its first checkpoint there is nothing to bring back: it begins anew. Raises CheckpointError where all
    are damaged, or where the images are not the ones that the run began with.
    """
    home, notes = folder / "checkpoints", [f"{folder} holds no checkpoint yet: it begins anew"]
    chosen = ""
    if distributed.rank() == 0 and exists(folder):
        found, _, notes = newest(folder)
        chosen = found.name
    # One process looks whether all is whole, for the memory of many processes may be large.
    chosen = distributed.broadcast_text(chosen)
    if not chosen:
        return notes
    checkpoint = home / chosen
    try:
        state = _checked_state(checkpoint)
    except (OSError, ValueError) as error:
        raise _misfit(checkpoint, error) from error
    _check_images(run, folder, state)
    kept = load_method(run.method, checkpoint)
    own = run.transform.state()
    if kept.keys() != own.keys() or any(not torch.equal(kept[name], own[name]) for name in own):
        raise CheckpointError(
            f"the transform's state in {checkpoint} is not what the installed plugin makes; install the version that began the run"
        )
    name = type(run.optimizer).__name__
    if state["optimizer"]["name"] != name:
        raise CheckpointError(
            f"{checkpoint} does not fit the recipe beside it (it was saved by {state['optimizer']['name']}, not {name}); was recipe.yaml changed since?"
        )
    try:
        _restore_optimizer(
            run.optimizer,
            load_file(checkpoint / "optimizer.safetensors"),
            state["optimizer"]["state"],
        )
        _rehearse(run.optimizer)
    except Exception as error:
        raise _misfit(checkpoint, error) from error
    run.step, run.skipped = state["step"], state.get("skipped", 0)
    run.unreadable = dict(state["unreadable"])
    return notes


def _check_images(run: Run, folder: Path, state: State) -> None:
    """Raise CheckpointError where the images are not those that the run began with."""
    kept, other = state.get("samples", []), None
    if state["fingerprint"] != run.fingerprint:
        other = f"list of images ({samples.other_names(kept, state['images'], run.source)})"
    elif content := samples.other_content(kept, run.source):
        other = f"set of images: {content}"
    if other is not None:
        raise CheckpointError(
            f"{folder} was trained on another {other}; put its own images back, or name their "
            f"place: sslkit train --resume {folder} --data PATH, or start a new run: sslkit train "
            f"{folder / 'recipe.yaml'} --data PATH"
        )
    run.samples = kept or None


def save_encoder(run: Run, folder: Path) -> Path:
    """encoder.safetensors: the encoder alone, under its library's own names."""
    path = folder / "encoder.safetensors"
    with replacing(path) as beside:
        save_tensors(run.method.exported.weights(), beside)
    return path
