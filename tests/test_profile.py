"""Where the time of a step goes: sections, verdicts, and what the command writes."""

import json
import time

import pytest
import torch
from conftest import finish, sslkit, start

from sslkit.training.profile import SECTIONS, WAITING, Profile, Stopwatch, measure

CPU = torch.device("cpu")


def test_a_section_is_counted_without_those_inside_it(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    watch = Stopwatch(CPU)
    watch.exact = True
    with watch("forward"):
        watch.begin("encoder")
        watch.end()
        watch.begin("encoder")
        watch.end()
    assert watch.seconds == {"forward": 3.0, "encoder": 2.0}


def test_only_waiting_is_counted_until_it_is_exact(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    watch = Stopwatch(CPU)
    with watch(WAITING):
        pass
    with watch("backward"):
        pass
    assert watch.seconds == {WAITING: 1.0}


def found(**seconds: float) -> Profile:
    rest = {"the rest": 0.01, "encoder": 1.0} | {
        name.replace("_", " "): value for name, value in seconds.items()
    }
    return Profile(
        images=8,
        step=1.0,
        waiting=rest.pop("waiting", 0.0),
        busy=rest.pop("busy", None),
        seconds=rest,
    )


@pytest.mark.parametrize(
    ("profile", "verdict", "remedy"),
    [
        (found(waiting=0.3), "data-bound: 30 %", "train.workers"),
        (found(waiting=0.2), "compute-bound: the largest section is", "--devices"),
        (found(busy=0.5), "overhead-bound: the GPU computes in 50 %", "train.compile=true"),
        (
            found(the_rest=0.5),
            "overhead-bound: 33 % of a step is the loop itself",
            "train.batch_size",
        ),
        (found(backward=3.0), "compute-bound: the largest section is backward, 75 %", "--devices"),
        (found(busy=0.9), "compute-bound: the largest section is encoder", "bf16"),
    ],
)
def test_verdicts_name_what_bounds_the_rate_and_what_to_change(profile, verdict, remedy):
    assert profile.verdict().startswith(verdict) and remedy in profile.verdict()


def test_every_section_is_found_and_no_part_is_changed(make):
    run = make("train.epochs=20")
    run.step = 1
    draw = type(run.method.sampler).draw
    profile = measure(run, 2)
    assert profile.seconds.keys() == {*SECTIONS, "the rest"}
    assert profile.total == pytest.approx(sum(profile.seconds.values())) and profile.busy is None
    assert type(run.method.sampler).draw is draw and not run.method.encoder._forward_hooks


def test_modules_of_a_method_have_sections_of_their_names(make):
    run = make("train.epochs=20")
    run.method.teacher = torch.nn.ModuleDict({"encoder": torch.nn.Linear(2, 2)})
    forward = run.method.forward

    def with_teacher(batch, progress):
        run.method.teacher["encoder"](torch.zeros(1, 2))
        return forward(batch, progress)

    run.method.forward = with_teacher
    run.step = 1
    assert "teacher" in measure(run, 2).seconds


def on_two_ranks(*words: object) -> tuple[int, str, str]:
    return finish(start(*words, "--devices", 2))


@pytest.mark.parametrize("command", [sslkit, pytest.param(on_two_ranks, marks=pytest.mark.slow)])
def test_the_command_prints_a_table_and_writes_a_trace_no_run(tiny, tmp_path, command):
    code, out, err = command("train", tiny, "--profile", "--runs", tmp_path / "runs")
    assert (code, err) == (0, "")
    assert (
        out.count("images/s") == 1 and all(name in out for name in SECTIONS) and "-bound: " in out
    )
    (folder,) = (tmp_path / "runs" / "tiny").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["profile.json", "trace.json"]
    numbers = json.loads((folder / "profile.json").read_text())
    assert numbers["images_per_second"] > 0 and numbers["sections"].keys() == {
        *SECTIONS,
        "the rest",
    }
    assert json.loads((folder / "trace.json").read_text())["traceEvents"]


def test_a_profile_of_a_resumed_run_is_refused(tmp_path):
    code, _, err = sslkit("train", "--resume", tmp_path, "--profile")
    assert code == 2 and "it resumes no run" in err
