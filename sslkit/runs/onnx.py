"""Writes an encoder as an ONNX graph."""

import importlib.util
from pathlib import Path

import torch
from torch import Tensor

from sslkit.errors import SslkitError
from sslkit.interfaces import Encoder

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
LARGEST = 2**30
"""Largest size of weights for a single file, bytes; the limit of ONNX files is 2 GiB."""

LINES = """\
import onnxruntime
import torch
session = onnxruntime.InferenceSession(f"{folder}/encoder.onnx")
def model(images):
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])"""


def write(encoder: Encoder, images: Tensor, folder: Path) -> str:
    """Write encoder.onnx for batches of any length with images of that shape.

    Returns Python code that loads it with onnxruntime. Raises SslkitError if the packages of the
    extra are missing, or if the encoder cannot be traced.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise SslkitError(f"--to onnx needs {', '.join(missing)}: pip install 'sslkit[onnx]'")
    size = sum(value.numel() * value.element_size() for value in encoder.state_dict().values())
    try:
        torch.onnx.export(
            encoder,
            (images,),
            str(folder / "encoder.onnx"),
            dynamo=True,
            verbose=False,
            input_names=["images"],
            output_names=["features"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            external_data=size > LARGEST,
        )
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise SslkitError(
            f"torch.export cannot trace this encoder: {reason[0] if reason else error}; export "
            "--to timm instead"
        ) from error
    return LINES
