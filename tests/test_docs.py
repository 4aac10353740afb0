"""What is written down is true: recipes are valid and trainable in principle, the reference is
current, commands exist.
"""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from sslkit import recipe
from sslkit.cli import app
from sslkit.recipe import registry

ROOT = Path(__file__).parent.parent
RECIPES = sorted(ROOT.glob("recipes/**/*.yaml"))
FENCED = re.MULTILINE | re.DOTALL
PAGES = sorted([*ROOT.glob("docs/*.md"), ROOT / "README.md", *ROOT.glob("recipes/**/*.yaml")])


def test_there_are_recipes():
    names = {str(path.relative_to(ROOT / "recipes")) for path in RECIPES}
    assert {
        "pirl_jigsaw.yaml",
        "pirl_rotation.yaml",
        "npid.yaml",
        "jigsaw.yaml",
        "rotnet.yaml",
    } <= names
    assert {
        f"imagenet/pirl_{name}.yaml"
        for name in ("jigsaw", "rotation", "jigsaw_rotation", "jigsaw_mlp")
    } <= names


@pytest.mark.parametrize("name", ["jigsaw", "rotation", "jigsaw_rotation"])
def test_full_size_recipes_hold_the_papers_settings(name):
    """The paper, supplement A, and VISSL's configurations."""
    made = recipe.read(ROOT / "recipes" / "imagenet" / f"pirl_{name}.yaml")
    assert made.encoder.options["model"] == "resnet50"
    assert made.sampler.options["negatives"] == 32_000 and made.sampler.options["momentum"] == 0.5
    assert made.loss.options == {"lambda": 0.5, "temperature": 0.07, "form": "official"}
    assert (made.optimizer.use, made.optimizer.lr) == ("sgd", 0.12)
    assert made.optimizer.options["momentum"] == 0.9
    assert not made.optimizer.options.get("nesterov", False)
    assert made.optimizer.weight_decay == 1e-4 and made.optimizer.exempt_norms_and_biases
    assert (made.schedule.use, made.schedule.final_lr, made.schedule.per) == (
        "cosine",
        1.2e-4,
        "epoch",
    )
    assert (made.train.epochs, made.train.batch_size) == (800, 1024)
    assert made.transform.options["size"] == 224 and made.transform.options["colours"] == "official"
    if "jigsaw" in name:
        assert (
            made.transform.options["resize"],
            made.transform.options["patch"],
            made.transform.options["grid"],
        ) == (255, 64, 3)


@pytest.mark.parametrize("path", sorted(ROOT.glob("recipes/*.yaml")), ids=lambda path: path.name)
def test_small_recipes_are_evaluated_at_the_size_they_train_at(path):
    assert recipe.read(path).transform.options["size"] == 64


def test_reference_is_current():
    ran = subprocess.run(
        [sys.executable, ROOT / "scripts" / "reference.py", "--check"], check=False
    )
    assert ran.returncode == 0, "run: python scripts/reference.py"


METHOD_PAGES = sorted(ROOT.glob("docs/methods/*.md"))
OURS = sorted(part.name for part in registry.parts("methods") if part.distribution == "sslkit")


def links(page):
    """Return the links of a page within the repository: file and anchor."""
    text = re.sub(r"^```\w*\n.*?^```$", "", page.read_text(encoding="utf-8"), flags=FENCED)
    return re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", text)


@pytest.mark.parametrize("name", OURS)
def test_every_method_has_a_page(name):
    page = ROOT / "docs" / "methods" / f"{name}.md"
    assert page.exists()
    text = page.read_text(encoding="utf-8")
    for section in ("What it learns from", "Loss", "In code", "Numbers"):
        assert f"\n## {section}\n" in text
    assert "<!-- source sslkit_plugins." in text and "<!-- expected " in text
    assert (f"{name}.md", "") in links(page.parent / "README.md")


@pytest.mark.parametrize("page", METHOD_PAGES, ids=lambda page: page.stem)
def test_pages_of_methods_have_valid_links(page):
    for file, anchor in links(page):
        target = page.parent / file if file else page
        assert target.exists(), file
        if lines := re.fullmatch(r"L(\d+)-L(\d+)", anchor):
            count = len(target.read_text(encoding="utf-8").splitlines())
            assert 0 < int(lines[1]) <= int(lines[2]) <= count


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<!-- source a -->\n", "<!-- source a --> has no pair"),
        ("<!-- end expected -->\n", "<!-- end expected --> has no pair"),
        ("<!-- source sslkit.nothing:f -->\n<!-- end source -->\n", "there is no module"),
        ("<!-- source sslkit.errors:nothing -->\n<!-- end source -->\n", "defines no nothing"),
        ("<!-- expected nothing -->\n<!-- end expected -->\n", "no recipe uses the method"),
    ],
)
def test_markers_of_pages_are_checked(blocks, text, said):
    with pytest.raises(blocks.MarkerError, match=said):
        blocks.filled(text, ROOT / "docs" / "methods" / "x.md")


def test_blocks_of_pages_hold_source_and_recipes(blocks):
    text = "<!-- source sslkit_plugins.methods.npid:Npid -->\n<!-- end source -->\n"
    text += "<!-- expected pirl -->\nold\n<!-- end expected -->\n"
    page = ROOT / "docs" / "methods" / "x.md"
    filled = blocks.filled(text, page)
    assert "```python\nclass Npid(Pirl):\n" in filled
    assert "(../../plugins/sslkit_plugins/methods/npid.py#L" in filled
    assert "[`imagenet/pirl_jigsaw`](../../recipes/imagenet/pirl_jigsaw.yaml)" in filled
    assert "old" not in filled and blocks.filled(filled, page) == filled


@pytest.fixture
def blocks(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module("method_blocks")


def code_of(page):
    """Return the blocks of code of a page of markdown; other files in full."""
    text = page.read_text(encoding="utf-8")
    if page.suffix != ".md":
        return text
    return "".join(re.findall(r"^```\w*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))


def test_commands_and_files_named_in_the_docs_exist():
    commands = set(get_command(app).commands)
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for command in re.findall(r"^(?:# )?sslkit ([a-z]+)", code_of(page), re.MULTILINE):
            assert command in commands, f"{page.name}: sslkit {command}"
        for name in re.findall(r"recipes/[\w/]+\.yaml", text):
            assert (ROOT / name).exists() or "mine" in name, f"{page.name}: {name}"
        prose = re.sub(r"^```python\n.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
        for link in re.findall(r"\]\((?!http)([^)#]+)\)", prose):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_pages_agree_on_where_things_go():
    table = re.compile(r"^\| you add \|.*?\n\n", re.MULTILINE | re.DOTALL)
    pages = (ROOT / "CONTRIBUTING.md", ROOT / "docs" / "architecture.md")
    first, second = (table.search(page.read_text(encoding="utf-8"))[0] for page in pages)
    assert first == second
    for name in re.findall(r"`(sslkit/[\w/]+(?:\.py)?)`", first):
        assert (ROOT / name.removesuffix("NAME.py")).exists(), name
