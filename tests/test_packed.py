"""Packed sets: the same images, names and labels as the folder; written whole or not at all; damage
is told, not shown.
"""

import json
import os
import pickle
import resource
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from conftest import assert_same, everything, sslkit
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from sslkit import parts, recipe
from sslkit.data.loader import Loader, fingerprint
from sslkit.errors import DataError, RecipeError
from sslkit.runs import checkpoint
from sslkit.training.trainer import train
from sslkit_plugins.datasets import ImageFolder, Npz, packing
from sslkit_plugins.datasets.packed import Index, Packed
from sslkit_plugins.methods.pirl import Jigsaw


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    )


def save(image: Image.Image, file: Path, **options) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file, **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two halves of two classes: JPEGs small and large, a PNG, a JPEG that lies on its side, a name
    that is no ASCII.
    """
    root = tmp_path / "folder"
    for number in range(6):
        save(noise(40 + number, 30, number), root / "train" / "ab"[number % 2] / f"{number}.jpg")
    save(noise(90, 60), root / "train" / "a" / "large.jpg", quality=95)
    save(noise(20, 30), root / "train" / "b" / "märchen.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    save(noise(90, 60), root / "train" / "b" / "turned.jpg", exif=turned)
    save(noise(33, 31, 50), root / "val" / "a" / "v.jpg")
    save(noise(33, 31, 51), root / "val" / "b" / "w.jpg")
    return root


def write(source: str, to: str, **options) -> Index:
    """Pack a folder, an archive or a packed set."""
    chosen = recipe.read_data(source)
    splits = {"train": parts.make(chosen, split="train")}
    if splits["train"].has_val:
        splits["val"] = parts.make(chosen, split="val")
    return Packed.write(splits, to, **options)


def files(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(root.iterdir())}


def difference(one: Image.Image, other: Image.Image) -> float:
    return float(np.abs(np.asarray(one, np.float32) - np.asarray(other, np.float32)).mean())


# --- what is packed


@pytest.mark.parametrize("split", ["pretrain", "train", "val"])
def test_names_labels_classes_and_hash_are_those_of_the_folder(folder, tmp_path, split):
    write(str(folder), str(tmp_path / "set"))
    ours, theirs = Packed(split, root=str(tmp_path / "set")), ImageFolder(split, root=str(folder))
    assert list(ours.names) == list(theirs.names) and list(ours.classes) == list(theirs.classes)
    assert ours.labels.tolist() == theirs.labels.tolist() and ours.labels.dtype == np.int64
    assert ours.has_val and fingerprint(ours) == fingerprint(theirs)
    told = json.loads((tmp_path / "set" / "packed.json").read_text())["splits"][
        "val" if split == "val" else "train"
    ]
    assert told["sha256"] == fingerprint(theirs) and told["images"] == len(theirs)


def test_small_jpegs_keep_their_bytes_and_others_are_re_encoded(folder, tmp_path):
    index = write(str(folder), str(tmp_path / "set"), short_side=32)
    ours, theirs = (
        Packed("train", root=str(tmp_path / "set")),
        ImageFolder("train", root=str(folder)),
    )
    assert (index.kept, index.coded) == (8, 3)
    for number, name in enumerate(ours.names):
        image, original = ours.image(number), theirs.image(number)
        if name.endswith(("large.jpg", "turned.jpg")):
            assert image.size == ((48, 32) if "large" in name else (32, 48)), "upright"
            assert difference(image, original.resize(image.size, Image.Resampling.LANCZOS)) < 4
        elif name.endswith(".png"):
            assert image.size == original.size and 0 < difference(image, original) < 6
        else:
            assert ours.stored(number).getvalue() == theirs.stored(number).read_bytes()
            assert image.tobytes() == original.tobytes()


def test_a_smooth_picture_is_hardly_changed(tmp_path):
    ramp = (
        np.linspace(0, 255, 512)[None, :, None]
        * np.linspace(0.3, 1, 300)[:, None, None]
        * np.array([1, 0.5, 0.2])
    )
    save(Image.fromarray(ramp.astype(np.uint8)), tmp_path / "folder" / "ramp.png")
    write(str(tmp_path / "folder"), str(tmp_path / "set"))
    image = Packed("train", root=str(tmp_path / "set")).image(0)
    assert image.size == (437, 256)
    assert (
        difference(
            image,
            Image.fromarray(ramp.astype(np.uint8)).resize((437, 256), Image.Resampling.LANCZOS),
        )
        < 1
    )


def test_a_photograph_is_reduced_as_it_is_decoded_and_looks_the_same(tmp_path):
    smooth = noise(12, 9).resize((1200, 900), Image.Resampling.BICUBIC)
    save(smooth, tmp_path / "folder" / "large.jpg", quality=95)
    write(str(tmp_path / "folder"), str(tmp_path / "set"), short_side=100)
    image = Packed("train", root=str(tmp_path / "set")).image(0)
    assert image.size == (133, 100)
    assert difference(image, smooth.resize((133, 100), Image.Resampling.LANCZOS)) < 2


def test_the_bytes_depend_on_images_and_options_alone(folder, tmp_path):
    for name, workers in (("one", 0), ("two", 2), ("other", 0)):
        write(
            str(folder),
            str(tmp_path / name),
            short_side=31 if name == "other" else 32,
            workers=workers,
        )
    assert files(tmp_path / "one") == files(tmp_path / "two") != files(tmp_path / "other")


def test_many_shards_are_one_list(folder, tmp_path, monkeypatch):
    write(str(folder), str(tmp_path / "one"))
    monkeypatch.setattr(packing, "SHARD_BYTES", 3000)
    write(str(folder), str(tmp_path / "many"))
    one, many = (Packed("train", root=str(tmp_path / name)) for name in ("one", "many"))
    shards = sorted((tmp_path / "many").glob("train-*"))
    assert len(shards) > 3 and [path.name for path in shards][:2] == [
        "train-00000.safetensors",
        "train-00001.safetensors",
    ]
    assert one.names == many.names and one.labels.tolist() == many.labels.tolist()
    for number in reversed(range(len(one))):
        assert one.image(number).tobytes() == many.image(number).tobytes()


def test_a_shard_can_be_read_without_us(folder, tmp_path):
    write(str(folder), str(tmp_path / "set"))
    with safe_open(tmp_path / "set" / "val-00000.safetensors", framework="np") as file:
        held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    first, last = held["offset"][1:3]
    assert held["bytes"][first:last].tobytes() == (folder / "val" / "b" / "w.jpg").read_bytes()
    assert held["names"].tobytes() == b"a/v.jpg\0b/w.jpg" and held["labels"].tolist() == [0, 1]


def test_a_flat_folder_has_no_labels_and_no_val(tmp_path):
    save(noise(8, 8), tmp_path / "flat" / "a.jpg")
    write(str(tmp_path / "flat"), str(tmp_path / "set"))
    made = Packed("pretrain", root=str(tmp_path / "set"))
    assert made.labels is None and list(made.classes) == [] and not made.has_val
    with pytest.raises(DataError, match=r"set has no separate val images"):
        Packed("val", root=str(tmp_path / "set"))


def test_an_archive_and_a_packed_set_can_be_packed(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 40, 50, 3), dtype=np.uint8)
    np.savez(
        tmp_path / "a.npz",
        images=pixels,
        labels=np.array([1, 0, 1]),
        classes=np.array(["cat", "dog"]),
    )
    index = write(str(tmp_path / "a.npz"), str(tmp_path / "set"))
    made = Packed("train", root=str(tmp_path / "set"))
    assert fingerprint(made) == fingerprint(Npz("train", file=str(tmp_path / "a.npz")))
    assert made.labels.tolist() == [1, 0, 1] and made.classes == ["cat", "dog"] and index.coded == 3
    write(str(tmp_path / "set"), str(tmp_path / "smaller"), short_side=20)
    smaller = Packed("train", root=str(tmp_path / "smaller"))
    assert smaller.image(0).size == (25, 20) and fingerprint(smaller) == fingerprint(made)


def test_names_that_are_no_text(tmp_path):
    root = tmp_path / "folder"
    name = os.fsdecode(b"b\xff.jpg")
    try:
        save(noise(9, 9), root / "class" / "a.jpg")
        save(noise(9, 9), root / os.fsdecode(b"\xfe") / name)
    except OSError:
        pytest.skip("this file system refuses such names")
    write(str(root), str(tmp_path / "set"))
    made, theirs = Packed("train", root=str(tmp_path / "set")), ImageFolder("train", root=str(root))
    assert (
        fingerprint(made) == fingerprint(theirs) and made.labels.tolist() == theirs.labels.tolist()
    )


# --- used like any


def test_workers_share_the_files_and_spawned_ones_map_them(images, tmp_path):
    write(str(images), str(tmp_path / "set"))
    source = Packed("pretrain", root=str(tmp_path / "set"))
    source.image(0)
    sent = pickle.dumps(source)
    assert len(sent) < 3000 < sum(path.stat().st_size for path in images.iterdir())
    assert pickle.loads(sent).image(5).tobytes() == source.image(5).tobytes()
    transform = Jigsaw(size=32, grid=2, resize=32, patch=12)
    batches = [
        [
            batch.views["image"]
            for batch in Loader(source, transform, batch_size=8, seed=1, workers=workers).batches(
                0, 4
            )
        ]
        for workers in (0, 2)
    ]
    assert all((one == two).all() for one, two in zip(*batches, strict=True))


@pytest.mark.parametrize("began, goes_on", [("folder", "set"), ("set", "folder")])
def test_a_run_goes_on_with_the_other(make, images, tmp_path, began, goes_on):
    """JPEGs alone, so that both hold the same pixels and the run ends as if nothing had
    happened.
    """
    for path in images.glob("*.jpg"):
        save(Image.open(path), tmp_path / "folder" / path.name)
    write(str(tmp_path / "folder"), str(tmp_path / "set"))
    whole = make(data=tmp_path / began)
    assert whole.recipe.data.use == ("packed" if began == "set" else "image_folder")
    for _ in train(whole):
        pass
    part = make(data=tmp_path / began)
    steps = train(part)
    next(steps)
    (tmp_path / "run").mkdir()
    checkpoint.save(part, tmp_path / "run")
    other = make(data=tmp_path / goes_on)
    checkpoint.resume(other, tmp_path / "run")
    assert other.step == 1
    for _ in train(other):
        pass
    assert_same(everything(other), everything(whole))


def test_data_on_the_command_line_is_recognised(tiny, folder, tmp_path, monkeypatch):
    write(str(folder), str(tmp_path / "set"))
    monkeypatch.chdir(tmp_path)
    made = recipe.read(tiny, data="set")
    assert made.data.use == "packed" and made.data.options["root"] == str(tmp_path / "set")


def test_the_command(folder, tmp_path):
    code, out, err = sslkit("pack", folder, tmp_path / "set", "--short-side", 32, "--workers", 1)
    assert (code, err) == (0, "")
    train = f"{folder / 'train'} (9 images in 2 classes: a, b)"
    assert out == (
        f"data: {train} and {folder / 'val'} (2 images in 2 classes: a, b)\n"
        "9 images (train) and 2 images (val): 8 kept their bytes, 3 were re-encoded, 0 left out\n"
        f"written: {tmp_path / 'set'}\nnext: sslkit train RECIPE --data {tmp_path / 'set'}\n"
    )
    code, _, err = sslkit("pack", folder, tmp_path / "set")
    assert code == 2
    assert err == f"{tmp_path / 'set'} already exists; name a new folder, or remove it\n"


# --- all or nothing


def test_unreadable_images_are_named_and_nothing_is_written(folder, tmp_path):
    (folder / "train" / "a" / "0.jpg").write_bytes(b"no image")
    whole = folder / "train" / "b" / "1.jpg"
    whole.write_bytes(whole.read_bytes()[:-400])
    told = (
        r"^2 images cannot be read: a/0\.jpg \(is damaged, .*\), b/1\.jpg \(OSError: .*truncated"
        r".*\); repair .*: --skip-unreadable$"
    )
    with pytest.raises(DataError, match=told):
        write(str(folder), str(tmp_path / "set"), workers=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder"]


def test_unreadable_images_are_left_out_when_asked(folder, tmp_path):
    (folder / "train" / "a" / "0.jpg").write_bytes(b"no image")
    code, out, err = sslkit("pack", folder, tmp_path / "set", "--skip-unreadable")
    assert code == 0 and "8 images (train)" in out and "1 left out" in out
    assert err == "left out, it cannot be read: a/0.jpg\n"
    ours, theirs = (
        Packed("train", root=str(tmp_path / "set")),
        ImageFolder("train", root=str(folder)),
    )
    assert list(ours.names) == [name for name in theirs.names if name != "a/0.jpg"]
    assert ours.labels.tolist() == theirs.labels[1:].tolist()
    assert fingerprint(ours) != fingerprint(theirs)


def test_no_image_can_be_read(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"^nothing to pack: 1 image cannot be read: a\.jpg \("):
        write(str(tmp_path / "folder"), str(tmp_path / "set"), skip_unreadable=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder"]


def test_places_that_cannot_be_written(folder, tmp_path):
    with pytest.raises(
        DataError,
        match=r"^cannot create the folder .*set\.writing \(No such file or directory\); name "
        r"a DEST in ",
    ):
        write(str(folder), str(tmp_path / "nowhere" / "set"))
    (tmp_path / "set.writing").mkdir()
    with pytest.raises(
        DataError,
        match=r"set\.writing already exists: another `sslkit pack` is writing it, or was "
        r"killed; .* remove the folder$",
    ):
        write(str(folder), str(tmp_path / "set"))
    assert (tmp_path / "set.writing").is_dir(), "it may be another's"
    with pytest.raises(RecipeError, match=r"nowhere': there is no such folder or file"):
        write(str(tmp_path / "nowhere"), str(tmp_path / "other"))
    assert not (tmp_path / "other").exists()


@contextmanager
def files_of_at_most(size):
    """The system refuses to write more than `size` bytes into a file."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("limit", [500, 8000])
