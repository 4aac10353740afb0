"""The loop: reproducible, the memory written once a step with f alone, and nothing printed or saved."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import assert_same, everything
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from sslkit.errors import DataError
from sslkit.training.trainer import fill_memory, train


def trained(run):
    steps = list(train(run))
    return steps, everything(run)


def test_the_same_seed_gives_the_same_weights_bit_for_bit_whatever_the_workers(make):
    steps, weights = trained(make())
    again, same = trained(make("train.workers=2"))
    assert_same(weights, same)
    assert [step.loss.item() for step in steps] == [step.loss.item() for step in again]
    other = trained(make("train.seed=1"))[1]
    assert not torch.equal(
        weights["encoder.model.conv1.0.weight"], other["encoder.model.conv1.0.weight"]
    )


def test_steps_are_counted_from_1_and_name_epoch_rate_and_images(make):
    steps, _ = trained(make("schedule.use=constant"))
    assert [step.number for step in steps] == [1, 2, 3, 4, 5, 6]
    assert [step.epoch for step in steps] == [0, 0, 0, 1, 1, 1]
    assert {step.lr for step in steps} == {0.03}
    for epoch in (steps[:3], steps[3:]):
        assert sorted(torch.cat([step.index for step in epoch]).tolist()) == list(range(24)), (
            "every image once an epoch"
        )


def test_it_neither_prints_nor_saves(make, tmp_path: Path, monkeypatch, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    trained(make())
    assert capsys.readouterr() == ("", "")
    assert list(empty.iterdir()) == []


def test_memory_is_written_once_a_step_with_f_alone_after_both_terms_have_read_it(
    make, monkeypatch
):
    run = make()
    method, events, outputs = run.method, [], {}
    before = method.sampler.bank.clone()
    update, loss = method.sampler.update, method.loss.forward

    def noted_loss(prediction, target, negatives):
        assert len(prediction) == 2
        assert torch.equal(method.sampler.bank, before), "both terms read the memory as it was"
        events.append("loss")
        return loss(prediction, target, negatives)

    def noted_update(index, keys):
        events.append("update")
        outputs.update(index=index, keys=keys)
        update(index, keys)

    monkeypatch.setattr(method.loss, "forward", noted_loss)
    monkeypatch.setattr(method.sampler, "update", noted_update)
    method.heads["image"].register_forward_hook(
        lambda module, given, output: outputs.update(f=output.detach())
    )
    step = next(train(run))
    assert events == ["loss", "update"]
    assert torch.equal(outputs["index"], step.index) and torch.equal(outputs["keys"], outputs["f"])
    rows = F.normalize(0.5 * before[step.index] + 0.5 * F.normalize(outputs["f"], dim=1), dim=1)
    torch.testing.assert_close(method.sampler.bank[step.index], rows)
    others = [i for i in range(24) if i not in step.index.tolist()]
    assert torch.equal(method.sampler.bank[others], before[others])


@pytest.mark.parametrize(
    ("weight", "idle", "busy"), [(0, "patches", "image"), (1, "image", "patches")]
)
def test_lambda_weighs_the_terms(make, weight, idle, busy):
    """λ multiplies the pretext term, 1-λ the image term."""
    run = make(f"loss.lambda={weight}")
    next(train(run))
    assert all(not p.grad.any() for p in run.method.heads[idle].parameters())
    assert all(p.grad.any() for p in run.method.heads[busy].parameters())


def test_the_first_pass_fills_every_row_and_only_where_the_sampler_asks(make):
    for init, changed in (("forward", True), ("random", False)):
        run = make(f"sampler.init={init}", "train.batch_size=10")
        before = run.method.sampler.bank.clone()
        weights = [p.clone() for p in run.method.parameters()]
        fill_memory(run)
        assert ((run.method.sampler.bank != before).any(1) == changed).all()
        torch.testing.assert_close(run.method.sampler.bank.norm(dim=1), torch.ones(24))
        assert all(map(torch.equal, weights, run.method.parameters())), "nothing is learnt in it"


def test_unreadable_images_are_replaced_and_counted_up_to_the_limit(
    make, images: Path, tmp_path: Path
):
    folder = tmp_path / "broken"
    shutil.copytree(images, folder)
    (folder / "03.png").write_bytes(b"no image")
    (folder / "10.jpg").write_bytes((folder / "10.jpg").read_bytes()[:200])
    run = make("train.unreadable=2", data=folder)
    for step in train(run):
        assert len(set(step.index.tolist())) == 8 and not {3, 10} & set(step.index.tolist())
    assert set(run.unreadable) == {"03.png", "10.jpg"}
    with pytest.raises(
        DataError,
        match=r"(?s)2 images cannot be read.*train.unreadable = 1.*03.png: Unidentified.*10.jpg: ",
    ):
        list(train(make("train.unreadable=1", data=folder)))


def test_begin_epoch_is_called_at_each_epoch_and_where_a_run_resumes(make, monkeypatch):
    calls = []
    for first in (0, 4):
        run = make("train.epochs=3", "schedule.use=constant")
        run.step = first
        monkeypatch.setattr(
            run.method,
            "begin_epoch",
            lambda progress: calls.append((progress.step, progress.epoch)),
        )
        list(train(run))
    assert calls == [(0, 0), (3, 1), (6, 2), (4, 1), (6, 2)]


def test_gradients_are_clipped_and_their_norm_told(make):
    run = make("train.clip_grad=0.01")
    step = next(train(run))
    assert step.metrics["gradient_norm"] > 0.01
    norm = torch.stack(
        [p.grad.norm() for p in run.method.parameters() if p.grad is not None]
    ).norm()
    torch.testing.assert_close(norm, torch.tensor(0.01), rtol=1e-3, atol=0)


class NothingRead(TorchDispatchMode):
    """Fails where a number is brought from a tensor to Python, which on a GPU waits for all that was asked of it before."""

    reads = (
        torch.ops.aten._local_scalar_dense.default,
        torch.ops.aten.nonzero.default,
        torch.ops.aten.equal.default,
    )

    def __torch_dispatch__(self, operation, types, given=(), options=None):
        assert operation not in self.reads, operation
        return operation(*given, **(options or {}))


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("train.clip_grad=1.0",),
        ("sampler.negatives=all",),
        ("train.accumulate=2", "loss.form=info_nce"),
    ],
)
def test_a_step_reads_no_number_from_the_device(make, monkeypatch, settings):
    """Views are left out: they draw on the host, by design."""
    run = make(*settings)

    def finished(self, batch, draws):
        return replace(batch, views={name: view.float() for name, view in batch.views.items()})

    monkeypatch.setattr(type(run.transform), "on_device", finished)
    steps = train(run)
    for _ in range(2):  # the official constant is looked up once after it was frozen
        next(steps)
    with NothingRead():
        for _ in range(3):
            next(steps)
