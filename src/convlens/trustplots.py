"""The figures of how far a network's answers can be trusted: one function a figure, Axes in and out, as in plots.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from .calibration import OperatingPoint
from .confidence import Trust
from .files import make_folder
from .plots import BLUE, GREEN, ORANGE, RED, new_axes, save
from .robust import Robustness

GRAY = "#595959"
# Eight lines that can be told apart without colour, too (Okabe and Ito's palette, its yellow made darker)
LINES = (
    (BLUE, "o", "-"),
    (ORANGE, "s", "--"),
    (GREEN, "^", "-"),
    (RED, "D", "--"),
    ("#CC79A7", "v", "-"),
    ("#56B4E9", "P", "--"),
    ("#9A8700", "X", "-"),
    ("#000000", "*", "--"),
)


def draw_trust(folder: Path, found: Trust, robust: Robustness | None = None) -> list[Path]:
    """All figures of a split as PNGs in `folder`; the curves of the corruptions where they were measured."""
    make_folder(folder)
    drawn = {"reliability": reliability(found), "confidence": histogram(found), "coverage": coverage(found.coverage)}
    if robust:
        drawn["corruptions"] = corruptions(robust)
    return [save(axes, folder / f"{name}.png") for name, axes in drawn.items()]


def reliability(found: Trust, axes: Axes | None = None) -> Axes:
    """Accuracy over confidence, before and after the temperature, and below how many images each bin has. On the
    diagonal a network is as often right as it says; below it, it is too sure."""
    axes = axes or new_axes(height=4.6, below=1.5)
    axes.plot((0, 1), (0, 1), ":", color=GRAY, label="as often right as it says")
    raw = f"as trained: ECE {found.ece:.2%}"
    after = f"temperature {found.temperature:.3g}: ECE {found.ece_calibrated:.2%}"
    series = [(found.bins, ORANGE, "s--", raw), (found.calibrated, BLUE, "o-", after)]
    for bins, color, style, label in series[: 1 if found.temperature == 1 else 2]:
        full = [(b.confidence, b.accuracy) for b in bins if b.accuracy is not None]
        axes.plot(*zip(*full, strict=True), style, color=color, label=label, markersize=5)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy", title=f"Reliability on {found.images:,} images")
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.tick_params(labelbottom=False)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")
    below = axes.inset_axes((0, -0.26, 1, 0.2), sharex=axes)
    middles, width = [(b.low + b.high) / 2 for b in found.bins], 0.8 / len(found.bins)
    shown = found.bins if found.temperature == 1 else found.calibrated
    color = ORANGE if found.temperature == 1 else BLUE
    below.bar(middles, [b.right + b.wrong for b in shown], width, color=color)
    below.set(yscale="log", ylim=(0.7, 2 * found.images), xlabel="confidence", ylabel="images")
    below.grid(axis="y", alpha=0.3)
    return axes


def histogram(found: Trust, axes: Axes | None = None) -> Axes:
    """How many right and wrong answers there are at every confidence (calibrated), on a logarithmic scale."""
    axes = axes or new_axes()
    bins, width = found.calibrated, 0.4 / len(found.calibrated)
    middles = [(b.low + b.high) / 2 for b in bins]
    right, wrong = [b.right for b in bins], [b.wrong for b in bins]
    axes.bar([m - width / 2 for m in middles], right, width, color=BLUE, label=f"right ({sum(right):,})")
    axes.bar(
        [m + width / 2 for m in middles],
        wrong,
        width,
        color="white",
        edgecolor=RED,
        hatch="/////",
        label=f"wrong ({sum(wrong):,})",
    )
    axes.set(yscale="log", xlim=(0, 1), ylim=(0.7, 2 * found.images), xlabel="confidence", ylabel="images")
    axes.set_title("Right and wrong answers by confidence")
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(axis="y", alpha=0.3)
    axes.legend(loc="upper left")
    return axes


def coverage(curve: Sequence[OperatingPoint], axes: Axes | None = None) -> Axes:
    """Accuracy of the answers that are kept, over their share, as the threshold of confidence rises from right to left;
    some thresholds are named."""
    axes = axes or new_axes()
    axes.plot([p.coverage for p in curve], [p.accuracy for p in curve], "-", color=BLUE, linewidth=2)
    for wanted in (0.5, 0.8, 0.9, 0.95, 1.0):
        point = min(curve, key=lambda p: abs(p.coverage - wanted))
        axes.plot(point.coverage, point.accuracy, "o", color=BLUE)
        text = "all answers" if point.coverage == 1 else f"from {point.threshold:.4g} on"
        axes.annotate(
            f"{text}: {point.accuracy:.2%}",
            (point.coverage, point.accuracy),
            (-3, -6),
            textcoords="offset points",
            ha="right",
            va="top",
            fontsize=8,
        )
    least, most = min(p.accuracy for p in curve), max(p.accuracy for p in curve)
    axes.set(xlabel="coverage: share of images that are answered", ylabel="accuracy of the answers")
    axes.set_ylim(least - 0.12 * (most - least) - 1e-3, most + 0.05 * (most - least) + 1e-3)  # room for the last name
    axes.set_title("Accuracy if the least sure answers are left out")
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(alpha=0.3)
    return axes


def corruptions(found: Robustness, axes: Axes | None = None) -> Axes:
    """Accuracy over the strength of each corruption, 0 the images as they are; the best withstood first in the legend,
    with its mean."""
    axes = axes or new_axes(width=5.4)
    styles = dict(zip((row.corruption for row in found.rows), LINES, strict=False))
    for row in sorted(found.rows, key=lambda row: -row.mean):
        color, marker, line = styles[row.corruption]
        label = f"{row.corruption} ({row.mean:.1%})"
        values = [found.clean, *row.accuracy]
        axes.plot(range(len(values)), values, line, color=color, marker=marker, markersize=5, label=label)
    of = f"{found.images:,} images" if found.images == found.of else f"{found.images:,} of {found.of:,} images"
    title = f"Corrupted pictures: {found.mean:.1%} right on average, {found.clean:.1%} of clean ones\n{of}"
    axes.set(xlabel="strength of the corruption", ylabel="accuracy", ylim=(0, 1.02))
    axes.set_title(title, fontsize=10)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(alpha=0.3)
    axes.legend(title="mean over strengths", loc="upper left", bbox_to_anchor=(1.01, 1))
    return axes
