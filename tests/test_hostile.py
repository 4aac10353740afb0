"""What a stranger may send: recipes, run folders, archives, images. None of it runs code, hangs,
writes elsewhere or steers the terminal.
"""

import hashlib
import io
import json
import os
import pickle
import shutil
import signal
import struct
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, finish, new_folder, start
from PIL import Image
from typer.testing import CliRunner

from sslkit import recipe
from sslkit.cli import app
from sslkit.errors import CheckpointError, DataError, printable
from sslkit.runs import checkpoint, folders
from sslkit.training.build import build
from sslkit.training.trainer import train
from sslkit_plugins.datasets import ImageFolder, Npz, decode, npz

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="needs alarms and pipes")


@pytest.fixture(autouse=True)
def never_for_long() -> Iterator[None]:
    """A test that waits for ever is ended with an error."""

    def late(*_: object) -> None:
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, home/; whatever is written beside it, or to a file planted there, fails
    the test.
    """
    inside, outside = tmp_path / "home", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (outside / "secret").write_text("secret")
    monkeypatch.chdir(inside)
    yield inside
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "outside"]
    assert [path.name for path in outside.rglob("*")] == ["secret"] and (
        outside / "secret"
    ).read_text() == "secret"
    assert not list(tmp_path.rglob("pwned*"))


def sslkit(*arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command in this process, which may print no traceback and
    no control characters.
    """
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    assert all(line == printable(line) for line in result.output.split("\n")), result.output
    return result.exit_code, result.stdout, result.stderr


def refused(*arguments: object) -> str:
    """What is said by a command that ends with exit code 2."""
    code, _, errors = sslkit(*arguments)
    assert code == 2 and errors.strip()
    return errors


# --- recipes

VALID = TINY.format(root="images")

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (BOMB, "anchor &a is not allowed"),
        (
            VALID + "more: !!python/object/apply:os.system ['touch pwned']\n",
            "tag tag:yaml.org,2002:python/object/apply:os.system",
        ),
        (
            VALID + "more: !<tag:yaml.org,2002:python/name:os.system> x\n",
            "tag tag:yaml.org,2002:python/name:os.system",
        ),
        (VALID.replace("name: tiny", "name: &n tiny\nmore: *n"), "alias *n is not allowed"),
        (VALID + "more: {<<: {a: 1}}\n", "more  no such section"),
        (VALID + "more: " + "{a: " * 3000 + "}" * 3000, "is nested deeper than 20 levels"),
        (VALID + "- " * 20_000, "is not valid YAML"),
        (VALID + "#" * 20_000_000, "is larger than 64 KiB"),
        (VALID + "a\0: 1", "is not valid YAML: special characters are not allowed"),
        (VALID + 'more: "\\ud800"', "more  '\\ud800' is no Unicode text"),
        (VALID + 'more: "\\U00110000"', "a character that does not exist"),
        (VALID + '"\\e]0;title\\a\\e[31m": 1', "\\x1b]0;title\\x07\\x1b[31m  no such section"),
        (VALID + f"{'a' * 900}: {'9' * 40_000}", "is too large a number"),
        (VALID + "more: [" + "x, " * 20_000 + "]", "more  no such section"),
    ],
    ids=[
        "anchors",
        "tag_object_apply",
        "tag_name",
        "alias",
        "merge_key",
        "deep_mappings",
        "deep_lists",
        "large_file",
        "nul_byte",
        "surrogate",
        "no_code_point",
        "escape_sequence",
        "long_number",
        "long_list",
    ],
)
def test_a_recipe_that_is_a_trap(text: str, sentence: str) -> None:
    Path("trap.yaml").write_text(text)
    assert sentence in refused("check", "trap.yaml")


