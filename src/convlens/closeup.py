"""Figures of what a network looks at: channels with what they see, what fires them, neighbours, typical images, a map
of a data set. Each is laid out in inches on one Axes, so that nothing overlaps whatever the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from torch import Tensor, nn

from .channels import RankedLayer, strongest_slices
from .plots import BLUE, GREEN, PAGE, RED, mosaic, new_axes

WIDTH = 9.8  # inches
GRAY = "#666666"
ROWS = 8  # of a page
LABEL = 2.25  # inches that the names of layers take


@dataclass(frozen=True)
class Shown:
    """A picture with words: `pixels` uint8 (C, H, W), which may be empty, a line under it, and whether it is what was
    hoped for (None where nothing was)."""

    pixels: Tensor
    caption: str = ""
    right: bool | None = None


@dataclass(frozen=True)
class Row:
    """A row of pictures: lines that name it, the first of them bold; `first` some pictures set apart from the `others`;
    and the size (height, width) in pixels that fills a tile (None: each its own)."""

    lines: tuple[str, ...]
    first: tuple[Shown, ...]
    others: tuple[Shown, ...]
    full: tuple[int, int] | None = None


def _page(height: float, title: str, text: str, x: float = 0) -> tuple[Axes, float]:
    """An Axes in inches, y downwards, with its title, and with lines of text from `x` on; and where the room below them
    begins."""
    lines = text.split("\n")
    top = 0.28 + 0.16 * len(lines)
    axes = new_axes(WIDTH, top + height, left=0.1, below=0.1)
    axes.set(xlim=(0, WIDTH), ylim=(top + height, 0))
    axes.set_aspect("equal")
    axes.set_axis_off()
    axes.text(0, 0.1, title, fontsize=min(11, WIDTH * 72 / (0.64 * len(title))), fontweight="bold", va="center")
    for i, line in enumerate(lines):
        axes.text(x, 0.34 + 0.16 * i, line, fontsize=8, va="center", color=GRAY)
    return axes, top


def _tile(
    axes: Axes, values: Tensor | np.ndarray, x: float, y: float, side: float, full: tuple[int, int] | None = None,
    colors: str = "gray", low: float = 0, high: float = 255,
) -> tuple[float, float, float]:  # fmt: skip # what, where, how
    """Draw (C, H, W) or (H, W) in the middle of a square; `full` is the size that would fill it. Where its corner is,
    and how long one of its pixels."""
    pixels = np.asarray(values)
    if pixels.ndim == 3:
        pixels = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
    height, width = pixels.shape[:2]
    unit = side / max(full or (height, width))
    left, top = x + (side - width * unit) / 2, y + (side - height * unit) / 2
    box = (left, left + width * unit, top + height * unit, top)
    axes.imshow(pixels, cmap=colors, vmin=low, vmax=high, extent=box, interpolation="nearest")
    axes.add_patch(Rectangle((left, top), width * unit, height * unit, fill=False, edgecolor="#999999", linewidth=0.4))
    return left, top, unit


def ranked_channels(
    image: Tensor, layers: Sequence[tuple[RankedLayer, nn.Conv2d | None, tuple[str, ...]]], title: str, text: str,
    count: int = 4,
) -> Axes:  # fmt: skip # the rows are the long part
    """For an image uint8 (C, H, W) a row a layer with its `count` channels of the largest scores, each as its map with
    a box around the largest value, the pixels seen there, and its filter. A layer comes with the convolution that
    filters (None for a pooling) and the lines that name it; at most `ROWS` are to be given."""
    side, gap, pitch, picture = 0.57, 0.04, 1.06, 1.15
    block = (WIDTH + 0.1 - LABEL) / count
    axes, _ = _page(picture + 0.2 + pitch * len(layers) - 0.16 * text.count("\n"), title, text, LABEL)
    top = 0.24 + picture
    _tile(axes, image, 0, 0.28, picture)
    for i in range(count):
        for j, word in enumerate(("fires here", "sees this", "filter")):
            x = LABEL + i * block + j * (side + gap) + side / 2
            axes.text(x, top + 0.1, word, fontsize=7, ha="center", color=GRAY)
    largest = max(layer.scores[0].abs().max().item() for layer, _, _ in layers) or 1.0
    for i, (layer, convolution, lines) in enumerate(layers):
        y = top + 0.24 + pitch * i
        axes.plot((0, WIDTH), (y - 0.05, y - 0.05), color="#cccccc", linewidth=0.6)
        _label(axes, lines, y)
        for j, channel in enumerate(layer.top(count)):
            x, score = LABEL + j * block, layer.scores[0, channel].item()
            color = BLUE if score >= 0 else RED
            axes.text(x, y + 0.07, f"channel {channel}", fontsize=7.5, va="center")
            sign = "+" if score >= 0 else "−"
            axes.text(x + 3 * side + 2 * gap, y + 0.07, f"{sign}{abs(score):.2f}", fontsize=8, va="center", ha="right",
                      color=color, fontweight="bold")  # fmt: skip # one call, one line too long
            bar = (3 * side + 2 * gap) * abs(score) / largest
            axes.add_patch(Rectangle((x, y + 0.145), bar, 0.035, color=color))
            _channel(axes, image, layer, convolution, channel, x, y + 0.21, side, side + gap)
    return axes


def _label(axes: Axes, lines: Sequence[str], y: float) -> None:
    for i, line in enumerate(lines):
        weight = "normal" if i else "bold"
        size = min(7.0 if i else 8.0, (LABEL - 0.12) * 72 / (0.56 * max(len(line), 1)))
        axes.text(0, y + 0.09 + 0.15 * i, line, fontsize=size, fontweight=weight, va="center",
                  color=GRAY if i else "black")  # fmt: skip # one call, one line too long


def _channel(
    axes: Axes, image: Tensor, layer: RankedLayer, convolution: nn.Conv2d | None, channel: int, x: float, y: float,
    side: float, step: float,
) -> None:  # fmt: skip # what, where
    """A channel's map, what it sees where it fires most, and its filter, side by side."""
    maps, (row, column) = layer.maps[0, channel].numpy(), layer.peak(channel)
    signed, high = bool(layer.maps[0].min() < 0), float(np.abs(maps).max()) or 1.0
    colors, low = ("RdBu_r", -high) if signed else ("viridis", 0.0)
    left, above, unit = _tile(axes, maps, x, y, side, colors=colors, low=low, high=high)
    mark = max(unit, 0.05)
    middle = left + (column + 0.5) * unit, above + (row + 0.5) * unit
    corner = middle[0] - mark / 2, middle[1] - mark / 2
    axes.add_patch(Rectangle(corner, mark, mark, fill=False, edgecolor=RED, linewidth=1.1))
    top, left_, bottom, right = layer.field.pixels(row, column)
    if bottom > top and right > left_:
        _tile(axes, image[:, top:bottom, left_:right], x + step, y, side, full=layer.field.largest)
    x += 2 * step
    if convolution is None:
        kind = type(layer.layer).__name__.removesuffix("2d").removesuffix("Pool").lower()
        axes.text(x + side / 2, y + side / 2, f"{kind} of\na window", fontsize=7, ha="center", va="center", color=GRAY)
        return
    weights = convolution.weight[channel].detach().float().cpu()
    if len(weights) == 3:
        scale = weights.abs().max().clamp(min=1e-12)
        _tile(axes, ((weights / scale) * 127.5 + 127.5).byte(), x, y, side)
        return
    inputs, slices = strongest_slices(convolution, channel)
    high = float(slices.abs().max()) or 1.0
    finer = slices.numpy().repeat(4, axis=1).repeat(4, axis=2)  # so that the gap is a quarter of a weight
    shown = mosaic(finer, 1 if len(slices) == 1 else 2)
    colors_ = matplotlib.colormaps["RdBu_r"].with_extremes(bad="#d9d9d9")
    box = (x, x + side, y + side, y)
    axes.imshow(shown, cmap=colors_, vmin=-high, vmax=high, extent=box, interpolation="nearest")
    if len(inputs) > 1:
        axes.text(x + side, y + side + 0.07, f"of maps {', '.join(map(str, inputs))}", fontsize=6.5, ha="right",
                  va="center", color=GRAY)  # fmt: skip # one call, one line too long


