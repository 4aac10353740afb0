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
DOCS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "plugins" / "README.md"])
PAGES = [*DOCS, *RECIPES]


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


OURS = sorted(part.name for part in registry.parts("methods") if part.distribution == "sslkit")


def prose(page):
    """Return a page without its blocks of code and without code within lines."""
    text = re.sub(r"^ *```\w*\n.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=FENCED)
    return re.sub(r"`[^`\n]*`", lambda found: found[0] if "](" not in found[0] else "", text)


def links(page):
    """Return the links of a page within the repository: file and anchor."""
    return re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", prose(page))


def anchors(page):
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", name.lower()).replace(" ", "-") for name in headings}


@pytest.mark.parametrize("name", OURS)
def test_every_method_has_a_page(name):
    page = ROOT / "docs" / "methods" / f"{name}.md"
    assert page.exists()
    text = page.read_text(encoding="utf-8")
    for section in ("What it learns from", "Loss", "In code", "Numbers"):
        assert f"\n## {section}\n" in text
    assert "<!-- source sslkit_plugins." in text and "<!-- expected " in text
    assert (f"{name}.md", "") in links(page.parent / "README.md")


@pytest.mark.parametrize("page", DOCS, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_headings_and_lines(page):
    for file, anchor in links(page):
        target = page.parent / file if file else page
        assert target.exists(), file
        if lines := re.fullmatch(r"L(\d+)-L(\d+)", anchor):
            count = len(target.read_text(encoding="utf-8").splitlines())
            assert 0 < int(lines[1]) <= int(lines[2]) <= count
        elif anchor:
            assert anchor in anchors(target), f"{file}#{anchor}"


SECTIONS = [
    "What it measures",
    "When to trust it",
    "Command",
    "Output",
    "Options and presets",
    "Published numbers",
    "How it is checked",
    "Pitfalls",
]
EVALUATIONS = ROOT / "docs" / "evaluations"
MEASURED = sorted(
    part.name for part in registry.parts("evaluations") if part.distribution == "sslkit"
)


@pytest.mark.parametrize("name", MEASURED)
def test_every_evaluation_has_a_page(name):
    page = EVALUATIONS / f"{name}.md"
    assert re.findall(r"^## (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE) == SECTIONS
    assert f"sslkit eval {name} RUN" in code_of(page)
    assert (f"{name}.md", "") in links(EVALUATIONS / "README.md")


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


def shown_commands(page):
    """Return the command lines of a page's code, without their comments."""
    found = re.findall(r"^(?:# |\$ )?(sslkit .+)$", code_of(page), re.MULTILINE)
    lines = (re.split(r"\s+#|\s+·", line)[0] for line in found)
    return [line.split() for line in lines]


def unknown(words):
    """Return the first word of a command line that is no command or no option of it."""
    command, known = get_command(app), {"--help"}
    for word in words[1:]:
        if word.startswith("--"):
            if word.partition("=")[0] not in known:
                return word
        elif hasattr(command, "list_commands"):
            if word not in command.list_commands(None):
                return word
            command = command.get_command(None, word)
            for parameter in command.params:
                known.update((*parameter.opts, *parameter.secondary_opts))
    return ""


def test_unknown_words_of_a_command_line_are_found():
    assert unknown(["sslkit", "evaluate"]) == "evaluate"
    assert unknown(["sslkit", "eval", "knn", "RUN", "--kk=3"]) == "--kk=3"
    assert unknown(["sslkit", "train", "simclr", "--run", "DIR"]) == ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_options_and_recipes_of_pages_exist(page):
    for words in shown_commands(page):
        assert not unknown(words), " ".join(words)
    for name in re.findall(r"recipes/[\w/]+\.yaml", page.read_text(encoding="utf-8")):
        assert (ROOT / name).exists() or "mine" in name, name


@pytest.mark.parametrize("package", ["sslkit", "plugins/sslkit_plugins"])
def test_architecture_lists_every_file_and_folder(package):
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    listed = re.search(rf"^{package}/\n((?:  .*\n)+)", page, re.MULTILINE)[1]
    names = set(re.findall(r"(?<= )(\w+(?:\.py|/))(?= )", listed))
    paths = [*(ROOT / package).glob("*.py"), *(ROOT / package).glob("*/__init__.py")]
    places = {f"{path.parent.name}/" if path.stem == "__init__" else path.name for path in paths}
    assert names == places - {f"{Path(package).name}/"}


def test_every_name_for_evaluations_is_described():
    page = (ROOT / "docs" / "write-an-evaluation.md").read_text(encoding="utf-8")
    described = set(re.findall(r"`(\w+)", page))
    assert described >= set(importlib.import_module("sslkit.evaluation").__all__)


def test_tests_that_pages_name_exist():
    for page in DOCS:
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r"`(?:tests/)?(test_[\w*]+\.py)`", text):
            assert list((ROOT / "tests").glob(name)), f"{page.name}: {name}"


def test_the_table_of_places_names_files_that_exist():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = re.search(r"^\| you add \|.*?\n\n", page, FENCED)[0]
    for name in re.findall(r"`(sslkit/[\w/]+(?:\.py)?)`", table):
        assert (ROOT / name.removesuffix("NAME.py")).exists(), name