@pytest.mark.parametrize(
    "name",
    [
        "../../outside/x",
        "/tmp/x",
        "..",
        ".",
        ".hidden",
        "~",
        "a/b",
        "a\\\\b",
        "a\\0b",
        "a\\nb",
        "a\\n",
        "\\e[31m",
        "a" * 101,
        "ａ",
        "",
    ],
    ids=[
        "parent",
        "absolute",
        "two_dots",
        "dot",
        "hidden",
        "home",
        "slash",
        "backslash",
        "nul_byte",
        "line_break",
        "final_line_break",
        "escape_sequence",
        "long",
        "fullwidth",
        "empty",
    ],
)
def test_a_name_cannot_climb_out_of_the_folder_of_runs(name: str) -> None:
    Path("trap.yaml").write_text(VALID.replace("name: tiny", f'name: "{name}"'))
    assert "cannot name a folder" in refused("train", "trap.yaml")
    assert [path.name for path in Path().iterdir()] == ["trap.yaml"]


@pytest.mark.parametrize(
    "name",
    ["../x", "a.b", "", "image\\n", "\\e[31m", "0"],
    ids=["parent", "dot", "empty", "line_break", "escape_sequence", "digit"],
)
def test_a_head_cannot_have_any_name(name: str) -> None:
    Path("trap.yaml").write_text(VALID.replace("  image: ", f'  "{name}": '))
    assert "cannot name a head" in refused("check", "trap.yaml")


@pytest.mark.parametrize(
    "use",
    [
        "trap",
        "trap:Loss",
        "trap.Loss",
        "../trap",
        "os.system",
        "sslkit_plugins.losses:LambdaNCE",
        "\\e[2J",
    ],
)
def test_a_part_is_found_by_entry_point_alone(use: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(".")
    Path("trap.py").write_text("open('pwned', 'w')\nclass Loss: ...\n")
    Path("trap.yaml").write_text(VALID.replace("use: lambda_nce", f'use: "{use}"'))
    for command in ("check", "plan", "views", "train"):
        assert "no loss named" in refused(command, "trap.yaml")
    refused("plugins", "show", use)
    refused("plugins", use)
    refused("eval", use)
    assert "trap" not in sys.modules


@pytest.mark.parametrize(
    "model",
    [
        "resnet18'); open('pwned', 'w') #",
        "resnet18.x'); open('pwned', 'w') #",
        "hf-hub:trap/model",
        "local-dir:trap",
        "../trap",
        "*[",
        "",
    ],
    ids=["code", "code_in_tag", "hub", "local_dir", "parent", "pattern", "empty"],
)
def test_a_model_is_one_that_timm_knows(model: str, images: Path) -> None:
    Path("trap.yaml").write_text(
        TINY.format(root=images).replace("model: test_resnet", f'model: "{model}"')
    )
    assert "encoder" in refused("plan", "trap.yaml")


def test_lines_that_load_an_encoder_quote_its_name() -> None:
    from sslkit_plugins.encoders import Timm

    encoder = Timm((64,), 3, model="test_resnet", norm="group")
    encoder.name = "x'); open('pwned', 'w') #"
    scope: dict[str, Any] = {}
    lines = encoder.export("timm", Path(), 64).splitlines()
    line = next(line for line in lines if "create_model" in line)
    with pytest.raises(RuntimeError, match="Unknown model"):
        exec("import timm\n" + line, scope)


@pytest.mark.parametrize(
    "place",
    ["a\0b", "x" * 5000, "~nosuchuser/x", "\ud800", "no\nsuch", "no\x1b[31msuch"],
    ids=["nul_byte", "long", "no_user", "surrogate", "line_break", "escape_sequence"],
)
def test_places_that_are_none(place: str) -> None:
    Path("good.yaml").write_text(VALID)
    refused("check", place)
    refused("check", "good.yaml", "--data", place)
    refused("train", "--resume", place)
    refused("eval", "knn", place)
    refused("export", place)
    refused("train", "good.yaml", "--set", f"data.root={place}")
    Path("good.yaml").write_text(
        VALID.replace("use: image_folder, root: 'images'", "use: npz, file: 'images'")
    )
    refused("train", "good.yaml", "--set", f"data.file={place}")


@pytest.mark.parametrize(
    "runs", ["a\0b", "x" * 5000, "good.yaml"], ids=["nul_byte", "long", "file"]
)
def test_places_for_runs_that_are_none(runs: str, images: Path) -> None:
    Path("good.yaml").write_text(TINY.format(root=images))
    said = refused("train", "good.yaml", "--runs", runs)
    assert "cannot make the run folder" in said or "embedded null byte" in said


@pytest.mark.parametrize("library", ["../../outside", "/tmp", "os", "timm\n", ""])
def test_a_library_is_no_path(library: str, run_folder: Path) -> None:
    refused("export", run_folder, "--to", library)
    assert not (run_folder / "export").exists()


# --- archives


class Trap:
    """Unpickled, it writes a file."""

    def __reduce__(self) -> tuple[Callable, tuple]:
        return open, ("pwned", "w")


def header(
    shape: object = (2, 4, 4, 3),
    dtype: object = "|u1",
    text: str | None = None,
    version: bytes = b"\x01\x00",
) -> bytes:
    """The head of a .npy file that claims this."""
    said = (text or repr({"descr": dtype, "fortran_order": False, "shape": shape})).encode("latin1")
    said += b" " * (-(len(said) + 11) % 64) + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(said)) + said


