"""Encoders without a run: `--encoder PART:MODEL`, PART, or a folder written by `sslkit export`."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sslkit import faults
from sslkit.errors import Fault, RecipeError, SslkitError
from sslkit.evaluation.candidates import Network, normaliser
from sslkit.interfaces import Candidate, Encoder, ImageSource
from sslkit.parts import make
from sslkit.recipe import Choice, registry
from sslkit.recipe.signature import sentence

DEFAULT_SIZE = 224
"""Image size for encoders without a native size, px."""
SEED = 0
"""Seed of an encoder without weights."""


@dataclass(frozen=True)
class Foreign:
    """An encoder from `--encoder`; `trained` is False for `--weights none`."""

    name: str
    choice: Choice
    trained: bool

    def candidates(
        self, images: ImageSource, size: int | None, device: torch.device, *, alone: bool
    ) -> list[Candidate]:
        """Return the encoder, and an untrained copy if it is measured `alone`."""
        cls: Any = self.choice.part.load()
        if size is None:
            size = cls.own_size(self.choice.arguments) or DEFAULT_SIZE
        found: list[Candidate] = [self._network(self.name, self.choice, images, size, device)]
        weights = self.choice.part.signature().options.get("weights")
        if alone and self.trained and weights is not None:
            options = {**self.choice.options, "weights": weights.default}
            untrained = replace(self.choice, options=options)
            baseline = self._network("untrained", untrained, images, size, device, baseline=True)
            found.append(baseline)
        return found

    def _network(
        self,
        name: str,
        choice: Choice,
        images: ImageSource,
        size: int,
        device: torch.device,
        *,
        baseline: bool = False,
    ) -> Network:
        torch.manual_seed(SEED)
        try:
            encoder: Encoder = make(choice, sizes=(size,), channels=images.channels)
        except RecipeError as error:
            raise RecipeError(*map(_of_command, error.faults)) from error
        except SslkitError:
            raise
        except Exception as error:
            raise SslkitError(
                f"--encoder {self.name} cannot be created: {sentence(error)}; --weights none "
                "measures it without weights"
            ) from error
        return Network(
            name,
            encoder,
            normaliser(encoder.normalisation, images.bits, device),
            size=size,
            device=device,
            baseline=baseline,
            fits=baseline or not self.trained,
        )


def _of_command(fault: Fault) -> Fault:
    """Translate a fault in the encoder's options to the options of `sslkit eval`."""
    if fault.key == "encoder.weights":
        return Fault("--weights", f"{fault.message}; --weights none measures it without weights")
    return Fault("--encoder", fault.message.replace("transform.size", "--size"))


def read_encoder(text: str, weights: str | None) -> Foreign:
    """Read `--encoder`: PART:MODEL, PART without models, or a folder.

    Raises RecipeError if it is none of them.
    """
    if os.path.isdir(text):
        if weights is not None:
            raise RecipeError(Fault("--weights", f"{text} has its own weights; remove the option"))
        return _of_folder(Path(text))
    name, colon, model = text.partition(":")
    known = {part.name for part in registry.parts("encoders")}
    if not name or (not colon and name not in known):
        message = f"{text} is neither a folder nor an encoder, such as timm:resnet18 or alexnet"
        raise RecipeError(Fault("--encoder", message))
    part = registry.find("encoders", name)
    options = part.signature().options
    if "model" not in options and colon:
        message = f"encoder '{name}' has no models; write --encoder {name}"
        raise RecipeError(Fault("--encoder", message))
    if "model" in options and not model:
        message = f"name a model of encoder '{name}': --encoder {name}:MODEL"
        raise RecipeError(Fault("--encoder", message))
    given: dict[str, Any] = {"model": model} if model else {}
    own = part.signature().attributes.get("pretrained")
    if not part.signature().attributes.get("has_weights", True):
        if weights is not None:
            message = f"encoder '{name}' has no weights; remove the option"
            raise RecipeError(Fault("--weights", message))
        return Foreign(text, _choice(part, given), True)
    if weights != "none":
        if "weights" not in options:
            raise RecipeError(
                Fault("--encoder", f"encoder '{name}' loads no weights; add --weights none")
            )
        if weights is None and own is None:
            message = f"encoder '{name}' has no pretrained weights; name some: --weights RUN"
            raise RecipeError(Fault("--weights", f"{message}; --weights none measures it without"))
        given["weights"] = own if weights is None else weights
    return Foreign(text, _choice(part, given), weights != "none")


def _of_folder(folder: Path) -> Foreign:
    if (folder / "recipe.yaml").is_file() and (folder / "checkpoints").is_dir():
        message = f"{folder} is a run; write it as RUN, or --against {folder} to compare with it"
        raise RecipeError(Fault("--encoder", message))
    parts = registry.parts("encoders")
    for part in parts:
        cls: Any = part.load()
        with faults.telling(f"{part.shown} fails in opens"):
            options = cls.opens(folder)
        if options is not None:
            return Foreign(_name(folder.resolve()), _choice(part, options), True)
    names = ", ".join(part.name for part in parts)
    raise RecipeError(
        Fault(
            "--encoder",
            f"no encoder ({names}) can load {folder}; name a folder that sslkit export wrote, "
            "such as RUN/export/timm",
        )
    )


def _name(folder: Path) -> str:
    """Return the name of an exported folder's run."""
    inside = folder.parent.name == "export"
    return folder.parent.parent.name if inside else folder.name


def _choice(part: registry.Part, given: dict[str, Any]) -> Choice:
    """Check the options. Raises RecipeError with every fault."""
    options, wrong = part.signature().validate(part.name, given)
    if wrong:
        raise RecipeError(*(Fault(f"--encoder {name}", message) for name, message in wrong))
    return Choice("encoders", part.name, options, part)
