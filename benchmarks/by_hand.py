"""Hand-written training steps in plain PyTorch, which step.py compares with sslkit's.

Each is what its author would write who needs one method once: no recipe, no registry, no checks, no
metrics, one generator of random numbers. Sizes and rates come from the recipe.
"""

import copy

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sslkit.interfaces import Batch
from sslkit.runs.run import Run


class Patches(nn.Module):
    """Each patch through one layer, all of an image through another."""

    def __init__(self, dim: int, patches: int, out: int, norm: bool) -> None:
        super().__init__()
        self.each, self.all = nn.Linear(dim, out), nn.Linear(patches * out, out)
        self.norm = nn.BatchNorm1d(out) if norm else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        return self.norm(self.all(self.each(features).flatten(1)))


class ByHand:
    """A loop: encoder, heads, optimizer; subclasses make `heads` and compute `loss`."""

    def __init__(self, run: Run) -> None:
        self.device, self.dtype, self.recipe = run.device, run.precision, run.recipe
        self.images = len(run.source)
        self.encoder = timm.create_model(run.recipe.encoder.options["model"], num_classes=0)
        self.heads = self.make_heads(self.encoder.num_features)
        self.model = nn.ModuleList([self.encoder, self.heads]).to(self.device)
        if run.recipe.train.channels_last:
            self.model.to(memory_format=torch.channels_last)
        if run.recipe.train.compile:
            self.encoder.compile()
        chosen = run.recipe.optimizer
        groups = [
            {"params": [p for p in self.model.parameters() if p.ndim < 2], "weight_decay": 0.0},
            {
                "params": [p for p in self.model.parameters() if p.ndim >= 2],
                "weight_decay": chosen.weight_decay,
            },
        ]
        optimizer = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[chosen.use]
        self.optimizer = optimizer(groups, lr=chosen.lr, **chosen.options)
        self.prepare()

    def make_heads(self, dim: int) -> nn.ModuleDict:
        raise NotImplementedError

    def prepare(self) -> None:
        """Make what is remembered between steps."""

    def loss(self, batch: Batch) -> Tensor:
        raise NotImplementedError

    def after_step(self, batch: Batch) -> None:
        """Update what is remembered."""

    def step(self, batch: Batch) -> Tensor:
        loss = self.loss(batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            self.after_step(batch)
        return loss.detach()

    def autocast(self) -> torch.autocast:
        enabled = self.dtype == torch.bfloat16
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)


class Pirl(ByHand):
    """PIRL-jigsaw."""

    def make_heads(self, dim: int) -> nn.ModuleDict:
        norm = self.recipe.heads["image"].options.get("batch_norm", False)
        image = nn.Sequential(nn.Linear(dim, 128), nn.BatchNorm1d(128) if norm else nn.Identity())
        return nn.ModuleDict({"image": image, "patches": Patches(dim, 9, 128, norm)})

    def prepare(self) -> None:
        sampler = self.recipe.sampler
        assert sampler is not None
        self.negatives = sampler.options["negatives"]
        self.official = self.recipe.loss.options["form"] == "official"
        self.temperature = self.recipe.loss.options["temperature"]
        self.bank = F.normalize(torch.randn(self.images, 128, device=self.device))
        self.mean = torch.zeros((), device=self.device)

    def loss(self, batch: Batch) -> Tensor:
        image, patches, index = batch.views["image"], batch.views["patches"], batch.index
        with self.autocast():
            features = self.encoder(patches.flatten(0, 1)).unflatten(0, patches.shape[:2])
            g = self.heads["patches"](features)
            self.f = self.heads["image"](self.encoder(image))
        query = F.normalize(torch.stack([g, self.f]).float(), dim=-1)
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
        if not self.official:
            return (torch.logaddexp(positive, others.logsumexp(-1)) - positive).mean()
        if self.mean == 0:
            self.mean = others[0].detach().exp().mean()
        constant = self.mean.log() + torch.log(torch.tensor(float(others.shape[-1])))
        return (F.softplus(constant - positive) + F.softplus(others - constant).sum(-1)).mean()

    def after_step(self, batch: Batch) -> None:
        latest = F.normalize(self.f.float(), dim=-1)
        self.bank[batch.index] = F.normalize(0.5 * self.bank[batch.index] + 0.5 * latest)

    far = torch.tensor(float("inf"))


