"""Two processes train as one: the same weights, one memory, and never a process that waits for
another that is gone.
"""

import gc
import os
import signal
import socket
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from conftest import TINY, finish, sslkit, start
from safetensors.torch import load_file, save_file
from torch.distributed.elastic.multiprocessing import SignalException
from torch.nn import functional as F
from typer.testing import CliRunner

from sslkit import distributed, recipe
from sslkit.cli import app
from sslkit.device import pick_device
from sslkit.errors import DataError, RecipeError
from sslkit.runs import checkpoint
from sslkit.training.build import build
from sslkit.training.trainer import train
from sslkit_plugins.losses import InfoNCE
from sslkit_plugins.samplers import in_batch

WITHOUT_BATCH_NORM = "encoder.model=test_efficientnet_ln"
"""Batch norm sees half of the batch on each of two ranks; layer norm does not mind."""

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[1]


def some_steps(path, folder, *more: str) -> None:
    """Three steps, with everything that is compared written down under this rank's name."""
    made = build(recipe.read(path, overrides=(WITHOUT_BATCH_NORM, *more)))
    picks, draw = [], made.method.sampler.draw

    def noted(*given, **options):
        negatives = draw(*given, **options)
        picks.append(negatives.picks)
        return negatives

    made.method.sampler.draw = noted
    losses, indices = [], []
    for _, step in zip(range(3), train(made), strict=False):
        losses.append(distributed.mean(step.loss))
        indices.append(step.index)
    gradients = {f"gradient.{name}": value.grad for name, value in made.method.named_parameters()}
    found = {
        "picks": torch.cat(picks, 1),
        "losses": torch.stack(losses),
        "indices": torch.stack(indices),
    } | gradients
    tensors = {
        name: value.contiguous() for name, value in (found | made.method.state_dict()).items()
    }
    save_file(tensors, folder / f"{distributed.world()}-{distributed.rank()}.safetensors")


@pytest.mark.parametrize(("count", "accumulate"), [(2, 1), (4, 1), (1, 4), (2, 2)])
def test_ranks_and_micro_batches_equal_one_process(ranks, tiny, tmp_path, count, accumulate):
    some_steps(tiny, tmp_path)
    (tmp_path / "1-0.safetensors").rename(tmp_path / "one.safetensors")
    assert (
        ranks(lambda folder: some_steps(tiny, folder, f"train.accumulate={accumulate}"), count)
        == [0] * count
    )
    one, *all_ranks = (
        load_file(tmp_path / f"{name}.safetensors")
        for name in ("one", *(f"{count}-{n}" for n in range(count)))
    )

    assert torch.equal(
        torch.cat([rank.pop("indices") for rank in all_ranks], 1), one.pop("indices")
    )
    picks = one.pop("picks")
    drawn = [rank.pop("picks") for rank in all_ranks]
    if accumulate == 1:
        by_step = [rank.unflatten(1, (3, -1)) for rank in drawn]
        assert not torch.equal(*by_step[:2]), "each rank draws negatives of its own"
        assert torch.equal(torch.cat(by_step, 2).flatten(1, 2), picks), (
            "and together they are those of one process"
        )

    for number, rank in enumerate(all_ranks):
        assert rank.keys() == one.keys()
        for name, value in rank.items():
            assert torch.equal(value, all_ranks[0][name]), (
                f"{name} is one on all ranks, not another on {number}"
            )
            torch.testing.assert_close(
                value, one[name], rtol=1e-4, atol=1e-5 if name.startswith("gradient") else 1e-6
            )
    first = all_ranks[0]
    torch.testing.assert_close(first["samplers.image.bank"].norm(dim=1), torch.ones(24))
    assert first["loss.frozen"]


def test_gather_with_gradient_gives_the_gradients_of_the_joined_batch(ranks, tmp_path):
    torch.manual_seed(0)
    left, right = torch.randn(6, 4), torch.randn(6, 4)

    def contrast(query, keys, own):
        return F.cross_entropy(query @ keys.T, own)

    def work(folder):
        rows = slice(3 * distributed.rank(), 3 * distributed.rank() + 3)
        query, key = left[rows].clone().requires_grad_(), right[rows].clone().requires_grad_()
        contrast(query, distributed.gather_with_gradient(key), torch.arange(6)[rows]).backward()
        save_file(
            {"query": query.grad / 2, "key": key.grad / 2},
            folder / f"{distributed.rank()}.safetensors",
        )

    assert ranks(work) == [0, 0]
    query, key = left.clone().requires_grad_(), right.clone().requires_grad_()
    contrast(query, key, torch.arange(6)).backward()
    parts = [load_file(tmp_path / f"{number}.safetensors") for number in range(2)]
    torch.testing.assert_close(torch.cat([part["query"] for part in parts]), query.grad)
    torch.testing.assert_close(torch.cat([part["key"] for part in parts]), key.grad)