def archive(compression: int = zipfile.ZIP_STORED, **members: bytes) -> Path:
    with zipfile.ZipFile("trap.npz", "w", compression) as file:
        for name, content in members.items():
            file.writestr(name + ".npy", content)
    return Path("trap.npz")


PIXELS = bytes(96)


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps(Trap()),
        header(dtype="|O") + pickle.dumps([Trap()] * 96),
        header(dtype=[("a", "|O")]) + pickle.dumps([Trap()] * 96),
        header(shape=(10**12, 4, 4, 3)) + PIXELS,
        header(shape=(2**62, 2**62)) + PIXELS,
        header(shape=(-1, 4, 4, 3)) + PIXELS,
        header(shape=(2, 4, 4, 4)) + PIXELS,
        header() + PIXELS[:-1],
        header() + PIXELS + b"x",
        header(dtype="|V2147483647") + PIXELS,
        header(dtype="<f8") + PIXELS,
        header(dtype="<U99999999") + PIXELS,
        header(text="__import__('os').system('touch pwned')") + PIXELS,
        header(text="{'descr': " + "[" * 2000 + "]" * 2000 + "}") + PIXELS,
        header(text="{'descr': '|u1', 'fortran_order': False, 'shape': (" + "9" * 5000 + ",)}")
        + PIXELS,
        header(text="{}") + PIXELS,
        header(version=b"\x09\x09") + PIXELS,
        header()[:20],
        b"",
    ],
    ids=[
        "pickle",
        "objects",
        "objects_in_fields",
        "huge_shape",
        "overflowing_shape",
        "negative_shape",
        "four_channels",
        "short",
        "trailing_byte",
        "huge_void",
        "float64",
        "huge_text",
        "code_in_header",
        "deep_header",
        "long_number_in_header",
        "empty_header",
        "unknown_version",
        "header_cut",
        "empty",
    ],
)
def test_an_array_that_lies(content: bytes) -> None:
    with pytest.raises(
        DataError, match=r"trap\.npz is not a NumPy archive|images in .*trap\.npz must be uint8"
    ):
        Npz("train", file=str(archive(images=content)))


def test_pickled_arrays_under_any_name() -> None:
    np.savez(
        "trap.npz",
        images=np.zeros((2, 4, 4, 3), np.uint8),
        other=np.array([Trap()], object),
        labels=np.array([Trap()], object),
    )
    with pytest.raises(DataError, match=r"labels\.npy holds pickled objects"):
        Npz("train", file="trap.npz")
    np.savez("trap.npz", images=np.zeros((2, 4, 4, 3), np.uint8), other=np.array([Trap()], object))
    assert len(Npz("train", file="trap.npz")) == 2, "what has no meaning is not read"


def test_archives_that_explode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npz, "GENEROUS", 1 << 20)
    bomb = archive(zipfile.ZIP_DEFLATED, images=header(shape=(1000, 40, 50, 3)) + bytes(6_000_000))
    assert bomb.stat().st_size < 10_000
    with pytest.raises(
        DataError, match=r"trap\.npz has .* bytes and would unpack to 6,0.* of images"
    ):
        Npz("train", file="trap.npz")
    monkeypatch.setattr(npz, "GENEROUS", 1 << 24)
    assert len(Npz("train", file="trap.npz")) == 1000
    monkeypatch.setattr(os, "sysconf", lambda name: 1000)
    with pytest.raises(DataError, match=r"more than this machine's memory"):
        Npz("train", file="trap.npz")


