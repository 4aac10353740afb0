"""Creates, finds and reads run folders."""

import itertools
import os
import shlex
import shutil
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from sslkit import recipe as recipes
from sslkit.errors import CheckpointError, RecipeError, printable
from sslkit.recipe import Recipe
from sslkit.recipe.paths import absolute
from sslkit.runs import lock, versions
from sslkit.runs.files import reason, write_text


def check_place(root: Path, what: str = "the run folder", option: str = "--runs") -> None:
    """Raise CheckpointError if no folder can be created below `root`. Creates nothing.

    The message names `what` cannot be created, and the `option` that selects another path.
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


def begun(folder: Path) -> bool:
    """Tell whether `folder` has a run; False if it does not exist or is empty.

    Raises CheckpointError if it is a file, has other content, or links that lead out of it.
    """
    if not os.path.lexists(folder):
        return False
    try:
        names = set(os.listdir(folder))
    except OSError as error:
        raise CheckpointError(
            f"cannot train in {folder}: {reason(error)}; name another folder with --run"
        ) from error
    # Files of every run. A recipe alone may be the user's file.
    if "recipe.yaml" in names and names & {lock.FILE, "metrics.jsonl", "checkpoints"}:
        check_links(folder)
        return True
    # A killed process may leave these two files before the run exists.
    others = [name for name in names if not name.startswith((lock.FILE, ".recipe.yaml."))]
    if others:
        raise CheckpointError(
            f"{folder} is no run folder and not empty ('{printable(min(others))}' is in it); name "
            "a run, an empty folder or a new one: --run DIR"
        )
    return False


def unused(root: Path, recipe: Recipe) -> Path:
    """Return runs/<recipe>/<time>, with a number if that exists. Creates nothing."""
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    folder = root / recipe.name / stamp
    for attempt in itertools.count(1):
        if not os.path.lexists(folder):
            break
        folder = root / recipe.name / f"{stamp}_{attempt}"
    return folder


class NewFolder:
    """The folder of a new run, which is created after the first step.

    It is `path`, or <recipe>/<time> in `runs`. If `latest`, a link of that name next to the folder
    points to it.
    """

    def __init__(
        self,
        recipe: Recipe,
        runs: Path = Path("runs"),
        path: Path | None = None,
        *,
        latest: bool = True,
    ) -> None:
        self.recipe, self.runs, self.path, self.latest = recipe, runs, path, latest
        self.option = "--runs" if latest else "--run"
        """Option that selects another path."""
        self._made: list[Path] = []
        """Folders that were created, innermost first."""

    def check(self) -> None:
        """Raise CheckpointError if the folder cannot be created. Creates nothing."""
        check_place(self.path or self.runs, option=self.option)

    def make(self) -> Path:
        """Create the folder and its parents. Raises CheckpointError if this fails."""
        folder = self.path or unused(self.runs, self.recipe)
        self._made = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
        try:
            folder.mkdir(parents=True, exist_ok=self.path is not None)
        except (OSError, ValueError) as error:
            if self.path is None and os.path.isdir(folder):
                return self.make()  # Another run uses the name.
            self._remove_made()
            why = reason(error) if isinstance(error, OSError) else error
            raise CheckpointError(
                f"cannot make the run folder {folder}: {why}; choose another place with "
                f"{self.option}"
            ) from error
        self.path = folder
        return folder

    def fill(self) -> None:
        """Write the recipe to the locked folder, and set `latest`.

        Raises CheckpointError if another process has started a run in it.
        """
        assert self.path is not None
        if begun(self.path):
            raise CheckpointError(
                f"another process has started a run in {self.path}; resume it: sslkit train "
                f"--resume {shlex.quote(str(self.path))}"
            )
        keep_recipe(self.path, self.recipe)
        if self.latest:
            point_latest(self.path)

    def remove(self) -> None:
        """Remove the content, and the folders that were created."""
        assert self.path is not None
        with suppress(OSError):
            for path in self.path.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        self._remove_made()

    def _remove_made(self) -> None:
        for path in self._made:
            latest = path.parent / "latest"
            with suppress(OSError, ValueError):
                path.rmdir()
                if self.latest and latest.is_symlink() and not latest.exists():
                    latest.unlink()


def keep_recipe(folder: Path, recipe: Recipe) -> None:
    """Write recipe.yaml with absolute paths, unless it already has this recipe."""
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

    Relative paths, which sslkit 0.1 wrote, are relative to the parent of the folder of runs, else
    to the working directory. A RecipeError also lists changed plugins.
    """
    try:
        found = recipes.read(folder / "recipe.yaml", overrides=overrides, data=data, opened=opened)
    except RecipeError as error:
        raise RecipeError(*error.faults, *versions.gone(folder)) from error
    above = folder.absolute().parents
    return absolute(found, [*above[2:3], Path()])


def point_latest(folder: Path) -> None:
    """Point the link `latest` next to `folder` to it, if the file system supports links."""
    link = folder.parent / f".latest-{os.getpid()}"
    try:
        link.symlink_to(folder.name)
        link.replace(folder.parent / "latest")
    except OSError:
        with suppress(OSError):
            link.unlink(missing_ok=True)


def find_folder(where: Path | None, root: Path = Path("runs")) -> Path:
    """Return the run folder `where`, or that of the newest checkpoint below `root`.

    Raises CheckpointError if there is none.
    """
    if where is not None:
        folder = Path(os.path.expanduser(where))
        if not os.path.isfile(folder / "recipe.yaml"):
            fault = "it holds no recipe.yaml" if os.path.lexists(folder) else "it does not exist"
            raise CheckpointError(
                f"{where} is not a run folder: {fault}; name a folder such as "
                "runs/pirl_jigsaw/latest"
            )
        check_links(folder)
        return folder.resolve()
    found = [*root.glob("*/checkpoints/step-*"), *root.glob("*/*/checkpoints/step-*")]
    states = [path / "state.json" for path in found if not path.parents[1].is_symlink()]
    states = [path for path in states if path.exists()]
    if not states:
        raise CheckpointError(
            f"there is no trained run below {root}/; name the folder of one, or train one first: "
            "sslkit train RECIPE"
        )
    newest = max(states, key=lambda path: path.stat().st_mtime).parents[2]
    check_links(newest)
    return newest.resolve()


def check_links(folder: Path) -> None:
    """Raise CheckpointError for a link that leads out of a run folder: writing would follow it."""
    home = folder.resolve()
    for base, folders, files in os.walk(home):
        for name in (*folders, *files):
            path = Path(base, name)
            if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(home):
                raise CheckpointError(
                    f"{path} is a link that leads out of the run folder; replace it with a copy: "
                    "cp -rL"
                )