class SimClr(ByHand):
    """SimCLR: two crops in one pass, NT-Xent."""

    def make_heads(self, dim: int) -> nn.ModuleDict:
        chosen = self.recipe.heads["projector"].options
        hidden, out = chosen["hidden_dim"], chosen["out_dim"]
        layers = [nn.Linear(dim, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU()]
        return nn.ModuleDict({"projector": nn.Sequential(*layers, nn.Linear(hidden, out))})

    def loss(self, batch: Batch) -> Tensor:
        crops = batch.views["global"].transpose(0, 1).flatten(0, 1)
        with self.autocast():
            rows = self.heads["projector"](self.encoder(crops))
        rows = F.normalize(rows.float(), dim=-1)
        count = len(rows) // 2
        logits = rows @ rows.T / self.recipe.loss.options["temperature"]
        logits = logits.masked_fill(
            torch.eye(2 * count, dtype=torch.bool, device=self.device), float("-inf")
        )
        return F.cross_entropy(logits, torch.arange(2 * count, device=self.device).roll(count))


class Moco(ByHand):
    """MoCo v2: a query against its key and a queue."""

    def make_heads(self, dim: int) -> nn.ModuleDict:
        chosen = self.recipe.heads["projector"].options
        hidden, out = chosen["hidden_dim"], chosen["out_dim"]
        layers = [nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, out)]
        return nn.ModuleDict({"projector": nn.Sequential(*layers)})

    def prepare(self) -> None:
        sampler = self.recipe.sampler
        assert sampler is not None
        self.momentum = self.recipe.method.options["momentum"]
        self.slow = copy.deepcopy(self.model).requires_grad_(False)
        self.queue = F.normalize(torch.randn(sampler.options["size"], 128, device=self.device))
        self.place = 0

    def loss(self, batch: Batch) -> Tensor:
        first, second = batch.views["global"].unbind(1)
        with self.autocast():
            query = self.heads["projector"](self.encoder(first))
            with torch.no_grad():
                key = self.slow[1]["projector"](self.slow[0](second))
        query, self.key = F.normalize(query.float(), dim=-1), F.normalize(key.float(), dim=-1)
        positive = (query * self.key).sum(-1, keepdim=True)
        logits = torch.cat([positive, query @ self.queue.clone().T], 1)
        targets = torch.zeros(len(query), dtype=torch.int64, device=self.device)
        return F.cross_entropy(logits / self.recipe.loss.options["temperature"], targets)

    def after_step(self, batch: Batch) -> None:
        for slow, fast in zip(self.slow.parameters(), self.model.parameters(), strict=True):
            slow.lerp_(fast, 1 - self.momentum)
        places = (self.place + torch.arange(len(self.key), device=self.device)) % len(self.queue)
        self.queue[places] = self.key
        self.place = (self.place + len(self.key)) % len(self.queue)


class Swav(ByHand):
    """SwAV with two crops: codes of one crop predict the other."""

    def make_heads(self, dim: int) -> nn.ModuleDict:
        chosen = self.recipe.heads["projector"].options
        hidden, out = chosen["hidden_dim"], chosen["out_dim"]
        layers = [nn.Linear(dim, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU()]
        prototypes = self.recipe.heads["prototypes"].options["out_dim"]
        return nn.ModuleDict(
            {
                "projector": nn.Sequential(*layers, nn.Linear(hidden, out)),
                "prototypes": nn.Linear(out, prototypes, bias=False),
            }
        )

    def codes(self, scores: Tensor) -> Tensor:
        """Assign rows [B,K] to prototypes in equal parts, by three Sinkhorn iterations."""
        codes = torch.exp(scores / self.recipe.method.options["epsilon"]).T
        codes /= codes.sum()
        for _ in range(3):
            codes /= codes.sum(1, keepdim=True) * len(codes)
            codes /= codes.sum(0, keepdim=True) * codes.shape[1]
        return (codes * codes.shape[1]).T

    def loss(self, batch: Batch) -> Tensor:
        crops = batch.views["global"].transpose(0, 1).flatten(0, 1)
        with self.autocast():
            rows = self.heads["projector"](self.encoder(crops))
        scores = self.heads["prototypes"](F.normalize(rows.float(), dim=-1))
        first, second = scores.chunk(2)
        with torch.no_grad():
            codes = [self.codes(second.detach()), self.codes(first.detach())]
        terms = []
        for code, predicted in zip(codes, (first, second), strict=True):
            logits = predicted / self.recipe.loss.options["temperature"]
            terms.append(-(code * F.log_softmax(logits, dim=-1)).sum(-1).mean())
        return (terms[0] + terms[1]) / 2

    def after_step(self, batch: Batch) -> None:
        weight = self.heads["prototypes"].weight
        weight.copy_(F.normalize(weight, dim=-1))


METHODS: dict[str, type[ByHand]] = {"pirl": Pirl, "simclr": SimClr, "moco": Moco, "swav": Swav}
"""Loops by sslkit's name of the method."""
