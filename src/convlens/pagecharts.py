"""Which charts the report has: how training went, and how far to trust the answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from .charts import Axis, Series, chart, legend, percent

Say = Callable[..., str]


@dataclass(frozen=True)
class Titled:
    """A chart with what stands above and below it."""

    title: str
    legend: Markup
    drawing: Markup
    note: str = ""


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
