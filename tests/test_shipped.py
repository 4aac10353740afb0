"""Shipped recipes: found by name, listed, copied; their headers; recipes given as mappings."""

import contextlib
import re
from collections import Counter

import numpy as np
import pytest
from typer.testing import CliRunner

from sslkit import recipe
from sslkit.cli import app
from sslkit.errors import RecipeError
from sslkit.recipe import header, shipped

NAMES = shipped.names()
FOLDERS = shipped.folder()


def sslkit(folder, *arguments):
    """Exit code, stdout and stderr of the command line, run in a folder, 80 columns wide."""
    with contextlib.chdir(folder):
        done = CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "80"})
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


def given(**changes):
    """A valid recipe as a mapping."""
    sections = {
        "method": {"use": "npid"},
        "data": {"use": "shapes"},
        "transform": {"use": "augment", "size": 32},
        "encoder": {"use": "timm", "model": "resnet10t"},
        "heads": {"image": {"use": "linear", "out_dim": 16}},
        "sampler": {"use": "memory_bank"},
        "loss": {"use": "lambda_nce", "lambda": 0.0},
        "optimizer": {"lr": 0.1},
        "train": {"epochs": 1, "batch_size": 8},
    }
    return sections | changes


def faults_of(source):
    with pytest.raises(RecipeError) as caught:
        recipe.read(source)
    return [str(fault) for fault in caught.value.faults]


# ----------------------------------------------------------------------------------- by name


@pytest.mark.parametrize("name", NAMES)
def test_every_way_to_write_a_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = recipe.read(name)
    assert made == recipe.read(f"{name}.yaml") == recipe.read(f"recipes/{name}.yaml")
    assert made == recipe.read(FOLDERS / f"{name}.yaml")
    assert made.name == name.replace("/", "-")


def test_names_of_runs_are_unique():
    counts = Counter(recipe.read(name).name for name in NAMES)
    assert set(counts.values()) == {1}
    assert "name: npid" in recipe.read("npid").as_yaml()


def test_an_existing_file_goes_before_a_shipped_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped.copy("rotnet", "npid")
    (tmp_path / "pirl_jigsaw").mkdir()
    assert recipe.read("npid").method.use == "rotnet"
    assert recipe.read("npid.yaml").method.use == "npid"
    assert recipe.read("pirl_jigsaw").method.use == "pirl", "a folder is no recipe"


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("pirl_jigsw", "did you mean pirl_jigsaw or "),
        ("pirl", "did you mean pirl_jigsaw or pirl_moco or pirl_rotation?"),
        ("imagenet-pirl_jigsaw", "did you mean imagenet/pirl_jigsaw or "),
        ("recipes/rotnt.yaml", "did you mean rotnet?"),
        ("zzzzz", "there is no such file or shipped recipe"),
    ],
)
def test_an_unknown_name_is_one_sentence(tmp_path, text, meant):
    code, out, error = sslkit(tmp_path, "check", text)
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert error.startswith(f"{text}  there is no such file or shipped recipe")
    assert meant in error and "`sslkit recipes` lists the shipped ones" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["check", "train", "plan", "views"])
def test_each_command_that_takes_a_recipe_finds_it_by_name(tmp_path, command):
    code, _, error = sslkit(tmp_path, command, "npdi")
    assert code == 2 and "did you mean npid?" in error
    code, _, error = sslkit(tmp_path, command, "npid", "--set", "train.epochs=0")
    assert code == 2 and error.startswith("--set  train.epochs  expected int")


def test_a_fault_in_a_shipped_recipe_names_it_as_it_was_given(tmp_path):
    code, _, error = sslkit(tmp_path, "check", "npid", "--set", "method.use=jigsaw")
    assert code == 2
    assert re.match(r"npid:\d+ +transform ", error)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("mine.yaml", "mine"),
        ("my recipe (2).yaml", "my_recipe_2_"),
        ("über.yaml", "_ber"),
        ("日本.yaml", "recipe"),
        ("-x.yaml", "x"),
        (f"{'n' * 120}.yaml", "n" * 100),
    ],
)
def test_a_recipe_without_a_name_is_named_after_its_file(tmp_path, file, name):
    path = shipped.copy("imagenet/pirl_jigsaw", str(tmp_path / file))
    made = recipe.read(path)
    assert made.name == name
    again = tmp_path / "again.yaml"
    again.write_text(made.as_yaml(), encoding="utf-8")
    assert recipe.read(again).name == name


