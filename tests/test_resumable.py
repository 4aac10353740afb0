"""Trainings of evaluations that continue after a kill, and what they must not continue from."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from noise import CPU, Noise, made, network
from test_finetune import candidate, finetune, painted, run, timm  # noqa: F401  (fixtures)
from timm.optim import create_optimizer_v2
from torch import nn

from sslkit.evaluation import ResumableTraining, resumable, state
from sslkit.evaluation.candidates import RawPixels
from sslkit.evaluation.probe import ImageProbe
from sslkit_plugins.evaluations.classifier import Classifier
from sslkit_plugins.evaluations.finetune import Finetune

TOTAL = 6


class KilledError(Exception):
    """The end of a process."""


@pytest.fixture
def saves_every_step(monkeypatch):
    monkeypatch.setattr(resumable, "SAVE_SECONDS", 0.0)


def silent(done, total):
    """Show no progress."""


# ------------------------------------------------------------------------------------ the class


def batches(first: int):
    """The inputs [4,3] of each step, functions of the step."""
    for step in range(first, TOTAL):
        yield torch.randn(4, 3, generator=torch.Generator().manual_seed(step))


def trained(optimizer: str, file: Path | None, *, killed_at: int | None = None):
    """Train a layer with a batch norm and dropout; return the module and the steps taken."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
    training = ResumableTraining(module, create_optimizer_v2(module, optimizer, lr=0.1), file)
    taken = []
    for step, inputs in training.steps(TOTAL, batches, silent):
        if step == killed_at:
            raise KilledError
        torch.manual_seed(step)
        module(inputs).square().mean().backward()
        training.optimizer.step()
        training.optimizer.zero_grad()
        taken.append(step)
    return module, taken


@pytest.mark.parametrize("optimizer", ["nesterov", "adamw", "lars", "lamb"])
def test_a_killed_training_ends_with_the_same_tensors(optimizer, tmp_path, saves_every_step):
    whole, _ = trained(optimizer, None)
    file = tmp_path / "unfinished" / "one" / "0-0.safetensors"
    with pytest.raises(KilledError):
        trained(optimizer, file, killed_at=3)
    resumed, taken = trained(optimizer, file)
    assert taken == [3, 4, 5]
    again, taken = trained(optimizer, file)
    assert taken == []
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
        assert torch.equal(value, again.state_dict()[name]), name


def test_a_damaged_file_starts_the_training_anew(tmp_path, saves_every_step):
    file = tmp_path / "0-0.safetensors"
    with pytest.raises(KilledError):
        trained("nesterov", file, killed_at=3)
    file.write_bytes(file.read_bytes()[:-7])
    assert trained("nesterov", file)[1] == [*range(TOTAL)]


def test_progress_counts_the_steps_of_both_processes(tmp_path, saves_every_step):
    module = nn.Linear(3, 1)
    file, shown = tmp_path / "0-0.safetensors", []
    for _ in range(2):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        training = ResumableTraining(module, optimizer, file)
        for step, _ in training.steps(TOTAL, batches, lambda done, total: shown.append(done)):
            if step == 2:
                break
    assert shown == [0, 1, 1, 2]


# ---------------------------------------------------------------------- what must not continue


def probe_in(folder: Path, seed: int = 0, **images) -> ImageProbe:
    """A probe of noisy pictures with a folder of results."""
    torch.manual_seed(seed)
    encoder = timm()
    if seed:
        nn.init.normal_(encoder.model.layer4[0].conv1.weight)
    probe = made([candidate(encoder), RawPixels()], **images)
    probe.home = folder
    return probe


def changed_pixel() -> Noise:
    images = Noise(30)
    images.arrays[17, 0, 0, 0] ^= 1
    return images


def changed_label() -> Noise:
    images = Noise(30)
    images.labels = np.roll(images.labels, 1)
    return images


