"""The two crops of an image that several methods compare."""

from torch import Tensor

from sslkit.errors import Fault, RecipeError
from sslkit.interfaces import Batch


def pair(batch: Batch) -> Tensor:
    """Return the view `global` of two crops, [B,2,C,H,W].

    Raises RecipeError if the view has another number of crops.
    """
    crops = batch.views["global"]
    if crops.shape[1] != 2:
        message = f"the method compares 2 crops of an image, not {crops.shape[1]}; set it to 2"
        raise RecipeError(Fault("transform.count", message))
    return crops
