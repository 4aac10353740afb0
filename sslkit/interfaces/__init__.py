"""Base classes and data types of parts (plugins).

Letters of shapes: B images of this rank's micro-batch, N rows, K crops or patches of one image,
C×H×W pixels, T terms of a loss, M negatives, D features.

A part is a plain typed class. Runtime arguments, which sslkit provides (`in_dim`, `num_images`, …),
are positional-only parameters. Options, which a recipe may set, are keyword-only and typed.
Signature and docstring define the schema. Validation, `sslkit plugins show` and the generated
reference read them from the source, without importing the module.

| kind        | runtime arguments that a constructor may require, by name                    |
|-------------|------------------------------------------------------------------------------|
| encoders    | `sizes` (sides of all input images, px, largest first), `channels` (C)       |
| heads       | `in_dim`, `crops` (K of its view), `shape` (of its view), `num_images`       |
| transforms  | `channels` (C)                                                               |
| samplers    | `dim`, `num_images`                                                          |
| losses      | none                                                                         |
| methods     | `parts`                                                                      |
| datasets    | `split` ("pretrain", "train" or "val")                                       |
| evaluations | none                                                                         |
"""

from sslkit.draws import Draws
from sslkit.interfaces.evaluation import (
    Candidate,
    Curves,
    Entry,
    Estimate,
    Evaluation,
    Features,
    Figure,
    Histogram,
    Interval,
    Metric,
    Outcome,
    Probe,
    Result,
    Score,
    Work,
)
from sslkit.interfaces.images import Batch, Boxes, ImageSource, Pixels, Sample
from sslkit.interfaces.method import Epoch, Loss, Method, Output, Parts, Progress
from sslkit.interfaces.negatives import Negatives, NegativeSampler
from sslkit.interfaces.networks import Encoder, Head
from sslkit.interfaces.views import Normalisation, PretextTransform

__all__ = [
    "Batch",
    "Boxes",
    "Candidate",
    "Curves",
    "Draws",
    "Encoder",
    "Entry",
    "Epoch",
    "Estimate",
    "Evaluation",
    "Features",
    "Figure",
    "Head",
    "Histogram",
    "ImageSource",
    "Interval",
    "Loss",
    "Method",
    "Metric",
    "NegativeSampler",
    "Negatives",
    "Normalisation",
    "Outcome",
    "Output",
    "Parts",
    "Pixels",
    "PretextTransform",
    "Probe",
    "Progress",
    "Result",
    "Sample",
    "Score",
    "Work",
]