CHANGES = {
    "options": lambda folder: probe_in(folder).unfinished("finetune", {"epochs": 2}),
    "evaluation": lambda folder: probe_in(folder).unfinished("detect", {"epochs": 1}),
    "weights": lambda folder: probe_in(folder, 1).unfinished("finetune", {"epochs": 1}),
    "pixel": lambda folder: probe_in(folder, train=changed_pixel()).unfinished(
        "finetune", {"epochs": 1}
    ),
    "label": lambda folder: probe_in(folder, train=changed_label()).unfinished(
        "finetune", {"epochs": 1}
    ),
    "validation": lambda folder: probe_in(folder, val=Noise(12, seed=2)).unfinished(
        "finetune", {"epochs": 1}
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_begins_anew(change, tmp_path):
    first = probe_in(tmp_path).unfinished("finetune", {"epochs": 1})
    assert first == probe_in(tmp_path).unfinished("finetune", {"epochs": 1})
    assert CHANGES[change](tmp_path) != first


def test_fitted_statistics_do_not_belong_to_the_weights():
    """Their last bits may differ between a GPU's passes."""
    untrained = network("untrained", fits=True)
    before = untrained.digest()
    untrained.encoder.layers[1].running_mean += 1
    assert untrained.digest() == before
    trained = network()
    before = trained.digest()
    trained.encoder.layers[1].running_mean += 1
    assert trained.digest() != before


def test_states_of_other_evaluations_are_named(tmp_path):
    assert state.left(tmp_path) is None
    (tmp_path / "unfinished" / "finetune-0123456789ab").mkdir(parents=True)
    assert "has 1 unfinished evaluation with other options" in state.left(tmp_path)


def test_nothing_is_kept_where_nothing_may_be_written():
    probe = made([network()])
    assert probe.home is None and probe.unfinished("finetune", {}) is None


# ------------------------------------------------------------------------------------- finetune


def test_a_killed_fine_tuning_ends_with_the_same_weights(tmp_path, saves_every_step, monkeypatch):
    """MAE's settings draw Mixup, CutMix and stochastic depth in every step."""
    given = candidate(timm("test_vit"))
    probe = made([given])
    evaluation = Finetune(preset="mae", epochs=2, batch_size=10, lr=1.0)
    whole = evaluation.train(probe, given, probe.train, 0)
    forward, file = Classifier.forward, tmp_path / "0-0.safetensors"
    left = iter([None] * 4)
    with monkeypatch.context() as patched, pytest.raises(StopIteration):
        patched.setattr(Classifier, "forward", lambda *given: next(left) or forward(*given))
        evaluation.train(probe, given, probe.train, 0, file)
    assert state.load_state(file)[1]["step"] == "4"
    resumed = evaluation.train(probe, given, probe.train, 0, file)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_the_order_of_batches_is_a_function_of_the_step():
    probe = made()
    options = {"batch_size": 7, "steps": 9, "seed": 3, "size": 16}
    whole = list(probe.augmented(probe.train, **options))
    rest = list(probe.augmented(probe.train, **options, first=6))
    assert len(rest) == 3
    for (images, index), (others, places) in zip(whole[6:], rest, strict=True):
        assert torch.equal(images, others) and torch.equal(index, places)


def test_fine_tuning_leaves_the_random_numbers_alone():
    probe = made([candidate(timm())])
    torch.manual_seed(5)
    before = torch.get_rng_state()
    Finetune(epochs=1).train(probe, probe.candidates[0], probe.train, 0)
    assert torch.equal(before, torch.get_rng_state())


def test_a_stopped_command_goes_on_with_the_same_numbers(
    run,  # noqa: F811
    tmp_path,
    saves_every_step,
    monkeypatch,
):
    words = ("--epochs", 1, "--batch-size", 8, "--seeds", 2)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert finetune(run, *words, "--out", whole)[0] == 0
    forward, calls = Classifier.forward, []

    def stop(model, pixels):
        calls.append(len(pixels))
        if len(calls) == 9:  # in the second training, whose first two steps are saved
            raise KeyboardInterrupt
        return forward(model, pixels)

    monkeypatch.setattr(Classifier, "forward", stop)
    code, _, err = finetune(run, *words, "--out", parts)
    assert code == 130 and "run the same command again to go on" in err
    assert [path.name for path in parts.iterdir()] == ["unfinished"]
    calls.clear()
    monkeypatch.setattr(Classifier, "forward", lambda *given: calls.append(1) or forward(*given))
    assert finetune(run, *words, "--out", parts)[0] == 0
    first, second = (
        json.loads((one / "finetune.json").read_text("utf-8")) for one in (whole, parts)
    )
    assert first == second and not (parts / "unfinished").exists()
    assert len(calls) == 4 * (5 + 1) - 7, "four trainings of five steps, and seven steps done"


def test_the_state_of_the_device_is_kept(tmp_path):
    """Weights, buffers and moments come back in the layout of the module."""
    module = nn.Conv2d(3, 4, 3).to(CPU, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    module(torch.ones(1, 3, 4, 4)).sum().backward()
    optimizer.step()
    file = tmp_path / "0-0.safetensors"
    ResumableTraining(module, optimizer, file).save()
    other = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    ResumableTraining(module, other, file).load()
    for parameter in module.parameters():
        momentum = other.state[parameter]["momentum_buffer"]
        assert torch.equal(momentum, optimizer.state[parameter]["momentum_buffer"])
        assert momentum.stride() == parameter.stride()