def picture_rows(rows: Sequence[Row], title: str, text: str, heads: tuple[str, str] = ("", "")) -> Axes:
    """Rows of pictures of one size with their captions, ten at most in each; `heads` stand over the first pictures and
    over the others."""
    before = max(len(row.first) for row in rows)
    across, apart = before + max(len(row.others) for row in rows), 0.2 if before else 0.0
    pictures = [shown for row in rows for shown in (*row.first, *row.others)]
    lines = max([shown.caption.count("\n") + 1 for shown in pictures if shown.caption], default=0)
    room = (PAGE[1] - 1.3) / len(rows) - 0.16 * lines - 0.14
    side = min((WIDTH - LABEL - apart) / across - 0.06, room, 1.0)
    pitch = max(side + 0.16 * lines + 0.14, 0.24 + 0.15 * max(len(row.lines) for row in rows))
    axes, top = _page(pitch * len(rows) + 0.2, title, text)
    step = side + 0.06
    begin = LABEL + before * step + apart
    for x, head in zip((LABEL, begin), heads, strict=True):
        axes.text(x, top + 0.08, head, fontsize=7.5, va="center", color=GRAY)
    for i, row in enumerate(rows):
        y = top + 0.2 + pitch * i
        axes.plot((0, WIDTH), (y - 0.04, y - 0.04), color="#cccccc", linewidth=0.6)
        _label(axes, row.lines, y)
        for x, part in ((LABEL, row.first), (begin, row.others)):
            for j, shown in enumerate(part):
                _picture(axes, shown, x + step * j, y + 0.02, side, row.full)
    return axes