@pytest.mark.parametrize("size", [10, 2**40, 2**32 - 2], ids=["10", "2^40", "2^32-2"])
def test_a_directory_that_lies_about_sizes(size: int) -> None:
    """The size in the zip directory is not the one in the array's head."""
    content = bytearray(archive(images=header() + PIXELS).read_bytes())
    entry = content.index(b"PK\x01\x02")
    struct.pack_into("<I", content, entry + 24, min(size, 2**32 - 2))
    Path("trap.npz").write_bytes(content)
    with pytest.raises(DataError):
        Npz("train", file="trap.npz")


def test_archives_that_cannot_be_opened() -> None:
    plain = archive(images=header() + PIXELS).read_bytes()
    entry = plain.index(b"PK\x01\x02")
    for offset, value in ((8, 1), (10, 99), (10, 12), (42, 2**31)):
        content = bytearray(plain)
        struct.pack_into("<H" if offset < 42 else "<I", content, entry + offset, value)
        Path("trap.npz").write_bytes(content)
        with pytest.raises(DataError, match="is not a NumPy archive"):
            Npz("train", file="trap.npz")


def test_names_in_an_archive_are_printed_harmlessly() -> None:
    with zipfile.ZipFile("trap.npz", "w") as file:
        file.writestr("\x1b[31mred\n../../outside/x.npy", b"")
    Path("good.yaml").write_text(VALID)
    assert "\\x1b[31mred\\n../../outside/x" in refused("views", "good.yaml", "--data", "trap.npz")


@pytest.mark.parametrize("label", [2**40, 2**62, 1_000_000], ids=["2^40", "2^62", "10^6"])
def test_labels_that_would_fill_the_memory(label: int) -> None:
    np.savez("trap.npz", images=np.zeros((2, 4, 4, 3), np.uint8), labels=np.array([0, label]))
    with pytest.raises(
        DataError, match=rf"has the label {label}; labels number the classes from 0"
    ):
        Npz("train", file="trap.npz")


def test_offsets_that_wrap_around() -> None:
    np.savez("trap.npz", jpeg=np.zeros(9, np.uint8), offset=np.array([0, 7, 5, 9], np.uint64))
    with pytest.raises(DataError, match="must rise from 0"):
        Npz("train", file="trap.npz")


# --- images


def png(width: int, height: int, data: bytes = b"x") -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        import zlib

        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", data)
    )


POSTSCRIPT = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    b"(pwned) (w) file closefile\nshowpage\n%%EOF\n"
)


def coded(kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 40), "red").save(file, kind, **options)
    return file.getvalue()


def unreadable() -> dict[str, bytes]:
    tiff = bytearray(coded("TIFF"))
    first = struct.unpack_from("<I", tiff, 4)[0]
    loop = bytes(tiff[:4]) + struct.pack("<IHI", 8, 0, 8)
    struct.pack_into("<I", tiff, 4, first + 2**31)
    return {
        "bomb": png(60_000, 60_000),
        "giant": png(2**31 - 1, 2**31 - 1),
        "cut": coded("PNG")[:-20],
        "cut_webp": coded("WEBP")[:-20],
        "postscript": POSTSCRIPT,
        "pdf": b"%PDF-1.4\n" + POSTSCRIPT,
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "icon": coded("ICO"),
        "pcx": coded("PCX"),
        "tiff_beyond": bytes(tiff),
        "tiff_loop": loop,
        "pickle": pickle.dumps(Trap()),
        "empty": b"",
        "zeros": bytes(1000),
        "html": b"<html><script>1</script>",
    }


