"""Run folders: made, found, and locked while a process trains in them."""

import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from sslkit import recipe as recipes
from sslkit.errors import CheckpointError, RecipeError
from sslkit.recipe import Recipe
from sslkit.recipe.paths import absolute
from sslkit.runs import versions
from sslkit.runs.files import WriteError, reason, write_text, writing


def check_place(root: Path, what: str = "the run folder", option: str = "--runs") -> None:
    """Raise CheckpointError where no folder can be made below `root`. Makes nothing.

    The sentence names `what` is to be made, and the `option` that chooses another place.
    """
    place = Path(os.path.abspath(root))
    while not os.path.lexists(place):
        place = place.parent
    if not os.path.isdir(place):
        raise CheckpointError(
            f"cannot make {what} below {root}: {place} is no folder; choose another place with "
            f"{option}"
        )
    if not os.access(place, os.W_OK | os.X_OK):
        raise CheckpointError(
            f"cannot make {what} below {root}: {place} is not writable; choose another place with "
            f"{option}"
        )


def new_folder(root: Path, recipe: Recipe) -> Path:
    """Make runs/<recipe>/<time> with the recipe in it, and let `latest` beside it point there."""
    parent = root / recipe.name
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    for attempt in range(1000):
        folder = parent / (stamp if attempt == 0 else f"{stamp}_{attempt}")
        try:
            folder.mkdir(parents=True)
            break
        except FileExistsError:
            continue
        except (OSError, ValueError) as error:
            with suppress(OSError, ValueError):
                parent.rmdir()
            why = reason(error) if isinstance(error, OSError) else error
            raise CheckpointError(
                f"cannot make the run folder {folder}: {why}; choose another place with --runs"
            ) from error
    try:
        keep_recipe(folder, recipe)
    except WriteError as error:
        remove_new(folder)
        raise WriteError(f"{error}; another place: --runs DIR") from error
    point_latest(folder)
    return folder


def remove_new(folder: Path) -> None:
    """Remove a run folder that holds nothing to go on from, and the folder above if empty."""
    latest = folder.parent / "latest"
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        if latest.is_symlink() and not latest.exists():
            latest.unlink()
        folder.parent.rmdir()


def keep_recipe(folder: Path, recipe: Recipe) -> None:
    """Write recipe.yaml, with absolute paths, where it does not hold this recipe already."""
    path, text = folder / "recipe.yaml", absolute(recipe).as_yaml()
    if not path.exists() or path.read_bytes() != text.encode():
        write_text(path, text)


def read_recipe(
    folder: Path,
    *,
    overrides: Sequence[str] = (),
    data: str | None = None,
    opened: bool = True,
) -> Recipe:
    """Read the recipe of a run folder, with absolute paths.

    Relative paths, which sslkit 0.1 wrote, stand below the folder that holds the folder of runs,
    else below the working directory. RecipeError also says which plugins are not as they were.
    """
    try:
        found = recipes.read(folder / "recipe.yaml", overrides=overrides, data=data, opened=opened)
    except RecipeError as error:
        raise RecipeError(*error.faults, *versions.gone(folder)) from error
    above = folder.absolute().parents
    return absolute(found, [*above[2:3], Path()])


def point_latest(folder: Path) -> None:
    """Make `latest` beside `folder` point to it, where the file system has links."""
    link = folder.parent / f".latest-{os.getpid()}"
    try:
        link.symlink_to(folder.name)
        link.replace(folder.parent / "latest")
    except OSError:
        with suppress(OSError):
            link.unlink(missing_ok=True)


def find_folder(where: Path | None, root: Path = Path("runs")) -> Path:
    """Return the run folder named, or that of the newest checkpoint below `root`.

    Raises CheckpointError where there is none.
    """
    if where is not None:
        folder = Path(os.path.expanduser(where))
        if not os.path.isfile(folder / "recipe.yaml"):
            fault = "it holds no recipe.yaml" if os.path.lexists(folder) else "it does not exist"
            raise CheckpointError(
                f"{where} is not a run folder: {fault}; name a folder such as "
                "runs/pirl_jigsaw/latest"
            )
        return folder.resolve()
    states = [
        path
        for path in root.glob("*/*/checkpoints/step-*/state.json")
        if not path.parents[2].is_symlink()
    ]
    if not states:
        raise CheckpointError(
            f"there is no trained run below {root}/; name the folder of one, or train one first: "
            "sslkit train RECIPE"
        )
    return max(states, key=lambda path: path.stat().st_mtime).parents[2].resolve()


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Lock the run folder for this process, until it ends or is killed.

    Raises CheckpointError where another process trains in it.
    """
    path = folder / ".lock"
    with writing(path):
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _take(lock, folder)
        yield
    finally:
        os.close(lock)


def _take(lock: int, folder: Path) -> None:
    """Lock an open file; a system without such locks goes without."""
    try:
        import fcntl

        # A record lock: loader workers do not inherit it, and may outlive a killed process.
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(lock, 0)
        os.write(lock, f"process {os.getpid()} on {platform.node()}".encode())
    except (BlockingIOError, PermissionError):
        holder = os.pread(lock, 200, 0).decode(errors="replace") or "another process"
        raise CheckpointError(
            f"{folder} is in use: {holder} trains in it; wait for it, stop it, or start a new run"
        ) from None
    except (ImportError, OSError):
        pass