def _picture(axes: Axes, shown: Shown, x: float, y: float, side: float, full: tuple[int, int] | None) -> None:
    """A picture, in a frame where it is right or wrong, and its caption with a check mark or a cross."""
    if shown.pixels.numel():  # a unit that sees only padding has none
        left, top, unit = _tile(axes, shown.pixels, x, y, side, full=full)
    if shown.right is not None and shown.pixels.numel():
        height, width = (unit * n for n in shown.pixels.shape[1:])
        color, line, dashes = (GREEN, 1.0, "-") if shown.right else (RED, 2.0, (0, (3, 1.5)))
        axes.add_patch(
            Rectangle((left, top), width, height, fill=False, edgecolor=color, linewidth=line, linestyle=dashes)
        )
    words = ("" if shown.right is None else "✓ " if shown.right else "✗ ") + shown.caption
    size = min(7.5, (side + 0.04) * 72 / (0.58 * max(1, *map(len, words.split("\n")))))
    axes.text(x + side / 2, y + side + 0.03, words, fontsize=size, ha="center", va="top")


def embedding_map(
    coordinates: Tensor,
    labels: Tensor,
    predicted: Tensor,
    classes: Sequence[str],
    title: str,
    axis_names: Sequence[str],
) -> Axes:
    """Points (N, 2), coloured by their class, whose name stands in their middle. What was taken for another class is a
    cross with a black edge, in the colour of its true class."""
    axes = new_axes(8.2, 6.6, left=0.7)
    points, right = coordinates.numpy(), (labels == predicted).numpy()
    colors = [matplotlib.colormaps["tab10" if len(classes) <= 10 else "tab20"](i % 20) for i in range(len(classes))]
    each = np.array([colors[label] for label in labels.tolist()])
    size = float(np.clip(24000 / max(len(points), 1), 10, 40))
    (x, y), hit, missed = points.T, np.flatnonzero(right), np.flatnonzero(~right)
    axes.scatter(x[hit], y[hit], c=each[hit], s=size, alpha=0.5, linewidths=0)
    axes.scatter(x[missed], y[missed], c=each[missed], s=size + 20, marker="X", edgecolors="black", linewidths=0.7)
    for marker, edge, count, what in (("o", "none", len(hit), "right"), ("X", "black", len(missed), "mistakes")):
        axes.plot([], [], marker, color="#aaaaaa", markeredgecolor=edge, label=f"{what} ({count:,})")
    outline = [withStroke(linewidth=3, foreground="white")]
    if len(classes) <= 40:
        for i, name in enumerate(classes):
            members = points[(labels == i).numpy()]
            if len(members):
                x_, y_ = np.median(members, axis=0)
                axes.text(x_, y_, name, fontsize=10, fontweight="bold", ha="center", va="center",
                          color=tuple(0.65 * v for v in colors[i][:3]), path_effects=outline)  # fmt: skip # one call
    axes.set(title=title, xlabel=axis_names[0], ylabel=axis_names[1])
    axes.set(xticks=(), yticks=())
    axes.set_aspect("equal", adjustable="datalim")
    axes.legend(fontsize=9, loc="best")
    return axes