@pytest.mark.parametrize("content", unreadable().values(), ids=unreadable())
def test_images_that_cannot_be_read_raise(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.Popen", None)
    Path("x.jpg").write_bytes(content)
    for file in (Path("x.jpg"), io.BytesIO(content)):
        with pytest.raises((OSError, ValueError, SyntaxError, DataError)):
            decode(file)


def test_odd_images_that_can() -> None:
    frames = [Image.new("RGB", (40, 40), (number % 256, 0, 0)) for number in range(300)]
    for kind in ("GIF", "WEBP"):
        file = io.BytesIO()
        frames[0].save(file, kind, save_all=True, append_images=frames[1:])
        assert decode(file).size == (40, 40), "of many frames the first"
    assert decode(io.BytesIO(coded("MPO"))).size == (40, 40)
    assert decode(
        io.BytesIO(coded("JPEG") + b"PK\x03\x04" + POSTSCRIPT + pickle.dumps(Trap()))
    ).size == (40, 40), "a polyglot"


@pytest.fixture
def folder(images: Path) -> Path:
    """A folder of good images in two classes, to be spoilt, and a recipe, good.yaml."""
    for number, image in enumerate(sorted(images.iterdir())):
        place = Path("data", f"class {number % 2}", image.name)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, place)
    Path("good.yaml").write_text(
        TINY.format(root="data").replace("epochs: 2", "epochs: 1, unreadable: 100")
    )
    return Path("data")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_replaces_what_cannot_be_read(folder: Path, workers: int) -> None:
    for name, content in unreadable().items():
        (folder / "class 0" / f"{name}.jpg").write_bytes(content)
    code, out, _ = sslkit("train", "good.yaml", "--set", f"train.workers={workers}")
    assert code == 0 and "could not be read and were replaced: class 0/" in out


def test_pipes_devices_and_links_are_passed_over(folder: Path) -> None:
    before = ImageFolder("train", root="data").names
    os.mkfifo(folder / "pipe.jpg")
    (folder / "zero.png").symlink_to("/dev/zero")
    (folder / "terminal.png").symlink_to("/dev/tty")
    (folder / "secret.png").symlink_to("../../outside/secret")
    (folder / "outside").symlink_to("../../outside")
    (folder / "nothing.png").symlink_to("nothing")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "up").symlink_to("..")
    (folder / "directory.png").mkdir()
    assert ImageFolder("train", root="data").names == before
    followed = ImageFolder("train", root="data", follow_links=True).names
    assert "secret.png" in followed and "pipe.jpg" not in followed and "zero.png" not in followed


HOSTILE_NAMES = [
    "new\nline.png",
    "\x1b[31mred\x1b]0;title\x07.png",
    "[bold]markup.png",
    "$x_{$.png",
    "back\b\b.png",
    "\u202ergb.png",
    os.fsdecode(b"caf\xe9.png"),
]


def test_names_neither_steer_the_terminal_nor_the_pictures(folder: Path) -> None:
    for name in HOSTILE_NAMES:
        (folder / "class 0" / name).write_bytes(b"no image")
        (folder / name).mkdir()
        shutil.copy(folder / "class 1" / "01.jpg", folder / name / name)
    code, out, _ = sslkit("train", "good.yaml")
    assert code == 0 and sum(f"class 0/{printable(name)}" in out for name in HOSTILE_NAMES) >= 4
    said = refused("train", "good.yaml", "--set", "train.unreadable=0")
    assert any(printable(name) in said for name in HOSTILE_NAMES)
    assert "and an evaluation replaces no image" in refused("eval", "knn", "--data", "data")
    shutil.rmtree(folder / "class 0")
    shutil.rmtree(folder / "class 1")
    assert sslkit("views", "good.yaml", "--images", len(HOSTILE_NAMES), "--draws", 1)[0] == 0


# --- run folders


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """A run folder with the checkpoints of steps 2 and 3 of 6 (the run was stopped, so that it can
    go on), on labelled images.
    """
    place = tmp_path_factory.mktemp("trained")
    data = place / "data"
    for number, image in enumerate(sorted(images.iterdir())):
        target = data / f"class {number % 2}" / image.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, target)
    (place / "tiny.yaml").write_text(TINY.format(root=data))
    made = recipe.read(place / "tiny.yaml")
    run, folder = build(made), new_folder(place / "runs", made)
    for _ in zip(range(3), train(run)):  # noqa: B905
        checkpoint.save(run, folder)
    return folder


@pytest.fixture
def run_folder(trained: Path, home: Path) -> Path:
    shutil.copytree(trained, home / "run")
    return home / "run"


