"""Loads initial weights of a timm model from timm, a file, a run, or an exported folder."""

import json
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
import safetensors
import timm
import yaml
from huggingface_hub import constants
from safetensors.torch import load_file
from torch import Tensor, nn

from sslkit.errors import Fault, RecipeError

PREFIXES = ("module.", "model.", "encoder.", "backbone.")
"""Prefixes that training code adds to the names of an encoder's tensors."""
FILES = ("model.safetensors", "encoder.safetensors")
"""Weight files of an export and of a run."""
SECONDS = 10
"""Timeout of a request, after which a server counts as unreachable, s."""


class Source(NamedTuple):
    """A file of weights, with the model and normalisation that its folder states."""

    file: Path
    model: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def find(weights: str) -> Source:
    """Find the file of a `weights` option that is a path. Raises RecipeError if there is none."""
    path = Path(weights).expanduser()
    if path.is_dir():
        file = next((path / name for name in FILES if (path / name).is_file()), None)
        if file is None:
            inner = path / "latest"
            remedy = f"name a run in it: {inner}" if inner.is_dir() else "train or export first"
            raise _fault(f"{weights} has neither {' nor '.join(FILES)}; {remedy}")
        return Source(file, **_stated(path))
    if not path.is_file():
        raise _fault(
            f"there is no file or folder {path.absolute()}; put it back, or name 'timm', a "
            ".safetensors file, a run folder, or an exported folder"
        )
    if path.suffix != ".safetensors":
        raise _fault(
            f"{weights} is not a .safetensors file, and other formats can run code; convert its "
            "state dict once: d = torch.load(FILE, weights_only=True); "
            "safetensors.torch.save_file(d.get('state_dict', d), 'FILE.safetensors')"
        )
    return Source(path)


def _stated(folder: Path) -> dict[str, Any]:
    """Return the model, mean and std that a folder states."""
    stated = exported(folder) or _recipe(folder)
    found: dict[str, Any] = {}
    if isinstance(stated.get("model"), str):
        found["model"] = stated["model"]
    for name in ("mean", "std"):
        if isinstance(stated.get(name), list):
            found[name] = tuple(stated[name])
    return found


def _recipe(folder: Path) -> dict[str, Any]:
    """Return the encoder section of a run's recipe; {} if it is for another encoder."""
    try:
        recipe = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
        section = recipe["encoder"]
        return dict(section) if section["use"] == "timm" else {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError, yaml.YAMLError):
        return {}


def exported(folder: Path) -> dict[str, Any] | None:
    """Return the options and `size` of an exported folder; None for another folder.

    The folder has either `encoder.json`, written by `Timm.export`, or timm's `config.json`.
    """
    try:
        own = folder / "encoder.json"
        if own.is_file():
            stated = dict(json.loads(own.read_text(encoding="utf-8")))
        else:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            stated = _of_timm(config)
        return {**stated, "size": int(stated["size"])}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _of_timm(config: dict[str, Any]) -> dict[str, Any]:
    """Return the options and the size in timm's config.json."""
    preset = config["pretrained_cfg"]
    options = dict(config.get("model_args", {}))
    options.pop("in_chans", None)
    return {
        "model": config["architecture"],
        "options": options,
        "mean": preset["mean"],
        "std": preset["std"],
        "size": preset["input_size"][-1],
    }


def load(model: nn.Module, file: Path) -> None:
    """Load a file of weights into a model.

    Ignores tensors of classifiers and of modules that the model lacks. timm resamples position
    embeddings and windows of another image size. Raises RecipeError if other tensors do not fit.
    """
    try:
        tensors = load_file(file)
    except (OSError, safetensors.SafetensorError) as error:
        raise _fault(f"{file} cannot be read: {error}; copy or export it again") from error
    own = model.state_dict()
    given = {_stripped(name, own): value for name, value in tensors.items()}
    problem = _misfit(model, own, given)
    if problem:
        adapted = _adapted(model, given)
        if _misfit(model, own, adapted):
            raise _fault(
                f"{file.name} does not fit: {problem}; give encoder.model, stem, norm and "
                "options as the weights were trained with"
            )
        given = adapted
    fitting = {name: value for name, value in given.items() if name in own}
    model.load_state_dict(fitting, strict=False)


def _stripped(name: str, own: dict[str, Tensor]) -> str:
    """Return a tensor's name without the prefixes of training code."""
    short = name
    while short not in own:
        prefix = next((p for p in PREFIXES if short.startswith(p)), None)
        if prefix is None:
            return short
        short = short.removeprefix(prefix)
    return short


def _adapted(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Apply timm's checkpoint filter for this architecture, if there is one."""
    adapt = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if adapt is None:
        return tensors
    try:
        return dict(adapt(dict(tensors), model))
    except Exception:
        return tensors


def _misfit(model: Any, own: dict[str, Tensor], given: dict[str, Tensor]) -> str:
    """Return how `given` differs from `own`; "" if it fits."""
    missing = [name for name in own if name not in given]
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    misshaped = [name for name in own if name in given and given[name].shape != own[name].shape]
    foreign = [name for name in given if name not in own and _belongs(model, own, name)]
    problems = []
    if missing:
        problems.append(f"{len(missing)} missing ({missing[0]})")
    if misshaped:
        name = misshaped[0]
        shapes = f"{list(given[name].shape)} instead of {list(own[name].shape)}"
        problems.append(f"{len(misshaped)} of another shape ({name} {shapes})")
    if foreign:
        problems.append(f"{len(foreign)} too many ({foreign[0]})")
    if not problems:
        return ""
    fitting = len(own) - len(missing) - len(misshaped)
    return f"of {len(own)} tensors {fitting} fit, {', '.join(problems)}"


def _belongs(model: Any, own: dict[str, Tensor], name: str) -> bool:
    """Tell whether an unknown tensor belongs to a module that the model has."""
    classifiers = model.pretrained_cfg.get("classifier") or ()
    if isinstance(classifiers, str):
        classifiers = (classifiers,)
    if any(name.startswith(f"{classifier}.") for classifier in classifiers):
        return False
    modules = {other.partition(".")[0] for other in own}
    return name.partition(".")[0] in modules


def downloaded(model: str) -> dict[str, Any]:
    """Return arguments of timm.create_model that load timm's weights.

    Uses weights from the local cache if there are any. Raises RecipeError if timm has no weights or
    the server does not respond.
    """
    preset = timm.get_pretrained_cfg(model)
    if preset is None or not preset.has_weights:
        raise _fault(f"timm has no weights for '{model}'; leave encoder.weights out")
    if not preset.hf_hub_id:
        return {"pretrained": True}
    names = ["model.safetensors", "pytorch_model.bin"]
    if preset.hf_hub_filename:
        names = [preset.hf_hub_filename]
    for name in names:
        cached = huggingface_hub.try_to_load_from_cache(preset.hf_hub_id, name)
        if isinstance(cached, str):
            return {"pretrained": True, "pretrained_cfg_overlay": {"file": cached}}
    if not _responds(constants.ENDPOINT):
        raise _fault(
            f"timm's weights of '{model}' are not on this machine, and {constants.ENDPOINT} does "
            "not respond; download them with a network, or name a .safetensors file"
        )
    return {"pretrained": True}


def _responds(url: str) -> bool:
    """Tell whether a server responds; huggingface_hub alone retries for a minute."""
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=SECONDS)
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return True


def _fault(message: str) -> RecipeError:
    return RecipeError(Fault("encoder.weights", message))
