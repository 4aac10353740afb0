"""The Python API: train, load, embed, evaluate, read_recipe. `import sslkit` exports them."""

import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from sslkit import console, faults, recipe
from sslkit.errors import CheckpointError, Fault, RecipeError, TrainingError
from sslkit.recipe import Recipe
from sslkit.recipe.draft import Source
from sslkit.recipe.words import written

if TYPE_CHECKING:
    from sslkit.evaluation.build import Request
    from sslkit.evaluation.embedding import Embeddings, Split
    from sslkit.evaluation.result import EvaluationResult
    from sslkit.runs.trained import TrainedRun

PathLike = str | os.PathLike[str]
Device = Literal["auto", "cpu", "cuda", "mps"]


def read_recipe(
    source: Source | Recipe, *, overrides: Sequence[str] = (), data: PathLike | None = None
) -> Recipe:
    """Read and check a recipe, without building its parts or reading images.

    Args:
        source: The name of a shipped recipe ("pirl_jigsaw"), a path, a dict of its sections, or a
            Recipe object.
        overrides: Values to set, such as "train.epochs=20".
        data: A folder of images, a packed set or a .npz file to use instead.

    Raises:
        RecipeError: The recipe has faults; the error lists each with its place and remedy.
    """
    _check_overrides(overrides)
    _check_paths(data=data)
    if not isinstance(source, str | os.PathLike | Mapping | Recipe):
        raise RecipeError(
            Fault("source", f"{written(source)} is neither a name, a path, a dict nor a Recipe")
        )
    if isinstance(source, Recipe):
        source = source.as_dict()
    return recipe.read(source, overrides=overrides, data=None if data is None else os.fspath(data))


def _check_paths(**given: object) -> None:
    """Raise RecipeError for an argument that is no path."""
    for name, value in given.items():
        if value is not None and not isinstance(value, str | os.PathLike):
            raise RecipeError(Fault(name, f"{written(value)} is not a path"))


def _check_overrides(overrides: object) -> None:
    """Raise RecipeError if `overrides` is not a list of texts."""
    if isinstance(overrides, list | tuple) and all(isinstance(one, str) for one in overrides):
        return
    raise RecipeError(
        Fault("overrides", f'{written(overrides)} is not a list such as ["train.epochs=20"]')
    )


@faults.telling()
def train(
    source: Source | Recipe,
    *,
    data: PathLike | None = None,
    overrides: Sequence[str] = (),
    run: PathLike | None = None,
    runs: PathLike | None = None,
    progress: bool = True,
) -> "TrainedRun":
    """Train a recipe in a run folder, and return the run.

    Args:
        source: The name of a shipped recipe ("pirl_jigsaw"), a path, a dict of its sections, or a
            Recipe object.
        data: A folder of images, a packed set or a .npz file to use instead of the recipe's.
        overrides: Values to set, such as "train.epochs=20".
        run: The run folder. Training starts there, or resumes from its newest checkpoint. A
            complete run is not changed.
        runs: Parent folder of the new run folder <recipe>/<time> without `run`; by default "runs".
        progress: Print what `sslkit train` prints.

    Raises:
        SslkitError: RecipeError, DataError and others. Writes nothing if the recipe cannot train.
        KeyboardInterrupt: After Ctrl-C, when a checkpoint is saved. The same call with `run`
            resumes training.
    """
    _check_paths(run=run, runs=runs)
    if run is not None and runs is not None:
        raise RecipeError(
            Fault("runs", "'run' names the run folder itself; leave out one of 'run' and 'runs'")
        )
    made = read_recipe(source, overrides=overrides, data=data)
    from sslkit.training import session

    viewer = session.SILENT
    if progress:
        viewer = session.Viewer(console.show_data, console.print_text, console.Training)
    folder = None if run is None else Path(run).expanduser()
    try:
        ended = session.train(
            made, run=folder, runs=Path(runs or "runs").expanduser(), viewer=viewer
        )
    except SystemExit as stopped:
        raise KeyboardInterrupt from stopped
    if ended.stopped is not None:
        _deliver(ended.stopped, ended.folder)
    assert ended.folder is not None
    if ended.mostly_skipped:
        raise TrainingError(
            f"more than half of the steps of {ended.folder} were skipped because of non-finite "
            "numbers; lower optimizer.lr, or set train.clip_grad, and train again"
        )
    return load(ended.folder)


