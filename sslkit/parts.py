"""Recipe → parts: every part made with its runtime arguments, and checked against the others."""

import torch

from sslkit.errors import Fault, RecipeError
from sslkit.interfaces import Head, ImageSource, Method, Parts, PretextTransform
from sslkit.recipe import Choice, Recipe


def make(choice: Choice, **facts: object):
    """The part that a recipe chose, given the facts that its constructor asks for."""
    signature = choice.part.signature()
    unknown = [name for name in signature.facts if name not in facts]
    if unknown:
        raise RecipeError(
            Fault(
                choice.kind,
                f"{choice.use} asks for '{unknown[0]}', which {choice.kind} are not told; they may ask for {', '.join(facts)}",
            )
        )
    return choice.part.load()(*(facts[name] for name in signature.facts), **choice.arguments)


def make_source(recipe: Recipe, split: str) -> ImageSource:
    """The recipe's data set: `pretrain`, `train` or `val`."""
    return make(recipe.data, split=split)


def make_transform(recipe: Recipe) -> PretextTransform:
    return make(recipe.transform)


def make_method(recipe: Recipe, transform: PretextTransform, num_images: int) -> Method:
    """Encoder, heads, sampler, loss and their wiring, initialised from the recipe's seed: the encoder first, so that it begins the
    same whatever stands behind it."""
    torch.manual_seed(recipe.train.seed)
    cls: type[Method] = recipe.method.part.load()
    reads = cls.reads if cls.reads is not None else {view: view for view in transform.views}
    encoder = make(recipe.encoder)
    heads: dict[str, Head] = {}
    for name, choice in recipe.heads.items():
        shape = transform.shapes[reads[name]]
        heads[name] = make(choice, in_dim=encoder.dim, crops=shape[0] if len(shape) == 4 else 1)
    for name, target in cls.answers.items():
        wanted = transform.answers.get(target)
        if wanted is None:
            raise RecipeError(
                Fault(
                    "transform",
                    f"'{recipe.transform.use}' asks no question '{target}' for method '{recipe.method.use}' to answer",
                )
            )
        if heads[name].out_dim != wanted:
            raise RecipeError(
                Fault(
                    f"heads.{name}.out_dim",
                    f"is {heads[name].out_dim}, but transform '{recipe.transform.use}' has {wanted} answers: set it to {wanted}",
                )
            )
    sampler = None
    if recipe.sampler is not None:
        dims = {name: head.out_dim for name, head in heads.items()}
        if len(set(dims.values())) > 1:
            raise RecipeError(
                Fault(
                    "heads",
                    f"all heads must give vectors of one length to be compared, but out_dim is {dims}",
                )
            )
        assert cls.stores is not None, "recipe.py refuses a sampler that nobody reads"
        sampler = make(recipe.sampler, dim=dims[cls.stores], num_images=num_images)
    return make(recipe.method, parts=Parts(encoder, heads, sampler, make(recipe.loss)))
