"""One function a figure. Each takes an Axes (or makes one) and returns it, so that a figure can stand in any page.

Right and wrong, training and validation are told apart by shape and text as well as by colour (Okabe and Ito's palette,
which readers with any colour vision can tell apart).
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from .evaluation import Metrics
from .explain import FeatureMap
from .files import write_whole
from .lr_find import RangeTest

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PAGE = (10.0, 10.5)  # inches: no figure is larger
DPI = 120
MAIN, PAD = 0.86, 0.04  # what is left of the width of an Axes beside which a colour bar stands, and the gap


class Drawing(Axes):
    """An Axes that Jupyter shows where it is a cell's last value: pyplot does so for those that it knows of, and these
    are made without it."""

    def _repr_png_(self) -> bytes:
        return rendered(self, dpi=80)


def new_axes(width: float = 5.7, height: float = 4.1, left: float = 0.7, below: float = 0.5) -> Axes:
    """An Axes of this size with these margins, and room for a title, in inches, on a figure of its own: without pyplot,
    and so without a window or global state."""
    whole = left + width + 0.1, below + height + 0.4
    figure = Figure(figsize=whole, dpi=DPI)  # a layout engine would measure every label several times
    FigureCanvasAgg(figure)
    place = (left / whole[0], below / whole[1], width / whole[0], height / whole[1])
    return figure.add_axes(place, axes_class=Drawing)


def save(axes: Axes, path: Path, dpi: int = DPI) -> Path:
    """Write the figure that `axes` stands in, as its ending says (.png or .svg), cut to what is drawn, whole or not at
    all."""
    write_whole(path, rendered(axes, dpi, path.suffix[1:]))
    return path


def rendered(axes: Axes, dpi: int = DPI, kind: str = "png") -> bytes:
    """The same as bytes."""
    figure, buffer = _figure(axes), io.BytesIO()
    # What is drawn is measured here, and a long title not cut off: for "tight" matplotlib would draw everything twice
    box = figure.get_tightbbox().padded(0.1) if figure.get_layout_engine() is None else "tight"
    figure.savefig(buffer, dpi=dpi, format=kind, bbox_inches=box)
    return buffer.getvalue()


def _figure(axes: Axes) -> Figure:
    figure = axes.get_figure(root=True)
    if figure is None:
        raise ValueError("these axes were removed from their figure")
    return figure


def curves(history: Sequence[dict[str, Any]], quantity: str = "loss", axes: Axes | None = None) -> Axes:
    """`quantity` ("loss" or "accuracy") over the epochs: training, validation, and the test set where it was looked
    at."""
    axes = axes or new_axes()
    epochs = [row["epoch"] for row in history]
    styles = (("train", BLUE, "o-", "training"), ("val", ORANGE, "s--", "validation"), ("test", GREEN, "^:", "test"))
    for prefix, color, style, label in styles:
        key = f"{prefix}_{quantity}"
        if history and key in history[0]:
            values = [row[key] * (100 if quantity == "accuracy" else 1) for row in history]
            axes.plot(epochs, values, style, color=color, label=f"{label} ({values[-1]:.4g})", markersize=4)
    axes.set(xlabel="epoch", ylabel="accuracy in %" if quantity == "accuracy" else "loss")
    axes.set_title("Accuracy" if quantity == "accuracy" else "Loss")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)
    if history:
        axes.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
        axes.legend(title="after the last epoch")
    return axes


def accuracy_against_seconds(reports: Sequence[dict[str, Any]], title: str = "", axes: Axes | None = None) -> Axes:
    """Test accuracy (%) over the seconds of training, logarithmic, of several runs of ours and of a peer: a line a run
    through its epochs where the test set was looked at after each, a point at its end."""
    axes = axes or new_axes()
    names = list(dict.fromkeys(report["peer"] for report in reports))
    styles = dict(zip(names, ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (RED, "D")), strict=False))
    for report in reports:
        color, marker = styles[report["peer"]]
        seconds = np.cumsum([epoch["train_seconds"] for epoch in report["epochs"]])
        accuracy = [100 * epoch["test_accuracy"] for epoch in report["epochs"]]
        axes.plot(seconds, accuracy, "-", color=color, alpha=0.5, linewidth=1)
        label = report["peer"] if report is next(r for r in reports if r["peer"] == report["peer"]) else None
        axes.plot(report["seconds"]["train"], 100 * report["accuracy"], marker, color=color, label=label)
    axes.set(xscale="log", xlabel="seconds of training", ylabel="test accuracy (%)", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    return axes


def range_test(test: RangeTest, title: str = "Learning-rate range test", axes: Axes | None = None) -> Axes:
    """The loss of each step (thin) and its running average (thick) over the rate, logarithmic; a solid line stands at
    the suggestion, a dotted one at the lowest average."""
    axes = axes or new_axes()
    axes.plot(test.rates, test.losses, "-", color=BLUE, alpha=0.35, linewidth=1, label="loss of a step")
    axes.plot(test.rates, test.smoothed, "-", color=BLUE, linewidth=2, label="running average")
    axes.axvline(test.lowest, color=ORANGE, linestyle=":", label=f"lowest at {test.lowest:.2g}")
    axes.axvline(test.suggestion, color=GREEN, label=f"suggestion: {test.suggestion:.2g}")
    low, high = min(test.smoothed), max(test.smoothed[: test.rates.index(test.lowest) + 1])
    axes.set_ylim(low - 0.3 * (high - low), high + 0.5 * (high - low))  # a loss that diverged would flatten the rest
    axes.set(xscale="log", xlabel="learning rate", ylabel="training loss", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    return axes


def image_grid(
    images: Tensor,
    captions: Sequence[str],
    wrong: Sequence[bool] | None = None,
    title: str = "",
    columns: int = 8,
    axes: Axes | None = None,
) -> Axes:
    """Images uint8 (N, C, H, W) in rows with a caption under each, at most one page. Where `wrong` is given, a right
    one has a thin green frame and a check mark, a wrong one a thick dashed red frame and a cross."""
    columns = min(columns, max(len(images), 1))
    rows = -(-len(images) // columns)
    if wrong is not None:
        captions = [f"{'✗' if no else '✓'} {caption}" for no, caption in zip(wrong, captions, strict=True)]
    lines = [line for caption in captions for line in caption.split("\n")]
    pitch = 1.12 + 0.15 * max((caption.count("\n") + 1 for caption in captions), default=1)
    width, height = 1.15 * columns + 0.01, pitch * rows + 0.06
    shrink = min(1.0, (PAGE[0] - 0.2) / width, (PAGE[1] - 0.6) / height) if axes is None else 1.0
    size = shrink * min(8.0, 130 / max(map(len, lines), default=1))  # 16 letters of 8 points fill the pitch of an image
    axes = axes or new_axes(shrink * width, shrink * height, left=0.1, below=0.1)
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        x, y = 1.15 * (i % columns), pitch * (i // columns)
        pixels = image.permute(1, 2, 0).cpu().numpy()
        axes.imshow(
            pixels[:, :, 0] if pixels.shape[2] == 1 else pixels,
            cmap="gray",
            vmin=0,
            vmax=255,
            extent=(x, x + 1, y + 1, y),
            interpolation="nearest",
        )
        if wrong is not None and wrong[i]:
            dashes = (0, (3, 1.5))
            axes.add_patch(Rectangle((x, y), 1, 1, fill=False, edgecolor=RED, linewidth=2.5 * shrink, linestyle=dashes))
        elif wrong is not None:
            axes.add_patch(Rectangle((x, y), 1, 1, fill=False, edgecolor=GREEN, linewidth=shrink))
        axes.text(x + 0.5, y + 1.04, caption, ha="center", va="top", fontsize=size)
    axes.set(xlim=(-0.08, 1.15 * columns - 0.07), ylim=(pitch * rows, -0.06))
    axes.set_aspect("equal")
    _bare(axes)
    axes.set_title(title)
    return axes


def gallery(
    images: Tensor,
    labels: Tensor,
    probabilities: Tensor,
    classes: Sequence[str],
    title: str = "Predictions",
    axes: Axes | None = None,
) -> Axes:
    """Images with what the network took them for, and the truth where it was wrong."""
    predicted = probabilities.argmax(1)
    captions = []
    for p, truth, probability in zip(predicted.tolist(), labels.tolist(), probabilities.amax(1).tolist(), strict=True):
        said = f"{classes[p]} ({probability:.0%})"
        captions.append(said if p == truth else f"{said}\nis {classes[truth]}")
    return image_grid(images, captions, (predicted != labels).tolist(), title, axes=axes)


def class_counts(labels: Tensor, classes: Sequence[str], title: str = "", axes: Axes | None = None) -> Axes:
    """A bar a class with its number of images."""
    axes = axes or new_axes(5.4, min(max(1.6, 0.25 * len(classes)), PAGE[1] - 1), left=1.0)
    counts = labels.cpu().bincount(minlength=len(classes)).tolist()
    size = 10 if len(classes) <= 40 else 6
    bars = axes.barh(range(len(classes)), counts, color=BLUE)
    axes.bar_label(bars, [f"{c:,}" for c in counts], padding=3, fontsize=size)
    axes.set_yticks(range(len(classes)), classes, fontsize=size)
    axes.invert_yaxis()
    axes.margins(x=0.12, y=0.01)
    axes.set(xlabel="images", title=title)
    return axes


def confusion(metrics: Metrics, title: str = "Confusion matrix", axes: Axes | None = None) -> Axes:
    """Rows are the true classes, columns what they were taken for; colour is the share of the row, numbers are
    images."""
    names = [c.name for c in metrics.classes]
    k = len(names)
    side = min(max(3.7, 0.55 * k + 0.8), PAGE[0] - 2.6)
    axes = axes or new_axes(side / MAIN, side)
    counts = np.array(metrics.confusion)
    shares = counts / counts.sum(1, keepdims=True).clip(min=1)
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if k <= 20:
        for i, j in zip(*np.nonzero(counts), strict=True):
            axes.text(j, i, counts[i, j], ha="center", va="center", color="white" if shares[i, j] > 0.5 else "black",
                      fontsize=8)  # fmt: skip # one call, one line too long
    size = min(10.0, 55 * side / k)  # points: a row of text is no higher than its row of cells
    narrow = max(map(len, names)) * 0.6 * size / 72 > side / k
    axes.set_xticks(range(k), names, rotation=90 if narrow else 0, fontsize=size)
    axes.set_yticks(range(k), names, fontsize=size)
    axes.set(xlabel="predicted", ylabel="true", title=title)
    _scale(picture, axes, "share of the true class")
    return axes


def _bare(axes: Axes) -> None:
    axes.set_axis_off()
    axes.set(xticks=(), yticks=())  # those that are not shown are measured, too


def _scale(picture: AxesImage, axes: Axes, label: str) -> None:
    _figure(axes).colorbar(picture, ax=axes, label=label, shrink=0.8, fraction=1 - MAIN - PAD, pad=PAD)


def mosaic(maps: np.ndarray, columns: int, gap: int = 1) -> np.ma.MaskedArray:
    """(N, H, W) -> one masked array with the N tiles in rows; gaps and unused tiles are masked."""
    n, h, w = maps.shape
    rows = -(-n // columns)
    shape = (rows * (h + gap) - gap, columns * (w + gap) - gap)
    canvas = np.ma.masked_array(np.zeros(shape), mask=True)  # masked_all would leave chance numbers behind the mask
    for i, tile in enumerate(maps):
        y, x = (i // columns) * (h + gap), (i % columns) * (w + gap)
        canvas[y : y + h, x : x + w] = tile
    return canvas


def _tiles(maps: np.ndarray, title: str, label: str, symmetric: bool, axes: Axes | None) -> Axes:
    columns = math.ceil(math.sqrt(len(maps) * 1.3))
    canvas = mosaic(maps, columns)
    ratio = canvas.shape[0] / canvas.shape[1]
    width = min(6.0, 8.6 / ratio)
    axes = axes or new_axes(width / MAIN, width * ratio, left=0.1, below=0.1)
    high = float(np.abs(maps).max()) or 1.0
    colors = matplotlib.colormaps["RdBu_r" if symmetric else "viridis"].with_extremes(bad=(0, 0, 0, 0))
    low = -high if symmetric else float(min(maps.min(), 0))
    picture = axes.imshow(canvas, cmap=colors, vmin=low, vmax=high, interpolation="nearest")
    _bare(axes)
    axes.set_title(title, fontsize=10)
    _scale(picture, axes, label)
    return axes


def filters(weights: Tensor, name: str = "", axes: Axes | None = None) -> Axes:
    """The kernels (out, in, kH, kW) of a convolution, one tile an output channel. Three input channels are drawn as
    colours, each filter scaled to its own range; else the mean over the input channels on one scale around zero."""
    out, into, height, width = weights.shape
    title = f"Filters of {name}: {out} of {height} x {width}"
    if into != 3:
        return _tiles(weights.mean(1).numpy(), title, "weight", symmetric=True, axes=axes)
    largest = weights.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12)
    pictures = ((weights / largest) * 127.5 + 127.5).byte()
    captions = [f"±{value:.2g}" for value in largest.flatten().tolist()]
    columns = max(8, math.ceil(math.sqrt(out)))
    return image_grid(pictures, captions, title=f"{title}, as colours (gray is 0)", columns=columns, axes=axes)


def feature_map(feature: FeatureMap, axes: Axes | None = None) -> Axes:
    """All channels of one layer for one image on one scale: blue and red around zero where values are of both signs."""
    maps = feature.maps.numpy()
    channels, height, width = maps.shape
    title = f"{feature.name} ({feature.kind}): {channels} maps of {height} x {width}\n{feature.formula}"
    return _tiles(maps, title, "activation", symmetric=bool(maps.min() < 0), axes=axes)