def _deliver(name: str, folder: Path | None) -> NoReturn:
    """Raise KeyboardInterrupt if Ctrl-C stopped training; deliver other signals again."""
    remedy = "" if folder is None else f"; go on with sslkit.train(…, run={str(folder)!r})"
    if name != "SIGINT":
        signal.raise_signal(signal.Signals[name])
        raise TrainingError(f"stopped by {name}{remedy}")
    raise KeyboardInterrupt(f"training was stopped{remedy}")


@faults.telling()
def load(run: "PathLike | TrainedRun | None" = None) -> "TrainedRun":
    """Read a run folder: recipe, newest checkpoint, metrics.

    Args:
        run: The folder, such as "runs/pirl_jigsaw/latest". By default, the newest run below runs/.

    Raises:
        CheckpointError: The folder is not a run, or has no checkpoint.
    """
    from sslkit.runs import folders
    from sslkit.runs.trained import TrainedRun

    if isinstance(run, TrainedRun):
        run = run.folder
    _check_paths(run=run)
    return TrainedRun.read(folders.find_folder(None if run is None else Path(run)))


@faults.telling()
def embed(
    run: "TrainedRun | PathLike",
    data: PathLike | None = None,
    *,
    split: "Split" = "all",
    weights: str | None = None,
    size: int | None = None,
    overrides: Sequence[str] = (),
    skip_unreadable: bool = False,
    device: Device = "auto",
    workers: int | None = None,
    progress: bool = True,
) -> "Embeddings":
    """Compute one vector per image, without augmentation.

    The vectors do not depend on the number of workers.

    Args:
        run: A run, its folder, or another encoder: "timm:resnet18", or a folder of `sslkit export`.
        data: A folder of images, a packed set or a .npz file; by default the run's data.
        split: "train" or "val" if the data set has both; "all" concatenates them.
        weights: Weights of "timm:…": "none", a file or a run; by default timm's pretrained weights.
        size: Side of the images, px; by default from the recipe or the model.
        overrides: Options of the data set, such as "data.follow_links=true".
        skip_unreadable: Skip images that cannot be read, instead of raising an error.
        device: Device of the encoder.
        workers: Number of processes that decode images; by default from the CPU count.
        progress: Print which images are embedded; show a bar on a terminal.

    Returns:
        `names` str [N]: paths below the folder. `labels` str [N]: class names, or int64 [N]
        if the data set has no class names; None without classes. `vectors` float32 [N,D].

    Raises:
        SslkitError: RecipeError, DataError or CheckpointError.
    """
    if split not in ("all", "train", "val"):
        raise RecipeError(Fault("split", f"expected all, train or val, got {written(split)}"))
    from sslkit.evaluation import embedding

    request = _request(
        run,
        data=data,
        weights=weights,
        size=size,
        overrides=overrides,
        skip_unreadable=skip_unreadable,
        device=device,
        workers=workers,
    )
    if not progress:
        return embedding.embed(request, split)
    return embedding.embed(request, split, progress=console.progress, show=console.show_splits)


@faults.telling()
def evaluate(
    run: "TrainedRun | PathLike",
    evaluation: str,
    *,
    data: PathLike | None = None,
    labels: PathLike | None = None,
    encoder: str | None = None,
    weights: str | None = None,
    size: int | None = None,
    against: "Sequence[TrainedRun | PathLike]" = (),
    split_seed: int | None = None,
    overrides: Sequence[str] = (),
    skip_unreadable: bool = False,
    device: Device = "auto",
    workers: int | None = None,
    out: PathLike | None = None,
    progress: bool = True,
    **options: Any,
) -> "EvaluationResult":
    """Evaluate an encoder and its baselines: untrained, raw pixels, chance.

    Args:
        run: A run, its folder, or another encoder: "timm:resnet18", or a folder of `sslkit export`.
        evaluation: "linear", "knn" or another installed evaluation.
        data: Images as the evaluation needs them: a folder of class folders or in VOC layout, a
            packed set or a .npz file; by default the run's data.
        labels: A CSV file with the columns name and label, and optionally group and split, which
            replaces the labels of the images.
        encoder: Another encoder to evaluate beside the run, such as "timm:resnet18".
        weights: Weights of "timm:…": "none", a file or a run; by default timm's pretrained weights.
        size: Side of the images, px; by default from the recipe or the model.
        against: Other runs to compare with.
        split_seed: Seed of the split, for data without validation images; by default 0.
        overrides: Options of the data set, such as "data.follow_links=true".
        skip_unreadable: Skip images that cannot be read, instead of raising an error.
        device: Device of the encoder.
        workers: Number of processes that decode images; by default from the CPU count.
        out: Folder for the result files of `sslkit eval`. By default, writes nothing.
        progress: Print which images are used; show a bar on a terminal.
        options: Options of the evaluation, such as `k=20`; `sslkit eval knn --help` lists them.

    Returns:
        The result. `print` shows its tables; `result.score().value` is the main score.

    Raises:
        SslkitError: RecipeError, DataError, CheckpointError or PluginError.
    """
    if not isinstance(evaluation, str):
        raise RecipeError(Fault("evaluation", f"{written(evaluation)} is not a name"))
    choice = recipe.choose_evaluation(evaluation, options, COMMON)
    from sslkit.evaluation import build, store
    from sslkit.parts import make

    make(choice)  # Options are checked before images are opened.
    request = _request(
        run,
        data=data,
        labels=labels,
        encoder=encoder,
        weights=weights,
        size=size,
        against=against,
        split_seed=split_seed,
        overrides=overrides,
        skip_unreadable=skip_unreadable,
        device=device,
        workers=workers,
    )
    if out is not None:
        store.check_place(Path(out))
    needs = choice.part.signature().attributes.get("needs", "labels")
    if progress:
        built = build.build(request, needs, progress=console.progress, show=console.show_splits)
    else:
        built = build.build(request, needs)
    built.probe.home = None if out is None else Path(out)
    result = store.measure(choice, built.probe)
    if out is not None:
        store.write(Path(out), result.as_dict(), result.files)
        built.probe.discard()
    return result


