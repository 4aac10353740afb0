"""Recognises files that sslkit writes (run folders, packed sets, pictures), which are not data."""

import os
from collections.abc import Collection

FOLDERS = (("recipe.yaml", "environment.json"), ("packed.json",))
"""Files that mark a run folder and a packed set."""

OLD_PICTURES = ("views.png", "curves.png")
"""Names of pictures in older runs."""

HEAD = 512
"""Length of the start of a PNG file that names its software, bytes."""


def is_our_folder(folder: str) -> bool:
    """Tell whether a folder is a run or a packed set, by the files in it."""
    return any(_has_all(folder, names) for names in FOLDERS)


def _has_all(folder: str, names: tuple[str, ...]) -> bool:
    return all(os.path.isfile(os.path.join(folder, name)) for name in names)


def may_be_ours(stem: str, beside: Collection[str]) -> bool:
    """Tell from its name whether a PNG file may be a picture that sslkit wrote.

    Pictures of evaluations are next to a JSON file of the same name; `beside` has the stems of the
    JSON files. All names are lower case and without extension.
    """
    return stem.startswith(("views", "curves")) or stem in beside


def is_our_picture(path: str) -> bool:
    """Tell whether a file is a PNG picture that sslkit wrote."""
    if not path.lower().endswith(".png"):
        return False
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD)
    except OSError:
        return False
    is_older = os.path.basename(path) in OLD_PICTURES and b"Software\0Matplotlib" in head
    return is_older or b"Software\0sslkit" in head
