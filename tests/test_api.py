"""`import sslkit`: the public names, what they return, how they fail and stop."""

import importlib
import importlib.util
import inspect
import os
import pkgutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from noise import NPID
from PIL import Image
from test_evaluate import paint

import sslkit
from sslkit import recipe
from sslkit.runs import checkpoint, folders
from sslkit.training import build

FUNCTIONS = ("embed", "evaluate", "load", "plan_evaluation", "read_recipe", "train")
SNIPPET = """\
import sslkit

run = sslkit.train("pirl_jigsaw", data="photos", overrides=["train.epochs=20"])
run = sslkit.load("runs/pirl_jigsaw/latest")
names, labels, vectors = sslkit.embed(run, "photos")
result = sslkit.evaluate(run, "linear", data="labelled")
recipe = sslkit.read_recipe("pirl_jigsaw")
"""
TYPES = """\
reveal_type(run)
reveal_type(names)
reveal_type(vectors)
reveal_type(result.score().value)
reveal_type(recipe)
reveal_type(run.encoder())
"""


def python(code: str, *words: object, cwd: Path | None = None) -> str:
    """Run a program in a process of its own; return what it printed."""
    ran = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def painted(tmp_path_factory) -> Path:
    """Thirty images of three classes."""
    return paint(tmp_path_factory.mktemp("painted"), 10)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, painted) -> Path:
    """A run folder of one epoch."""
    root = tmp_path_factory.mktemp("runs")
    source = root / "evaluated.yaml"
    source.write_text(NPID.format(root=painted))
    return sslkit.train(source, runs=root, progress=False).folder


@pytest.fixture
def tiny(tmp_path, painted) -> dict:
    """A recipe as a dict: one epoch of seven steps."""
    path = tmp_path / "tiny.yaml"
    path.write_text(NPID.format(root=painted))
    return sslkit.read_recipe(path).as_dict()


# ---------------------------------------------------------------------------- the public names