def newest(folder: Path) -> Path:
    return max((folder / "checkpoints").iterdir())


def sign(path: Path) -> None:
    """SHA256SUMS over whatever is there, as an attacker would write it."""
    names = ("method.safetensors", "optimizer.safetensors", "state.json")
    lines = [
        f"{hashlib.sha256((path / name).read_bytes()).hexdigest()}  {name}\n" for name in names
    ]
    (path / "SHA256SUMS").write_text("".join(lines))


def rename(content: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """A safetensors file whose header was changed."""
    length = struct.unpack_from("<Q", content)[0]
    said = json.loads(content[8 : 8 + length])
    change(said)
    text = json.dumps(said).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def first(said: dict[str, Any]) -> dict[str, Any]:
    return next(value for name, value in said.items() if name != "__metadata__")


LIES: dict[str, Callable[[bytes], bytes]] = {
    "pickle": lambda content: pickle.dumps(Trap()),
    "torch.save": lambda content: torch_saved(),
    "empty": lambda content: b"",
    "header_beyond_the_file": lambda content: struct.pack("<Q", len(content)) + content[8:],
    "header_of_2**63": lambda content: struct.pack("<Q", 2**63) + content[8:],
    "header_of_100_MB": lambda content: struct.pack("<Q", 100_000_001) + b"{" + b" " * 100_000_010,
    "not_utf8": lambda content: content[:8] + b"\xff" + content[9:],
    "a_list": lambda content: struct.pack("<Q", 2) + b"[]",
    "nothing_in_it": lambda content: struct.pack("<Q", 2) + b"{}",
    "nested": lambda content: struct.pack("<Q", 20_000) + b"[" * 20_000,
    "offsets_beyond": lambda content: rename(
        content, lambda said: first(said).update(data_offsets=[0, 2**40])
    ),
    "offsets_negative": lambda content: rename(
        content, lambda said: first(said).update(data_offsets=[-8, 8])
    ),
    "offsets_backwards": lambda content: rename(
        content, lambda said: first(said).update(data_offsets=[8, 0])
    ),
    "offsets_overlap": lambda content: rename(
        content,
        lambda said: [
            value.update(data_offsets=[0, 64])
            for name, value in said.items()
            if name != "__metadata__"
        ],
    ),
    "shape_huge": lambda content: rename(
        content, lambda said: first(said).update(shape=[2**62, 2**62])
    ),
    "shape_negative": lambda content: rename(content, lambda said: first(said).update(shape=[-1])),
    "shape_empty": lambda content: rename(
        content, lambda said: first(said).update(shape=[0, 2**60], data_offsets=[0, 0])
    ),
    "dtype": lambda content: rename(content, lambda said: first(said).update(dtype="F64")),
    "dtype_unknown": lambda content: rename(
        content, lambda said: first(said).update(dtype="PICKLE")
    ),
    "name": lambda content: rename(
        content, lambda said: said.update({"../../x": said.pop(next(iter(said)))})
    ),
    "cut": lambda content: content[:-1],
    "longer": lambda content: content + b"x",
}


def torch_saved() -> bytes:
    file = io.BytesIO()
    torch.save({"method.x": Trap()}, file)
    return file.getvalue()


@pytest.mark.parametrize("file", ["method.safetensors", "optimizer.safetensors"])
@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_tensors_that_lie_under_a_sum_that_is_right(
    run_folder: Path, file: str, lie: Callable[[bytes], bytes]
) -> None:
    path = newest(run_folder)
    (path / file).write_bytes(lie((path / file).read_bytes()))
    sign(path)
    run = build(recipe.read(run_folder / "recipe.yaml"))
    if lie is LIES["nothing_in_it"] and file == "optimizer.safetensors":
        assert checkpoint.resume(run, run_folder) == [], "as that of an optimizer without memory"
        return
    with pytest.raises(
        CheckpointError, match=r"step-00000003 does not fit the recipe beside it \(.*\); was recipe"
    ):
        checkpoint.resume(run, run_folder)


@pytest.mark.parametrize(
    "lie", ["pickle", "header_beyond_the_file", "shape_huge", "dtype_unknown", "name", "cut"]
)
def test_evaluations_and_export_meet_the_same_sentence(run_folder: Path, lie: str) -> None:
    path = newest(run_folder)
    (path / "method.safetensors").write_bytes(LIES[lie]((path / "method.safetensors").read_bytes()))
    sign(path)
    root = recipe.read(run_folder / "recipe.yaml").data.options["root"]
    for command in (
        ("eval", "knn", run_folder),
        ("eval", "linear", run_folder),
        ("embed", run_folder, root, "vectors.npz"),
        ("export", run_folder),
    ):
        assert "does not fit the recipe beside it" in refused(*command)
    assert not (run_folder / "export").exists()


STATES: list[Any] = [
    None,
    [],
    {},
    "text",
    7,
    {"step": "3"},
    {"step": -3},
    {"step": 3.5},
    {"step": float("nan")},
    {"step": 10**400},
    {"step": 2},
    {"images": 0},
    {"images": 10**30},
    {"images": "24"},
    {"fingerprint": ["a"]},
    {"fingerprint": None},
    {"unreadable": ["a"]},
    {"unreadable": {"a": 1}},
    {"optimizer": []},
    {"optimizer": {"name": "SGD"}},
    {"optimizer": {"name": "SGD", "state": []}},
    {"optimizer": {"name": 3, "state": {}}},
    {"optimizer": {"name": "SGD", "state": {"0": {"x": {"y": 1}}}}},
    {"optimizer": {"name": "SGD", "state": {"0": {"x": float("inf")}}}},
    {"optimizer": {"name": "../../SGD\x1b[31m", "state": {}}},
    {"optimizer": {"name": "SGD", "state": {"999": {"step": 1}}}},
    {"optimizer": {"name": "SGD", "state": {"-1": {"step": 1}}}},
    {"optimizer": {"name": "SGD", "state": {"x": {"step": 1}}}},
    {"optimizer": {"name": "SGD", "state": {"group 9": {"x": 1}}}},
    {"optimizer": {"name": "SGD", "state": {"group 0": {"lr": 1e9}}}},
    {"optimizer": {"name": "SGD", "state": {"group 0": {"params": [1, 2]}}}},
]


@pytest.mark.parametrize("change", STATES, ids=lambda change: repr(change)[:60])
def test_a_state_that_lies(run_folder: Path, change: Any) -> None:
    path = newest(run_folder)
    state = json.loads((path / "state.json").read_text())
    state = change if not isinstance(change, dict) or not change else state | change
    (path / "state.json").write_text(json.dumps(state))
    sign(path)
    try:
        (note,) = checkpoint.resume(build(recipe.read(run_folder / "recipe.yaml")), run_folder)
        assert "step-00000003 is damaged" in note and note.endswith("using the previous one")
    except CheckpointError as error:
        assert "does not fit the recipe beside it" in str(error)


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "{" * 3, '{"step": 3', "\xff", "NaN", '{"step":' + "9" * 10_000 + "}"],
    ids=["deep", "open", "cut", "latin_1", "nan", "long_number"],
)
def test_a_state_that_is_no_json(run_folder: Path, text: str) -> None:
    path = newest(run_folder)
    (path / "state.json").write_bytes(text.encode("latin1"))
    sign(path)
    _, state, notes = checkpoint.newest(run_folder)
    assert (
        state["step"] == 2
        and len(notes) == 1
        and "step-00000003 is damaged" in notes[0]
        and "\n" not in notes[0]
    )


