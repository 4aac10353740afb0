"""Colour augmentation: probabilities, strengths, and presets of papers."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from sslkit.errors import Fault, RecipeError

Chance = Annotated[float, Field(ge=0, le=1)]
Strength = Annotated[float, Field(ge=0, le=1)]
Hue = Annotated[float, Field(ge=0, le=0.5)]
Bits = Annotated[int, Field(ge=1, le=8)]
Level = Annotated[int, Field(ge=0, le=256)]
Sigma = Annotated[float, Field(gt=0, le=2)]


@dataclass(frozen=True, kw_only=True)
class Colours:
    """Colour augmentation of a view, in this order, with separate draws for every image.

    A preset has the values of a paper or of its code. `official`: PIRL (VISSL,
    `pirl_jigsaw_4node_resnet50.yaml`). `blur`: PIRL's MLP models (VISSL, `photo_gblur.yaml`), which
    is SimCLR at strength 1. `npid`: Wu et al. 2018. `gray`: VISSL's Jigsaw. `simclr`: Chen
    et al. 2020a, appendix A. `moco_v1`, `moco_v2`: He et al. 2020, Chen et al. 2020b
    (`main_moco.py`). `byol_first`, `byol_second`: Grill et al. 2020, table 6. `dino_first`,
    `dino_second`, `dino_local`: Caron et al. 2021 (`main_dino.py`). `swav`: Caron et al. 2020
    (`multicropdataset.py`). `amdim`: Bachman et al. 2019 (`datasets.py`, ImageNet).
    """

    jitter: Annotated[
        tuple[Strength, Strength, Strength, Hue],
        Field(
            description="Largest change of brightness, contrast, saturation and hue, applied "
            "in random order as in torchvision's ColorJitter. Usually 0.4 to 0.8, "
            "hue 0.1 to 0.2."
        ),
    ] = (0.0, 0.0, 0.0, 0.0)
    jitter_chance: Annotated[
        Chance, Field(description="Probability of the jitter. SimCLR, MoCo v2, BYOL: 0.8; PIRL: 1.")
    ] = 1.0
    photometric: Annotated[
        Chance,
        Field(
            description="Probability of posterize (4 … 8 bits), sharpness (0.1 … 1.9), "
            "solarize (threshold 0 … 256) and autocontrast, all in turn. PIRL: "
            "0.66."
        ),
    ] = 0.0
    gray: Annotated[Chance, Field(description="Probability of grayscale, usually 0.2.")] = 0.0
    blur: Annotated[
        Chance,
        Field(
            description="Probability of a Gaussian blur. SimCLR: 0.5; BYOL: 1 in the first "
            "view, 0.1 in the second."
        ),
    ] = 0.0
    blur_sigma: Annotated[
        tuple[Sigma, Sigma],
        Field(
            description="Smallest and largest standard deviation of the blur's kernel, px, at "
            "most 2, defined as in Pillow."
        ),
    ] = (0.1, 2.0)
    posterize: Annotated[Chance, Field(description="Probability of posterize, after the blur.")] = (
        0.0
    )
    posterize_bits: Annotated[
        tuple[Bits, Bits],
        Field(description="Smallest and largest number of bits that posterize keeps, of 8."),
    ] = (4, 8)
    solarize: Annotated[
        Chance,
        Field(
            description="Probability of solarize, after the blur. BYOL: 0 in the first view, "
            "0.2 in the second."
        ),
    ] = 0.0
    solarize_from: Annotated[
        tuple[Level, Level],
        Field(
            description="Smallest and largest threshold from which solarize inverts values of "
            "0 … 255. BYOL, DINO: 128."
        ),
    ] = (128, 128)

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "official": {"jitter": (0.4, 0.4, 0.4, 0.2), "photometric": 0.66, "gray": 0.2},
        "blur": {"jitter": (0.8, 0.8, 0.8, 0.2), "jitter_chance": 0.8, "gray": 0.2, "blur": 0.5},
        "npid": {"jitter": (0.4, 0.4, 0.4, 0.4), "gray": 0.2},
        "gray": {"gray": 0.66},
        "none": {},
        "simclr": {"jitter": (0.8, 0.8, 0.8, 0.2), "jitter_chance": 0.8, "gray": 0.2, "blur": 0.5},
        "moco_v1": {"jitter": (0.4, 0.4, 0.4, 0.4), "gray": 0.2},
        "moco_v2": {"jitter": (0.4, 0.4, 0.4, 0.1), "jitter_chance": 0.8, "gray": 0.2, "blur": 0.5},
        "byol_first": {
            "jitter": (0.4, 0.4, 0.2, 0.1),
            "jitter_chance": 0.8,
            "gray": 0.2,
            "blur": 1.0,
        },
        "byol_second": {
            "jitter": (0.4, 0.4, 0.2, 0.1),
            "jitter_chance": 0.8,
            "gray": 0.2,
            "blur": 0.1,
            "solarize": 0.2,
        },
        "dino_first": {
            "jitter": (0.4, 0.4, 0.2, 0.1),
            "jitter_chance": 0.8,
            "gray": 0.2,
            "blur": 1.0,
        },
        "dino_second": {
            "jitter": (0.4, 0.4, 0.2, 0.1),
            "jitter_chance": 0.8,
            "gray": 0.2,
            "blur": 0.1,
            "solarize": 0.2,
        },
        "dino_local": {
            "jitter": (0.4, 0.4, 0.2, 0.1),
            "jitter_chance": 0.8,
            "gray": 0.2,
            "blur": 0.5,
        },
        "swav": {"jitter": (0.8, 0.8, 0.8, 0.2), "jitter_chance": 0.8, "gray": 0.2, "blur": 0.5},
        "amdim": {"jitter": (0.4, 0.4, 0.4, 0.1), "jitter_chance": 0.8, "gray": 0.25},
    }

    @property
    def rgb_only(self) -> tuple[str, ...]:
        """Names of the enabled operations that need three channels."""
        jitter = self.jitter if self.jitter_chance > 0 else (0.0, 0.0, 0.0, 0.0)
        amounts = {"saturation": jitter[2], "hue": jitter[3], "gray": self.gray}
        return tuple(name for name, amount in amounts.items() if amount > 0)

    @property
    def needs_more(self) -> bool:
        """Whether a row needs more random numbers than NUMBERS."""
        shares_a_number = self.photometric > 0 and self.blur > 0
        return self.posterize > 0 or self.solarize > 0 or shares_a_number


Preset = Literal[
    "official",
    "blur",
    "npid",
    "gray",
    "none",
    "simclr",
    "moco_v1",
    "moco_v2",
    "byol_first",
    "byol_second",
    "dino_first",
    "dino_second",
    "dino_local",
    "swav",
    "amdim",
]
"""Names of `Colours.presets`."""

ColourList = Preset | Colours
"""Colour augmentation of every crop."""

ColourLists = Preset | Colours | tuple[Preset | Colours, ...]
"""Colour augmentation of every crop, or one for each crop."""


def colours_of(
    colours: ColourLists, *, count: int = 1, channels: int = 3, key: str = "transform.colours"
) -> tuple[Colours, ...]:
    """Return the colour augmentation of `count` crops: one for all crops, or `count`.

    `key` is the option's key in a recipe. Raises RecipeError for an unknown preset, a wrong length,
    a descending range, and operations that images of `channels` channels do not support.
    """
    if not isinstance(colours, tuple | list):
        return (_checked(colours, channels, key),)
    if len(colours) != count:
        lists = f"{len(colours)} list{'' if len(colours) == 1 else 's'} of colours"
        message = f"holds {lists} for 1 crop; write a preset or a mapping"
        if count > 1:
            remedy = f"write {count}, or a single preset or mapping for all crops"
            message = f"holds {lists} for {count} crops; {remedy}"
        raise RecipeError(Fault(key, message))
    return tuple(_checked(one, channels, f"{key}.{i}") for i, one in enumerate(colours))


def _checked(colours: ColourList, channels: int, key: str) -> Colours:
    name = "these colours"
    if isinstance(colours, str):
        if colours not in Colours.presets:
            presets = ", ".join(Colours.presets)
            raise RecipeError(Fault(key, f"no preset '{colours}'; there are: {presets}"))
        name = f"colours '{colours}'"
        colours = Colours(**Colours.presets[colours])
    for option in ("blur_sigma", "posterize_bits", "solarize_from"):
        low, high = getattr(colours, option)
        if low > high:
            message = f"[{low}, {high}] descends; write the smaller number first: [{high}, {low}]"
            raise RecipeError(Fault(f"{key}.{option}", message))
    if channels != 3 and colours.rgb_only:
        *rest, last = colours.rgb_only
        changes = f"{', '.join(rest)} and {last}" if rest else last
        message = f"{name} change {changes} and need 3 channels; the data set has {channels}"
        remedy = (
            "set these to 0 (saturation and hue are the last two numbers of jitter), "
            "or set colours: none"
        )
        raise RecipeError(Fault(key, f"{message}; {remedy}"))
    return colours
