"""A fault of a recipe, a `--set` or a command: one sentence with its place, exit code 2."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from sslkit.cli import app
from sslkit.recipe import registry

ENCODERS = ", ".join(part.name for part in registry.parts("encoders"))
"""Names of the installed encoders."""

VALID = """\
name: small
method:    {use: pirl}
data:      {use: shapes}
transform: {use: jigsaw}
encoder:   {use: timm, model: resnet18}
heads:
  image:   {use: linear, out_dim: 128}
  patches: {use: concat_patches, out_dim: 128}
sampler:   {use: memory_bank, negatives: all, momentum: 0.5}
loss:      {use: lambda_nce, lambda: 0.5, temperature: 0.07}
optimizer: {use: sgd, lr: 0.05}
schedule:  {use: cosine}
train:     {epochs: 2, batch_size: 8}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> tuple[int, str]:
    """Exit code and stderr. The whole machinery of the command line, in this process."""
    result = CliRunner().invoke(app, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result.exit_code, result.stderr


def check(text: str | bytes, *arguments: str) -> list[str]:
    """The faults of a recipe, one a line, columns joined by single spaces."""
    Path("mine.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
    code, errors = run("check", "mine.yaml", *arguments)
    assert code == 2
    assert [path.name for path in Path().iterdir()] == ["mine.yaml"], "a check must write nothing"
    return [" ".join(line.split()) for line in errors.splitlines()]


def test_the_valid_recipe_is_valid() -> None:
    Path("mine.yaml").write_text(VALID)
    result = CliRunner().invoke(app, ["check", "mine.yaml", "--quick"])
    assert result.exit_code == 0, result.stderr
    assert result.stdout == (
        "mine.yaml is valid: pirl, shapes, jigsaw, timm, memory_bank, lambda_nce, sgd, 2 epochs "
        "in batches of 8\n"
        "the parts are not tried; next: sslkit plan mine.yaml\n"
    )


REPLACED = [
    # (replace this, by this, the faults)
    (
        "temperature:",
        "temprature:",
        ["mine.yaml:10 loss.temprature no such option of lambda_nce; did you mean 'temperature'?"],
    ),
    (
        "negatives: all",
        "zzz: 1",
        ["mine.yaml:9 sampler.zzz no such option of memory_bank; there are: negatives, momentum"],
    ),
    (
        "negatives: all",
        "negatives: 0",
        ["mine.yaml:9 sampler.negatives expected int ≥ 1 or 'all', got 0"],
    ),
    (
        "negatives: all",
        "negatives: many",
        ["mine.yaml:9 sampler.negatives expected int ≥ 1 or 'all', got 'many'"],
    ),
    (
        "momentum: 0.5",
        "momentum: 1.5",
        ["mine.yaml:9 sampler.momentum expected float between 0 and 1, got 1.5"],
    ),
    (
        "lambda: 0.5",
        "lambda: true",
        ["mine.yaml:10 loss.lambda expected float between 0 and 1, got true"],
    ),
    (
        "lambda: 0.5",
        "lambda: '0.5'",
        ["mine.yaml:10 loss.lambda expected float between 0 and 1, got '0.5'"],
    ),
    (
        "out_dim: 128}\n  p",
        "out_dim: 12.5}\n  p",
        ["mine.yaml:7 heads.image.out_dim expected int ≥ 1 or 'auto', got 12.5"],
    ),
    (
        "use: lambda_nce",
        "use: lamda_nce",
        ["mine.yaml:10 loss.use no loss named 'lamda_nce' is installed; did you mean 'lambda_nce'"],
    ),
    (
        "use: pirl",
        "use: nothing_like_it",
        ["mine.yaml:2 method.use no method named 'nothing_like_it' is installed; there are: "],
    ),
    (
        "{use: pirl}",
        "pirl",
        ["mine.yaml:2 method 'pirl' is not of the form {use: NAME, …}; there are: "],
    ),
    ("use: timm, ", "", [f"mine.yaml:5 encoder needs 'use', a name; there are: {ENCODERS}"]),
    (
        "use: timm",
        "use: [timm]",
        [f"mine.yaml:5 encoder needs 'use', a name; there are: {ENCODERS}"],
    ),
    (
        "loss: ",
        "lose: ",
        [
            "mine.yaml loss a recipe needs this section",
            "mine.yaml:10 lose no such section; did you mean 'loss'?",
        ],
    ),
    (
        "name: small",
        "name: ../up",
        ["mine.yaml:1 name '../up' cannot name a folder; use letters, digits, '_', '-' and '.'"],
    ),
    ("name: small", "name: 17", ["mine.yaml:1 name 17 is not text; put it in quotes"]),
    ("name: small", "name: ..", ["mine.yaml:1 name '..' cannot name a folder"]),
    (
        "  patches: {use: concat_patches, out_dim: 128}\n",
        "",
        ["mine.yaml:6 heads method 'pirl' needs a head named 'patches'"],
    ),
    (
        "  patches:",
        "  patchs:",
        [
            "mine.yaml:6 heads method 'pirl' needs a head named 'patches'",
            "mine.yaml:8 heads.patchs method 'pirl' has no use for a head named 'patchs'; it "
            "needs: image, patches",
        ],
    ),
    (
        "use: jigsaw}",
        "use: rotate}",
        [
            "mine.yaml:6 heads method 'pirl' needs a head named 'rotated'",
            "mine.yaml:7 heads.image method 'pirl' has no use for a head named 'image'; it needs: "
            "rotated",
        ],
    ),
    (
        "sampler:   {use: memory_bank, negatives: all, momentum: 0.5}\n",
        "",
        ["mine.yaml sampler method 'pirl' stores the output of head 'image' and needs a sampler"],
    ),
    (
        "use: sgd",
        "use: sdg",
        [
            "mine.yaml:11 optimizer.use no optimizer named 'sdg' in torch or timm; did you mean "
            "'sgd'"
        ],
    ),
    (", lr: 0.05", "", ["mine.yaml:11 optimizer.lr sgd needs the option 'lr' (float > 0)"]),
    ("lr: 0.05", "lr: 0", ["mine.yaml:11 optimizer.lr expected float > 0, got 0"]),
    ("lr: 0.05", "lr: .nan", ["mine.yaml:11 optimizer.lr .nan is not a finite number"]),
    ("lr: 0.05", "lr: 1e999", ["mine.yaml:11 optimizer.lr 1e999 is not a finite number"]),
    (
        "lr: 0.05",
        "lr: 5e-2, momentum: [0.9]",
        [
            "mine.yaml:11 optimizer.momentum expected float ≥ 0 and < 1, got [0.9]. "
            "Momentum, usually 0.9."
        ],
    ),
    (
        "lr: 0.05",
        "lr: 5e-2, momemtum: 0.9",
        ["mine.yaml:11 optimizer.momemtum no such option of sgd; did you mean 'momentum'?"],
    ),
    (
        "use: sgd, lr: 0.05",
        "use: adamw, lr: 0.05, momentum: 0.9",
        [
            "mine.yaml:11 optimizer.momentum 'adamw' has no option 'momentum'; "
            "remove it: --set optimizer.momentum=null"
        ],
    ),
    (
        "use: cosine",
        "use: cosin",
        ["mine.yaml:12 schedule.use no schedule named 'cosin'; did you mean 'cosine'?"],
    ),
    (
        "use: cosine",
        "use: cosine, step_epochs: 30",
        [
            "mine.yaml:12 schedule.step_epochs 'cosine' has no option 'step_epochs'; "
            "remove it: --set schedule.step_epochs=null"
        ],
    ),
    ("epochs: 2,", "epochs: 0,", ["mine.yaml:13 train.epochs expected int ≥ 1, got 0"]),
    (
        "epochs: 2,",
        "epochs: 99999999999999999999,",
        ["mine.yaml:13 train.epochs 99999999999999999999… is too large a number"],
    ),
    (
        "{epochs: 2, batch_size: 8}",
        "[1]",
        ["mine.yaml:13 train [1] is not a mapping of options; there are: epochs, batch_size"],
    ),
    (
        "epochs: 2,",
        "epochs: 2, workers: -1,",
        ["mine.yaml:13 train.workers expected int ≥ 0 or 'auto', got -1"],
    ),
    (
        "epochs: 2,",
        "epochs: 2, device: gpu,",
        ["mine.yaml:13 train.device expected one of 'auto', 'cpu', 'cuda', 'mps', got 'gpu'"],
    ),
    (
        "epochs: 2,",
        "epochs: 2, epochs: 3,",
        ["mine.yaml:13 train.epochs is given twice; it is already on line 13"],
    ),
    (
        "epochs: 2,",
        "epochs: &two 2,",
        ["mine.yaml:13 train.epochs anchor &two is not allowed in a recipe"],
    ),
    (
        "epochs: 2,",
        "epochs: !!python/name:os.system 2,",
        ["mine.yaml:13 train.epochs tag tag:yaml.org,2002:python/name:os.system is not"],
    ),
    ("epochs: 2,", "epochs: 2, 3: 4,", ["mine.yaml:13 train the key 3 is not text; quote it"]),
    (
        "epochs: 2,",
        f"epochs: {'[' * 30}{']' * 30},",
        ["mine.yaml:13 train.epochs is nested deeper than 20 levels"],
    ),
    (
        "{epochs: 2",
        "{epochs: 2]",
        [
            "mine.yaml:13 is not valid YAML: while parsing a flow mapping expected ',' or '}', "
            "but got ']'"
        ],
    ),
    (
        "  image:",
        "\timage:",
        ["mine.yaml:7 is not valid YAML: while scanning for the next token found character"],
    ),
    (
        "name: small",
        "name: sm\x07all",
        ["mine.yaml:1 is not valid YAML: special characters are not allowed"],
    ),
]


@pytest.mark.parametrize(
    ("old", "new", "expected"), REPLACED, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_broken_recipe(old: str, new: str, expected: list[str]) -> None:
    assert VALID.count(old) == 1
    faults = check(VALID.replace(old, new))
    for sentence in expected:
        assert any(fault.startswith(sentence) for fault in faults), faults


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "mine.yaml:1 is empty; a recipe needs the sections method, data"),
        (b"# nothing\n", "mine.yaml:1 is empty"),
        (b"- a\n", "mine.yaml:1 holds ['a']; a recipe is a mapping of sections"),
        (b"just text", "mine.yaml:1 holds 'just text'; a recipe is a mapping of sections"),
        (b"name: x\n---\nname: y\n", "mine.yaml:2 holds a second document"),
        (b"name: x\nmethod: \xff\n", "mine.yaml:2 is not UTF-8 text"),
        (b"#" * (1 << 16) + b"\n", "mine.yaml is larger than 64 KiB"),
        (b"a: *b\n", "mine.yaml:1 a alias *b is not allowed"),
        (b"{" * 5000, "mine.yaml:1"),
    ],
)
def test_a_file_that_is_no_recipe(content: bytes, sentence: str) -> None:
    faults = check(content)
    assert any(fault.startswith(sentence) for fault in faults), faults