def test_folders_that_are_no_checkpoints_are_passed_over(run_folder: Path) -> None:
    home = run_folder / "checkpoints"
    shutil.copytree(newest(run_folder), home / "step-99999999")
    (home / "step-x").mkdir()
    (home / "step-\x1b[31m\n").write_text("a file")
    (home / "...").mkdir()
    (home / "step-99999998").symlink_to("step-00000002")
    code, out, errors = sslkit("train", "--resume", run_folder)
    assert code == 0 and "resumed at step 3" in out
    assert (
        "step-99999999 is damaged (ValueError: state.json is that of step 3); using the "
        "previous one" in errors
    )


@pytest.mark.parametrize("target", ["../../../outside", "/dev/zero"])
@pytest.mark.parametrize("name", ["checkpoints", "eval", "export", ".curves.png", "metrics.jsonl"])
def test_links_that_lead_out_of_a_run_folder(run_folder: Path, name: str, target: str) -> None:
    path = run_folder / name
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(target)
    for command in (
        ("train", "--resume", run_folder),
        ("train", run_folder / "recipe.yaml", "--run", run_folder),
        ("eval", "knn", run_folder),
        ("embed", run_folder, "data", "vectors.npz"),
        ("export", run_folder),
    ):
        assert f"{name} is a link that leads out of the run folder" in refused(*command)


