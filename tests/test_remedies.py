"""Sentences whose remedy was tried: few images, odd channels, invisible characters, old
pictures.
"""

import shlex
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, sslkit

from sslkit import console, recipe
from sslkit.data.loader import check_fills
from sslkit.errors import DataError, RecipeError
from sslkit.recipe.document import Document, Dumper


def archive(place: Path, count: int, channels: int = 3) -> Path:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 36, 36, channels), dtype=np.uint8)
    np.savez(place, images=images, labels=np.arange(count) % 2)
    return place


# -------------------------------------------------------------------------------- few images


@pytest.mark.parametrize("count", [2, 3, 7])
def test_the_remedy_for_few_images_trains(tiny, tmp_path, count):
    words = ["train", tiny, "--data", archive(tmp_path / "few.npz", count), "--set"]
    words += ["train.epochs=1", "--runs", tmp_path / "runs"]
    code, _, err = sslkit(*words)
    assert code == 2 and f"{count} images do not fill a batch of 8; use smaller" in err
    remedy = shlex.split(err.split("use smaller batches: ")[1])
    code, _, err = sslkit(*words, *remedy)
    assert code == 0, err


@pytest.mark.parametrize("batch", ["8", "2"])
def test_one_image_is_told_what_it_needs(tiny, tmp_path, batch):
    one = archive(tmp_path / "one.npz", 1)
    code, _, err = sslkit("train", tiny, "--data", one, "--set", f"train.batch_size={batch}")
    assert code == 2
    assert err == (
        f"1 image does not fill a batch of {batch}; at least 2 are needed; name a larger data "
        "set: --data PATH\n"
    )
    code, _, err = sslkit("train", tiny, "--data", one, "--set", "train.batch_size=1")
    assert code == 2 and "needs at least 2 images, but the data set has 1; name a larger one" in err


@pytest.mark.parametrize(
    "images, batch, shares, remedy",
    [
        (5, 8, 1, "train.batch_size=4"),
        (9, 32, 1, "train.batch_size=8"),
        (30, 64, 4, "train.batch_size=16"),
        (5, 8, 2, "train.batch_size=4"),
        (7, 16, 4, "at least 8 are needed; name a larger data set"),
    ],
)
def test_smaller_batches_are_shared_by_all_ranks(images, batch, shares, remedy):
    with pytest.raises(DataError, match=remedy):
        check_fills(images, batch, shares)


# ---------------------------------------------------------------------------------- channels


@pytest.mark.parametrize("command", ["train", "plan"])
def test_faults_of_five_channels_come_at_once(tiny, tmp_path, command):
    five = archive(tmp_path / "five.npz", 16, channels=5)
    words = [command, tiny, "--data", five, "--set", "transform.colours=official"]
    code, _, err = sslkit(*words)
    assert code == 2
    assert [line.split()[0] for line in err.splitlines()] == ["transform.colours", "encoder.mean"]
    values = "[0.5, 0.5, 0.5, 0.5, 0.5]"
    remedies = ["transform.colours=none", f"encoder.mean={values}", f"encoder.std={values}"]
    words += [word for remedy in remedies for word in ("--set", remedy)]
    words += ["--runs", tmp_path / "runs"] if command == "train" else []
    code, _, err = sslkit(*words)
    assert code == 0, err


# ------------------------------------------------------------------------------------- check


def test_check_tries_the_parts(tiny, monkeypatch):
    monkeypatch.chdir(tiny.parent)
    code, out, err = sslkit("check", "tiny.yaml", "--set", "transform.patch=14")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == (
        "every part takes a step on generated images; next: sslkit train tiny.yaml --set "
        "transform.patch=14"
    )
    code, out, err = sslkit("check", "tiny.yaml", "--set", "transform.patch=30")
    assert (code, out) == (2, "") and err.startswith("--set  transform.patch  30 pixels do not fit")


def test_check_places_a_fault_of_a_part_in_the_file(tiny):
    tiny.write_text(tiny.read_text().replace("patch: 12", "patch: 30"))
    code, _, err = sslkit("check", tiny)
    assert code == 2 and err.startswith(f"{tiny}:4  transform.patch  30 pixels do not fit")


def test_a_quick_check_says_what_it_does_not_try(tiny, monkeypatch):
    monkeypatch.chdir(tiny.parent)
    code, out, err = sslkit("check", "tiny.yaml", "--quick", "--set", "transform.patch=30")
    assert (code, err) == (0, "")
    line = out.splitlines()[-1]
    assert line == ("the parts are not tried; next: sslkit plan tiny.yaml --set transform.patch=30")
    code, _, err = sslkit(*shlex.split(line.split("next: ")[1])[1:])
    assert code == 2 and "transform.patch  30 pixels do not fit" in err


def test_check_downloads_nothing_and_needs_no_gpu(tiny, monkeypatch):
    def refuse(*given, **named):
        raise AssertionError("a download")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr("sslkit_plugins.encoders.initial.downloaded", refuse)
    words = ["data={use: cifar10, download: true}", "encoder.weights=timm", "train.device=cuda"]
    code, out, err = sslkit("check", tiny, *(word for one in words for word in ("--set", one)))
    assert code == 0 and "every part takes a step" in out, err


