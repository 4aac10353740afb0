"""The scattering transform, a network of fixed wavelets without weights.

Bruna & Mallat 2013, arXiv:1203.1513; Oyallon et al. 2017, arXiv:1703.08961. Computed by kymatio
(Andreux et al. 2020, arXiv:1812.11214). Letters: N images, C×H×W pixels, K channels.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sslkit.errors import SslkitError
from sslkit.interfaces import Encoder
from sslkit_plugins.encoders.constants import Mean, Std, normalisation


class Scattering(Encoder):
    """Scattering coefficients of every colour channel, averaged over a grid.

    With scale J and L angles, a channel has K = 1 + L·J + L²·J(J-1)/2 coefficients per place, or
    1 + L·J with `order: 1`. There are no weights, so only evaluations use this encoder:
    `sslkit eval linear --encoder scattering:j2 --data DIR`. It needs
    `pip install 'sslkit[scattering]'`.
    """

    roles = ()
    has_weights: ClassVar[bool] = False

    def __init__(
        self,
        sizes: tuple[int, ...],
        channels: int,
        /,
        *,
        model: Annotated[
            Literal["j1", "j2", "j3", "j4"],
            Field(description="Scale J: maps are 2^J times smaller than images. Usually j2 to j4."),
        ] = "j2",
        angles: Annotated[int, Field(ge=1, description="Number of angles L, usually 8.")] = 8,
        order: Annotated[
            Literal[1, 2], Field(description="Largest number of wavelets in a row, usually 2.")
        ] = 2,
        grid: Annotated[
            int,
            Field(
                ge=1,
                description="Side of the grid to which maps are averaged. kymatio's CIFAR-10 "
                "example with J = 2: 8, every place of a map.",
            ),
        ] = 4,
        mean: Mean = None,
        std: Std = None,
    ) -> None:
        super().__init__()
        self.normalisation = normalisation(channels, mean, std)
        scale = int(model[1:])
        self.grid = grid
        self.coefficients = 1 + angles * scale
        if order == 2:
            self.coefficients += angles**2 * scale * (scale - 1) // 2
        self.dim = channels * self.coefficients * grid**2
        self.transforms = nn.ModuleDict()
        for size in sizes:
            if size < 2**scale:
                raise SslkitError(
                    f"scattering:{model} needs images of at least {2**scale} px, not {size}; use a "
                    "larger size or a smaller J"
                )
            self.transforms[str(size)] = _transform(scale, size, angles, order)

    def forward(self, images: Tensor) -> Tensor:
        """float [N,C,H,W] → [N,C·K·grid²]."""
        return F.adaptive_avg_pool2d(self.maps(images)["scattering"], self.grid).flatten(1)

    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """float [N,C,S,S] → {"scattering": [N,C·K,S/2^J,S/2^J]}.

        Raises SslkitError for a size that was not named at the start.
        """
        size = str(images.shape[-1])
        if size not in self.transforms or images.shape[-2] != images.shape[-1]:
            raise SslkitError(f"scattering was made for squares of {', '.join(self.transforms)} px")
        found = self.transforms[size](images.contiguous())
        return {"scattering": found.flatten(1, 2)}


def _transform(scale: int, size: int, angles: int, order: int) -> nn.Module:
    """Make kymatio's transform. Raises SslkitError if kymatio is missing.

    The import avoids `kymatio.torch`, whose 3-D part needs a function that scipy 1.17 removed.
    """
    try:
        from kymatio.scattering2d.frontend.torch_frontend import ScatteringTorch2D
    except ImportError as error:
        raise SslkitError(
            f"the encoder 'scattering' needs kymatio ({error}): pip install 'sslkit[scattering]'"
        ) from error
    return ScatteringTorch2D(scale, (size, size), L=angles, max_order=order)