def test_the_public_names_are_these():
    assert sslkit.__all__ == [
        "Embeddings",
        "EvaluationPlan",
        "EvaluationResult",
        "Recipe",
        "RecipeError",
        "SslkitError",
        "TrainedRun",
        "__version__",
        "embed",
        "evaluate",
        "load",
        "plan_evaluation",
        "read_recipe",
        "train",
    ]
    assert set(sslkit.__all__) <= set(dir(sslkit))
    assert all(getattr(sslkit, name) is not None for name in sslkit.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'evalute'"):
        _ = sslkit.evalute


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_is_documented_and_typed(name):
    function = getattr(sslkit, name)
    parameters = inspect.signature(function).parameters.values()
    assert all(one.annotation is not inspect.Parameter.empty for one in parameters)
    text = inspect.getdoc(function)
    assert "Args:" in text and "Raises:" in text
    described = [one.name for one in parameters if f"    {one.name}: " not in text]
    assert not described


def test_import_and_read_recipe_load_no_torch():
    code = (
        "import sys, sslkit; dir(sslkit); callable(sslkit.train); sslkit.SslkitError\n"
        "sslkit.read_recipe('pirl_jigsaw')\n"
        "print(sorted({'torch', 'timm', 'matplotlib', 'sslkit_plugins'} & set(sys.modules)))"
    )
    assert python(code).strip() == "[]"


def test_functions_stay_callable_whatever_was_imported():
    """A module of the same name below `sslkit` would take the function's place."""
    beside = {module.name for module in pkgutil.iter_modules(sslkit.__path__)}
    assert not beside & set(sslkit.__all__)
    for found in pkgutil.walk_packages(sslkit.__path__, "sslkit."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
    assert all(callable(getattr(sslkit, name)) for name in FUNCTIONS)


@pytest.mark.slow
def test_mypy_sees_the_types_of_a_users_snippet(tmp_path):
    if importlib.util.find_spec("mypy") is None:
        pytest.skip("mypy is not installed")
    (tmp_path / "snippet.py").write_text(SNIPPET + TYPES + "sslkit.embed(3)\nsslkit.evalute\n")
    words = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", "cache", "snippet.py"]
    ran = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    for revealed in (
        "sslkit.runs.trained.TrainedRun",
        "numpy.str_",
        "numpy.dtype[numpy.float",
        '"float"',
        "sslkit.recipe.contents.Recipe",
        "sslkit.interfaces.networks.Encoder",
    ):
        assert revealed in ran.stdout
    assert 'incompatible type "int"' in ran.stdout
    assert 'no attribute "evalute"' in ran.stdout
    assert "Found 2 errors" in ran.stdout


def test_the_wheel_says_that_it_is_typed():
    assert (Path(sslkit.__file__).parent / "py.typed").exists()


# ----------------------------------------------------------------------------------- what it does


def test_the_five_lines_work_as_they_are_written(tmp_path, tiny, monkeypatch):
    """The lines of the documentation, with a smaller recipe of that name."""
    paint(tmp_path / "photos", 3)
    paint(tmp_path / "labelled", 10)
    small = recipe.read({**tiny, "name": "pirl_jigsaw"})
    (tmp_path / "pirl_jigsaw").write_text(small.as_yaml())
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    exec(SNIPPET, found)
    assert found["run"].recipe.train.epochs == 20
    assert found["vectors"].shape == (9, found["run"].encoder().dim)
    assert found["labels"].tolist() == ["blue"] * 3 + ["green"] * 3 + ["red"] * 3
    assert isinstance(found["result"], sslkit.EvaluationResult)
    assert isinstance(found["recipe"], sslkit.Recipe)


def test_read_recipe_takes_name_path_dict_and_recipe(tmp_path, tiny):
    path = tmp_path / "own.yaml"
    path.write_text(sslkit.read_recipe(tiny).as_yaml())
    read = [sslkit.read_recipe(one) for one in (tiny, path, str(path), sslkit.read_recipe(path))]
    assert all(one == read[0] for one in read)
    assert sslkit.read_recipe("npid", overrides=["train.epochs=3"]).train.epochs == 3
    with pytest.raises(sslkit.RecipeError, match="did you mean 'epochs'"):
        sslkit.read_recipe(tiny, overrides=["train.epoch=3"])


def test_a_run_tells_what_it_is(trained):
    run = sslkit.load(trained)
    assert (run.folder, run.step, run.steps, run.size) == (trained, 7, 7, 32)
    assert repr(run) == f"<run {trained}: npid, test_resnet, step 7 of 7>"
    assert run.recipe.method.use == "npid"
    assert run.metrics["step"].tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert run.metrics["loss"].dtype == np.float64
    assert not run.encoder().training
    assert sslkit.load(str(trained)).step == sslkit.load(run).step == 7


def test_encoder_and_transform_give_the_vectors_of_embed(trained, painted):
    run = sslkit.load(trained)
    names, _, vectors = sslkit.embed(run, painted, workers=0, progress=False)
    images = torch.stack([run.transform(Image.open(painted / name)) for name in names])
    with torch.no_grad():
        features = run.encoder()(images).numpy()
    assert images.shape == (30, 3, 32, 32)
    np.testing.assert_allclose(features, vectors, atol=1e-5)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_the_transform_takes_images_of_any_mode(trained, mode):
    image = Image.new("RGB", (50, 40), (200, 100, 50)).convert(mode)
    assert sslkit.load(trained).transform(image).shape == (3, 32, 32)


def test_the_transform_refuses_arrays_of_another_kind(trained):
    run = sslkit.load(trained)
    assert run.transform(np.zeros((40, 40, 3), np.uint8)).shape == (3, 32, 32)
    with pytest.raises(sslkit.SslkitError, match=r"uint8 \[H,W,3\].* float64 \[40, 40, 3\]"):
        run.transform(np.zeros((40, 40, 3)))


def test_evaluate_takes_options_of_the_evaluation(trained, painted):
    result = sslkit.evaluate(trained, "knn", k=3, data=painted, workers=0, progress=False)
    assert (result.evaluation, result.protocol["k"]) == ("knn", 3)
    assert result.score() == result.score("top-1", "trained")
    assert result.score("top-1", "chance").value == pytest.approx(1 / 3)
    assert [interval.of for interval in result.score().intervals] == ["6 images"]
    shown = str(result)
    assert shown.startswith("knn: 24 training and 6 validation images, 3 classes\n\n")
    assert "trained" in shown and "raw pixels" in shown and "95 % CI over 6 images" in shown
    with pytest.raises(sslkit.SslkitError, match="no score 'top-9' of 'trained'"):
        result.score("top-9")
    assert not (trained / "eval").exists()


def test_an_evaluation_is_planned_with_the_same_arguments(trained, painted, tmp_path, capfd):
    options = {"preset": "moco", "epochs": 2, "data": painted, "workers": 0, "progress": False}
    plan = sslkit.plan_evaluation(trained, "linear", **options, out=tmp_path / "out")
    assert 0 < plan.seconds < 600 and plan.memory > 0 and plan.disk == 0
    lines = dict(plan.lines)
    assert lines["rows"] == "24 training and 6 validation images, 3 classes"
    assert "(2 passes over the training images)" in lines["time of further passes"]
    assert str(plan).startswith("rows                           24 training and 6")
    assert not (tmp_path / "out").exists() and capfd.readouterr() == ("", "")


def test_a_plan_refuses_what_the_evaluation_refuses(trained):
    with pytest.raises(sslkit.RecipeError, match=r"neighbours  no such option of knn"):
        sslkit.plan_evaluation(trained, "knn", neighbours=3)
    with pytest.raises(sslkit.SslkitError, match="no such folder or file"):
        sslkit.plan_evaluation(trained, "knn", data="nowhere")
    with pytest.raises(sslkit.RecipeError, match="evaluation  3 is not a name"):
        sslkit.plan_evaluation(trained, 3)


def test_evaluate_measures_an_encoder_and_writes_on_request(painted, tmp_path):
    result = sslkit.evaluate(
        "timm:test_resnet",
        "knn",
        data=painted,
        weights="none",
        size=32,
        workers=0,
        out=tmp_path / "out",
        progress=False,
    )
    assert result.entries[0].candidate == "timm:test_resnet"
    assert (tmp_path / "out" / "knn.json").exists() and (tmp_path / "out" / "knn.png").exists()


def test_embed_takes_an_encoder_by_name(painted):
    found = sslkit.embed(
        "timm:test_resnet", painted, weights="none", size=32, workers=0, progress=False
    )
    assert found.vectors.shape == (30, 96) and found.vectors.dtype == np.float32
    assert np.isfinite(found.vectors).all()


def test_progress_false_prints_nothing(tiny, tmp_path, painted, capfd):
    run = sslkit.train(tiny, run=tmp_path / "run", progress=False)
    sslkit.embed(run, painted, progress=False)
    sslkit.evaluate(run, "knn", progress=False)
    assert capfd.readouterr() == ("", "")


def test_progress_prints_as_in_the_terminal(tiny, tmp_path, capfd):
    run = sslkit.train(tiny, run=tmp_path / "run")
    out, _ = capfd.readouterr()
    assert "data: training on" in out and "step 7/7" in out and "health: " in out
    sslkit.train(tiny, run=run.folder)
    assert "is complete: 7 steps done; nothing to do" in capfd.readouterr().out


def test_train_works_twice_and_in_a_thread(tiny, tmp_path):
    runs = []

    def work(name: str) -> None:
        runs.append(sslkit.train(tiny, run=tmp_path / name, progress=False))

    work("one")
    thread = threading.Thread(target=work, args=("two",))
    thread.start()
    thread.join()
    first, second = (checkpoint.newest(run.folder)[0] / "method.safetensors" for run in runs)
    assert first.read_bytes() == second.read_bytes()


# ------------------------------------------------------------------------------- errors and Ctrl-C


@pytest.mark.parametrize(
    ("words", "options", "message"),
    [
        (("nowhere", "knn"), {}, "nowhere is not a run folder: it does not exist"),
        (("RUN", "kn"), {}, "did you mean 'knn'"),
        (("RUN", "knn"), {"kk": 3}, "kk  no such option of knn; did you mean 'k'"),
        (("RUN", "knn"), {"siz": 3}, "siz  no such option of knn; did you mean 'size'"),
        (("RUN", "knn"), {"size": 0}, "size  expected int ≥ 1, got 0"),
        (("RUN", "knn"), {"workers": -1}, "workers  expected int ≥ 0"),
        (("RUN", "knn"), {"device": "gpu"}, "device  expected auto, cpu, cuda or mps"),
        (("RUN", "knn"), {"overrides": "data.x=1"}, "is not a list such as"),
        (("RUN", "knn"), {"k": "many"}, "k  expected"),
        (("IMAGES", "knn"), {}, "is no run folder .it holds no recipe.yaml."),
        (("timm:no_such", "knn"), {"data": "IMAGES"}, "no_such"),
        (("timm:test_resnet", "knn"), {}, "needs images"),
    ],
    ids=[
        "no_run",
        "misspelt_evaluation",
        "misspelt_option",
        "misspelt_size",
        "size_0",
        "negative_workers",
        "unknown_device",
        "text_as_overrides",
        "text_as_k",
        "images_as_run",
        "unknown_model",
        "no_images",
    ],
)
def test_evaluate_refuses_with_one_sentence(words, options, message, trained, painted):
    places = {"RUN": trained, "IMAGES": painted}
    options = {name: places.get(value, value) for name, value in options.items()}
    with pytest.raises(sslkit.SslkitError, match=message):
        sslkit.evaluate(*[places.get(word, word) for word in words], **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run: sslkit.load("nowhere"), "is not a run folder"),
        (lambda run: sslkit.train("pirl_jigsav"), "did you mean"),
        (lambda run: sslkit.train({"method": {"use": "pirl"}}), "a recipe needs this section"),
        (lambda run: sslkit.embed(run, "nowhere"), "there is no such folder or file"),
        (lambda run: sslkit.embed(run, split="test"), "expected all, train or val"),
        (lambda run: sslkit.embed(run, split="val"), "no separate validation images"),
        (lambda run: sslkit.read_recipe(3), "source  3 is neither a name, a path, a dict nor"),
        (lambda run: sslkit.train("npid", overrides="a.b=1"), "overrides  .* is not a list"),
        (lambda run: sslkit.train("npid", overrides=[3]), "overrides  .* is not a list"),
        (lambda run: sslkit.train("npid", data=3), "data  3 is not a path"),
        (lambda run: sslkit.train("npid", run="a", runs="b"), "leave out one of 'run' and 'runs'"),
        (lambda run: sslkit.load(3), "run  3 is not a path"),
        (lambda run: sslkit.embed(3, "photos"), "run  3 is neither a run nor a path"),
        (lambda run: sslkit.embed(run, 3), "data  3 is not a path"),
        (lambda run: sslkit.evaluate(run, None), "evaluation  null is not a name"),
    ],
    ids=[
        *("load", "name", "dict", "data", "split", "no val", "source", "text", "number", "place"),
        *("both", "load type", "run type", "data type", "evaluation"),
    ],
)
def test_errors_are_exceptions_of_one_family(call, message, trained):
    with pytest.raises(sslkit.SslkitError, match=message):
        call(trained)


STOPPED = """\
import pathlib, sys, sslkit
source, folder = sys.argv[1:]
try:
    sslkit.train(source, run=folder, overrides=["train.epochs=500"])
except KeyboardInterrupt as stopped:
    print("stopped:", stopped)
    print(sslkit.load(folder).step > 0)
"""


def test_ctrl_c_saves_and_raises_keyboard_interrupt(tmp_path, painted):
    source, folder = tmp_path / "long.yaml", tmp_path / "run"
    source.write_text(NPID.format(root=painted))
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPED, str(source), str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    while process.poll() is None and not (folder / "metrics.jsonl").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert f"stopped: training was stopped; go on with sslkit.train(…, run='{folder}')" in out
    assert out.endswith("True\n") and "Traceback" not in err


# ------------------------------------------------------------------------------- the loop by itself


def test_a_run_saved_by_the_users_own_loop_is_loaded(tiny, tmp_path):
    made = recipe.read(tiny)
    run, folder = build.build(made), tmp_path / "own"
    folder.mkdir()
    folders.keep_recipe(folder, made)
    checkpoint.save(run, folder)
    assert sslkit.load(folder).step == 0
