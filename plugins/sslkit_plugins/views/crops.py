"""Transforms whose views are augmented random resized crops."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from sslkit_plugins.views.colours import Chance, ColourList, ColourLists
from sslkit_plugins.views.cuts import Area, Cut, Interpolation, Ratio
from sslkit_plugins.views.photometric import Photometric

Side = Annotated[int, Field(ge=1, description="Side of a crop, px. Usually 224, for CIFAR 32.")]
MinArea = Annotated[
    Area,
    Field(
        description="Smallest area of a crop, as a fraction of the image. SimCLR, BYOL: "
        "0.08; MoCo: 0.2."
    ),
]
MaxArea = Annotated[
    Area, Field(description="Largest area of a crop, as a fraction of the image, usually 1.")
]
Aspect = Annotated[
    tuple[Ratio, Ratio],
    Field(
        description="Smallest and largest aspect ratio of a crop, width:height, usually "
        "3/4 and 4/3."
    ),
]
Flip = Annotated[Chance, Field(description="Probability of a horizontal flip, usually 0.5.")]
Resize = Annotated[
    Interpolation,
    Field(
        description="Interpolation of resized crops, with antialiasing. SimCLR, BYOL, "
        "DINO, MAE: bicubic; PIRL, MoCo, SwAV: bilinear."
    ),
]
Coloured = Annotated[
    ColourList,
    Field(description="Colour augmentation, drawn for every crop: a preset or its options."),
]
ColouredEach = Annotated[
    ColourLists,
    Field(
        description="Colour augmentation: a preset or its options for all crops, or a "
        "list with one of these per crop."
    ),
]


class Augment(Photometric):
    """One augmented crop of an image.

    NPID uses `colours: npid`; PIRL's NPID++ uses `official`; MAE, BiGAN and DeepCluster use `none`.
    """

    views = ("image",)
    counts: ClassVar = {}
    targets = ()

    def __init__(
        self,
        channels: int = 3,
        /,
        *,
        size: Side = 224,
        min_area: MinArea = 0.08,
        colours: Coloured = "official",
        flip: Flip = 0.5,
        interpolation: Resize = "bilinear",
    ) -> None:
        cut = Cut(
            size=size,
            area=(min_area, 1.0),
            colours=colours,
            flip=flip,
            interpolation=interpolation,
        )
        super().__init__({"image": cut}, channels)


class Crops(Photometric):
    """Independent augmented crops of an image, in the view `global`.

    With two crops, these are the views of SimCLR (Chen et al. 2020, arXiv:2002.05709, appendix A),
    MoCo, BYOL, SimSiam, Barlow Twins and AMDIM. The crops of an image can share the flip (AMDIM),
    or flip and colours.
    """

    views = ("global",)
    counts: ClassVar = {"global": "count"}
    targets = ()

    def __init__(
        self,
        channels: int = 3,
        /,
        *,
        size: Side = 224,
        count: Annotated[
            int, Field(ge=1, le=100, description="Number of crops per image, usually 2.")
        ] = 2,
        min_area: MinArea = 0.08,
        max_area: MaxArea = 1.0,
        aspect: Aspect = (0.75, 1.3333333333333333),
        colours: ColouredEach = "simclr",
        flip: Flip = 0.5,
        shared: Annotated[
            Literal["none", "flip", "all"],
            Field(
                description="Random draws that the crops of one image share. AMDIM: flip. all: "
                "flip and colours."
            ),
        ] = "none",
        interpolation: Resize = "bilinear",
    ) -> None:
        cut = Cut(
            size=size,
            area=(min_area, max_area),
            aspect=aspect,
            count=count,
            colours=colours,
            flip=flip,
            shared=shared,
            interpolation=interpolation,
        )
        super().__init__({"global": cut}, channels)


@dataclass(frozen=True, kw_only=True)
class Local:
    """Options of the small crops of `multi_crop`."""

    count: Annotated[
        int, Field(ge=1, le=100, description="Number of small crops per image. SwAV: 6; DINO: 8.")
    ] = 6
    size: Annotated[int, Field(ge=1, description="Side of a small crop, px, usually 96.")] = 96
    min_area: Annotated[
        Area,
        Field(
            description="Smallest area of a small crop, as a fraction of the image, usually 0.05."
        ),
    ] = 0.05
    max_area: Annotated[
        Area,
        Field(
            description="Largest area of a small crop, as a fraction of the image. SwAV: "
            "0.14; DINO: 0.4."
        ),
    ] = 0.14
    colours: ColouredEach = "swav"


class MultiCrop(Photometric):
    """Independent large crops in the view `global`, and small ones in `local`.

    Multi-crop of SwAV (Caron et al. 2020, arXiv:2006.09882, section 3.2), as DINO and DeepCluster
    v2 use it.
    """

    views = ("global", "local")
    counts: ClassVar = {"global": "count", "local": "local.count"}
    targets = ()

    def __init__(
        self,
        channels: int = 3,
        /,
        *,
        size: Side = 224,
        count: Annotated[
            int, Field(ge=1, le=100, description="Number of large crops per image, usually 2.")
        ] = 2,
        min_area: Annotated[
            Area,
            Field(
                description="Smallest area of a large crop, as a fraction of the image. SwAV: "
                "0.14; DINO: 0.4."
            ),
        ] = 0.14,
        max_area: MaxArea = 1.0,
        aspect: Aspect = (0.75, 1.3333333333333333),
        colours: ColouredEach = "swav",
        flip: Flip = 0.5,
        interpolation: Resize = "bilinear",
        local: Annotated[Local, Field(description="Options of the small crops.")] = Local(),
    ) -> None:
        large = Cut(
            size=size,
            area=(min_area, max_area),
            aspect=aspect,
            count=count,
            colours=colours,
            flip=flip,
            interpolation=interpolation,
        )
        small = Cut(
            size=local.size,
            area=(local.min_area, local.max_area),
            aspect=aspect,
            count=local.count,
            colours=local.colours,
            flip=flip,
            interpolation=interpolation,
            key="transform.local",
        )
        super().__init__({"global": large, "local": small}, channels)
