"""Arrays and archives that lie about themselves are refused in a sentence."""

import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hostile import VALID, Trap, in_home, needs_alarms, never_for_long, refused, sslkit  # noqa: F401  (fixtures)

from sslkit.errors import DataError
from sslkit_plugins.datasets import Npz, npz

pytestmark = needs_alarms


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
