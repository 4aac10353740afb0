"""Images of other than three channels, and of 16 bits: from the data set to the encoder."""

import struct
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import sslkit
from PIL import Image

from sslkit import recipe
from sslkit.data.loader import Loader
from sslkit.errors import DataError, RecipeError
from sslkit.interfaces import Batch, Draws, ImageSource, Normalisation, Pixels
from sslkit.parts import DataFormat, make_transform
from sslkit.report.views_figure import draw_views
from sslkit.training import trainer
from sslkit.training.build import build
from sslkit_plugins.datasets import ImageFolder, Npz
from sslkit_plugins.methods.jigsaw import Puzzle
from sslkit_plugins.methods.pirl import Jigsaw, JigsawRotation, Rotation
from sslkit_plugins.methods.rotnet import Rotate
from sslkit_plugins.views import Augment, Colours, Crops, MultiCrop, PatchGrid
from sslkit_plugins.views.crops import Local

SAFE = Colours(jitter=(0.4, 0.4, 0.0, 0.0), blur=0.5)
"""Colours that need no RGB."""

RECIPE = """\
name: bands
method:    {{use: npid}}
data:      {{use: npz, file: '{file}'}}
transform: {{use: augment, size: 24, colours: {{jitter: [0.4, 0.4, 0.0, 0.0], blur: 0.5}}}}
encoder:   {{use: timm, model: test_resnet, mean: {mean}, std: {std}}}
heads:
  image:   {{use: linear, out_dim: 16}}
sampler:   {{use: memory_bank, negatives: 6}}
loss:      {{use: lambda_nce, form: info_nce}}
optimizer: {{use: sgd, lr: 0.03}}
train:     {{epochs: 1, batch_size: 4, precision: fp32, device: cpu, workers: 0}}
"""