# --------------------------------------------------------------------------------- a mapping


def test_a_mapping_is_read_as_its_file_would_be(tmp_path):
    path = tmp_path / "npid.yaml"
    made = recipe.read(given())
    path.write_text(made.as_yaml(), encoding="utf-8")
    assert made == recipe.read(path)
    assert made.name == "npid", "a mapping is named after its method"
    assert recipe.read(given(name="mine")).name == "mine"
    assert recipe.read(recipe.read("pirl_jigsaw").as_dict()) == recipe.read("pirl_jigsaw")


def test_a_mapping_stays_as_it_was():
    sections = given()
    changed = recipe.read(sections, overrides=["train.epochs=7", "loss.use=info_nce"])
    assert (changed.train.epochs, changed.loss.use) == (7, "info_nce")
    assert sections == given()


def test_numbers_and_paths_of_python_are_taken(tmp_path):
    train = {"epochs": np.int64(3), "batch_size": 8, "clip_grad": np.float32(0.5)}
    data = {"use": "image_folder", "root": tmp_path}
    made = recipe.read(given(train=train, data=data))
    assert (made.train.epochs, made.train.clip_grad) == (3, 0.5)
    assert str(made.data.options["root"]) == str(tmp_path)


def test_faults_of_a_mapping_have_a_key_and_no_line():
    wrong = given(loss={"use": "lambda_nce", "temprature": 0.1}, train={"epochs": 0})
    assert faults_of(wrong) == [
        "the given mapping  loss.temprature  no such option of lambda_nce; did you mean "
        "'temperature'?",
        "the given mapping  train.batch_size  train needs the option 'batch_size' (int ≥ 1). "
        "Images per step, over all devices. PIRL: 1,024.",
        "the given mapping  train.epochs  expected int ≥ 1, got 0. Passes over the data, "
        "usually 100 to 800. PIRL: 800.",
    ]


nested: dict = {}
nested["deeper"] = nested


@pytest.mark.parametrize(
    ("changes", "start"),
    [
        ({"train": {"epochs": {3}}}, "the given mapping  train.epochs  is of type set; give text"),
        ({"encoder": nested}, "the given mapping  encoder.deeper.deeper"),
        ({"train": {1: 2}}, "the given mapping  train  the key 1 is not text"),
        ({"optimizer": {"lr": float("nan")}}, "the given mapping  optimizer.lr  nan is not"),
        ({"optimizer": {"lr": 10**30}}, "the given mapping  optimizer.lr  1000000000000000000"),
        ({"name": "\ud800"}, "the given mapping  name  '\\ud800' is no Unicode text"),
        ({"method": "npid"}, "the given mapping  method  'npid' is not of the form {use: NAME"),
    ],
)
def test_what_no_file_can_hold_is_refused(changes, start):
    assert faults_of(given(**changes))[0].startswith(start)


def test_an_empty_mapping():
    assert faults_of({})[0].startswith("the given mapping  is empty; a recipe needs the sections")


# --------------------------------------------------------------------------- sslkit recipes


def test_recipes_lists_what_each_header_says(tmp_path):
    code, out, error = sslkit(tmp_path, "recipes")
    assert (code, error) == (0, "")
    paragraphs = {}
    for paragraph in out.strip().split("\n\n"):
        name, *lines = paragraph.split("\n")
        paragraphs[name] = " ".join(" ".join(lines).split())
    assert list(paragraphs)[:-1] == NAMES
    for name in NAMES:
        said = shipped.header(name)
        for value in (said.title, said.data, said.budget, said.expected, said.citation):
            assert " ".join(value.split()) in paragraphs[name]
        assert f" method {recipe.read(name).method.use} " in paragraphs[name]


def test_show_prints_the_file(tmp_path):
    code, out, _ = sslkit(tmp_path, "recipes", "show", "imagenet/pirl_jigsaw")
    assert (code, out) == (0, (FOLDERS / "imagenet" / "pirl_jigsaw.yaml").read_text("utf-8"))