def test_a_full_disk_leaves_nothing(folder, tmp_path, limit):
    """A limit on the size of files stands for the disk. 500 bytes are too few for the index too."""
    with files_of_at_most(limit):
        code, _, err = sslkit("pack", folder, tmp_path / "set", "--workers", "0")
    assert code == 2 and err.count("\n") == 1, err
    assert err.startswith(f"cannot write {tmp_path / 'set'} (")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder"]


def test_an_interruption_leaves_nothing(folder, tmp_path):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(str(folder), str(tmp_path / "set"), advance=interrupt)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder"]


def test_a_worker_that_the_system_ends(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(packing._Coder, "_coded", lambda self, index: os._exit(9))
    with pytest.raises(
        DataError, match=r"^the system killed a worker, .*; use fewer: --workers 0 \("
    ):
        write(str(folder), str(tmp_path / "set"), workers=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder"]


# --- damage


@pytest.fixture
def made(folder, tmp_path) -> Path:
    write(str(folder), str(tmp_path / "set"))
    return tmp_path / "set"


def test_no_packed_set(tmp_path, folder):
    with pytest.raises(
        DataError,
        match=r"is not a packed set, it has no packed\.json; name one, --data DIR, or create it: "
        r"sslkit",
    ):
        Packed("train", root=str(folder))
    with pytest.raises(DataError, match=r"is not a packed set"):
        Packed("train", root=str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"format": "sslkit packed 2"}',
        '{"splits": {"train": {"shards": 1e99}}}',
        "\0\0",
        "[" * 10_000,
        '{"short_side":256,"quality":95,"kept":1,"coded":0,"skipped":[],"splits":{"../x":{"images":1,"shards":1,"sha256":"","classes":[]}}}',
        '{"short_side":256,"quality":95,"kept":1,"coded":0,"skipped":[],"splits":{"train":{"images":1,"shards":-1,"sha256":"","classes":[]}}}',
    ],
)
def test_an_index_that_is_none(made, content):
    (made / "packed.json").write_text(content)
    with pytest.raises(
        DataError,
        match=r"packed\.json is not what `sslkit pack` wrote \(.*\); pack the images again$",
    ) as told:
        Packed("train", root=str(made))
    assert "\n" not in str(told.value)