def pixels(channels, count=8, dtype=np.uint8, seed=0):
    """Smooth pictures [N,40,30,C]."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (count, 8, 6, channels), dtype=np.uint8)
    return (
        small.repeat(5, 1).repeat(5, 2).astype(np.uint32) * (257 if dtype == np.uint16 else 1)
    ).astype(dtype)


def archive(folder, images, **arrays):
    file = folder / "images.npz"
    np.savez(file, images=images, **arrays)
    return str(file)


@pytest.fixture
def bands(tmp_path):
    """A recipe of a 5-channel set."""
    file = archive(tmp_path, pixels(5), labels=np.arange(8) % 2)
    path = tmp_path / "bands.yaml"
    five = [0.5] * 5
    path.write_text(RECIPE.format(file=file, mean=five, std=five))
    return path


# ---------------------------------------------------------------------------------------- data sets


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 5, 12])
def test_an_archive_tells_its_channels_and_bits(tmp_path, channels, dtype):
    images = pixels(channels, dtype=dtype)
    source = Npz("pretrain", file=archive(tmp_path, images))
    assert (source.channels, source.bits) == (channels, 8 * np.dtype(dtype).itemsize)
    found = source.pixels(3, lambda width, height: 1.0)
    assert (found.width, found.height) == (30, 40)
    assert np.array_equal(found.values.permute(1, 2, 0).numpy(), images[3])
    shown = source.image(3)
    assert shown.mode == "RGB" and shown.size == (30, 40)
    eight = images[3] // 257 if dtype == np.uint16 else images[3]
    expected = eight[..., :3] if channels >= 3 else eight[..., :1].repeat(3, 2)
    assert np.array_equal(np.asarray(shown), expected)
    assert DataFormat.of(source) == DataFormat(8, channels, source.bits)


def test_gray_arrays_have_three_equal_channels(tmp_path):
    images = pixels(1, dtype=np.uint16)[..., 0]
    source = Npz("pretrain", file=archive(tmp_path, images))
    assert (source.channels, source.bits) == (3, 16)
    found = source.pixels(0, lambda width, height: 1.0).values
    assert all(np.array_equal(channel.numpy(), images[0]) for channel in found)


def test_splits_of_unlike_channels_are_a_sentence(tmp_path):
    file = archive(tmp_path, pixels(5), images_val=pixels(4))
    with pytest.raises(DataError, match="differ: 5 channels in 8 bits and 4 channels in 8 bits"):
        Npz("train", file=file)


class Bands(ImageSource):
    """Somebody's data set of five channels in 16 bits; image 2 has four channels."""

    channels, bits = 5, 16

    def __init__(self, wrong=()):
        self.names = [f"{number}.raw" for number in range(8)]
        self.images, self.wrong = pixels(5, dtype=np.uint16), wrong

    def image(self, index):
        return Image.fromarray((self.images[index, ..., :3] // 257).astype(np.uint8))

    def pixels(self, index, reduction):
        values = torch.from_numpy(self.images[index]).permute(2, 0, 1)
        return Pixels(values[:4] if index in self.wrong else values, 30, 40)


def test_a_strangers_pixels_reach_the_views():
    loader = Loader(Bands(), Crops(5, size=16, colours=SAFE), batch_size=4, seed=0)
    batch = next(loader.batches(0, 1))
    assert batch.views["global"].shape == (4, 2, 5, 16, 16)
    assert batch.views["global"].dtype == torch.uint16 and not batch.unreadable


def test_an_image_of_other_channels_counts_as_unreadable():
    loader = Loader(Bands(wrong=(2,)), Crops(5, size=8, colours="none"), batch_size=7, seed=0)
    batch = next(loader.batches(0, 1))
    while not batch.unreadable:
        batch = next(loader.full_pass(0))
    ((name, reason),) = batch.unreadable
    assert name == "2.raw"
    assert reason == "has 4 channels of torch.uint16, but the data set 5 of torch.uint16"


# -------------------------------------------------------------------------------------------- views

EVERY = {
    "augment": lambda c: Augment(c, size=20, colours=SAFE),
    "crops": lambda c: Crops(c, size=20, colours=SAFE, interpolation="bicubic"),
    "multi_crop": lambda c: MultiCrop(c, size=20, colours=SAFE, local=Local(size=8, colours=SAFE)),
    "patch_grid": lambda c: PatchGrid(c, size=20, patch=8, stride=4, colours=SAFE),
    "jigsaw": lambda c: Jigsaw(c, size=20, resize=24, patch=6, colours=SAFE),
    "jigsaw_rotation": lambda c: JigsawRotation(c, size=20, resize=24, patch=6, colours=SAFE),
    "rotation": lambda c: Rotation(c, size=20, colours=SAFE),
    "puzzle": lambda c: Puzzle(c, size=20, resize=24, patch=6, colours=SAFE, permutations=4),
    "rotate": lambda c: Rotate(c, size=20, colours=SAFE),
}


def views_of(transform, images):
    """The batch that the transform cuts and finishes from an array of images."""
    samples = []
    for seed, image in enumerate(images):
        values = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        whole = Pixels(values, image.shape[1], image.shape[0])
        samples.append(transform(whole, np.random.default_rng(seed)))
    views = {
        name: torch.stack([sample.views[name] for sample in samples]) for name in transform.shapes
    }
    return Batch(views, {}, torch.arange(len(samples)))


@pytest.mark.parametrize("make", EVERY.values(), ids=EVERY)
def test_sixteen_bits_give_what_eight_give(make):
    """The same pictures in both: views and colours differ by the rounding of the resize alone."""
    transform = make(5)
    eight, sixteen = (views_of(transform, pixels(5, 6, dtype)) for dtype in (np.uint8, np.uint16))
    for name, view in eight.views.items():
        assert view.dtype == torch.uint8 and sixteen.views[name].dtype == torch.uint16
        assert (view.float() - sixteen.views[name].float() / 257).abs().max() < 1.1
        assert tuple(view.shape[1:]) == transform.shapes[name]
    one, other = (transform.on_device(batch, Draws(1)).views for batch in (eight, sixteen))
    for name, view in one.items():
        assert view.dtype == torch.float32
        assert (view - other[name]).abs().max() < 3 / 255
    plain = [
        transform.plain(torch.from_numpy(pixels(5, 2, t)).permute(0, 3, 1, 2))
        for t in (np.uint8, np.uint16)
    ]
    torch.testing.assert_close(*plain)


@pytest.mark.parametrize("make", EVERY.values(), ids=EVERY)
def test_five_channels_are_cut_as_three_are(make):
    """The first three of five channels are what an RGB picture gives, draws and all."""
    images = pixels(5, 4)
    many = views_of(make(5), images)
    three = views_of(make(3), np.ascontiguousarray(images[..., :3]))
    for name, view in many.views.items():
        assert torch.equal(view[..., :3, :, :], three.views[name])


def test_five_channels_are_normalised_each_by_its_own():
    transform = Augment(5, size=8, colours="none")
    transform.normalisation = Normalisation(mean=(0, 0.1, 0.2, 0.3, 0.4), std=(1, 0.5, 1, 1, 0.25))
    white = torch.full((1, 5, 8, 8), 255, dtype=torch.uint8)
    assert transform.plain(white)[0, :, 0, 0].tolist() == pytest.approx([1, 1.8, 0.8, 0.7, 2.4])


def plain(source):
    """All images as evaluations show them at 24 px."""
    return next(Loader(source, Augment(size=8), batch_size=8, seed=0).plain_pass(24))


def test_plain_views_of_channels_are_those_of_rgb(tmp_path):
    """Evaluations: the first three of five channels as Pillow resizes them; 16 bits as 8."""
    images = pixels(5)
    folder = tmp_path / "rgb"
    folder.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image[..., :3]).save(folder / f"{number}.png")
    expected, _ = plain(ImageFolder("train", root=str(folder)))
    eight, _ = plain(Npz("train", file=archive(tmp_path, images)))
    assert eight.dtype == torch.uint8 and torch.equal(eight[:, :3], expected)
    wide = archive(tmp_path, pixels(5, dtype=np.uint16))
    sixteen, index = plain(Npz("train", file=wide))
    assert sixteen.dtype == torch.uint16 and sixteen.shape == (8, 5, 24, 24)
    assert (sixteen.float() / 257 - eight.float()).abs().max() <= 1.01
    assert index.tolist() == list(range(8))


# ----------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_five_channel_set_trains_a_step(bands, tmp_path, dtype):
    archive(tmp_path, pixels(5, dtype=dtype))
    run = build(recipe.read(bands))
    assert run.transform.normalisation.mean == (0.5,) * 5
    before = {name: value.clone() for name, value in run.method.encoder.named_parameters()}
    step = next(trainer.train(run))
    assert step.loss.isfinite()
    first = next(name for name, value in before.items() if value.dim() == 4)
    assert before[first].shape[1] == 5
    assert not torch.equal(before[first], dict(run.method.encoder.named_parameters())[first])


def test_colours_that_need_rgb_are_refused_before_a_run(bands, tmp_path):
    words = ("--set", "transform.colours=simclr", "--runs", tmp_path / "runs")
    for command in (("plan", bands, *words[:2]), ("train", bands, *words)):
        code, _, err = sslkit(*command)
        assert code == 2 and "Traceback" not in err
        assert "colours 'simclr' change saturation, hue and gray and need 3 channels" in err
        assert "the data set has 5; set these to 0 (saturation and hue are" in err
    assert not (tmp_path / "runs").exists()


def test_a_transform_that_takes_rgb_only_is_refused(bands):
    made = recipe.read(bands)
    without = replace(made.transform.part.signature(), runtime=())
    part = SimpleNamespace(signature=lambda: without)
    made = replace(made, transform=replace(made.transform, part=part))
    with pytest.raises(
        RecipeError, match="'augment' needs images of 3 channels; the data set has 5"
    ):
        make_transform(made, DataFormat(8, 5))


def test_five_channels_are_drawn(bands, tmp_path):
    made = recipe.read(bands)
    source = Npz("pretrain", file=made.data.options["file"])
    transform = make_transform(made, DataFormat.of(source))
    path = draw_views(source, transform, tmp_path / "views.png", images=2, draws=1)
    with Image.open(path) as picture:
        assert picture.width > 100


# -------------------------------------------------------------------------------------------- files


def tiff(values, photometric, extra=(), big=False):
    """An uncompressed TIFF of pixels [H,W,C], little-endian, with every sample beside the next."""
    height, width, bands = values.shape
    short, long = 3, 16 if big else 4
    sizes = {short: "H", long: "Q" if big else "I"}
    field, inline = ("Q", 8) if big else ("I", 4)
    tags = [
        (256, long, [width]),
        (257, long, [height]),
        (258, short, [8 * values.itemsize] * bands),
        (259, short, [1]),
        (262, short, [photometric]),
        (273, long, [0]),
        (277, short, [bands]),
        (278, long, [height]),
        (279, long, [values.nbytes]),
        (338, short, list(extra)),
    ]
    tags = [tag for tag in tags if tag[2]]
    header = (
        struct.pack("<2sHHHQ", b"II", 43, 8, 0, 16) if big else struct.pack("<2sHI", b"II", 42, 8)
    )
    count = struct.pack("<Q" if big else "<H", len(tags))
    entry, end = (20, 8) if big else (12, 4)
    tail_at = len(header) + len(count) + entry * len(tags) + end
    tail = b""
    packed = []
    for number, kind, numbers in tags:
        packed.append(
            (number, kind, numbers, struct.pack(f"<{len(numbers)}{sizes[kind]}", *numbers))
        )
    data_at = tail_at + sum(len(data) for *_, data in packed if len(data) > inline)
    body = b""
    for number, kind, numbers, data in packed:
        if number == 273:
            data = struct.pack(f"<{field}", data_at)
        if len(data) > inline:
            place = struct.pack(f"<{field}", tail_at + len(tail))
            tail += data
            data = place
        body += struct.pack(f"<HH{field}", number, kind, len(numbers)) + data.ljust(inline, b"\0")
    return header + count + body + bytes(end) + tail + values.tobytes()


MULTIBAND = {
    "five of RGB": ((9, 8, 5), 2, (0, 0)),
    "five of gray": ((9, 8, 5), 1, (0, 0, 0, 0)),
    "five of CMYK": ((9, 8, 5), 5, (0,)),
    "six": ((9, 8, 6), 2, (0, 0, 0)),
    "twelve": ((9, 8, 12), 1, (0,) * 11),
    "two without transparency": ((9, 8, 2), 1, (0,)),
}


@pytest.mark.parametrize("big", [False, True], ids=["classic", "big"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("form", MULTIBAND.values(), ids=MULTIBAND)
def test_a_folder_of_other_bands_is_refused(tmp_path, form, dtype, big, caplog):
    shape, photometric, extra = form
    values = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    (tmp_path / "field.tif").write_bytes(tiff(values, photometric, extra, big))
    with pytest.raises(DataError) as caught:
        ImageFolder("pretrain", root=str(tmp_path))
    assert str(caught.value) == (
        f"{tmp_path / 'field.tif'} has {shape[2]} bands; files may have 1, 3 or 4 bands (gray, "
        "RGB, RGBA or CMYK); convert it, or store all images in an array for the data set npz"
    )
    assert not caplog.records


@pytest.mark.parametrize(
    ("bands", "photometric", "extra", "shown"),
    [
        (1, 1, (), (7, 7, 7)),
        (2, 1, (2,), (255, 255, 255)),
        (3, 2, (), (7, 8, 9)),
        (4, 2, (2,), (246, 246, 246)),
        (4, 5, (), (241, 240, 239)),
    ],
    ids=["gray", "gray and transparency", "RGB", "RGBA", "CMYK"],
)
def test_files_of_usual_bands_are_read(tmp_path, bands, photometric, extra, shown):
    values = np.broadcast_to(np.arange(7, 7 + bands), (6, 6, bands)).astype(np.uint8)
    if bands == 2:
        values = np.where(np.arange(2) == 1, 0, values).astype(np.uint8)
    (tmp_path / "field.tif").write_bytes(tiff(values, photometric, extra))
    image = ImageFolder("pretrain", root=str(tmp_path)).image(0)
    difference = np.asarray(image).astype(int) - shown
    assert np.abs(difference).max() <= 8


def test_a_later_file_of_other_bands_counts_as_unreadable(tmp_path):
    for number in range(5):
        Image.new("RGB", (20, 20)).save(tmp_path / f"{number}.tif")
    (tmp_path / "5.tif").write_bytes(tiff(np.zeros((20, 20, 5), np.uint8), 2, (0, 0)))
    source = ImageFolder("pretrain", root=str(tmp_path))
    loader = Loader(source, Augment(size=8), batch_size=2, seed=0)
    ((name, reason),) = [bad for batch in loader.full_pass(0) for bad in batch.unreadable]
    assert name == "5.tif" and reason.startswith("has 5 bands; files may have 1, 3 or 4")


def test_other_bands_end_a_command_with_a_sentence(bands, tmp_path):
    folder = tmp_path / "fields"
    folder.mkdir()
    (folder / "field.tif").write_bytes(tiff(np.zeros((20, 20, 5), np.uint8), 2, (0, 0)))
    code, _, err = sslkit("train", bands, "--data", folder, "--runs", tmp_path / "runs")
    assert code == 2 and "field.tif has 5 bands; files may have 1, 3 or 4" in " ".join(err.split())
    assert not (tmp_path / "runs").exists()


def test_images_of_other_channels_are_not_packed(tmp_path):
    file = archive(tmp_path, pixels(5))
    code, _, err = sslkit("pack", file, tmp_path / "set")
    assert code == 2 and "have 5 channels in 8 bits, but packed sets store 8-bit RGB" in err
    assert not (tmp_path / "set").exists()