def test_a_copy_is_named_after_its_file(tmp_path):
    code, out, error = sslkit(tmp_path, "recipes", "copy", "pirl_jigsaw", "mine.yaml")
    assert (code, out, error) == (0, "written: mine.yaml\nnext: sslkit check mine.yaml\n", "")
    text = (tmp_path / "mine.yaml").read_text("utf-8")
    assert "# command:  sslkit train mine.yaml\n" in text
    assert recipe.read(tmp_path / "mine.yaml").name == "mine"
    code, out, _ = sslkit(tmp_path, "check", "mine.yaml", "--quick")
    assert code == 0 and out.startswith("mine.yaml is valid")


@pytest.mark.parametrize("name", NAMES)
def test_copies_differ_in_name_and_command_alone(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = shipped.copy(name)
    assert path.name == f"{name.rpartition('/')[2]}.yaml"
    text = path.read_text("utf-8")
    assert header.read(text).command == shipped.header(name).command.replace(name, path.name)
    copied, original = recipe.read(path).as_dict(), recipe.read(name).as_dict()
    assert copied | {"name": ""} == original | {"name": ""}


def test_a_copy_never_overwrites(tmp_path):
    (tmp_path / "mine.yaml").write_text("mine")
    (tmp_path / "nowhere.yaml").symlink_to("absent")
    for name in ("mine.yaml", "nowhere.yaml"):
        code, _, error = sslkit(tmp_path, "recipes", "copy", "npid", name)
        assert code == 2
        assert error == f"{name}  exists, and nothing is overwritten; name another file\n"
    assert (tmp_path / "mine.yaml").read_text() == "mine"
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["npid", "a b/mine.yaml"], "the folder a b does not exist; make it: mkdir -p 'a b'"),
        (["npid", "."], ".  is a folder; name a file in it, such as npid.yaml"),
        (["npdi"], "npdi  no recipe of that name is shipped; did you mean npid? `sslkit recipes`"),
        (["npid", ""], "DEST  the path is empty"),
        (["npid", "x" * 300], "cannot be written: "),
    ],
)
def test_a_copy_that_cannot_be_made(tmp_path, arguments, sentence):
    code, out, error = sslkit(tmp_path, "recipes", "copy", *arguments)
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert sentence in error
    assert not list(tmp_path.iterdir())


def test_a_file_name_cannot_leave_the_comment(tmp_path):
    path = shipped.copy("npid", str(tmp_path / "a\nb: c.yaml"))
    assert recipe.read(path).method.use == "npid"


# ------------------------------------------------------------------------------------ headers


@pytest.mark.parametrize("name", NAMES)
def test_every_header_has_one_form(name):
    text = shipped.text(name)
    said = header.read(text)
    assert 20 <= len(said.title) <= 98 and said.title.endswith(".")
    assert re.search(r"\b(19|20)\d\d, \".+\", arXiv:\d{4}\.\d{4,5}", said.paper)
    assert said.command.startswith(f"sslkit train {name}")
    assert said.data and said.budget and said.expected
    assert re.search(r"minutes|hours|days|epochs", said.budget)
    assert re.search(r"\d %.* \(measured, \d seeds?, \d{4}-\d\d-\d\d\)", said.expected) or (
        (
            re.search(r": .*\d\d\.\d+ %|^no number published", said.expected)
            and "not measured" in said.expected
        )
        or said.expected == "not measured yet"
    )
    fields = [line.partition(":")[0] for line in header.lines(text)[1:] if re.match(r"\w+: ", line)]
    assert fields == list(header.FIELDS)
    assert max(map(len, text.splitlines())) <= 100


def test_a_header_is_read_by_paragraphs_and_fields():
    text = '# A title\n# in two lines.\n#\n# paper:    A & B 2020, "T",\n#           arXiv:1\n#\n'
    said = header.read(f"{text}# data: ours\n# a note: no field\n\n# not of the header\nname: x\n")
    assert (said.title, said.data) == ("A title in two lines.", "ours")
    assert (said.paper, said.citation) == ('A & B 2020, "T", arXiv:1', "A & B 2020, arXiv:1")
    assert header.read("name: x\n") == header.Header("")