def test_in_batch_negatives_of_two_ranks_equal_those_of_one(ranks, tmp_path):
    """NT-Xent of four images of two copies: loss, and gradients as DDP averages them."""
    pairs = torch.randn(4, 2, 5, generator=torch.Generator().manual_seed(0))

    def work(folder):
        world, rank = distributed.world(), distributed.rank()
        own = pairs.chunk(world)[rank].clone().requires_grad_()
        unit = F.normalize(own, dim=-1)
        rows, partners = unit.flatten(0, 1), unit.flip(1).flatten(0, 1)
        negatives = in_batch(rows)
        assert negatives.count == 6
        loss = InfoNCE(temperature=0.3)(rows, partners, negatives)
        loss.backward()
        found = {"loss": distributed.mean(loss.detach()), "gradient": own.grad / world}
        save_file(found, folder / f"{world}-{rank}.safetensors")

    work(tmp_path)
    assert ranks(work) == [0, 0]
    names = ("1-0", "2-0", "2-1")
    one, *parts = (load_file(tmp_path / f"{name}.safetensors") for name in names)
    torch.testing.assert_close(torch.cat([part["gradient"] for part in parts]), one["gradient"])
    for part in parts:
        torch.testing.assert_close(part["loss"], one["loss"])


def test_draws_of_begin_epoch_and_after_step_are_equal_on_all_ranks(ranks, tiny, tmp_path):
    """So that memories and averages stay equal; those of a forward pass are of own rows."""

    def work(folder):
        made = build(recipe.read(tiny, overrides=(WITHOUT_BATCH_NORM,)))
        found, forward = {}, made.method.forward

        def drawn(name, progress):
            found[f"{name}.{progress.step}"] = progress.draws.uniform(24)

        def noted(batch, progress):
            drawn("forward", progress)
            return forward(batch, progress)

        made.method.begin_epoch = lambda epoch: drawn("before", epoch.progress)
        made.method.after_step = lambda index, kept, progress: drawn("after", progress)
        made.method.forward = noted
        for _ in zip(range(2), train(made), strict=False):
            pass
        save_file(found, folder / f"{distributed.rank()}.safetensors")

    assert ranks(work) == [0, 0]
    one, two = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    same = {name for name in one if torch.equal(one[name], two[name])}
    assert same == {"before.0", "after.0", "after.1"} and one.keys() - same
    values = [tuple(value.tolist()) for value in one.values()]
    assert len(set(values)) == len(values), "no two of these streams are one"


def test_what_ranks_tell_each_other(ranks):
    def work(folder):
        number = distributed.rank()
        assert distributed.world() == 2
        assert distributed.gather(torch.tensor([number, 5])).tolist() == [0, 5, 1, 5]
        assert distributed.mean(torch.tensor(float(number))) == 0.5
        assert distributed.broadcast_text(f"from {number}") == "from 0"
        assert [distributed.any_rank(flag, CPU) for flag in (False, number == 1, True)] == [
            False,
            True,
            True,
        ]
        module = torch.nn.BatchNorm1d(2)
        module.running_mean += number
        module.weight.data += number
        distributed.broadcast([*module.parameters(), *module.buffers()])
        assert module.running_mean.tolist() == [0, 0] and module.weight.tolist() == [1, 1]

    assert ranks(work) == [0, 0]


def test_one_process_is_a_world_of_one():
    value = torch.ones(2)
    assert (
        distributed.gather(value)
        is distributed.mean(value)
        is distributed.gather_with_gradient(value)
        is value
    )
    assert (
        distributed.broadcast_text("a") == "a"
        and distributed.any_rank(True, CPU)
        and not distributed.any_rank(False, CPU)
    )
    with distributed.joined(CPU):
        assert not dist.is_initialized()


@pytest.mark.parametrize("failing", [0, 1])
def test_only_the_failing_rank_reports_an_error(ranks, capfd, failing):
    def work(folder):
        if distributed.rank() == failing:
            raise DataError("the reason")
        distributed.gather(torch.ones(1))

    began = time.monotonic()
    codes = ranks(work)
    assert time.monotonic() - began < 20
    assert codes[failing] == 1 and codes[1 - failing] == 2
    assert capfd.readouterr().err.count("DataError: the reason") == 1


def test_a_fault_that_all_ranks_meet_is_told_once(ranks, capfd):
    def work(folder):
        raise DataError("the reason")

    assert sorted(ranks(work)) == [1, 2]
    assert capfd.readouterr().err.count("DataError: the reason") == 1


