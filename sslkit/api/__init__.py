"""The Python API: recipes, training, embeddings, evaluations. `import sslkit` exports it."""

import inspect
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from sslkit import console, faults, recipe
from sslkit.api.arguments import Device, PathLike, check_overrides, check_paths, request_of
from sslkit.errors import Fault, RecipeError, TrainingError
from sslkit.recipe import Choice, Recipe
from sslkit.recipe.draft import Source
from sslkit.recipe.words import written

if TYPE_CHECKING:
    from sslkit.evaluation.embedding import Embeddings, Split
    from sslkit.evaluation.plan import EvaluationPlan
    from sslkit.evaluation.probe import ImageProbe
    from sslkit.evaluation.result import EvaluationResult
    from sslkit.runs.trained import TrainedRun


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
    check_overrides(overrides)
    check_paths(data=data)
    if not isinstance(source, str | os.PathLike | Mapping | Recipe):
        raise RecipeError(
            Fault("source", f"{written(source)} is neither a name, a path, a dict nor a Recipe")
        )
    if isinstance(source, Recipe):
        source = source.as_dict()
    return recipe.read(source, overrides=overrides, data=None if data is None else os.fspath(data))


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
    check_paths(run=run, runs=runs)
    if run is not None and runs is not None:
        raise RecipeError(
            Fault("runs", "'run' names the run folder itself; leave out one of 'run' and 'runs'")
        )
    made = read_recipe(source, overrides=overrides, data=data)
    from sslkit.training import session

    viewer = session.SILENT
    if progress:
        from sslkit.screen import TrainingScreen

        viewer = session.Viewer(console.show_data, console.print_text, TrainingScreen)
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
    check_paths(run=run)
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

    request = request_of(
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
    from sslkit.evaluation import store

    choice, probe = _build(
        run,
        evaluation,
        options,
        out=out,
        progress=progress,
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
    result = store.measure(choice, probe)
    if out is not None:
        store.write(Path(out), result.as_dict(), result.files)
        probe.discard()
    return result


COMMON = tuple(
    name
    for name, parameter in inspect.signature(evaluate).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY
)
"""Keywords of `evaluate` that are not options of an evaluation."""


@faults.telling()
def plan_evaluation(
    run: "TrainedRun | PathLike", evaluation: str, **arguments: Any
) -> "EvaluationPlan":
    """Estimate memory, disk and time of an evaluation, without measuring or writing anything.

    Embeds two batches of images and times a few steps or fits.

    Args:
        run: A run, its folder, or another encoder: "timm:resnet18", or a folder of `sslkit export`.
        evaluation: "linear", "knn" or another installed evaluation.
        arguments: Those of `evaluate`, such as `data=`, and options of the evaluation.

    Returns:
        The plan. `print` shows what `sslkit eval … --plan` prints; `seconds`, `memory` and `disk`
        are numbers.

    Raises:
        SslkitError: RecipeError, DataError, CheckpointError or PluginError.
    """
    from sslkit.evaluation.plan import plan

    given = {name: arguments.pop(name) for name in COMMON if name in arguments}
    given |= {"skip_unreadable": False}  # Finding unreadable images takes a pass over all.
    choice, probe = _build(run, evaluation, arguments, statistics=False, **given)
    return plan(choice, probe)


def _build(
    run: "TrainedRun | PathLike",
    evaluation: str,
    options: Mapping[str, Any],
    *,
    data: PathLike | None = None,
    overrides: Sequence[str] = (),
    device: Device = "auto",
    out: PathLike | None = None,
    progress: bool = True,
    statistics: bool = True,
    **common: Any,
) -> tuple[Choice, "ImageProbe"]:
    """Return an evaluation and its probe. Options are checked before images are opened."""
    if not isinstance(evaluation, str):
        raise RecipeError(Fault("evaluation", f"{written(evaluation)} is not a name"))
    choice = recipe.choose_evaluation(evaluation, options, COMMON)
    from sslkit.evaluation import build, store
    from sslkit.parts import make

    make(choice)
    request = request_of(run, data=data, overrides=overrides, device=device, **common)
    if out is not None:
        store.check_place(Path(out))
    needs = choice.part.signature().attributes.get("needs", "labels")
    shown: dict[str, Any] = {}
    if progress:
        shown = {"progress": console.progress, "show": console.show_splits}
    built = build.build(request, needs, statistics=statistics, **shown)
    built.probe.home = None if out is None else Path(out)
    return choice, built.probe