def test_all_faults_come_at_once_in_the_order_of_lines() -> None:
    broken = (
        VALID.replace("temperature", "temprature")
        .replace("use: pirl", "use: prl")
        .replace("epochs: 2", "epochs: two")
    )
    faults = check(broken, "--set", "sampler.momentum=2", "--set", "nothing")
    assert [fault.split(" ")[0] for fault in faults] == [
        "mine.yaml:2",
        "mine.yaml:10",
        "mine.yaml:13",
        "--set",
        "--set",
    ]


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("loss.lamda=0.7", "--set loss.lamda no such option of lambda_nce; did you mean 'lambda'?"),
        ("loss.lambda=7", "--set loss.lambda expected float between 0 and 1, got 7"),
        ("loss.lambda", "--set 'loss.lambda' is not of the form section.key=value"),
        ("=3", "--set '=3' is not of the form section.key=value"),
        ("loss..lambda=3", "--set 'loss..lambda=3' is not of the form section.key=value"),
        ("los.lambda=0.7", "--set los no such section; did you mean 'loss'?"),
        ("loss.lambda.x=1", "--set loss.lambda.x 'loss.lambda' has no options; it is 0.5"),
        ("loss=info_nce", "--set loss 'info_nce' is not of the form {use: NAME, …}"),
        ("heads.patch.out_dim=64", "--set heads.patch needs 'use', a name"),
        (
            "optimizer=[{use: sgd, lr: 0.1}]",
            "--set optimizer [{use: 'sgd', lr: 0.1}] is a list, but one optimizer trains all",
        ),
        ("data=[{use: shapes}]", "--set data [{use: 'shapes'}] is a list, but training reads one"),
        ("train.epochs={", "--set train.epochs is not valid YAML"),
        ("train.epochs=!!int 3", "--set train.epochs tag tag:yaml.org,2002:int is not allowed"),
        ("train.epochs=", "--set train.epochs expected int ≥ 1, got null"),
        ("data.use=nzp", "--set data.use no data set named 'nzp' is installed; did you mean 'npz'"),
    ],
)
def test_a_broken_setting(setting: str, sentence: str) -> None:
    faults = check(VALID, "--set", setting)
    assert any(fault.startswith(sentence) for fault in faults), faults


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ("photo", "--data 'photo': there is no such folder or file"),
        ("mine.yaml", "--data 'mine.yaml': no installed data set opens this file"),
    ],
)
def test_data_that_is_not_there(data: str, sentence: str) -> None:
    assert check(VALID, "--data", data)[0].startswith(sentence)