LINES = [
    b"[" * 100_000,
    b"\xff\xfe",
    b"null",
    b"[]",
    b'"x"',
    b'{"step": "1"}',
    b'{"step": 1, "loss": "x"}',
    b'{"step": 1, "loss": {}}',
    b'{"step": 1, "loss": null}',
]
LINES += [
    b'{"step": 1, "loss": ' + b"9" * 400 + b"}",
    b'{"step": NaN, "loss": 1}',
    b'{"step": 1, "$x_{$\\u001b[31m": 1}',
]


def test_metrics_that_are_none_are_dropped(run_folder: Path) -> None:
    (run_folder / "metrics.jsonl").write_bytes(b"\n".join(LINES))
    assert sslkit("train", "--resume", run_folder)[0] == 0
    steps = [
        json.loads(line)["step"] for line in (run_folder / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == [4, 5, 6]


@pytest.mark.parametrize(
    "content",
    [b"[]", b"[" * 100_000, b"\xff", b'{"protocol": 1}', b"null", b'"' * 3],
    ids=["list", "deep", "binary", "number", "null", "quotes"],
)
def test_an_old_result_that_is_none_is_kept_aside(run_folder: Path, content: bytes) -> None:
    (run_folder / "eval").mkdir()
    (run_folder / "eval" / "knn.json").write_bytes(content)
    assert sslkit("eval", "knn", run_folder, "--k", 2)[0] == 0
    assert (run_folder / "eval" / "knn.1.json").read_bytes() == content


@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        VALID.replace("name: tiny", "name: ../../outside/x"),
        "",
        "\0",
        VALID.replace("out_dim: 16", "out_dim: 8"),
    ],
    ids=["anchors", "name", "empty", "nul_byte", "out_dim"],
)
def test_a_run_folder_with_another_recipe(run_folder: Path, text: str) -> None:
    root = recipe.read(run_folder / "recipe.yaml").data.options["root"]
    (run_folder / "recipe.yaml").write_text(text.replace("'images'", f"'{root}'"))
    for command in (
        ("train", "--resume", run_folder),
        ("eval", "knn", run_folder),
        ("export", run_folder),
    ):
        refused(*command)


# --- the system itself


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for the workers")
def test_a_killed_loader_worker_ends_the_run_with_a_message(images: Path, home: Path) -> None:
    Path("tiny.yaml").write_text(
        TINY.format(root=images).replace("epochs: 2", "epochs: 500, save_minutes: 0.005")
    )
    process = start("train", "tiny.yaml", "--set", "train.workers=2")
    try:
        while not list(home.glob("runs/tiny/latest/checkpoints/step-*")):
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(workers[0]), signal.SIGKILL)
    finally:
        code, _, errors = finish(process)
    assert code == 2 and len(errors.splitlines()) == 1, errors
    assert (
        errors.startswith("the system killed a loader worker") and "--set train.workers=0" in errors
    )
    assert checkpoint.newest(home / "runs" / "tiny" / "latest")[2] == []


def test_a_clock_that_is_set_back_gives_every_run_a_folder_of_its_own(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("good.yaml").write_text(VALID)
    made, made_folders = recipe.read("good.yaml"), []
    for hour in (12, 11, 11, 12):

        class Clock(datetime):
            @classmethod
            def now(cls, *_: object) -> datetime:
                return datetime(2026, 10, 25, hour, 30)  # noqa: B023

        monkeypatch.setattr(folders, "datetime", Clock)
        made_folders.append(new_folder(home / "runs", made))
        assert (home / "runs" / "tiny" / "latest").resolve() == made_folders[-1]
    assert len(set(made_folders)) == 4
