"""The two views of an image that several methods compare."""

from torch import Tensor

from sslkit.errors import Fault, RecipeError
from sslkit.interfaces import Batch


def pair(batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the first and the second crop, [B,C,H,W] each, of the view `global` [B,2,C,H,W].

    Raises RecipeError if the view has another number of crops.
    """
    view = batch.views["global"]
    if view.shape[1] != 2:
        message = f"the method compares 2 crops of an image, not {view.shape[1]}; set it to 2"
        raise RecipeError(Fault("transform.count", message))
    first, second = view.unbind(1)
    return first, second
