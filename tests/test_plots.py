"""The figures: what is drawn is what was given, and a reader can tell things apart without colour."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from torch import Tensor

from convlens import build, feature_maps, plots
from convlens.evaluation import metrics_of
from convlens.explain import FeatureMap, first_filters
from convlens.lr_find import RangeTest

CLASSES = ("airplane", "automobile", "aquarium_fish", "7")


def some_images(count: int, channels: int = 3, side: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8, generator=generator)


def answers(n: int, k: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(k, (n,), generator=generator)
    logits = torch.randn(n, k, generator=generator)
    logits[torch.arange(n), labels] += 2
    return logits, labels


def some_map(channels: int = 6, sign: bool = True) -> FeatureMap:
    maps = torch.randn(channels, 5, 7, generator=torch.Generator().manual_seed(0))
    return FeatureMap("network.features.0", "Conv2d", maps if sign else maps.relu(), "floor((5 + 2·1 - 3) / 1) + 1 = 5")


HISTORY = [
    {"epoch": i, "train_loss": 1 / i, "train_accuracy": 1 - 0.5 / i, "val_loss": 1.1 / i, "val_accuracy": 0.9 - 0.5 / i}
    for i in range(1, 6)
]
LOGITS, LABELS = answers(20, 4)
RATES = tuple(1e-5 * 1.2**i for i in range(60))
RANGE = RangeTest(RATES, (2.0,) * 50 + (9.0,) * 10, (2.0,) * 30 + (1.0,) * 20 + (8.0,) * 10, RATES[30], RATES[24], True)
DRAWINGS: dict[str, Callable[[Axes | None], Axes]] = {
    "curves": lambda axes: plots.curves(HISTORY, "loss", axes),
    "curves-accuracy": lambda axes: plots.curves(HISTORY, "accuracy", axes),
    "curves-one-epoch": lambda axes: plots.curves(HISTORY[:1], "loss", axes),
    "curves-before-the-first-epoch": lambda axes: plots.curves([], "loss", axes),
    "range-test": lambda axes: plots.range_test(RANGE, axes=axes),
    "image-grid": lambda axes: plots.image_grid(some_images(11), ["x"] * 11, axes=axes),
    "image-grid-gray": lambda axes: plots.image_grid(some_images(1, 1), ["one"], title="One", axes=axes),
    "gallery": lambda axes: plots.gallery(some_images(20), LABELS, LOGITS.softmax(1), CLASSES, axes=axes),
    "class-counts": lambda axes: plots.class_counts(LABELS, CLASSES, "counts", axes),
    "class-counts-100": lambda axes: plots.class_counts(LABELS, [f"class {i}" for i in range(100)], "counts", axes),
    "confusion": lambda axes: plots.confusion(metrics_of(LOGITS, LABELS, CLASSES), axes=axes),
    "confusion-100": lambda axes: plots.confusion(metrics_of(*answers(300, 100)), axes=axes),
    "filters-gray": lambda axes: plots.filters(torch.randn(6, 1, 5, 5), "first", axes),
    "filters-colour": lambda axes: plots.filters(torch.randn(64, 3, 3, 3), "first", axes),
    "feature-map": lambda axes: plots.feature_map(some_map(), axes),
    "feature-map-of-zeros": lambda axes: plots.feature_map(FeatureMap("a", "b", torch.zeros(1, 4, 4), ""), axes),
    "feature-map-512": lambda axes: plots.feature_map(some_map(512), axes),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_draws_on_the_axes_that_it_is_given_and_saves_a_page(name: str, tmp_path: Path) -> None:
    figure = Figure(figsize=(8, 4))
    left, right = figure.subplots(1, 2)
    assert DRAWINGS[name](left) is left
    assert not right.has_data()
    assert left.has_data() is (name != "curves-before-the-first-epoch")

    axes = DRAWINGS[name](None)
    assert axes.figure is not figure
    path = plots.save(axes, tmp_path / "drawing.png", dpi=50)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.width <= 50 * (plots.PAGE[0] + 0.5)
        assert picture.height <= 50 * (plots.PAGE[1] + 0.5)
        assert len(np.unique(np.asarray(picture.convert("L")))) > 10  # something is drawn
    assert [p.name for p in tmp_path.iterdir()] == ["drawing.png"]


def test_curves_show_the_history() -> None:
    rows = [{**row, "test_loss": 2.0, "test_accuracy": 0.25} for row in HISTORY]
    for quantity, factor in (("loss", 1), ("accuracy", 100)):
        axes = plots.curves(rows, quantity)
        lines = dict(zip(("train", "val", "test"), axes.get_lines(), strict=True))
        for prefix, line in lines.items():
            assert list(line.get_xdata()) == [1, 2, 3, 4, 5]
            assert list(line.get_ydata()) == pytest.approx([factor * row[f"{prefix}_{quantity}"] for row in rows])
        # told apart by line and marker too
        assert len({line.get_linestyle() for line in lines.values()}) == 3
        assert len({line.get_marker() for line in lines.values()}) == 3
        assert len({to_hex(line.get_color()) for line in lines.values()}) == 3
        legend = axes.get_legend()
        assert legend is not None
        names = [text.get_text() for text in legend.get_texts()]
        assert [name.split(" (")[0] for name in names] == ["training", "validation", "test"]
        assert f"({factor * rows[-1][f'train_{quantity}']:.4g})" in names[0]
    assert "%" in axes.get_ylabel()
    assert [line.get_label().split(" ")[0] for line in plots.curves(HISTORY).get_lines()] == ["training", "validation"]


@pytest.mark.parametrize("epochs", [1, 2, 3, 40])
def test_epochs_are_whole_numbers(epochs: int) -> None:
    axes = plots.curves([{"epoch": i, "train_loss": 1.0} for i in range(1, epochs + 1)])
    ticks = [tick for tick in axes.get_xticks() if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]]
    assert ticks
    assert all(tick == round(tick) and 1 <= tick <= epochs for tick in ticks)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_shows_every_image_in_its_place(channels: int) -> None:
    images = some_images(11, channels)
    axes = plots.image_grid(images, [f"caption {i}" for i in range(11)], columns=4)
    shown = axes.get_images()
    assert len(shown) == len(axes.texts) == 11
    for i, (picture, text) in enumerate(zip(shown, axes.texts, strict=True)):
        expected = (
            images[i].permute(1, 2, 0).squeeze(2).numpy() if channels == 1 else images[i].permute(1, 2, 0).numpy()
        )
        assert np.array_equal(np.asarray(picture.get_array()), expected)
        if channels == 1:
            assert picture.get_clim() == (0, 255)  # a dark image stays dark
        left, right, bottom, top = picture.get_extent()
        assert (bottom - top, right - left) == pytest.approx((1, 1))  # row 0 above: y grows downwards
        assert text.get_text() == f"caption {i}"
        assert left < text.get_position()[0] < right
        assert text.get_position()[1] > bottom
        assert (round(left / 1.15), top > 0) == (i % 4, i >= 4)
    low, high = axes.get_ylim()
    assert low > high
    assert not axes.patches


def test_a_gallery_tells_right_from_wrong_without_colour() -> None:
    images, labels, probabilities = some_images(20), LABELS, LOGITS.softmax(1)
    axes = plots.gallery(images, labels, probabilities, CLASSES, "Title")
    predicted = probabilities.argmax(1)
    wrong = (predicted != labels).tolist()
    assert 0 < sum(wrong) < 20
    assert axes.get_title() == "Title"
    looks: dict[bool, set[tuple[Any, ...]]] = {True: set(), False: set()}
    for i, (text, frame) in enumerate(zip(axes.texts, axes.patches, strict=True)):
        said, truth = CLASSES[int(predicted[i])], CLASSES[int(labels[i])]
        share = f"({probabilities[i].max().item():.0%})"
        expected = f"✗ {said} {share}\nis {truth}" if wrong[i] else f"✓ {said} {share}"
        assert text.get_text() == expected
        assert to_hex(text.get_color()) == "#000000"
        looks[wrong[i]].add((str(frame.get_linestyle()), frame.get_linewidth(), to_hex(frame.get_edgecolor())))
    ((right_look,), (wrong_look,)) = looks[False], looks[True]
    assert right_look[0] != wrong_look[0]
    assert right_look[1] < wrong_look[1]
    assert right_look[2] != wrong_look[2]


def extents(texts: list[Text], axes: Axes) -> list[Any]:
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.canvas.draw()
    return [text.get_window_extent() for text in texts if text.get_text()]


@pytest.mark.parametrize(
    ("longest", "count"),
    [
        ("7", 5),
        ("automobile", 5),
        ("a_name_of_twenty_five_let", 5),
        ("a_name_of_twenty_five_let", 100),
        pytest.param("7", 100, marks=pytest.mark.slow),
        pytest.param("automobile", 100, marks=pytest.mark.slow),
    ],
)
def test_captions_do_not_overlap(longest: str, count: int) -> None:
    probabilities = torch.tensor([[0.0, 1.0]]).expand(count, 2)
    labels = torch.arange(count) % 2
    columns = 10 if count == 100 else 8
    captions = [f"{longest} (100%)\nis {longest}"] * count
    grids = [plots.gallery(some_images(count), labels, probabilities, [longest, longest])]
    grids.append(plots.image_grid(some_images(count), captions, labels.bool().tolist(), "Title", columns))
    for axes in grids:
        boxes = extents(list(axes.texts), axes)
        assert len(boxes) == count
        for i, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[:i]), i
        frames = [patch.get_window_extent() for patch in axes.patches]
        assert not any(box.overlaps(frame) for box in boxes for frame in frames)


def test_class_counts_are_the_counts() -> None:
    labels = torch.tensor([0] * 1200 + [2] * 3)
    axes = plots.class_counts(labels, CLASSES, "Title")
    assert [bar.get_width() for bar in axes.patches] == [1200, 0, 3, 0]
    assert [text.get_text() for text in axes.texts] == ["1,200", "0", "3", "0"]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == list(CLASSES)
    assert axes.yaxis_inverted()  # the first class on top
    for k in (10, 100):
        axes = plots.class_counts(labels, [f"class {i}" for i in range(k)])
        boxes = extents(list(axes.get_yticklabels()), axes)
        assert len(boxes) == k
        assert not any(a.overlaps(b) for a, b in itertools.pairwise(boxes))


def test_confusion_shows_every_number() -> None:
    metrics = metrics_of(LOGITS, LABELS, CLASSES)
    axes = plots.confusion(metrics, "Title")
    counts = np.array(metrics.confusion)
    assert counts.sum() == 20
    shown = np.zeros((4, 4), int)
    for text in axes.texts:
        x, y = text.get_position()
        shown[int(y), int(x)] = int(text.get_text())
    assert np.array_equal(shown, counts)
    (picture,) = axes.get_images()
    np.testing.assert_allclose(np.asarray(picture.get_array()), counts / counts.sum(1, keepdims=True))
    assert picture.get_clim() == (0, 1)
    assert [tick.get_text() for tick in axes.get_yticklabels()] == list(CLASSES)
    assert [tick.get_text() for tick in axes.get_xticklabels()] == list(CLASSES)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")
    assert picture.colorbar is not None
    # a number is dark on light and light on dark
    for text in axes.texts:
        x, y = map(int, text.get_position())
        share = counts[y, x] / counts[y].sum()
        assert text.get_color() == ("white" if share > 0.5 else "black")


def test_confusion_of_a_class_without_images() -> None:
    metrics = metrics_of(torch.eye(3), torch.tensor([0, 0, 1]), ("a", "b", "c"))
    (picture,) = plots.confusion(metrics).get_images()
    assert np.asarray(picture.get_array()).tolist() == [[0.5, 0.5, 0], [0, 0, 1], [0, 0, 0]]


@pytest.mark.parametrize("k", [2, 10, 20, pytest.param(47, marks=pytest.mark.slow), 100])
def test_names_of_the_confusion_matrix_do_not_overlap(k: int) -> None:
    names = tuple(f"a_class_{i}" for i in range(k))
    axes = plots.confusion(metrics_of(*answers(5 * k, k), names))
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        boxes = extents(list(labels), axes)
        assert len(boxes) == k
        assert not any(a.overlaps(b) for a, b in itertools.pairwise(boxes))


def test_mosaic_against_a_loop() -> None:
    maps = np.random.default_rng(0).normal(size=(7, 3, 4))
    canvas = plots.mosaic(maps, columns=3, gap=2)
    assert canvas.shape == (3 * 3 + 2 * 2, 3 * 4 + 2 * 2)
    expected = np.full(canvas.shape, np.nan)
    for i in range(7):
        for y in range(3):
            for x in range(4):
                expected[(i // 3) * 5 + y, (i % 3) * 6 + x] = maps[i, y, x]
    assert np.array_equal(canvas.mask, np.isnan(expected))
    assert np.array_equal(canvas.filled(np.nan), expected, equal_nan=True)
    assert np.isfinite(canvas.data).all()  # what lies behind the mask is no chance memory, which may overflow


def test_filters_of_gray_images_on_one_scale_around_zero() -> None:
    name, weights = first_filters(build("lenet5", channels=1, classes=10, size=(28, 28)))
    axes = plots.filters(weights, name)
    (picture,) = axes.get_images()
    tiles = np.ma.compressed(picture.get_array())
    np.testing.assert_allclose(np.sort(tiles), np.sort(weights.numpy().ravel()), rtol=1e-6)
    low, high = picture.get_clim()
    assert -low == high == pytest.approx(weights.abs().max().item())
    assert picture.colorbar is not None
    assert picture.colorbar.ax.get_ylabel() == "weight"
    assert axes.get_title() == "Filters of network.features.0: 6 of 5 x 5"


def test_filters_of_colour_images_as_colours() -> None:
    weights = torch.zeros(2, 3, 3, 3)
    weights[0, 0, 0, 0], weights[0, 2, 1, 1] = 0.5, -0.5
    weights[1, 1] = 0.01
    axes = plots.filters(weights, "first")
    first, second = (np.asarray(picture.get_array()) for picture in axes.get_images())
    assert first[0, 0].tolist() == [255, 127, 127]  # most positive, zero, zero
    assert first[1, 1].tolist() == [127, 127, 0]
    assert (second == [127, 255, 127]).all()  # a weak filter is scaled up to its own range, which its caption states
    assert [text.get_text() for text in axes.texts] == ["±0.5", "±0.01"]


def test_feature_maps_on_one_scale() -> None:
    signed, positive = plots.feature_map(some_map()), plots.feature_map(some_map(sign=False))
    maps = some_map().maps
    (picture,) = signed.get_images()
    assert -picture.get_clim()[0] == picture.get_clim()[1] == pytest.approx(maps.abs().max().item())
    assert np.ma.count(picture.get_array()) == maps.numel()
    (other,) = positive.get_images()
    assert other.get_clim() == (0, pytest.approx(maps.max().item()))
    assert picture.get_cmap().name != other.get_cmap().name
    assert picture.colorbar is not None
    title = signed.get_title()
    assert title == "network.features.0 (Conv2d): 6 maps of 5 x 7\nfloor((5 + 2·1 - 3) / 1) + 1 = 5"


def test_real_feature_maps_can_be_drawn(tmp_path: Path) -> None:
    model = build("lenet5", channels=3, classes=10, size=(32, 32))
    for feature in feature_maps(model, some_images(1, side=32)[0]):
        path = plots.save(plots.feature_map(feature), tmp_path / "map.png", dpi=40)
        with Image.open(path) as picture:
            assert picture.width > 100


def test_a_long_title_is_not_cut_off(tmp_path: Path) -> None:
    axes = plots.image_grid(some_images(1), ["one"], title="Predictions for one image: " + "W" * 40)
    (box,) = extents([axes.title], axes)
    path = plots.save(axes, tmp_path / "drawing.png")  # at the figure's own resolution
    with Image.open(path) as picture:
        assert picture.width >= box.width > 500
        border = np.asarray(picture.convert("L"))[:, [0, -1]]
    assert (border == 255).all()
