"""What sslkit itself writes: run folders, packed sets, pictures. None of it is data."""

import os
from collections.abc import Collection

FOLDERS = (("recipe.yaml", "environment.json"), ("packed.json",))
"""Files that mark a run folder and a packed set."""

DRAWN = ("views.png", "curves.png")
"""Pictures of runs, by the names that they have in older runs."""

HEAD = 512
"""Bytes of a PNG file among which its software is named."""


def is_our_folder(folder: str) -> bool:
    """Tell whether a folder is a run or a packed set, by the files in it."""
    return any(_holds(folder, names) for names in FOLDERS)


def _holds(folder: str, names: tuple[str, ...]) -> bool:
    return all(os.path.isfile(os.path.join(folder, name)) for name in names)


def may_be_ours(stem: str, beside: Collection[str]) -> bool:
    """Tell whether a PNG file is named as pictures of sslkit are: worth a look into it.

    Pictures of evaluations lie beside a JSON file of the same name; `beside` holds the stems of
    such files. All are lower case and without ending.
    """
    return stem.startswith(("views", "curves")) or stem in beside


def is_our_picture(path: str) -> bool:
    """Tell whether a file is a picture in PNG that sslkit has written."""
    if not path.lower().endswith(".png"):
        return False
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD)
    except OSError:
        return False
    is_older = os.path.basename(path) in DRAWN and b"Software\0Matplotlib" in head
    return is_older or b"Software\0sslkit" in head
