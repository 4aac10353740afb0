"""Images that cannot be read are replaced, and names neither steer the terminal nor paths."""

import io
import os
import pickle
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY
from hostile import Trap, in_home, needs_alarms, never_for_long, refused, sslkit  # noqa: F401  (fixtures)
from PIL import Image

from sslkit.errors import DataError, printable
from sslkit_plugins.datasets import ImageFolder, decode

pytestmark = needs_alarms


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
