"""Checkpoints: safetensors and JSON, written beside and renamed, so a kill loses nothing.

runs/<recipe>/<time>/                 `latest` beside it points to the newest
  recipe.yaml  environment.json  metrics.jsonl  encoder.safetensors  curves.png  views.png  eval/…
  checkpoints/step-00000120/          method.safetensors  optimizer.safetensors  state.json
                                      SHA256SUMS (as `sha256sum -c` reads it)
"""

import json
import re
import shlex
import shutil
from contextlib import suppress
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from sslkit import distributed
from sslkit.errors import CheckpointError
from sslkit.interfaces import Method
from sslkit.parts import sharded_rows
from sslkit.recipe import Recipe
from sslkit.runs import files, metrics, optimizer_state, samples
from sslkit.runs.files import checksum, replacing, save_tensors, write_text
from sslkit.runs.run import Run
from sslkit.runs.state import FORMAT, STEP, NewerFormatError, State, check_format, read

FILES = ("method.safetensors", "optimizer.safetensors", "state.json")


def _parts(run: Run) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, str]]:
    """Return the method's replicated tensors, this rank's rows of sharded ones, and their rows."""
    sharded = sharded_rows(run.method)
    tensors = {f"method.{name}": value for name, value in run.method.state_dict().items()}
    own = {f"method.{name}": tensors.pop(f"method.{name}") for name in sharded}
    rows = {f"method.{name}": " ".join(map(str, rows)) for name, rows in sharded.items()}
    return tensors, own, rows


def tensors(run: Run) -> dict[str, Tensor]:
    """Return all tensors of a checkpoint of `run` on this rank."""
    method, own, _ = _parts(run)
    transform = {f"transform.{name}": value for name, value in run.transform.state().items()}
    moments, _ = optimizer_state.flatten(run.optimizer)
    optimizer = {f"optimizer.{name}": value for name, value in moments.items()}
    return method | own | transform | optimizer


def save(run: Run, folder: Path) -> Path:
    """Write the checkpoint of `run.step` atomically, and keep the newest `train.keep`.

    A collective: rank 0 writes the replicated tensors, and each rank its rows of sharded ones.
    Raises CheckpointError if the checkpoint cannot be written.
    """
    home = folder / "checkpoints"
    final, beside = home / STEP.format(run.step), home / f".writing-{run.step}"
    leader = distributed.rank() == 0
    method, own, rows = _parts(run)
    try:
        if leader:
            home.mkdir(exist_ok=True)  # Does not create a run folder that was removed.
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
        moments, numbers = optimizer_state.flatten(run.optimizer)
        state = {
            "format": FORMAT,
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
        why = str(error) if isinstance(error, CheckpointError) else files.reason(error)
        kept = "; earlier checkpoints have not changed" if exists(folder) else ""
        raise files.WriteError(
            f"cannot write the checkpoint of step {run.step} to {home}: {why}{kept}"
        ) from error
    _prune(home, final.name, run.recipe.train.keep)
    return final


def _prune(home: Path, newest: str, keep: int) -> None:
    """Keep the `keep` newest checkpoints up to `newest`; later ones are damaged."""
    steps = sorted(home.glob("step-*"))
    later = [path for path in steps if path.name > newest]
    earlier = [path for path in steps if path.name <= newest]
    for old in later + earlier[:-keep]:
        shutil.rmtree(old, ignore_errors=True)


def read_state(checkpoint: Path) -> State:
    """Return the state of a checkpoint. Raises CheckpointError if a file is damaged."""
    with suppress(OSError, ValueError):
        check_format(checkpoint)  # A newer format may have other files.
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
        return read(checkpoint)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{checkpoint} is damaged ({type(error).__name__}: {error})"
        ) from error


def exists(folder: Path) -> bool:
    """Tell whether a run folder has a checkpoint, intact or damaged."""
    return any((folder / "checkpoints").glob("step-*"))


def newest(folder: Path) -> tuple[Path, State, list[str]]:
    """Return the newest intact checkpoint, its state, and a sentence for each damaged later one."""
    damaged: list[str] = []
    for checkpoint in sorted((folder / "checkpoints").glob("step-*"), reverse=True):
        try:
            return checkpoint, read_state(checkpoint), damaged
        except NewerFormatError:
            raise
        except CheckpointError as error:
            damaged.append(f"{error}; using the previous one")
    raise CheckpointError(
        "\n".join(
            [
                *damaged,
                f"{folder} holds no checkpoint to resume from; start a new run: sslkit train "
                f"{shlex.quote(f'{folder}/recipe.yaml')}",
            ]
        )
    )


