"""Exports the encoder of a run to another library, and verifies the result."""

import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sslkit.errors import SslkitError
from sslkit.interfaces import Encoder
from sslkit.parts import make_method, make_transform
from sslkit.recipe import Recipe
from sslkit.recipe.signature import written
from sslkit.runs import card, checkpoint, files, folders, hub, onnx
from sslkit.runs.state import data_format

TOLERANCE = 1e-6
"""Largest difference of equal features, relative to the largest feature."""
ONNX_TOLERANCE = 1e-4
"""Tolerance for ONNX, whose runtime has other kernels."""

CHECK = """
from safetensors.torch import load_file as _load, save_file as _save
import torch as _torch
with _torch.inference_mode():
    _save({{"features": model(_load({images!r})["images"]).contiguous()}}, {features!r})
"""


@dataclass(frozen=True)
class Exported:
    """An export: `place` is a folder or an address, `lines` is the code that loads it."""

    place: str
    lines: str
    difference: float
    """Largest difference of features, relative to the largest feature."""


def export(folder: Path, target: str | None = None, *, public: bool = False) -> Exported:
    """Write the encoder of the run in `folder` into export/<library>, or upload it.

    `target` is a library of the encoder, "onnx", or "hub:USER/NAME"; the encoder's first library by
    default. A new process loads the result and compares its features with those of the run. Raises
    SslkitError, and removes the result, if the library lacks the architecture or features differ.
    """
    made = folders.read_recipe(folder, opened=False)
    library, repository = _target(made, target)
    if repository is not None:
        hub.check()
    newest, state, _ = checkpoint.newest(folder)
    data = data_format(state)
    transform = make_transform(made, data)
    method = make_method(made, transform, data, restored=True)
    checkpoint.load_method(method, newest)
    encoder = method.exported.eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, data.channels, transform.size, transform.size, generator=generator)
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch) / library
        home.mkdir()
        if library == "onnx":
            lines = onnx.write(encoder, images, home)
        else:
            lines = encoder.export(library, home, transform.size)
        difference = _check(encoder, images, home, library, lines)
        _write_lines(home, lines)
        place = folder / "export" / library
        found = f"folder = {str(place)!r}"
        if repository is not None:
            found = hub.lines(repository)
        text = card.write(
            folder,
            made,
            encoder,
            state,
            size=transform.size,
            library=library,
            lines=lines,
            scales=transform.scales(),
        )
        (home / "README.md").write_text(text, encoding="utf-8")
        if repository is not None:
            address = hub.upload(home, repository, public=public)
            return Exported(address, f"{found}\n{lines}", difference)
        _move(home, place)
    return Exported(str(place), f"{found}\n{lines}", difference)


def _target(made: Recipe, target: str | None) -> tuple[str, str | None]:
    """Return the library, and the repository for uploads."""
    libraries = made.encoder.part.signature().attributes.get("libraries", ())
    known = (*libraries, "onnx")
    if target is None:
        return known[0], None
    if target in known:
        return target, None
    kind, _, repository = target.partition(":")
    if kind == "hub" and libraries:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository, re.ASCII):
            raise SslkitError(f"{written(target)} is not of the form hub:USER/NAME")
        return libraries[0], repository
    raise SslkitError(
        f"cannot export to {written(target)}; choose {', '.join(known)} or hub:USER/NAME"
    )


def _check(encoder: Encoder, images: Tensor, home: Path, library: str, lines: str) -> float:
    """Load the export in `home` in a new process, and compare features."""
    with torch.inference_mode():
        expected = encoder(images)
    with tempfile.TemporaryDirectory() as scratch:
        given = str(Path(scratch) / "images.safetensors")
        found = str(Path(scratch) / "features.safetensors")
        save_file({"images": images}, given)
        script = f'folder = "."\n{lines}\n{CHECK.format(images=given, features=found)}'
        command = [sys.executable, "-P", "-c", script]
        ran = subprocess.run(command, cwd=home, capture_output=True, text=True, check=False)
        if ran.returncode:
            reason = (ran.stderr.strip() or f"exit code {ran.returncode}").splitlines()[-1]
            raise SslkitError(f"{library} could not load the exported encoder: {reason}")
        features = load_file(found)["features"]
    largest = expected.abs().max().clamp_min(1e-12)
    difference = ((features - expected).abs().max() / largest).item()
    tolerance = ONNX_TOLERANCE if library == "onnx" else TOLERANCE
    if not difference <= tolerance:
        raise SslkitError(
            f"features through {library} differ by {difference:.1e} of the largest, more than "
            f"{tolerance:.0e}; nothing was exported"
        )
    return difference


def _write_lines(home: Path, lines: str) -> None:
    """Write load.py, which locates its folder and works from any directory."""
    head = "from pathlib import Path\n\nfolder = Path(__file__).resolve().parent\n"
    (home / "load.py").write_text(f"{head}{lines}\n", encoding="utf-8")


def _move(home: Path, place: Path) -> None:
    """Copy every file of `home` to `place` atomically."""
    with files.writing(place):
        place.mkdir(parents=True, exist_ok=True)
    for path in sorted(home.iterdir()):
        with files.replacing(place / path.name) as beside:
            shutil.copyfile(path, beside)
