"""Recipe → Run: parts made, facts filled in, parts checked against each other."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from sslkit import distributed
from sslkit.data import Loader, auto_workers, fingerprint
from sslkit.errors import Fault, RecipeError
from sslkit.interfaces import Head, ImageSource, Method, Parts, PretextTransform
from sslkit.optim import make_optimizer, make_schedule
from sslkit.recipe import Choice, Recipe


@dataclass
class Run:
    """Everything that training needs, and where it stands. `step` is the number of steps done."""

    recipe: Recipe
    source: ImageSource
    fingerprint: str
    transform: PretextTransform
    method: Method
    model: nn.Module
    """`method`, wrapped for many processes or compiled where the recipe says so: what training calls."""
    loader: Loader
    optimizer: torch.optim.Optimizer
    set_rate: Callable[[int], float]
    device: torch.device
    precision: torch.dtype
    step: int = 0
    skipped: int = 0
    """Steps that `train.on_nan: skip` passed over."""
    unreadable: dict[str, str] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        return self.recipe.train.epochs * self.loader.steps_per_epoch


def pick_device(name: str) -> torch.device:
    """`auto` is the GPU of this process where there is one, Apple's next, else the CPU."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    if not available[name]:
        usable = ", ".join(kind for kind, there in available.items() if there)
        raise RecipeError(Fault("train.device", f"this machine has no '{name}' device; use auto or one of: {usable}"))
    if name != "cuda":
        return torch.device(name)
    number, count = distributed.local_rank(), torch.cuda.device_count()
    if number >= count:
        raise RecipeError(
            Fault("train.device", f"this machine has {count} GPUs, too few for one to each process; start at most {count}")
        )
    return torch.device(name, number)


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the hardware multiplies it, else float32."""
    fast = {
        "cuda": lambda: torch.cuda.is_bf16_supported(including_emulation=False),
        "cpu": lambda: torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported(),
    }.get(device.type, lambda: False)
    if name == "auto":
        name = "bf16" if fast() else "fp32"
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[name]


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
                    "transform", f"'{recipe.transform.use}' asks no question '{target}' for method '{recipe.method.use}' to answer"
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
            raise RecipeError(Fault("heads", f"all heads must give vectors of one length to be compared, but out_dim is {dims}"))
        assert cls.stores is not None, "recipe.py refuses a sampler that nobody reads"
        sampler = make(recipe.sampler, dim=dims[cls.stores], num_images=num_images)
    return make(recipe.method, parts=Parts(encoder, heads, sampler, make(recipe.loss)))


def build(recipe: Recipe) -> Run:
    """Make everything. Raises RecipeError or DataError with the sentence for the user; writes nothing."""
    chosen, world = recipe.train, distributed.world()
    device = pick_device(chosen.device)
    at_once = chosen.share(world)
    if chosen.sync_batchnorm and world > 1 and device.type != "cuda":
        raise RecipeError(Fault("train.sync_batchnorm", f"PyTorch has it on GPUs alone, not on '{device.type}'; set it to false"))
    if chosen.deterministic:
        torch.use_deterministic_algorithms(True)
    source = make_source(recipe, "pretrain")
    transform = make_transform(recipe)
    loader = Loader(
        source,
        transform,
        batch_size=at_once,
        seed=chosen.seed,
        workers=auto_workers(device.type) if chosen.workers == "auto" else chosen.workers,
        rank=distributed.rank(),
        world=world,
        parts=chosen.accumulate,
        pin=device.type == "cuda",
    )
    method = make_method(recipe, transform, len(source)).to(device)
    if chosen.channels_last:
        method.to(memory_format=torch.channels_last)
    spread = set() if method.sampler is None else {f"sampler.{name}" for name in method.sampler.spread()}
    distributed.share([value for name, value in [*method.named_parameters(), *method.named_buffers()] if name not in spread])
    optimizer = make_optimizer(method, recipe.optimizer)
    set_rate = make_schedule(optimizer, recipe.schedule, chosen.epochs, loader.steps_per_epoch)
    if chosen.compile:
        # One graph for each size of view: the shape of a batch never changes.
        method.encoder.compile(dynamic=False)
    model = distributed.parallel(method, sync_batchnorm=chosen.sync_batchnorm, device=device)
    return Run(
        recipe,
        source,
        fingerprint(source),
        transform,
        method,
        model,
        loader,
        optimizer,
        set_rate,
        device,
        pick_precision(chosen.precision, device),
    )
