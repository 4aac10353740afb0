"""The loop: reproducible, the memory written once a step with f alone, and nothing printed or
saved.
"""

import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from conftest import assert_same, everything
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from sslkit.errors import DataError, PluginError
from sslkit.interfaces import Output
from sslkit.training import trainer
from sslkit.training.trainer import train


def trained(run):
    steps = list(train(run))
    return steps, everything(run)


def test_equal_seeds_give_equal_weights_for_any_number_of_workers(make):
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


def test_the_bank_is_updated_once_per_step_with_f_after_both_terms(make, monkeypatch):
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


def begin(run):
    """Prepare the epoch of the step that comes next, as `train` does; return what it loads from."""
    ahead = trainer.Ahead(run)
    run.model.train()
    passed: list[int] = []
    trainer._begin_epoch(run, ahead, passed.append)
    return ahead


def test_the_first_pass_fills_every_row_if_the_sampler_needs_it(make):
    for init, changed in (("forward", True), ("random", False)):
        run = make(f"sampler.init={init}", "train.batch_size=10")
        before = run.method.sampler.bank.clone()
        weights = [p.clone() for p in run.method.parameters()]
        begin(run)
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
        match=r"(?s)2 images cannot be read.*train.unreadable = 1.*03.png: is damaged.*10.jpg: ",
    ):
        list(train(make("train.unreadable=1", data=folder)))


@pytest.mark.parametrize(
    ("first", "expected"),
    [(0, [(0, 0), (3, 1), (6, 2)]), (3, [(3, 1), (6, 2)]), (4, [(6, 2)])],
    ids=["from the start", "resumed at a border", "resumed within an epoch"],
)
def test_begin_epoch_comes_once_before_an_epochs_first_step(make, monkeypatch, first, expected):
    run, calls = make("train.epochs=3", "schedule.use=constant"), []
    run.step = first

    def noted(epoch):
        calls.append((epoch.progress.step, epoch.progress.epoch))
        assert run.method.training and not torch.is_grad_enabled()
        run.method.eval()

    monkeypatch.setattr(run.method, "begin_epoch", noted)
    for _ in train(run):
        assert run.method.training, "put back into training mode"
    assert calls == expected


def test_what_begin_epoch_draws_depends_on_the_step_alone(make, monkeypatch):
    drawn = []

    def noted(epoch):
        drawn.append([torch.rand(()).item(), epoch.progress.draws.uniform(1).item()])

    for first in (0, 3):
        run = make()
        run.step = first
        monkeypatch.setattr(run.method, "begin_epoch", noted)
        torch.manual_seed(first)
        list(train(run))
    assert drawn[1] == drawn[2] and drawn[0] != drawn[1]


def epoch_of(run, monkeypatch):
    """What the method gets before the first epoch."""
    lent = []
    monkeypatch.setattr(run.method, "begin_epoch", lent.append)
    begin(run)
    return lent[0]


def test_an_epoch_lends_every_image_augmented_and_plain(make, monkeypatch):
    """24 images in batches of 10: three of them, the last filled up from the beginning."""
    run = make("train.batch_size=10")
    epoch = epoch_of(run, monkeypatch)
    order = [number % 24 for number in range(30)]
    augmented, plain = list(epoch.views()), list(epoch.plain())
    assert torch.cat([batch.index for batch in augmented]).tolist() == order
    assert torch.cat([index for _, index in plain]).tolist() == order
    for batch, (images, _) in zip(augmented, plain, strict=True):
        assert batch.views["image"].dtype == images.dtype == torch.float32
        assert batch.views["image"].shape == images.shape == (10, 3, 32, 32)
    again, same = next(iter(epoch.views())), next(iter(epoch.plain()))
    assert torch.equal(again.views["image"], augmented[0].views["image"])
    assert torch.equal(same[0], plain[0][0])
    assert not torch.equal(again.views["image"], plain[0][0]), "views are augmented"


def test_an_epoch_lends_the_batches_of_the_next_step(make, monkeypatch):
    """The same views and draws as the step then gets; running statistics stay as they were."""
    run = make("train.accumulate=2")
    lent, got, forward = [], [], run.method.forward

    def noted(batch, progress):
        got.append((batch, progress.draws.uniform(len(batch.index))))
        return forward(batch, progress)

    def before(epoch):
        assert epoch.micro_batches == 2
        statistics = [value.clone() for value in run.statistics()]
        for batch, progress in epoch.next_step():
            lent.append((batch, progress.draws.uniform(len(batch.index))))
            run.method.encode(batch.views["image"])
        assert all(map(torch.equal, run.statistics(), statistics))

    monkeypatch.setattr(run.method, "begin_epoch", before)
    monkeypatch.setattr(run.method, "forward", noted)
    next(train(run))
    assert len(lent) == len(got) == 2
    for (batch, draws), (other, others) in zip(lent, got, strict=True):
        assert torch.equal(batch.index, other.index) and torch.equal(draws, others)
        assert torch.equal(batch.views["patches"], other.views["patches"])


