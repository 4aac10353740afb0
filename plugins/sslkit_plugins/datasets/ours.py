"""What sslkit itself writes: run folders, packed sets, pictures. None of it is data."""

import os

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


def is_our_picture(path: str) -> bool:
    """Tell whether a file is a picture that sslkit has drawn.

    Looks into PNG files only that are named like one, or that a JSON file of the same name
    accompanies, as it does the picture of an evaluation.
    """
    folder, name = os.path.split(path)
    stem, ending = os.path.splitext(name)
    if ending.lower() != ".png":
        return False
    is_named = stem.lower().startswith(("views", "curves"))
    if not is_named and not os.path.isfile(os.path.join(folder, f"{stem}.json")):
        return False
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD)
    except OSError:
        return False
    return b"Software\0sslkit" in head or (name in DRAWN and b"Software\0Matplotlib" in head)