def test_a_view_without_transform_and_a_sampler_without_reader() -> None:
    faults = check(
        VALID.replace("use: pirl", "use: jigsaw").replace(
            "{use: jigsaw}\nencoder", "{use: rotate}\nencoder"
        )
    )
    view, head, *_, sampler, loss = faults
    assert view.startswith(
        "mine.yaml:4 transform method 'jigsaw' reads the view 'patches', which transform 'rotate' "
        "does not make; transforms that do: jigsaw, jigsaw_rotation, "
    )
    able = view.partition("transforms that do: ")[2].split(", ")
    assert {"jigsaw", "jigsaw_rotation", "puzzle"} <= set(able)
    assert "rotate" not in able
    assert head == "mine.yaml:6 heads method 'jigsaw' needs a head named 'order'"
    assert (
        sampler
        == "mine.yaml:9 sampler method 'jigsaw' uses no sampler, this one would be ignored; "
        "remove the section"
    )
    assert (
        loss
        == "mine.yaml:10 loss.use loss 'lambda_nce' needs negatives, and method 'jigsaw' has none"
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["check", "mien.yaml"],
            "mien.yaml  there is no such file or shipped recipe; did you mean mine.yaml?",
        ),
        (
            ["check", "absent/mine.yaml"],
            "absent/mine.yaml  there is no such file or shipped recipe; there is no folder "
            "absent either",
        ),
        (["check", "."], ".  is a folder; name a recipe in it: mine.yaml"),
        (["check"], "Missing argument 'RECIPE'"),
        (["check", "mine.yaml", "--sett", "a=1"], "No such option: --sett"),
        (["plugin"], "No such command 'plugin'"),
        (["plugins", "head"], "there is no kind 'head' of parts; did you mean 'heads'?"),
        (["plugins", "show"], "name the part to show"),
        (
            ["plugins", "show", "memory_bnk"],
            "no part named 'memory_bnk' is installed; did you mean 'memory_bank'?",
        ),
        (
            ["plugins", "show", "linear", "--kind", "loss"],
            "there is no kind 'loss' of parts; did you mean 'losses'?",
        ),
        (
            ["plugins", "show", "linear", "--kind", "losses"],
            "no loss named 'linear' is installed; did you mean 'binary'?",
        ),
        (["plugins", "heads", "linear"], "say `sslkit plugins KIND` or `sslkit plugins show NAME"),
    ],
    ids=[
        "misspelt_file",
        "absent_folder",
        "folder",
        "no_argument",
        "unknown_option",
        "unknown_command",
        "unknown_kind",
        "no_part",
        "unknown_part",
        "unknown_kind_option",
        "part_of_other_kind",
        "too_many_arguments",
    ],
)
def test_a_broken_command_line(arguments: list[str], sentence: str) -> None:
    Path("mine.yaml").write_text(VALID)
    code, errors = run(*arguments)
    assert code == 2
    assert sentence in errors


def test_commands_print_no_traceback() -> None:
    Path("mine.yaml").write_text(VALID)
    Path("broken.yaml").write_text(VALID.replace("temperature", "temprature"))
    sentence = (
        "broken.yaml:10  loss.temprature  no such option of lambda_nce; did you mean "
        "'temperature'?\n"
    )
    for arguments, code, words in [
        ("--help", 0, "check"),
        ("--version", 0, "sslkit 0."),
        ("check mine.yaml --quick", 0, "mine.yaml is valid: pirl, "),
        ("check broken.yaml", 2, sentence),
        ("plugins", 0, "lambda_nce"),
        ("plugins losses", 0, "info_nce"),
        ("plugins show memory_bank", 0, "int ≥ 1 or 'all'"),
        ("schema", 0, "https://json-schema.org/draft/2020-12/schema"),
    ]:
        done = CliRunner().invoke(app, arguments.split())
        assert done.exit_code == code, done.output
        assert words in done.output and "Traceback" not in done.output
