"""Pictures: how many panels there are, what they hold, and that none is left half written."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import sslkit
from matplotlib.font_manager import FontProperties, findfont, fontManager
from PIL import Image
from typer.testing import CliRunner

from sslkit.cli import app
from sslkit.errors import DataError
from sslkit.interfaces import Batch, Draws
from sslkit.report import figures as drawing
from sslkit.report import fonts, views_figure
from sslkit.report.views_figure import draw_views
from sslkit.runs.metrics import BINS, Bins, Metrics, Row
from sslkit_plugins.datasets import ImageFolder
from sslkit_plugins.methods import jigsaw, pirl, rotnet
from sslkit_plugins.views import Augment, Crops, Lab, Local, MultiCrop, PatchGrid

RECIPES = Path(__file__).parents[1] / "recipes"
SMALL = {"size": 32, "resize": 32, "grid": 2, "patch": 12}


@pytest.fixture
def photos(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, size in enumerate([(40, 60), (90, 30), (50, 50), (64, 64)]):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(
            folder / f"{number}.png"
        )
    return folder


@pytest.fixture
def figures(monkeypatch) -> list:
    """The figures that were saved."""
    kept = []
    save = drawing.save

    def keep(figure, path, option=""):
        kept.append(figure)
        return save(figure, path, option)

    monkeypatch.setattr(drawing, "save", keep)
    return kept


def titles(figure) -> list[str]:
    return [axes.get_title() for axes in figure.axes if axes.get_title()]


def overlaps(figure) -> list[tuple[int, int]]:
    """Pairs of pictures that cover one another."""
    figure.canvas.draw()
    boxes = [axes.get_position() for axes in figure.axes]
    return [
        (i, j)
        for i, one in enumerate(boxes)
        for j, other in enumerate(boxes[:i])
        if min(one.x1, other.x1) - max(one.x0, other.x0) > 1e-6
        and min(one.y1, other.y1) - max(one.y0, other.y0) > 1e-6
    ]


@pytest.mark.parametrize(
    "transform, columns",
    [
        (Augment(size=32), ["image"]),
        (pirl.Jigsaw(**SMALL), ["image", "patches 1", "patches 2", "patches 3", "patches 4"]),
        (pirl.Rotation(size=32), ["image", "rotated"]),
        (
            jigsaw.Puzzle(**SMALL, permutations=3),
            ["patches 1", "patches 2", "patches 3", "patches 4"],
        ),
        (rotnet.Rotate(size=32), ["rotated 1", "rotated 2", "rotated 3", "rotated 4"]),
        (Crops(size=32), ["global 1", "global 2"]),
        (
            MultiCrop(size=32, local=Local(size=16, count=3)),
            ["global 1", "global 2", "local 1", "local 2", "local 3"],
        ),
        (PatchGrid(size=32, patch=8, stride=4), ["patches 1 … 49"]),
        (Lab(size=32), ["image"]),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, list) else "",
)
def test_views_show_originals_and_every_view_of_every_draw(
    photos, figures, tmp_path, transform, columns
):
    path = draw_views(
        ImageFolder("pretrain", root=str(photos)),
        transform,
        tmp_path / "views.png",
        images=3,
        draws=2,
    )
    (figure,) = figures
    assert titles(figure) == ["original", *columns]
    assert len(figure.axes) == 3 * (1 + 2 * len(columns))
    assert not overlaps(figure)
    with Image.open(path) as picture:
        width, height = figure.get_size_inches() * 110
        assert abs(picture.width - width) <= 1 and abs(picture.height - height) <= 1


def test_views_are_in_the_order_that_the_model_gets_them(photos, figures, tmp_path):
    source, transform = (
        ImageFolder("pretrain", root=str(photos)),
        pirl.Jigsaw(**SMALL, colours="none"),
    )
    draw_views(source, transform, tmp_path / "views.png", images=1, draws=1, seed=5)
    shown = [axes.get_images()[0].get_array() for axes in figures[0].axes]
    index, image = views_figure._some(source, 1, 5)[0]
    assert np.array_equal(shown[0], np.asarray(image))
    sample = transform(image, np.random.default_rng((5, 0)))
    batch = Batch(
        {name: view[None] for name, view in sample.views.items()}, {}, torch.tensor([index])
    )
    views = transform.on_device(batch, Draws(5, 0)).views
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    for picture, view in zip(shown[1:], [views["image"][0], *views["patches"][0]], strict=True):
        expected = view.permute(1, 2, 0) * std + mean
        np.testing.assert_allclose(picture, expected.clamp(0, 1), atol=1e-4)


def test_many_crops_are_laid_out_as_they_lie(photos, figures, tmp_path):
    """A grid without overlap and colours is the crop itself, in lines of white."""
    source = ImageFolder("pretrain", root=str(photos))
    transform = PatchGrid(size=40, patch=10, stride=10, flip=0.0, colours="none")
    draw_views(source, transform, tmp_path / "views.png", images=1, draws=1, seed=5)
    mosaic = np.asarray(figures[0].axes[1].get_images()[0].get_array())
    _, image = views_figure._some(source, 1, 5)[0]
    (whole,) = transform.cut(image, np.random.default_rng((5, 0)))
    assert mosaic.shape == (43, 43, 3) and (mosaic[10] == 1).all() and (mosaic[:, 21] == 1).all()
    kept = [place for place in range(43) if place % 11 != 10]
    shown = 255 * mosaic[kept][:, kept].transpose(2, 0, 1)
    np.testing.assert_allclose(shown, whole.numpy(), atol=0.1)


def test_lab_is_drawn_in_the_colours_of_the_image(photos, figures, tmp_path):
    source, transform = ImageFolder("pretrain", root=str(photos)), Lab(size=32, flip=0.0)
    draw_views(source, transform, tmp_path / "views.png", images=1, draws=1, seed=5)
    shown = np.asarray(figures[0].axes[1].get_images()[0].get_array())
    _, image = views_figure._some(source, 1, 5)[0]
    (whole,) = transform.cut(image, np.random.default_rng((5, 0)))
    np.testing.assert_allclose(255 * shown.transpose(2, 0, 1), whole.numpy(), atol=0.5)


def test_views_name_the_answers(photos, figures, tmp_path):
    draw_views(
        ImageFolder("pretrain", root=str(photos)),
        rotnet.Rotate(size=32),
        tmp_path / "views.png",
        images=1,
        draws=1,
    )
    assert "rotation 0, 1, 2, 3" in [text.get_text() for text in figures[0].texts]


def test_views_pass_over_images_that_cannot_be_read(photos, figures, tmp_path):
    for name in ("0.png", "2.png"):
        (photos / name).write_bytes(b"torn")
    source = ImageFolder("pretrain", root=str(photos))
    draw_views(source, Augment(size=32), tmp_path / "views.png", images=3, draws=1)
    assert len(figures[0].axes) == 4, "two originals with a view each"
    for file in photos.iterdir():
        file.write_bytes(b"torn")
    with pytest.raises(DataError, match="can be read"):
        draw_views(source, Augment(size=32), tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_views_from_the_command_line(photos, tmp_path, figures):
    out = tmp_path / "out.png"
    code, said, err = sslkit(
        "views",
        RECIPES / "pirl_jigsaw.yaml",
        "--data",
        photos,
        "--out",
        out,
        "--images",
        2,
        "--draws",
        1,
    )
    assert code == 0, err
    assert f"written: {out}" in said
    assert len(figures[0].axes) == 2 * (1 + 1 + 9)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.png", "photos"]


@pytest.mark.parametrize("where", ["gone/out.png", "photos"])
def test_a_picture_that_cannot_be_written_is_told_in_a_sentence(photos, tmp_path, where):
    code, _, err = sslkit(
        "views", RECIPES / "npid.yaml", "--data", photos, "--out", tmp_path / where, "--images", 1
    )
    assert code == 2 and "cannot write" in err and "Traceback" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]


@pytest.mark.parametrize("name", ["a" * 64, "W" * 40, "猫の写真" * 10], ids=["a", "W", "cjk"])
def test_no_text_of_a_picture_is_cut(photos, figures, tmp_path, name):
    title = f"{name} / 2026-11-26_07-46-46   method npid"
    source = ImageFolder("pretrain", root=str(photos))
    draw_views(source, Augment(size=32), tmp_path / "views.png", images=1, draws=1, title=title)
    bins = binned(Row(1, 1, 0.1, 2.0, {}))
    title += f"   {name}   step 1,234 of 1,234, 20 an epoch"
    drawing.curves(tmp_path, bins, title=title, epoch=1, chances={})
    for figure in figures:
        figure.set_dpi(fonts.DPI)
        heads = [*figure.texts, *filter(None, [figure._suptitle])]
        boxes = [text.get_window_extent() for text in heads]
        assert boxes and all(box.x0 >= 0 and box.x1 <= figure.bbox.width for box in boxes)


def test_letters_come_from_an_installed_font_that_has_them():
    usual = fonts._letters(findfont(FontProperties()))
    assert fonts.families("Größe") == ["sans-serif"]
    for font in fontManager.ttflist:
        letters = fonts._letters(font.fname) - usual
        if letters:
            chosen = fonts.families(f"a{chr(min(letters))}")
            path = findfont(FontProperties(family=chosen[1]))
            assert len(chosen) == 2 and min(letters) in fonts._letters(path)
            return
    pytest.skip("no font has more letters than the usual one")


def binned(*rows: Row) -> Bins:
    bins = Bins()
    for row in rows:
        bins.add(row)
    return bins


def test_curves_have_a_panel_for_every_number(tmp_path, figures):
    rows = []
    for step in range(1, 101):
        metrics = {"accuracy": 0.5, "feature_std/image": step / 200}
        rows.append(Row(step, 1 + step // 20, step / 10, 5 - step / 50, metrics))
    chances = {"loss": 6.0, "accuracy": 0.25}
    path = drawing.curves(tmp_path, binned(*rows), title="mine", epoch=20, chances=chances)
    assert path == tmp_path / "curves.png" and path.read_bytes()[:4] == b"\x89PNG"
    panels = {axes.get_title(loc="left").split()[0]: axes for axes in figures[0].axes}
    assert list(panels) == ["loss", "lr", "accuracy", "feature_std/image"]
    assert panels["loss"].get_title(loc="left") == "loss   3", "the last value"
    measured, mean, chance = panels["loss"].get_lines()
    assert measured.get_ydata()[-1] == 3 and measured.get_xdata()[-1] == 5, "epochs of 20 steps"
    assert mean.get_ydata()[-1] == pytest.approx(3.01), "the mean of the last two"
    assert list(chance.get_ydata()) == [6, 6] and chance.get_label() == "chance 6"
    assert len(panels["accuracy"].get_lines()) == 3
    (rate,) = panels["lr"].get_lines()
    assert rate.get_ydata().tolist() == [row.lr for row in rows], "as it is"
    assert panels["feature_std/image"].get_ylim() == (0, 1)
    assert {axes.get_xlabel() for axes in panels.values()} == {"epoch"}
    assert figures[0].get_suptitle() == "mine" and not overlaps(figures[0])


def test_curves_bear_numbers_that_are_missing_or_not_finite(tmp_path):
    rows = [Row(1, 1, 0.1, 2.0, {}), Row(2, 1, 0.1, float("nan"), {"late": 3.0})]
    for bins in (binned(*rows), binned()):
        drawing.curves(tmp_path, bins, title="", epoch=1, chances={})
    assert np.isnan(drawing._smooth(np.array([np.nan, 1.0]))[0])
    assert drawing._smooth(np.array([1.0, np.nan, 3.0] * 50))[149] == pytest.approx(2)


def test_a_long_run_has_as_many_bins_as_there_are():
    """5,000 steps are bins of four; every bin is the mean of its steps."""
    bins = binned(*[Row(step, 1, 0.1, float(step), {}) for step in range(1, 5001)])
    assert bins.width == 4 and len(bins.mean("loss")) == 1250 <= BINS
    assert bins.mean("loss")[:2].tolist() == [2.5, 6.5] and bins.mean("step")[-1] == 4998.5


def test_bins_of_a_resumed_run_are_those_of_an_unbroken_one(tmp_path):
    rows = [Row(step, 1, 0.1, step / 7, {"match": step / 3}) for step in range(1, 2501)]
    first = Metrics(tmp_path / "metrics.jsonl", 0)
    first.add(rows[:2100])
    seen: list[Row] = []
    second = Metrics(tmp_path / "metrics.jsonl", 2050, seen.append)
    assert seen == rows[:2050]
    second.add(rows[2050:])
    for name in ("step", "loss", "match"):
        assert second.bins.mean(name).tolist() == binned(*rows).mean(name).tolist()


def test_epochs_of_an_older_run_are_counted_from_1(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(Row(step, step // 3, 0.1, 2.0, {}).line() + "\n" for step in (1, 2, 3)))
    Metrics(path, 3)
    assert [json.loads(line)["epoch"] for line in path.read_text().splitlines()] == [1, 1, 2]
    Metrics(path, 3)
    assert [json.loads(line)["epoch"] for line in path.read_text().splitlines()] == [1, 1, 2]


def test_views_draw_what_the_method_does_not_read(photos, tmp_path):
    recipe = Path(__file__).parents[1] / "recipes" / "npid.yaml"
    transform = "transform={use: multi_crop, size: 32, local: {count: 2, size: 16}}"
    out = tmp_path / "multi.png"
    words = ["views", recipe, "--data", photos, "--set", transform, "--out", out, "--images", 1]
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 0, done.output
    assert out.stat().st_size > 0
