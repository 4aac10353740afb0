"""Views of overlapping patches of one crop."""

from typing import Annotated, ClassVar, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from sslkit.errors import Fault, RecipeError
from sslkit.interfaces import Pixels, Sample
from sslkit_plugins.views.crops import Coloured, Flip, MinArea
from sslkit_plugins.views.cuts import Cut, flip_or_not
from sslkit_plugins.views.photometric import Photometric


class PatchGrid(Photometric):
    """Overlapping patches of one crop, row by row, in the view `patches`.

    The grid of CPC v2 (Hénaff et al. 2020, arXiv:1905.09272, section 3.3). A crop of `size` has G²
    patches, G = (size - patch) // stride + 1; pixels beyond the last patch are dropped. The flip
    applies to the full crop. Colours are drawn for each patch, or once per image with
    `shared: all`. Evaluations use images of `size`.
    """

    views = ("patches",)
    counts: ClassVar = {"patches": None}
    targets = ()

    def __init__(
        self,
        channels: int = 3,
        /,
        *,
        size: Annotated[int, Field(ge=1, description="Side of the crop, px. CPC v2: 256.")] = 256,
        patch: Annotated[int, Field(ge=1, description="Side of a patch, px, usually 64.")] = 64,
        stride: Annotated[
            int,
            Field(
                ge=1, description="Distance between neighbouring patches, px, usually half a patch."
            ),
        ] = 32,
        min_area: MinArea = 0.3,
        colours: Coloured = "simclr",
        flip: Flip = 0.5,
        shared: Annotated[
            Literal["none", "all"],
            Field(
                description="Random draws that the patches of one image share. all: colours. "
                "none: each patch has its own."
            ),
        ] = "none",
    ) -> None:
        if patch > size:
            message = f"{patch} px do not fit into a crop of {size} px; use at most {size}"
            raise RecipeError(Fault("transform.patch", message))
        if stride > patch:
            message = f"{stride} px leave gaps between patches of {patch} px; use at most {patch}"
            raise RecipeError(Fault("transform.stride", message))
        cut = Cut(size=size, area=(min_area, 1.0), colours=colours, flip=0.0, shared=shared)
        super().__init__({"patches": cut}, channels)
        self.patch, self.stride, self.flip = patch, stride, flip
        side = (size - patch) // stride + 1
        self.shapes = {"patches": (side * side, channels, patch, patch)}

    def __call__(self, image: Image.Image | Pixels, rng: np.random.Generator) -> Sample:
        """Return view `patches`, integer [G²,C,patch,patch]."""
        (crop,) = self.cut(image, rng)
        crop = flip_or_not(crop, rng, self.flip)
        cells = crop.unfold(1, self.patch, self.stride).unfold(2, self.patch, self.stride)
        patches = cells.permute(1, 2, 0, 3, 4).flatten(0, 1).contiguous()
        return Sample({"patches": patches}, {})