def progress(folder: Path, recipe: Recipe) -> tuple[int, int]:
    """Return the step of the newest checkpoint, and the steps of an epoch.

    Returns (0, 0) if there is none, or if it cannot be read. Does not verify checksums.
    """
    for checkpoint in sorted((folder / "checkpoints").glob("step-*"))[-1:]:
        with suppress(OSError, ValueError):
            state = read(checkpoint)
            return state["step"], state["images"] // recipe.train.batch_size
    return 0, 0


def complete(folder: Path, recipe: Recipe) -> bool:
    """Tell whether the newest checkpoint is intact and that of the last step."""
    step, per_epoch = progress(folder, recipe)
    if step == 0 or step < recipe.train.epochs * per_epoch:
        return False
    return newest(folder)[0].name == STEP.format(step)


def load_method(method: Method, checkpoint: Path) -> dict[str, Tensor]:
    """Load a checkpoint's weights into `method`; return the transform's tensors."""
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
        f"{checkpoint} does not fit the recipe beside it ({first}); was recipe.yaml or a plugin "
        "changed since? "
        "environment.json names the versions that the run began with"
    )


def _rows(method: Method, checkpoint: Path) -> dict[str, Tensor]:
    """Return this rank's rows of sharded tensors, written by any number of ranks."""
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
    """Restore `run` from the newest intact checkpoint of `folder`. Returns sentences for the user.

    A run without checkpoint starts again. Raises CheckpointError if all checkpoints are damaged or
    were removed, or if the images have changed since the start of the run.
    """
    home, notes = folder / "checkpoints", [f"{folder} holds no checkpoint yet: it starts again"]
    chosen = ""
    if distributed.rank() == 0:
        if exists(folder):
            found, _, notes = newest(folder)
            chosen = found.name
        else:
            _refuse_lost(run, folder)
    # Only rank 0 verifies the checkpoint, which may be large.
    chosen = distributed.broadcast_text(chosen)
    if not chosen:
        return notes
    checkpoint = home / chosen
    try:
        state = read(checkpoint)
    except (OSError, ValueError) as error:
        raise _misfit(checkpoint, error) from error
    _check_images(run, folder, state)
    kept = load_method(run.method, checkpoint)
    own = run.transform.state()
    if kept.keys() != own.keys() or any(not torch.equal(kept[name], own[name]) for name in own):
        raise CheckpointError(
            f"the transform's state in {checkpoint} is not what the installed plugin makes; "
            "install the version "
            f"that began the run, which {folder / 'environment.json'} names"
        )
    name = type(run.optimizer).__name__
    if state["optimizer"]["name"] != name:
        raise CheckpointError(
            f"{checkpoint} does not fit the recipe beside it (it was saved by "
            f"{state['optimizer']['name']}, not {name}); put optimizer.use in recipe.yaml back"
        )
    try:
        optimizer_state.restore(
            run.optimizer,
            load_file(checkpoint / "optimizer.safetensors"),
            state["optimizer"]["state"],
        )
    except Exception as error:
        raise _misfit(checkpoint, error) from error
    run.step, run.skipped = state["step"], state.get("skipped", 0)
    run.unreadable = dict(state["unreadable"])
    return notes


def _refuse_lost(run: Run, folder: Path) -> None:
    """Raise CheckpointError if the checkpoints of a run were removed."""
    # curves.png exists only after the first checkpoint.
    if not (folder / "curves.png").exists():
        return
    complete = metrics.last_step(folder / "metrics.jsonl") >= run.steps
    state = "is complete, and" if complete else "had saved checkpoints;"
    raise CheckpointError(
        f"{folder} {state} its checkpoints are gone; put {folder / 'checkpoints'} back, or start "
        f"a new run: sslkit train {shlex.quote(str(folder / 'recipe.yaml'))}"
    )


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
            f"place: sslkit train --resume {shlex.quote(str(folder))} --data PATH, or start a new "
            f"run: sslkit train {shlex.quote(str(folder / 'recipe.yaml'))} --data PATH"
        )
    run.samples = kept or None


def save_encoder(run: Run, folder: Path) -> Path:
    """Write encoder.safetensors: the encoder alone, by its library's names."""
    path = folder / "encoder.safetensors"
    with replacing(path) as beside:
        save_tensors(run.method.exported.weights(), beside)
    return path
