"""Options of mean and standard deviation that encoders without pretrained weights share."""

from typing import Annotated

from pydantic import Field

from sslkit.errors import Fault, RecipeError
from sslkit.interfaces import Normalisation

Mean = Annotated[
    tuple[float, ...] | None,
    Field(description="Mean of each channel, for pixels in 0 … 1. null: ImageNet's."),
]
Std = Annotated[
    tuple[float, ...] | None,
    Field(description="Standard deviation of each channel, for pixels in 0 … 1. null: ImageNet's."),
]


def normalisation(
    channels: int, mean: tuple[float, ...] | None, std: tuple[float, ...] | None
) -> Normalisation:
    """Return the recipe's mean and std, else ImageNet's. Raises RecipeError for a wrong length."""
    own = Normalisation()
    found = Normalisation(mean=tuple(mean or own.mean), std=tuple(std or own.std))
    for name, values in (("mean", found.mean), ("std", found.std)):
        if len(values) != channels:
            message = (
                f"the images have {channels} channels; set encoder.mean and encoder.std to "
                f"{channels} numbers"
            )
            raise RecipeError(Fault(f"encoder.{name}", message))
    if min(found.std) <= 0:
        raise RecipeError(Fault("encoder.std", f"{min(found.std)} is not greater than 0"))
    return found
