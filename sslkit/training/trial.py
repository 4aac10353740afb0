"""Tries the parts of a recipe on a few generated images, for `sslkit check`."""

from dataclasses import replace

from sslkit.parts import DataFormat, make_source, without_initial_weights
from sslkit.recipe import Recipe, paths
from sslkit.training.rehearsal import rehearse_recipe


def try_recipe(recipe: Recipe) -> bool:
    """Make every part and take a step on generated images, on the CPU in float32.

    Loads no initial weights and reads no image. Opens the data sets, except a training set with a
    published format. Returns False, without a trial, if the training set is not on this machine.
    Raises RecipeError, DataError or PluginError.
    """
    missing = [key for key, _ in paths.missing(recipe)]
    data, source = DataFormat.published(recipe.data), None
    if data is None:
        if any(key.startswith("data.") for key in missing):
            return False
        source = make_source(recipe, "pretrain")
        data = DataFormat.of(source)
    train = replace(recipe.train, device="cpu", precision="fp32")
    encoder = without_initial_weights(recipe.encoder)
    rehearse_recipe(replace(recipe, encoder=encoder, train=train), data, source)
    if recipe.train.evaluate and source is not None:
        if not any(key.startswith("train.evaluate.") for key in missing):
            from sslkit.training.evaluations import opened

            list(opened(recipe, data))
    return True