COMMON = (
    "data",
    "labels",
    "encoder",
    "weights",
    "size",
    "against",
    "split_seed",
    "overrides",
    "skip_unreadable",
    "device",
    "workers",
    "out",
    "progress",
)
"""Keywords of `evaluate` that are not options of an evaluation."""


def _request(
    run: "TrainedRun | PathLike",
    *,
    data: PathLike | None,
    labels: PathLike | None = None,
    encoder: str | None = None,
    against: "Sequence[TrainedRun | PathLike]" = (),
    overrides: Sequence[str],
    device: str,
    **given: Any,
) -> "Request":
    """Check the common arguments. Raises RecipeError with every fault."""
    from sslkit.evaluation.build import Request

    wrong = []
    if device not in ("auto", "cpu", "cuda", "mps"):
        message = f"expected auto, cpu, cuda or mps, got {written(device)}"
        wrong.append(Fault("device", message))
    for name, fewest in {"size": 1, "workers": 0, "split_seed": 0}.items():
        value = given.get(name)
        is_int = isinstance(value, int) and not isinstance(value, bool)
        if value is not None and not (is_int and value >= fewest):
            wrong.append(Fault(name, f"expected int ≥ {fewest}, got {written(value)}"))
    if wrong:
        raise RecipeError(*wrong)
    _check_overrides(overrides)
    _check_paths(data=data, labels=labels, encoder=encoder)
    folder, other = _subject(run)
    if other is not None and encoder is not None:
        raise RecipeError(Fault("encoder", f"{other} is measured already; name a run beside it"))
    return Request(
        run=folder,
        data=None if data is None else os.fspath(data),
        labels=None if labels is None else Path(labels),
        encoder=other if encoder is None else encoder,
        against=tuple(_folder(one) for one in against),
        overrides=tuple(overrides),
        device=device,
        **given,
    )


def _folder(run: "TrainedRun | PathLike") -> Path:
    """Return the folder of a run. Raises CheckpointError if it is not a run."""
    from sslkit.runs import folders
    from sslkit.runs.trained import TrainedRun

    return folders.find_folder(run.folder if isinstance(run, TrainedRun) else Path(run))


def _subject(run: "TrainedRun | PathLike") -> tuple[Path | None, str | None]:
    """Return the folder of a run, or the name of another encoder."""
    from sslkit.evaluation.foreign import read_encoder
    from sslkit.runs.trained import TrainedRun

    if isinstance(run, TrainedRun):
        return _folder(run), None
    if not isinstance(run, str | os.PathLike):
        raise RecipeError(Fault("run", f"{written(run)} is neither a run nor a path"))
    text = os.fspath(run)
    place = Path(os.path.expanduser(text))
    if os.path.isfile(place / "recipe.yaml"):
        return _folder(place), None
    if not os.path.lexists(place):
        is_name = isinstance(run, str) and ":" in text
        return (None, text) if is_name else (_folder(place), None)
    try:
        read_encoder(str(place), None)
    except RecipeError as error:
        message = f"{text} is no run folder (it holds no recipe.yaml); {error.faults[0].message}"
        raise CheckpointError(message) from error
    return None, str(place)
