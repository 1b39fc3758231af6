"""Which charts the report has: how training went, how far to trust the answers, a map of the test set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from markupsafe import Markup

from .charts import Axis, Series, chart, legend, percent, scatter
from .confidence import Bin, Trust, trust_of
from .outcomes import Outcomes
from .robust import Robustness

Say = Callable[..., str]
ROWS = 20  # of the table of coverage, about


@dataclass(frozen=True)
class Titled:
    """A chart with what stands above and below it; `columns` and `rows` are a table of its values."""

    title: str
    legend: Markup
    drawing: Markup
    note: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()


def training_charts(history: Sequence[dict[str, Any]], say: Say) -> list[Titled]:
    """Loss, accuracy, learning rate and seconds over the epochs. Of less than two epochs there is no curve."""
    if len(history) < 2:
        return []
    epochs = Axis(say("epoch"), whole=True)
    splits = (("train", say("training")), ("val", say("validation")), ("test", say("test")))
    drawn = []
    for quantity, title, form in (("loss", say("Loss"), "{:.4g}".format), ("accuracy", say("Accuracy"), percent)):
        series = [
            Series(name, [(row["epoch"], row[f"{split}_{quantity}"]) for row in history], style)
            for style, (split, name) in enumerate(splits)
            if f"{split}_{quantity}" in history[0]
        ]
        y = Axis(title) if quantity == "loss" else _shares(title, [p[1] for s in series for p in s.points])
        columns = _columns(series, say("epoch {n}", n="{:g}"), form)
        drawn.append(Titled(title, legend(series), chart(title, series, epochs, y, columns)))
    for key, title, name, bars in (
        ("lr", say("Learning rate"), say("at the end of the epoch"), False),
        ("seconds", say("Seconds an epoch"), say("seconds"), True),
    ):
        series = [Series(name, [(row["epoch"], row[key]) for row in history], 3, bars)]
        columns = _columns(series, say("epoch {n}", n="{:g}"), "{:.4g}".format)
        x = Axis(say("epoch"), history[0]["epoch"] - 0.6, history[-1]["epoch"] + 0.6, whole=True) if bars else epochs
        drawn.append(Titled(title, legend(series), chart(title, series, x, Axis(title, low=0), columns)))
    return drawn


def trust_in(outcomes: Outcomes, temperature: float) -> Trust:
    """As `confidence.trust` has it, to the nine digits of predictions.csv."""
    right, calibrated = torch.from_numpy(outcomes.right), torch.from_numpy(outcomes.confidence)
    raw = torch.from_numpy(outcomes.before(temperature)) if temperature != 1 else calibrated
    return trust_of(raw, calibrated, right, temperature)


def trust_charts(found: Trust, say: Say) -> list[Titled]:
    """The reliability diagram, before and after calibration, and accuracy over coverage."""
    after = found.calibrated
    tables = [(say("calibrated") if found.temperature != 1 else say("as it is"), after, 0)]
    if found.temperature != 1:
        tables.insert(0, (say("before calibration"), found.bins, 1))
    series = [
        Series(
            name,
            [(b.confidence, b.accuracy) for b in bins if b.confidence is not None and b.accuracy is not None],
            style,
        )
        for name, bins, style in tables
    ]
    columns = [
        ((b.low + b.high) / 2, "\n".join([f"{percent(b.low)} – {percent(b.high)}", *_bin_words(tables, i, say)]))
        for i, b in enumerate(after)
    ]
    x, y = Axis(say("confidence"), 0, 1, percent), Axis(say("share that is right"), 0, 1, percent)
    title = say("Reliability")
    note = say("On the dotted line the network is right as often as it says.")
    heads = [say("confidence"), *(word for name, _, _ in tables for word in (name, say("images")))]
    rows = [
        [f"{percent(b.low)} – {percent(b.high)}", *(cell for _, bins, _ in tables for cell in _bin_cells(bins[i]))]
        for i, b in enumerate(after)
    ]
    drawing = chart(title, series, x, y, columns, diagonal=True)
    drawn = [Titled(title, legend(series), drawing, note, heads, rows)]

    points = found.coverage[::-1]
    curve = Series(say("accuracy of what is answered"), [(p.coverage, p.accuracy) for p in points])
    told = [
        (
            p.coverage,
            say(
                "answered: {share}\naccuracy: {accuracy}\nthreshold: {threshold}",
                share=f"{p.coverage:.2%}",
                accuracy=f"{p.accuracy:.2%}",
                threshold=f"{p.threshold:.4f}",
            ),
        )
        for p in points
    ]
    title, x = say("Coverage against accuracy"), Axis(say("share of images that are answered"), 0, 1, percent)
    y = _shares(say("accuracy"), [p.accuracy for p in points])
    note = say("What is left when the network keeps silent below a threshold of its probability.")
    heads = [say("coverage"), say("accuracy"), say("threshold")]
    rows = [
        [f"{p.coverage:.2%}", f"{p.accuracy:.2%}", f"{p.threshold:.4f}"]
        for p in found.coverage[:: max(len(found.coverage) // ROWS, 1)]
    ]
    return [*drawn, Titled(title, legend([curve]), chart(title, [curve], x, y, told), note, heads, rows)]


def _bin_cells(of: Bin) -> list[str]:
    return ["–" if of.accuracy is None else f"{of.accuracy:.1%}", f"{of.right + of.wrong:,}"]


def _bin_words(tables: Sequence[tuple[str, Sequence[Bin], int]], i: int, say: Say) -> list[str]:
    return [
        say(
            "{name}: {share} of {n} are right",
            name=name,
            share="–" if bins[i].accuracy is None else f"{bins[i].accuracy:.1%}",
            n=bins[i].right + bins[i].wrong,
        )
        for name, bins, _ in tables
    ]


def robustness_charts(found: Robustness, say: Say) -> list[Titled]:
    """A small chart a corruption, all on one scale: accuracy over strength, from the clean images on."""
    lowest = min(min(row.accuracy) for row in found.rows)
    y = Axis(say("accuracy"), max(lowest - 0.05, 0), 1, percent)
    drawn = []
    for row in found.rows:
        title = say(row.corruption)
        series = [Series(title, list(enumerate((found.clean, *row.accuracy))))]
        columns = _columns(series, say("strength {n}", n="{:g}"), percent)
        x = Axis(say("strength"), -0.3, 5.3, whole=True)
        drawn.append(Titled(title, Markup(""), chart(title, series, x, y, columns, size=(270, 180))))
    return drawn


def map_chart(found: dict[str, Any], classes: Sequence[str], named: bool, say: Say) -> Markup:
    """Test images by their first two principal components; mistakes are crosses, a class is named at its median."""
    groups = []
    for label, name in enumerate(classes):
        members = [
            (float(x), float(y), truth != said, f"{place}\n{_verdict(classes, truth, said, say)}")
            for (x, y), truth, said, place in zip(
                found["points"], found["labels"], found["predicted"], found["names"], strict=True
            )
            if truth == label
        ]
        groups.append((name if named else "", members))
    return scatter(say("Map of the test images"), groups)


def _verdict(classes: Sequence[str], truth: int, said: int, say: Say) -> str:
    if truth == said:
        return say("{a}, rightly", a=classes[truth])
    return say("{a}, taken for {b}", a=classes[truth], b=classes[said])


def _shares(label: str, values: Sequence[float]) -> Axis:
    """An axis for shares: from a little below the lowest to 100 %, or what is near to it."""
    low, high = min(values), max(values)
    room = max(0.06 * (high - low), 0.005)
    return Axis(label, max(low - room, 0), min(high + room, 1), percent)


def _columns(series: Sequence[Series], heading: str, form: Callable[[float], str]) -> list[tuple[float, str]]:
    """A column for every x of the first series, with the values of all there."""
    return [
        (x, "\n".join([heading.format(x), *(f"{s.name}: {form(s.points[i][1])}" for s in series)]))
        for i, (x, _) in enumerate(series[0].points)
    ]
