"""Charts as inline SVG for a page: their colours are the page's own, their values are read by hovering over a column.

Series are told apart by marker and dash as well as by colour.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from markupsafe import Markup

RIGHT, TOP, BELOW = 24.0, 12.0, 46.0  # margins around the plot, in the SVG's own pixels
LETTER = 10.0  # the width of a digit at most
DOTS = 40  # points of a series above which markers would run into one another
COLOURS = 10  # of groups of points; the next so many are squares, and what comes behind them begins anew
CROSS = "m-4-4 8 8m0-8-8 8"
MARKERS = (  # around the origin
    Markup('<circle r="3.5"/>'),
    Markup('<rect x="-3.2" y="-3.2" width="6.4" height="6.4"/>'),
    Markup('<path d="M0-4.2 4 3.2H-4Z"/>'),
    Markup('<path d="M0-4.6 4.6 0 0 4.6-4.6 0Z"/>'),
)


@dataclass(frozen=True)
class Series:
    """A line through `points` (x, y), or bars from zero up to them. `style` 0..3 picks marker, dash and colour."""

    name: str
    points: Sequence[tuple[float, float]]
    style: int = 0
    bars: bool = False


@dataclass(frozen=True)
class Axis:
    """What an axis says; `low` and `high` are taken from the points where they are None, `form` writes a tick."""

    label: str
    low: float | None = None
    high: float | None = None
    form: Callable[[float], str] = "{:g}".format
    whole: bool = False  # ticks at whole numbers only


def percent(value: float) -> str:
    """0.985 -> 98.5%"""
    return f"{100 * value:.4g}%"


def legend(series: Sequence[Series]) -> Markup:
    """The names, each with its marker."""
    entries = [
        Markup(
            '<span class="key"><svg viewBox="-11 -6 22 12" aria-hidden="true" class="s{0}">{1}{2}</svg>{3}</span>'
        ).format(
            one.style, "" if one.bars else Markup('<path class="line" d="M-11 0H11"/>'), MARKERS[one.style], one.name
        )
        for one in series
    ]
    return Markup('<div class="legend">{}</div>').format(Markup("").join(entries))


def chart(
    title: str,
    series: Sequence[Series],
    x: Axis,
    y: Axis,
    columns: Sequence[tuple[float, str]] = (),
    diagonal: bool = False,
    size: tuple[int, int] = (440, 250),
) -> Markup:
    """The series on a grid. `columns` are places along x with the words shown while one hovers there; `diagonal` draws
    the line on which y equals x."""
    width, height = size
    across, up = (
        _scale(x, [p[0] for s in series for p in s.points]),
        _scale(y, [p[1] for s in series for p in s.points]),
    )

    steps = _ticks(*up, count=5, whole=y.whole)
    left = 14 + LETTER * max((len(y.form(tick)) for tick in steps), default=0)

    def px(value: float) -> float:
        return left + (value - across[0]) / (across[1] - across[0]) * (width - left - RIGHT)

    def py(value: float) -> float:
        return height - BELOW - (value - up[0]) / (up[1] - up[0]) * (height - TOP - BELOW)

    floor, right = height - BELOW, width - RIGHT
    parts = [Markup('<g class="axis">')]
    for tick in steps:
        parts.append(_path("", left, py(tick), right, py(tick)))
        parts.append(_text(left - 6, py(tick) + 4, "end", y.form(tick)))
    for tick in _ticks(*across, count=max(int(width / 75), 2), whole=x.whole):
        parts.append(_text(px(tick), floor + 19, "middle", x.form(tick)))
    parts += [_text((left + right) / 2, height - 6, "middle", x.label), Markup("</g>")]
    if diagonal:
        low, high = max(across[0], up[0]), min(across[1], up[1])
        parts.append(_path("diagonal", px(low), py(low), px(high), py(high)))
    for one in series:
        parts.append(_bars(one, px, py, floor) if one.bars else _line(one, px, py))
    places = [px(at) for at, _ in columns]
    edges = [left, *((a + b) / 2 for a, b in pairwise(places)), right]
    for (_, words), begin, end in zip(columns, edges, edges[1:], strict=False):
        parts.append(
            Markup('<rect class="hit" x="{:.1f}" y="{}" width="{:.1f}" height="{:.1f}" data-tip="{}"/>').format(
                begin, TOP, max(end - begin, 0), floor - TOP, words
            )
        )
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        width, height, f"{title}: {y.label} / {x.label}", Markup("").join(parts)
    )


def scatter(
    title: str,
    groups: Sequence[tuple[str, Sequence[tuple[float, float, bool, str]]]],
    size: tuple[int, int] = (720, 460),
) -> Markup:
    """Points (x, y, marked, words) of several groups, each group's name where its median lies: a dot, or a cross where
    it is marked; the words are shown while one hovers."""
    width, height = size
    points = [point for _, members in groups for point in members]
    across, up = _scale(Axis(""), [x for x, *_ in points]), _scale(Axis(""), [y for _, y, *_ in points])
    parts, names = [], list[tuple[float, float, str]]()
    for number, (name, members) in enumerate(groups):
        spots = [
            (
                (x - across[0]) / (across[1] - across[0]) * width,
                height - (y - up[0]) / (up[1] - up[0]) * height,
            )
            for x, y, _, _ in members
        ]
        marks = [
            Markup('<path class="{}" d="M{:.1f} {:.1f}{}" data-tip="{}"/>').format(
                "cross" if marked else "dot", x, y, CROSS if marked else "h0", words
            )
            for (x, y), (_, _, marked, words) in zip(spots, members, strict=True)
        ]
        kind = f"g{number % COLOURS}" + (" square" if number // COLOURS % 2 else "")
        parts.append(Markup('<g class="{}">{}</g>').format(kind, Markup("").join(marks)))
        if spots and name:
            names.append((median(x for x, _ in spots), median(y for _, y in spots), name))
    return Markup('<svg class="chart scatter" viewBox="0 0 {} {}" role="img" aria-label="{}">{}{}</svg>').format(
        width,
        height,
        title,
        Markup("").join(parts),
        Markup("").join(_text(x, y, "middle", name) for x, y, name in _apart(names)),
    )


def _apart(
    names: list[tuple[float, float, str]], letter: float = 11.0, line: float = 22.0
) -> list[tuple[float, float, str]]:
    """Words around (x, y), from top to bottom, each moved down until it covers none of those before."""
    placed: list[tuple[float, float, str]] = []
    for x, y, name in sorted(names, key=lambda name: name[1]):
        for other_x, other_y, other in sorted(placed, key=lambda name: name[1]):
            if abs(x - other_x) < letter * (len(name) + len(other)) / 2 and abs(y - other_y) < line:
                y = other_y + line
        placed.append((x, y, name))
    return placed


def _text(x: float, y: float, anchor: str, words: str) -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, words)


def _path(kind: str, x: float, y: float, to_x: float, to_y: float) -> Markup:
    return Markup('<path class="{}" d="M{:.1f} {:.1f}L{:.1f} {:.1f}"/>').format(kind, x, y, to_x, to_y)


def _line(one: Series, px: Callable[[float], float], py: Callable[[float], float]) -> Markup:
    places = [(px(x), py(y)) for x, y in one.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = [
        Markup('<g transform="translate({:.1f} {:.1f})">{}</g>').format(x, y, MARKERS[one.style]) for x, y in places
    ]
    shown = Markup("").join(dots if len(dots) <= DOTS else dots[-1:])
    return Markup('<g class="s{}"><polyline class="line" points="{}"/>{}</g>').format(one.style, path, shown)


def _bars(one: Series, px: Callable[[float], float], py: Callable[[float], float], floor: float) -> Markup:
    places = [px(x) for x, _ in one.points]
    pitch = min((b - a for a, b in pairwise(places)), default=60.0)
    wide = max(min(0.7 * pitch, 40.0), 1.0)
    bars = [
        Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(
            place - wide / 2, py(y), wide, floor - py(y)
        )
        for place, (_, y) in zip(places, one.points, strict=True)
    ]
    return Markup('<g class="s{} bars">{}</g>').format(one.style, Markup("").join(bars))


def _scale(axis: Axis, values: Sequence[float]) -> tuple[float, float]:
    """The ends of an axis: those that are given, else of the values with a little room."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    room = 0.05 * (high - low) or 0.5 * abs(high) or 0.5
    low = low - room if axis.low is None else axis.low
    high = high + room if axis.high is None else axis.high
    return low, high if high > low else low + 1


def _ticks(low: float, high: float, count: int, whole: bool) -> list[float]:
    """Round numbers between the two, about `count` of them."""
    rough = (high - low) / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.75)
    step = max(round(step), 1) if whole else step
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]
