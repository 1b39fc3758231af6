"""A network drawn: a box for the maps of every layer, to scale, and where its parameters and its arithmetic are."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.patches import Polygon, Rectangle

from .plots import BLUE, GREEN, ORANGE, new_axes
from .summary import LayerRow, Summary

INPUT = "input"
MOST = 14  # boxes: more would not be readable on one page
TALL, DEEP, BAR = 1.9, 0.35, 0.45  # inches: the highest box, what of its width one sees aslant, the highest bar
LETTER = 0.062  # inches of a letter at 7 points
GRAY = "#8C8C8C"


@dataclass(frozen=True)
class Block:
    """Layers that are drawn as one box: their names and kinds, what the last of them gives, and what all of them
    cost."""

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    output: tuple[int, ...]
    parameters: int
    macs: int


def blocks_of(summary: Summary, most: int = MOST) -> list[Block]:
    """What is drawn: layers that neither multiply nor change a size belong to the one before. Of a network with more
    than `most` boxes, those in a row that give the same size are one, then those of the same height and width, then as
    many in a row as it takes."""
    rows = [Block((row.name,), (_kind(row),), row.output, row.parameters, row.macs) for row in summary.rows]
    first = Block((INPUT,), (), summary.input, 0, 0)
    blocks = _joined([first, *rows], lambda a, b: not b.macs and a.output == b.output)
    rules: list[Callable[[Block, Block], bool]] = [
        lambda a, b: a.output == b.output and a.names[0] != INPUT,
        lambda a, b: len(a.output) == len(b.output) and a.output[1:] == b.output[1:] and a.names[0] != INPUT,
    ]
    for same in rules:
        if len(blocks) > most:
            blocks = _joined(blocks, same)
    if len(blocks) > most:
        each = math.ceil((len(blocks) - 1) / (most - 1))
        parts = [blocks[i : i + each] for i in range(1, len(blocks), each)]
        blocks = [blocks[0], *(_joined(part, lambda *_: True)[0] for part in parts)]
    return blocks


def network(summary: Summary, title: str, axes: Axes | None = None) -> Axes:
    """Boxes as in LeCun et al. (1998): height and depth are the square root of the rows and columns, the width the
    logarithm of the channels; a vector is a bar whose height is the logarithm of its length. Below each box what made
    it, what it gives, and its share of all parameters and multiply-adds."""
    blocks = blocks_of(summary)
    largest = max(max(block.output[1:], default=1) for block in blocks)
    sizes = [_size(block.output, largest) for block in blocks]
    texts = [_text(block) for block in blocks]
    letters = [max(map(len, text.split("\n"))) * LETTER for text in texts]
    pitches = [max(wide + deep, text) + 0.16 for (_, deep, wide), text in zip(sizes, letters, strict=True)]
    lines = max(text.count("\n") for text in texts) + 1
    below = 0.13 * lines + 0.25
    top, bottom = TALL * (1 + DEEP), -below - 2 * (BAR + 0.42)
    width = sum(pitches) + 0.9
    axes = axes or new_axes(width, top - bottom + 0.1, left=0.1, below=0.1)
    x = 0.9
    for block, (high, deep, wide), text, pitch in zip(blocks, sizes, texts, pitches, strict=True):
        middle = x + pitch / 2
        _box(axes, middle - (wide + deep) / 2, TALL * (1 + DEEP) / 2 - (high + deep) / 2, (high, deep, wide), block)
        axes.text(middle, -0.1, text, ha="center", va="top", fontsize=7, linespacing=1.25)
        x += pitch
    rows = (("parameters", [b.parameters for b in blocks], BLUE), ("multiply-adds", [b.macs for b in blocks], ORANGE))
    for number, (name, counts, color) in enumerate(rows):
        _bars(axes, -below - (number + 1) * (BAR + 0.42) + 0.15, name, counts, pitches, color)
    axes.set(xlim=(0, width), ylim=(bottom, top), aspect="equal")
    axes.set_axis_off()
    axes.set(xticks=(), yticks=())
    axes.set_title(title, fontsize=10)
    return axes


def _joined(blocks: Sequence[Block], same: Callable[[Block, Block], bool]) -> list[Block]:
    """Each block made one with the one before where they are the `same`."""
    found: list[Block] = []
    for b in blocks:
        a = found[-1] if found else None
        if a and same(a, b):
            costs = a.parameters + b.parameters, a.macs + b.macs
            found[-1] = Block(a.names + b.names, a.kinds + b.kinds, b.output, *costs)
        else:
            found.append(b)
    return found


def _kind(row: LayerRow) -> str:
    window = f" {row.kernel}" if row.kernel else ""
    return re.sub(r"([a-z])2d\b", r"\1", row.kind) + window + (f"/{row.stride}" if row.stride not in ("", "1") else "")


def _size(output: tuple[int, ...], largest: int) -> tuple[float, float, float]:
    """Inches: height, how far the back lies aslant behind the front, width."""
    if len(output) < 3:
        return TALL * min(0.15 + 0.07 * math.log2(math.prod(output)), 1.3), 0.0, 0.1
    channels, high, wide = output[0], output[1], output[2]
    thick = 0.04 + 0.06 * math.log2(max(channels, 1))
    return TALL * math.sqrt(high / largest), DEEP * TALL * math.sqrt(wide / largest), thick


def _box(axes: Axes, x: float, y: float, size: tuple[float, float, float], block: Block) -> None:
    high, deep, wide = size
    pooled = any("pool" in kind.lower() for kind in block.kinds)
    color = (BLUE if len(block.output) == 3 else ORANGE) if block.macs else GREEN if pooled else GRAY
    edge = {"edgecolor": "black", "linewidth": 0.6, "facecolor": color}
    if deep:
        back = [(x + deep, y + deep), (x + wide + deep, y + deep)]
        over = [(x, y + high), (x + wide, y + high), (back[1][0], back[1][1] + high), (back[0][0], back[0][1] + high)]
        side = [(x + wide, y), (x + wide, y + high), (back[1][0], back[1][1] + high), back[1]]
        axes.add_patch(Polygon(over, alpha=0.35, **edge))  # type: ignore[arg-type] # a dict of several types
        axes.add_patch(Polygon(side, alpha=0.75, **edge))  # type: ignore[arg-type]
    axes.add_patch(Rectangle((x, y), wide, high, alpha=0.55, **edge))  # type: ignore[arg-type]


def _text(block: Block) -> str:
    names = [re.sub(r"^network\.", "", name) for name in block.names]
    first, last = (".".join(name.split(".")[:2]) for name in (names[0], names[-1]))
    kinds, shown = sorted(dict.fromkeys(block.kinds), key=_passes_on), 3
    several = [f"{block.kinds.count(kind)} {kind}" if block.kinds.count(kind) > 1 else kind for kind in kinds]
    more = [f"and {len(kinds) - shown} more"] if len(kinds) > shown else []
    stem, _, number = last.rpartition(".")
    if len(names) == 1 or names[0] == INPUT:
        place = names[0]
    elif first == last:
        place = first
    else:
        place = f"{first} to {number}" if stem and first.rpartition(".")[0] == stem else f"{first} to\n{last}"
    return "\n".join(["×".join(map(str, block.output)), place, *several[:shown], *more])


def _passes_on(kind: str) -> bool:
    """Whether a kind only passes on what the multiplying ones of its box made: those are named first."""
    return not re.search("conv|whiten|linear|attention", kind, re.IGNORECASE)


def _bars(axes: Axes, y: float, name: str, counts: Sequence[int], pitches: Sequence[float], color: str) -> None:
    total, x = max(sum(counts), 1), 0.9
    axes.text(0.05, y, f"{name}\n{sum(counts):,}", ha="left", va="bottom", fontsize=7)
    for count, pitch in zip(counts, pitches, strict=True):
        if count:
            high = BAR * count / max(counts)
            axes.add_patch(Rectangle((x + pitch / 2 - 0.15, y), 0.3, high, color=color))
            axes.text(x + pitch / 2, y + high + 0.03, f"{count / total:.1%}", ha="center", va="bottom", fontsize=7)
        x += pitch
    axes.plot((0.9, x), (y, y), "-", color=GRAY, linewidth=0.6)