def test_a_batch_that_cannot_be_shared_is_refused(tiny, tmp_path):
    settings = ("--set", "train.batch_size=7")
    code, _, err = sslkit("train", tiny, "--devices", 2, *settings, "--runs", tmp_path / "runs")
    assert code == 2
    assert (
        err == "train.batch_size  7 images cannot be shared by 2 processes; take a multiple of 2\n"
    )
    assert not (tmp_path / "runs").exists()


def whole(folder: Path) -> dict[str, torch.Tensor]:
    """What one process reads from a run folder."""
    made = build(recipe.read(folder / "recipe.yaml"))
    checkpoint.resume(made, folder)
    return made.method.state_dict()


def test_a_signal_leaves_the_rendezvous_to_the_end_of_the_process(monkeypatch):
    """PyTorch's thread of it would join itself if it dropped the last reference."""

    class Rendezvous:
        pass

    made = []

    def elastic_launch(config, command):
        def launch_agent(*words):
            rendezvous = Rendezvous()
            made.append(weakref.ref(rendezvous))
            raise SignalException("SIGTERM", signal.SIGTERM)

        return launch_agent

    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", elastic_launch)
    monkeypatch.setattr("logging.disable", lambda level: None)
    for name in (distributed.ENDED, "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    assert distributed.launch(2, ["train"]) == 128 + signal.SIGTERM
    gc.collect()
    assert made[0]() is not None


@pytest.mark.parametrize(
    ("shards", "resumed"), [("none", 2), pytest.param("auto", 4, marks=pytest.mark.slow)]
)
def test_two_devices_resumed_under_torchrun_equal_one_process(images, tmp_path, shards, resumed):
    """A memory that is spread over two processes goes on spread over four, and is then read by
    one.
    """
    settings = (
        "--set",
        WITHOUT_BATCH_NORM,
        "--set",
        "train.save_minutes=0",
        "--set",
        "optimizer.lr=0.003",
    )
    settings += ("--set", f"sampler.shards={shards}")
    path, runs = tmp_path / "tiny.yaml", tmp_path / "runs"
    path.write_text(TINY.format(root=images))

    process = start("train", path, *settings, "--devices", 2, "--runs", runs)
    metrics = runs / "tiny" / "latest" / "metrics.jsonl"
    while process.poll() is None and not (
        metrics.exists() and len(metrics.read_text().splitlines()) >= 2
    ):
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    code, out, err = finish(process)
    assert (code, err) == (143, "") and out.count("stopped by SIGTERM after step") == 1
    folder = metrics.parent.resolve()
    assert checkpoint.newest(folder)[1]["step"] in (2, 3, 4)

    code, out, _ = finish(start("train", "--resume", folder, torchrun=resumed))
    assert code == 0 and out.count("resumed at step") == 1
    newest = checkpoint.newest(folder)[0]
    assert len(list(newest.glob("rows-*.safetensors"))) == (0 if shards == "none" else resumed)

    result = CliRunner().invoke(
        app, ["train", str(path), *settings, "--runs", str(tmp_path / "one")]
    )
    assert result.exit_code == 0, result.output
    one = (tmp_path / "one" / "tiny" / "latest").resolve()
    expected, found = (whole(path) for path in (one, folder))
    assert expected.keys() == found.keys() and len(found["samplers.image.bank"]) == 24
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 6
    if shards == "auto":
        (newest / "rows-00002.safetensors").unlink()
        before, _, (note,) = checkpoint.newest(folder)
        assert (
            before.name == "step-00000005"
            and "rows-00002.safetensors" in note
            and note.endswith("using the previous one")
        )


def worker_pids(launcher: int) -> list[int]:
    """The processes that train below a launcher."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return [int(pid) for pid in children if b"sslkit" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes below /proc")
@pytest.mark.slow
def test_a_killed_rank_restarts_in_the_folder_that_it_made(images, tmp_path):
    """`--devices` without a folder; tests/test_run_folder.py names one."""
    path, runs = tmp_path / "tiny.yaml", tmp_path / "runs"
    path.write_text(TINY.format(root=images))
    arguments = (
        "train",
        path,
        "--set",
        "train.save_minutes=0",
        "--set",
        "train.epochs=4",
    )
    process = start(*arguments, "--runs", runs, "--devices", 2)
    metrics = runs / "tiny" / "latest" / "metrics.jsonl"
    while process.poll() is None and not (
        metrics.exists() and len(metrics.read_text().splitlines()) >= 4
    ):
        time.sleep(0.001)
    first = worker_pids(process.pid)
    assert len(first) == 2
    os.kill(first[1], signal.SIGKILL)
    code, out, err = finish(process, 120)
    assert code == 0, err
    assert out.count("resumed at step ") == 1 and "Traceback" not in err
    (folder,) = {path.resolve() for path in (runs / "tiny").iterdir()}

    unbroken = start(*arguments, "--runs", tmp_path / "unbroken", "--devices", 2)
    assert finish(unbroken, 120)[0] == 0
    expected = (tmp_path / "unbroken" / "tiny" / "latest").resolve()
    for file in ("metrics.jsonl", "encoder.safetensors"):
        assert (folder / file).read_bytes() == (expected / file).read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes below /proc")
def test_launchers_on_two_machines_restart_after_a_lost_rank(images, tmp_path):
    path, runs = tmp_path / "tiny.yaml", tmp_path / "runs"
    path.write_text(TINY.format(root=images))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meet = [
        "--nnodes=2",
        "--nproc-per-node=1",
        "--max-restarts=2",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint=127.0.0.1:{port}",
        "--rdzv-id=1",
    ]
    words = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        *meet,
        "-m",
        "sslkit",
        "train",
        path,
        "--run-dir",
        runs / "tiny" / "latest",
    ]
    words += ["--set", "train.save_minutes=0", "--set", "train.epochs=5"]
    pipes = {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
        "env": os.environ | {"OMP_NUM_THREADS": "1"},
    }
    launchers = [subprocess.Popen(list(map(str, words)), **pipes) for _ in range(2)]
    metrics = runs / "tiny" / "latest" / "metrics.jsonl"
    while not (metrics.exists() and len(metrics.read_text().splitlines()) >= 4):
        assert all(launcher.poll() is None for launcher in launchers)
        time.sleep(0.001)
    os.kill(worker_pids(launchers[0].pid)[0], signal.SIGKILL)
    ended = [finish(launcher, 120) for launcher in launchers]
    assert [code for code, _, _ in ended] == [0, 0], ended
    assert sum(out.count("resumed at step ") for _, out, _ in ended) == 1
    assert len(metrics.read_text().splitlines()) == 15


@pytest.mark.slow
def test_a_signal_during_the_first_pass_ends_all_processes_at_once(tmp_path):
    settings = ("data.images=6000", "encoder.model=resnet50", "train.device=cpu")
    overrides = [word for setting in settings for word in ("--set", setting)]
    process = start(
        "train",
        ROOT / "recipes" / "pirl_jigsaw.yaml",
        *overrides,
        "--devices",
        2,
        "--runs",
        tmp_path,
    )
    assert process.stdout is not None
    assert any(line.startswith("pirl_jigsaw: 6,000 images") for line in process.stdout)
    time.sleep(3)
    process.send_signal(signal.SIGTERM)
    code, out, err = finish(process, 25)  # after 30 seconds the launcher would kill them
    assert (code, err) == (143, "") and out.count(
        "stopped by SIGTERM before a step was completed"
    ) == 1


@pytest.mark.slow
def test_a_fault_that_no_restart_mends_ends_all_processes_at_once(tiny, tmp_path):
    code, _, err = finish(
        start(
            "train",
            tiny,
            "--devices",
            2,
            "--set",
            "transform.patch=30",
            "--runs",
            tmp_path / "runs",
        )
    )
    assert code == 2
    assert (
        err.startswith("transform.patch  30 pixels do not fit into a cell of 16")
        and len(err.splitlines()) == 1
    )


def test_processes_whose_launcher_is_gone_save_and_stop(images, tmp_path):
    path, runs = tmp_path / "tiny.yaml", tmp_path / "runs"
    path.write_text(TINY.format(root=images))
    process = start("train", path, "--set", "train.epochs=1000", "--runs", runs, "--devices", 2)
    metrics = runs / "tiny" / "latest" / "metrics.jsonl"
    while process.poll() is None and not (
        metrics.exists() and len(metrics.read_text().splitlines()) >= 2
    ):
        time.sleep(0.001)
    workers = worker_pids(process.pid)
    process.kill()
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline, "they go on for ever"
        time.sleep(0.1)
    process.communicate()
    assert checkpoint.newest(metrics.parent)[1]["step"] >= 2


def test_synchronised_batch_norm_without_gpus_is_refused(ranks, tiny, capfd):
    assert sorted(
        ranks(lambda folder: build(recipe.read(tiny, overrides=("train.sync_batchnorm=true",))))
    ) == [1, 2]
    assert (
        "train.sync_batchnorm  PyTorch supports it on GPUs only, not on 'cpu'; set it to false"
        in capfd.readouterr().err
    )


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert pick_device("cuda") == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(
        RecipeError,
        match="this machine has 2 GPUs, too few for one per rank; start at most 2 ranks",
    ):
        pick_device("cuda")
