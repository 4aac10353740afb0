"""The encoder of a run as a file that its own library loads, checked before anybody is told that it is done."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from sslkit import recipe
from sslkit.errors import CheckpointError, SslkitError
from sslkit.parts import make_method, make_transform
from sslkit.recipe.signature import written
from sslkit.runs import checkpoint, files

TOLERANCE = 1e-6
"""Largest difference of features, relative to the largest feature, that counts as equal."""

CHECK = """
from safetensors.torch import load_file as _load, save_file as _save
with torch.inference_mode():
    _save({{"features": model(_load({images!r})["images"]).contiguous()}}, {features!r})
"""


def export(folder: Path, library: str) -> tuple[Path, str, float]:
    """Write export/<library>/encoder.safetensors and load.py below `folder`, run load.py in a process of its own, and compare.

    Returns the file, the lines that load it, and the largest relative difference of features. Raises SslkitError where the library
    has no such architecture or the features differ; nothing is left then.
    """
    if not library.isidentifier():
        raise SslkitError(f"{written(library)} is no library; choose timm or torchvision")
    made = recipe.read(folder / "recipe.yaml")
    newest, state, _ = checkpoint.newest(folder)
    transform = make_transform(made)
    method = make_method(made, transform, checkpoint.data_format(state))
    checkpoint.load_method(method, newest)
    encoder = method.exported.eval()
    home = folder / "export" / library
    file = home / "encoder.safetensors"
    lines = encoder.loading(library, str(file))
    images = torch.randn(
        4, 3, transform.size, transform.size, generator=torch.Generator().manual_seed(0)
    )
    with torch.inference_mode():
        expected = encoder(images)
    with tempfile.TemporaryDirectory() as scratch:
        trial = str(Path(scratch) / "encoder.safetensors")
        save_file({name: value.contiguous() for name, value in encoder.weights().items()}, trial)
        given, found = (
            str(Path(scratch) / "images.safetensors"),
            str(Path(scratch) / "features.safetensors"),
        )
        save_file({"images": images}, given)
        script = encoder.loading(library, trial) + CHECK.format(images=given, features=found)
        ran = subprocess.run(
            [sys.executable, "-P", "-c", script], capture_output=True, text=True, check=False
        )
        if ran.returncode:
            reason = (ran.stderr.strip() or f"exit code {ran.returncode}").splitlines()[-1]
            raise SslkitError(f"{library} could not load the exported encoder: {reason}")
        difference = (
            (load_file(found)["features"] - expected).abs().max()
            / expected.abs().max().clamp_min(1e-12)
        ).item()
        if not difference <= TOLERANCE:
            raise SslkitError(
                f"features through {library} differ by {difference:.1e} of the largest, more than {TOLERANCE:.0e}; nothing was exported"
            )
        try:
            home.mkdir(parents=True, exist_ok=True)
            beside = home / f".encoder-{os.getpid()}"
            beside.write_bytes(Path(trial).read_bytes())
            beside.replace(file)
        except OSError as error:
            raise CheckpointError(f"cannot write {file}: {error.strerror}") from error
    files.write_text(home / "load.py", lines + "\n")
    return file, lines, difference