def lie(**changed):
    """A shard with other arrays than it had; None removes one."""

    def change(path: Path) -> None:
        arrays = load_file(path)
        for name, change_array in changed.items():
            arrays[name] = change_array(arrays[name])
        save_file({name: array for name, array in arrays.items() if array is not None}, path)

    return change


def header(text: bytes):
    def change(path: Path) -> None:
        content = path.read_bytes()
        path.write_bytes(
            len(text).to_bytes(8, "little")
            + text
            + content[8 + int.from_bytes(content[:8], "little") :]
        )

    return change


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "another's": lambda path: path.write_bytes(
        path.with_name("val-00000.safetensors").read_bytes()
    ),
    "header too long": lambda path: path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:]),
    "header lies of length": header(
        b'{"bytes":{"dtype":"U8","shape":[99999999999],"data_offsets":[0,99999999999]}}'
    ),
    "header lies of shape": header(b'{"bytes":{"dtype":"U8","shape":[7],"data_offsets":[0,5]}}'),
    "header is no JSON": header(b"{{{{"),
    "no offset": lie(offset=lambda array: None),
    "offset of another type": lie(offset=lambda array: array.astype(np.float64)),
    "offset beyond the end": lie(offset=lambda array: array + 1000),
    "offset falls": lie(offset=lambda array: array[[0, 2, 1, *range(3, len(array))]]),
    "offset below zero": lie(offset=lambda array: np.concatenate([array[:1] - 9, array[1:]])),
    "bytes in two dimensions": lie(bytes=lambda array: array[None]),
    "fewer names": lie(names=lambda array: array[:5]),
    "other names": lie(names=lambda array: array[::-1].copy()),
    "fewer labels": lie(labels=lambda array: array[1:]),
    "labels out of range": lie(labels=lambda array: array + 1),
    "fewer checksums": lie(checksum=lambda array: array[1:]),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_shard_is_one_sentence(made, damage):
    damage(made / "train-00000.safetensors")
    with pytest.raises(
        DataError, match=r"is not what `sslkit pack` wrote \(.*\); pack the images again$"
    ) as told:
        Packed("train", root=str(made))
    assert "\n" not in str(told.value)


def test_flipped_bytes_of_an_image_are_noticed(made):
    path = made / "train-00000.safetensors"
    content = bytearray(path.read_bytes())
    source = Packed("train", root=str(made))
    good = source.stored(1).getvalue()
    content[content.index(good) + len(good) // 2] ^= 1
    path.write_bytes(content)
    again = Packed("train", root=str(made))
    assert zlib.crc32(again.stored(0).getvalue())
    with pytest.raises(
        DataError, match=r"its bytes in train-00000\.safetensors have changed since packing"
    ):
        again.image(1)
