"""Writes embeddings as .npz, .npy or .parquet."""

import importlib.util
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from sslkit.errors import Fault, RecipeError, SslkitError
from sslkit.evaluation.embedding import Embeddings
from sslkit.runs import files, folders

SUFFIXES = (".npz", ".npy", ".parquet")
OUT = "OUT"
"""Key of the argument in error messages."""
PLACE = "the argument OUT"
"""Setting that selects another path, in error messages."""


def check(path: Path, *, overwrite: bool) -> None:
    """Check that a file can be written, before anything is computed. Creates nothing.

    Raises RecipeError for another suffix, for a folder, and for an existing file unless
    `overwrite`; SslkitError if .parquet lacks its package; CheckpointError if the folder is not
    writable.
    """
    if os.path.isdir(path):
        raise RecipeError(Fault(OUT, f"{path} is a folder; name a file in it: {path}/vectors.npz"))
    if path.suffix not in SUFFIXES:
        message = (
            f"{path} ends in none of {', '.join(SUFFIXES)}; name a file such as {path.stem}.npz"
        )
        raise RecipeError(Fault(OUT, message))
    if path.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise SslkitError(
            f"{path} needs pyarrow, which is not installed: pip install 'sslkit[parquet]'; or "
            f"write {path.stem}.npz"
        )
    if os.path.lexists(path) and not overwrite:
        raise RecipeError(Fault(OUT, f"{path} exists; name another file, or add --overwrite"))
    folders.check_place(path.parent, f"the file {path.name}", PLACE)
    with files.writing(path, PLACE), suppress(FileNotFoundError):
        os.lstat(path)  # Fails for a name that is too long.
    if os.path.isdir(path.parent):  # Rights alone do not tell whether a file can be made.
        with files.writing(path, PLACE), tempfile.TemporaryFile(dir=path.parent):
            pass


def write(path: Path, found: Embeddings) -> None:
    """Write embeddings atomically, in the format of the suffix.

    .npz has the arrays `names`, `vectors` and, with classes, `labels`, and opens with
    allow_pickle=False. .npy has the vectors. .parquet has a row per image: name, label, vector.
    Creates parent folders. Raises WriteError.
    """
    with files.writing(path, PLACE):
        path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path, PLACE) as beside, beside.open("wb") as file:
        if path.suffix == ".npz":
            arrays: dict[str, Any] = {"names": found.names, "vectors": found.vectors}
            if found.labels is not None:
                arrays["labels"] = found.labels
            np.savez(file, **arrays)
        elif path.suffix == ".npy":
            np.save(file, found.vectors)
        else:
            _write_parquet(file, found)
        file.flush()
        os.fsync(file.fileno())


def _write_parquet(file: Any, found: Embeddings) -> None:
    import pyarrow
    import pyarrow.parquet

    flat = pyarrow.array(found.vectors.reshape(-1))
    columns = {"name": pyarrow.array([_utf8(name) for name in found.names.tolist()])}
    if found.labels is not None:
        columns["label"] = pyarrow.array(found.labels.tolist())
    columns["vector"] = pyarrow.FixedSizeListArray.from_arrays(flat, found.vectors.shape[1])
    pyarrow.parquet.write_table(pyarrow.table(columns), file)


def _utf8(name: str) -> str:
    """Return a name with invalid UTF-8 bytes escaped."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")
