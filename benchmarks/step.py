"""The toolkit's tax: our training step against a hand-written loop of the same passes, heads, loss,
memory and optimizer.

python benchmarks/step.py [--cases resnet18-64,resnet50-224] [--device cpu] [--steps 20]
[--batch-size N] [--threads 1]

Both train the same weights on the same pixels, ready in memory, step about, in one process:
ours, his, ours, his, … The tax is the median
over pairs of ours / his - 1. The hand-written loop is what its author would write who needs
PIRL-jigsaw once: no recipe, no registry,
no checks, one generator of random numbers.
"""

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path

import timm
import torch
from torch import nn
from torch.nn import functional as F

from sslkit import recipe
from sslkit.interfaces import Batch
from sslkit.runs.run import Run
from sslkit.training import trainer
from sslkit.training.build import build

ROOT = Path(__file__).parent.parent
CASES = {
    "resnet18-64": ("recipes/pirl_jigsaw.yaml", 32),
    "resnet50-224": ("recipes/imagenet/pirl_jigsaw.yaml", 8),
    "tiny": ("recipes/pirl_jigsaw.yaml", 4),
}
"""Recipe, and images a step on a CPU."""

MORE = {
    "tiny": [
        "encoder.model=test_resnet",
        "transform.size=32",
        "transform.resize=32",
        "transform.patch=10",
    ]
}
DEVICE_BATCH = 256


class Patches(nn.Module):
    """Each patch through one layer, all of an image through another."""

    def __init__(self, dim: int, patches: int, out: int, norm: bool) -> None:
        super().__init__()
        self.each, self.all = nn.Linear(dim, out), nn.Linear(patches * out, out)
        self.norm = nn.BatchNorm1d(out) if norm else nn.Identity()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.norm(self.all(self.each(features).flatten(1)))


class ByHand:
    """PIRL-jigsaw in the fewest lines: what ours is compared with."""

    def __init__(self, run: Run) -> None:
        made = run.recipe
        self.device, self.dtype = run.device, run.precision
        sampler, loss = made.sampler, made.loss
        assert sampler is not None
        self.official = loss.options["form"] == "official"
        self.temperature, self.negatives = loss.options["temperature"], sampler.options["negatives"]
        self.encoder = timm.create_model(made.encoder.options["model"], num_classes=0)
        norm, dim = made.heads["image"].options.get("batch_norm", False), self.encoder.num_features
        self.image = nn.Sequential(
            nn.Linear(dim, 128), nn.BatchNorm1d(128) if norm else nn.Identity()
        )
        self.patches = Patches(dim, 9, 128, norm)
        self.model = nn.ModuleList([self.encoder, self.image, self.patches]).to(self.device)
        if made.train.channels_last:
            self.model.to(memory_format=torch.channels_last)
        if made.train.compile:
            self.encoder.compile()
        self.bank = F.normalize(torch.randn(len(run.source), 128, device=self.device))
        self.mean = torch.zeros((), device=self.device)
        chosen = made.optimizer
        exempt = [p for p in self.model.parameters() if p.ndim < 2]
        decayed = [p for p in self.model.parameters() if p.ndim >= 2]
        groups = [
            {"params": exempt, "weight_decay": 0.0},
            {"params": decayed, "weight_decay": chosen.weight_decay},
        ]
        self.optimizer = torch.optim.SGD(
            groups, lr=chosen.lr, momentum=chosen.options.get("momentum", 0.0)
        )

    def step(self, batch: Batch) -> torch.Tensor:
        image, patches, index = batch.views["image"], batch.views["patches"], batch.index
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            g = self.patches(self.encoder(patches.flatten(0, 1)).unflatten(0, patches.shape[:2]))
            f = self.image(self.encoder(image))
        query = F.normalize(torch.stack([g, f]).float(), dim=-1)
        positive = (query * self.bank[index]).sum(-1) / self.temperature
        if self.negatives == "all":
            others = (query @ self.bank.T / self.temperature).index_put(
                (torch.arange(2)[:, None], torch.arange(len(index)), index), -self.far
            )
        else:
            picks = torch.randint(
                len(self.bank) - 1, (2, len(index), self.negatives), device=self.device
            )
            picks += picks >= index[:, None]
            others = (query @ self.bank.T).gather(-1, picks) / self.temperature
        if self.official:
            if self.mean == 0:
                self.mean = others[0].detach().exp().mean()
            constant = self.mean.log() + torch.log(torch.tensor(float(others.shape[-1])))
            loss = (F.softplus(constant - positive) + F.softplus(others - constant).sum(-1)).mean()
        else:
            loss = (torch.logaddexp(positive, others.logsumexp(-1)) - positive).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            self.bank[index] = F.normalize(
                0.5 * self.bank[index] + 0.5 * F.normalize(f.float(), dim=-1)
            )
        return loss.detach()

    far = torch.tensor(float("inf"))