def test_forgotten_modules_have_no_optimizer_state(make, monkeypatch):
    run = make()
    next(train(run))
    epoch_of(run, monkeypatch).forget(run.method.heads["image"])
    left = set(map(id, run.optimizer.state))
    forgotten = set(map(id, run.method.heads["image"].parameters()))
    assert forgotten and not forgotten & left
    assert left == {id(value) for value in run.weights} - forgotten


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_bad_first_step_that_is_skipped_keeps_the_constant(make, monkeypatch, accumulate):
    """Its loss alone is bad: with several micro-batches ē was frozen before the step."""
    settings = f"train.accumulate={accumulate}", "train.on_nan=skip"
    run, other = make(*settings), make(*settings)
    next(train(other))
    forward = run.method.forward

    def poisoned(batch, progress):
        output = forward(batch, progress)
        bad = accumulate == 1 or torch.is_grad_enabled()
        return replace(output, loss=output.loss * float("nan")) if bad else output

    monkeypatch.setattr(run.method, "forward", poisoned)
    steps = train(run)
    assert next(steps).skipped
    assert bool(run.method.loss.frozen) == (accumulate == 2)
    if accumulate == 2:
        assert run.method.loss.log_mean_exp == other.method.loss.log_mean_exp
    monkeypatch.setattr(run.method, "forward", forward)
    assert not next(steps).skipped and run.method.loss.frozen


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_constant_that_is_not_finite_is_not_frozen(make, monkeypatch, accumulate):
    run = make(f"train.accumulate={accumulate}", "train.on_nan=skip")
    head, spoilt = run.method.head("patches"), [True]
    head.register_forward_hook(lambda _, __, rows: rows * float("nan") if spoilt else rows)
    steps = train(run)
    assert next(steps).skipped and not run.method.loss.frozen
    spoilt.clear()
    assert not next(steps).skipped
    assert run.method.loss.frozen and run.method.loss.log_mean_exp.isfinite()


def test_after_step_follows_every_step_that_was_taken(make, monkeypatch):
    """Three steps of two micro-batches, the second skipped: its gradient is not finite."""
    run = make("train.accumulate=2", "train.on_nan=skip", "loss.form=info_nce")
    calls, weight = [], run.method.encoder.model.conv1[0].weight
    forward, before = run.method.forward, weight.detach().clone()

    def poisoned(batch, progress):
        output = forward(batch, progress)
        loss = output.loss * float("nan") if progress.step == 1 else output.loss
        return Output(loss, output.metrics, output.feature_std, output.keep)

    def noted(index, kept, progress):
        calls.append((progress.step, index, kept))
        assert not torch.is_grad_enabled()
        assert not torch.equal(weight, before), "the optimizer's step comes first"

    monkeypatch.setattr(run.method, "forward", poisoned)
    monkeypatch.setattr(run.method, "after_step", noted)
    steps = list(islice(train(run), 3))
    assert [step.skipped for step in steps] == [False, True, False]
    assert [step for step, _, _ in calls] == [0, 2]
    for step, (_, index, kept) in zip(steps[::2], calls, strict=True):
        assert torch.equal(index, step.index)
        assert kept["image"].shape == (8, 16) and kept["image"].dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("match", "reports the metrics .* at step 2, but .* before"),
        ("loss", "reports a metric 'loss', a reserved name"),
    ],
    ids=["missing at the second step", "taken"],
)
def test_metrics_have_the_same_free_names_at_every_step(make, monkeypatch, name, sentence):
    run = make()
    forward = run.method.forward

    def changed(batch, progress):
        output = forward(batch, progress)
        metrics = dict(output.metrics)
        if name == "loss":
            metrics["loss"] = output.loss.detach()
        elif progress.step == 1:
            del metrics[name]
        return Output(output.loss, metrics, output.feature_std, output.keep)

    monkeypatch.setattr(run.method, "forward", changed)
    with pytest.raises(PluginError, match=f"method 'pirl' {sentence}"):
        list(train(run))


def test_gradients_are_clipped_and_their_norm_told(make):
    run = make("train.clip_grad=0.01")
    step = next(train(run))
    assert step.metrics["gradient_norm"] > 0.01
    norm = torch.stack(
        [p.grad.norm() for p in run.method.parameters() if p.grad is not None]
    ).norm()
    torch.testing.assert_close(norm, torch.tensor(0.01), rtol=1e-3, atol=0)


class NothingRead(TorchDispatchMode):
    """Fails where a number is brought from a tensor to Python, which on a GPU waits for all that
    was asked of it before.
    """

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
    ids=["default", "clip_grad", "all_negatives", "accumulate"],
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
