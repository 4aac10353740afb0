"""Published protocols of the linear classifier by SGD, by name.

Numbers are those of the named files. `differs` lists what sslkit does otherwise.
"""

from dataclasses import dataclass
from typing import Literal

LAST_EPOCH = "the last epoch counts; the source reports the best one on the validation images"
BICUBIC = "bilinear resizing; the source uses bicubic"


@dataclass(frozen=True)
class Protocol:
    """Settings of a linear classifier on frozen features, trained on random crops and flips.

    `lr` applies to a batch of 256 if `scaled`: the rate is lr · batch / 256. `drops` are epochs at
    which the rate drops to a tenth. `norm` is a batch norm per channel before the classifier.
    """

    source: str
    lr: float
    epochs: int
    weight_decay: float = 0.0
    scaled: bool = True
    batch_size: int = 256
    optimizer: Literal["sgd", "lars"] = "sgd"
    momentum: float = 0.9
    nesterov: bool = False
    schedule: Literal["steps", "cosine", "cosine per epoch"] = "cosine"
    drops: tuple[int, ...] = ()
    epochs_of_source: int = 0
    """Epochs to which `drops` and `warmup_epochs` refer; 0: `epochs`."""
    warmup_epochs: int = 0
    norm: Literal["none", "affine", "fixed"] = "none"
    norm_eps: float = 1e-5
    initial: Literal["uniform", "normal", "truncated", "xavier", "zeros"] = "normal"
    """Weights. uniform: PyTorch's default. normal, truncated: standard deviation 0.01, bias 0."""
    tokens: bool = False
    """Read class tokens of a vision transformer, as DINO does."""
    pooling: Literal["average", "alexnet"] = "average"
    test_crops: Literal[1, 10] = 1
    adapts_bias: bool = True
    """LARS adapts the rate of biases too."""
    differs: tuple[str, ...] = ()


PRESETS: dict[str, Protocol] = {
    "pirl": Protocol(
        "vissl: configs/config/benchmark/linear_image_classification/imagenet1k/"
        "eval_resnet_8gpu_transfer_in1k_linear.yaml",
        lr=0.01,
        epochs=28,
        weight_decay=5e-4,
        nesterov=True,
        schedule="steps",
        drops=(8, 16, 24),
        norm="affine",
        initial="uniform",
        differs=("`features` has one classifier, with batch norm; VISSL also trains one without",),
    ),
    "moco": Protocol(
        "moco: main_lincls.py",
        lr=30.0,
        epochs=100,
        scaled=False,
        schedule="steps",
        drops=(60, 80),
        differs=(LAST_EPOCH,),
    ),
    "swav": Protocol(
        "swav: eval_linear.py",
        lr=0.3,
        epochs=100,
        weight_decay=1e-6,
        scaled=False,
        schedule="cosine per epoch",
        differs=("the encoder's normalisation; SwAV divides red by 0.228", LAST_EPOCH),
    ),
    "simclr": Protocol(
        "simclr: README.md, model_util.py",
        lr=0.1,
        epochs=90,
        weight_decay=1e-6,
        batch_size=4096,
        nesterov=True,
        initial="zeros",
    ),
    "byol": Protocol(
        "deepmind-research: byol/configs/eval.py",
        lr=0.2,
        epochs=80,
        nesterov=True,
        initial="uniform",
        differs=("batches of 256; the source names none", "PyTorch's initial weights"),
    ),
    "simsiam": Protocol(
        "simsiam: main_lincls.py --lars, README.md",
        lr=0.1,
        epochs=90,
        batch_size=4096,
        optimizer="lars",
        schedule="cosine per epoch",
        differs=(LAST_EPOCH,),
    ),
    "barlow": Protocol(
        "barlowtwins: evaluate.py",
        lr=0.3,
        epochs=100,
        weight_decay=1e-6,
        scaled=False,
        schedule="cosine per epoch",
        differs=(LAST_EPOCH,),
    ),
    "vicreg": Protocol(
        "vicreg: README.md, evaluate.py",
        lr=0.02,
        epochs=100,
        weight_decay=1e-6,
        scaled=False,
        schedule="cosine per epoch",
        differs=(LAST_EPOCH,),
    ),
    "dino": Protocol(
        "dino: eval_linear.py",
        lr=0.001,
        epochs=100,
        batch_size=1024,
        schedule="cosine per epoch",
        tokens=True,
        differs=(BICUBIC, LAST_EPOCH),
    ),
    "mae": Protocol(
        "mae: FINETUNE.md, main_linprobe.py",
        lr=0.1,
        epochs=90,
        batch_size=16_384,
        optimizer="lars",
        adapts_bias=False,
        warmup_epochs=10,
        norm="fixed",
        norm_eps=1e-6,
        initial="truncated",
        differs=("the encoder's pooled features; MAE reads the class token", BICUBIC, LAST_EPOCH),
    ),
    "lightly": Protocol(
        "lightly: benchmarks/imagenet/resnet50/linear_eval.py",
        lr=0.1,
        epochs=90,
        initial="uniform",
        differs=("batches of 256; the source names none", LAST_EPOCH),
    ),
    "alexnet": Protocol(
        "linear-probes: eval_linear_probes.py",
        lr=0.01,
        epochs=36,
        weight_decay=1e-5,
        scaled=False,
        batch_size=192,
        schedule="steps",
        drops=(10, 20, 30),
        norm="fixed",
        initial="xavier",
        pooling="alexnet",
        test_crops=10,
        differs=("ten crops of the central square",),
    ),
}