class Ready:
    """A loader and a device phase of views that have nothing to do: the same finished pixels again
    and again.
    """

    def __init__(self, run: Run, batches: list[Batch]) -> None:
        self.finished, self.steps_per_epoch, self.micro_batches = batches, 10**6, 1
        run.loader, run.transform = self, self  # type: ignore[assignment]

    def batches(self, start: int, stop: int):
        return (self.finished[step % len(self.finished)] for step in range(start, stop))

    def on_device(self, batch: Batch, draws: object) -> Batch:
        return batch


def finished_batches(run: Run) -> list[Batch]:
    shapes = run.transform.shapes
    count, images = run.loader.step_size, len(run.source)

    def one() -> Batch:
        views = {
            name: torch.randn(count, *shape, device=run.device) for name, shape in shapes.items()
        }
        return Batch(views, {}, torch.randperm(images)[:count].to(run.device))

    return [one() for _ in range(4)]


def wait(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def measure(
    case: str, device: str, steps: int, batch_size: int | None, more: list[str]
) -> tuple[str, ...]:
    path, images = CASES[case]
    size = batch_size or (DEVICE_BATCH if device == "cuda" else images)
    overrides = [
        f"train.device={device}",
        f"train.batch_size={size}",
        "train.workers=0",
        *MORE.get(case, []),
        *more,
    ]
    if "imagenet" in path:
        overrides += ["data.use=shapes", "data.images=20000"] + (
            ["sampler.negatives=4096"] if device == "cpu" else []
        )
    made = recipe.read(ROOT / path, overrides=overrides)
    run = build(replace(made, train=replace(made.train, epochs=10**6)))
    batches = finished_batches(run)
    hand = ByHand(run)
    Ready(run, batches)
    run.step = 1
    ours = trainer.train(run)
    rows = []
    every = (
        10 if device == "cuda" else 1
    )  # a GPU is not waited for after each step, neither by us nor by him
    for _ in range(steps // every + 2):
        began = wait(run.device)
        for _step in range(every):
            next(ours)
        between = wait(run.device)
        for repeat in range(every):
            hand.step(batches[repeat % len(batches)])
        rows.append((between - began, wait(run.device) - between))
    rows = [(one / every, other / every) for one, other in rows[2:]]
    tax = statistics.median(one / other for one, other in rows) - 1
    one, other = (statistics.median(column) for column in zip(*rows, strict=True))
    return (
        case,
        str(run.precision).removeprefix("torch."),
        str(size),
        f"{1000 * one:.1f}",
        f"{1000 * other:.1f}",
        f"{100 * tax:+.1f} %",
    )


def main() -> None:
    words = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    words.add_argument("--cases", default="resnet18-64,resnet50-224")
    words.add_argument("--device", default="cpu")
    words.add_argument("--steps", type=int, default=20)
    words.add_argument("--batch-size", type=int)
    words.add_argument("--threads", type=int, default=1)
    words.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    chosen = words.parse_args()
    torch.set_num_threads(chosen.threads)
    print(
        f"torch {torch.__version__}, {chosen.device}, {chosen.threads} threads, {chosen.steps} "
        "pairs of steps\n"
    )
    print(
        "| case | precision | images a step | ours, ms | by hand, ms | tax (median of pairs) "
        "|\n|---|---|---|---|---|---|"
    )
    for case in chosen.cases.split(","):
        row = measure(case, chosen.device, chosen.steps, chosen.batch_size, chosen.set)
        print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