def test_check_tries_the_evaluations_while_training(tiny):
    code, out, err = sslkit("check", tiny, "--set", "train.evaluate={knn: {}}")
    assert (code, out) == (2, "") and "train.evaluate.knn" in err and "have no labels" in err


def test_check_names_paths_that_are_not_here(tiny):
    words = ("--set", "data.root=gone", "--set", "encoder.weights=gone.safetensors")
    code, out, err = sslkit("check", tiny, *words)
    assert code == 0 and "is valid" in out
    assert err.splitlines() == [
        "data.root  gone is not on this machine",
        "encoder.weights  gone.safetensors is not on this machine",
    ]
    words = ("--quick", "--set", "encoder.weights=timm")
    assert sslkit("check", tiny, *words)[2] == "", "a word, no path"


def test_advice_that_asks_ends_its_sentence(tiny):
    _, _, err = sslkit("check", tiny, "--set", "loss.use=lambda_nc")
    assert "did you mean 'lambda_nce'? If a package should bring it" in err
    _, _, err = sslkit("check", tiny, "--set", "transform.colours=officia")
    assert "did you mean 'official'? " in err and "?." not in err and "?;" not in err


# -------------------------------------------------------------------------------- characters

INVISIBLE = ["\x85", "\u2028", "\u2029", "\ufeff", "\u200b", "\u202e", "\xa0", "\x7f", "\x1b"]


@pytest.mark.parametrize("character", INVISIBLE, ids=lambda c: f"{ord(c):04x}")
def test_a_path_with_an_invisible_character_is_written_and_read(tiny, tmp_path, character):
    folder = tmp_path / f"photos{character}of a {character} trip{character}"
    folder.mkdir()
    found = recipe.read(tiny, data=str(folder))
    (tmp_path / "written.yaml").write_text(found.as_yaml(), encoding="utf-8")
    assert recipe.read(tmp_path / "written.yaml").data.options["root"] == str(folder)


@pytest.mark.parametrize(
    "character", ["\x85", "\u2028", "\u2029", "\ufeff", "\0", "\x1b", "\ud800"]
)
def test_what_yaml_would_change_in_silence_is_refused_or_kept(tiny, character):
    for value in (f"a{character}b", f"'a{character}b'", f'"a{character}b"', f"{character}a"):
        try:
            found = recipe.read(tiny, overrides=[f"data.root={value}"]).data.options["root"]
        except RecipeError as error:
            assert len(error.faults) == 1 and error.faults[0].file == "--set"
        else:
            assert found == value.strip("'\"")


def test_the_escape_that_the_sentence_names_works(tiny):
    with pytest.raises(RecipeError) as caught:
        recipe.read(tiny, overrides=["data.root=a\x85b"])
    assert "holds the character U+0085" in str(caught.value)
    assert 'write it as "\\u0085" in double quotes' in str(caught.value)
    escaped = recipe.read(tiny, overrides=['data.root="a\\u0085b"'])
    assert escaped.data.options["root"] == "a\x85b"


@pytest.mark.parametrize("character", ["\x85", "\u2028"])
def test_a_file_with_such_a_character_is_told(character):
    assert "U+" in Document(f"a: b{character}c").faults[0][2]
    assert Document(f"# a{character}\na: b").value == {"a": "b"}, "a comment may hold it"


def test_the_dumper_knows_all_line_breaks():
    import yaml

    for code in range(0x3000):
        text = yaml.dump({"k": [f"a {chr(code)} b"]}, Dumper=Dumper, allow_unicode=True)
        if not 0xD800 <= code < 0xE000:
            assert Document(text).value == {"k": [f"a {chr(code)} b"]}


# ----------------------------------------------------------------------------------- pictures


def test_views_keep_older_pictures(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("views", tiny, "--images", 1, "--draws", 1)
    Path("views.png").write_text("mine")
    assert sslkit(*words)[1].splitlines()[-1] == "written: views-2.png"
    assert sslkit(*words)[1].splitlines()[-1] == "written: views-3.png"
    assert Path("views.png").read_text() == "mine"
    assert sslkit(*words, "--out", "views.png")[1].splitlines()[-1] == "written: views.png"
    assert Path("views.png").read_bytes()[:4] == b"\x89PNG", "named, so replaced"


def test_tables_are_not_padded(capsys):
    console.print_table(("what", "how much"), [("one", "1"), ("a longer one", "2")], title="All")
    out = capsys.readouterr().out
    assert "a longer one" in out
    assert all(line == line.rstrip() for line in out.splitlines())


def test_the_recipe_of_a_run_may_be_given_to_train(tiny, tmp_path):
    """What the sentence about --set at a resume names."""
    (tmp_path / "run.yaml").write_text(recipe.read(tiny).as_yaml())
    assert sslkit("check", tmp_path / "run.yaml", "--quick", "--set", "train.epochs=9")[0] == 0
    assert TINY.split("\n")[0] in (tmp_path / "run.yaml").read_text()
