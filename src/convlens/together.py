"""The curves of several runs in one chart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from .comparing import Side
from .plots import BLUE, DPI, GREEN, ORANGE, RED, new_axes

# Okabe and Ito's, but for the yellow, which is not seen on white; told apart by marker too, and after these by dashes
COLORS = (BLUE, ORANGE, GREEN, RED, "#CC79A7", "#56B4E9", "#000000")
MARKERS = "os^DvPX"
DASHES = ("-", "--", "-.", ":")


@matplotlib.rc_context({"text.parse_math": False})  # a $ in a folder's name begins no formula
def curves_together(sides: Sequence[Side], quantity: str = "accuracy", axes: Axes | None = None) -> Axes:
    """`quantity` ("accuracy" or "loss") over the epochs, a line with markers for each run: on validation where all runs
    with an epoch have it, else in training, which are not the same thing and so never stand in one chart. The thin
    lines are the training's where the others are validation's."""
    axes = axes or new_axes(6.2, 4.1)
    shown = [side for side in sides if side.history]
    percent = 100 if quantity == "accuracy" else 1
    held = all(f"val_{quantity}" in side.history[0] for side in shown)
    for place, side in enumerate(shown):
        color, marker = COLORS[place % 7], MARKERS[place % 7]
        dashes = DASHES[place // 7 % 4]
        epochs = [row["epoch"] for row in side.history]
        split = "val" if held else "train"
        values = [percent * row[f"{split}_{quantity}"] for row in side.history]
        name = Path(side.path).resolve().name
        name = name if len(name) <= 32 else f"…{name[-31:]}"  # the end is what tells runs apart
        every = max(len(epochs) // 20, 1)
        axes.plot(
            epochs,
            values,
            dashes,
            color=color,
            marker=marker,
            markersize=5,
            markevery=every,
            label=f"{side.letter}  {name} ({values[-1]:.4g})",
        )
        if held:
            training = [percent * row[f"train_{quantity}"] for row in side.history]
            axes.plot(epochs, training, "-", color=color, linewidth=0.8, alpha=0.5)
    what = "validation" if held else "training"
    unit = " in %" if quantity == "accuracy" else ""
    axes.set(xlabel="epoch", ylabel=f"{quantity}{unit}", title=f"{quantity.capitalize()} on the {what} images")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)
    if shown:
        handles = list(axes.get_legend_handles_labels()[0])
        handles += [Line2D([], [], color="gray", linewidth=0.8, label="thin: in training")] if held else []
        axes.legend(handles=handles, title="after the last epoch", fontsize=8, title_fontsize=8)
    return axes


def both_together(sides: Sequence[Side]) -> Axes:
    """Accuracy and loss side by side in one figure; the second's Axes."""
    figure = Figure(figsize=(13, 5), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    for quantity, axes in zip(("accuracy", "loss"), figure.subplots(1, 2), strict=True):
        curves_together(sides, quantity, axes)
    return axes
