"""Several runs side by side: what differs in their recipes, how they did, and whether two of them really differ.

McNemar's test (Psychometrika 12, 1947) asks whether two networks that answered the same test images are alike: it looks
at the images that one of them got right and the other wrong. It compares these networks, and not their recipes: the
next seed trains other networks (Dietterich, Neural Computation 10, 1998).
"""

from __future__ import annotations

import csv
import math
import string
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import markup
from .errors import UserError
from .intervals import wilson
from .run import Run
from .summary import summarize

EXACT = 25  # images in dispute below which McNemar's test is the exact binomial one
LETTERS = string.ascii_uppercase
# Of environment.json: where a run's data lies on one machine tells nothing of the run
ELSEWHERE = ("data.folder", "data.data_dir", "data.classes")


@dataclass(frozen=True)
class Side:
    """One of the runs. What only a finished run has is None in others: `accuracy` and the bounds of its 95 % `interval`
    (Wilson) in 0..1, over `images` test images; `loss`; `tta` the accuracy over several views of an image, where that
    was measured; `epoch` the one whose weights were kept. `macs` are multiply-adds for one image, None also where the
    network is code that was not named. `seconds` is the time of the training, `history` a row an epoch."""

    letter: str
    path: str
    data: str
    recipe: str
    model: str
    finished: bool
    images: int | None
    accuracy: float | None
    interval: tuple[float, float] | None
    loss: float | None
    tta: float | None
    parameters: int | None
    macs: int | None
    epoch: int | None
    epochs: int
    seconds: float
    history: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class McNemar:
    """Two runs on the same test images: how many both got right, one only, neither; `p` two-sided, by `method`;
    `p_holm` the same with Holm's correction for all the tests that were made (Scand. J. Statistics 6, 1979)."""

    first: str
    second: str
    both: int
    only_first: int
    only_second: int
    neither: int
    p: float
    p_holm: float
    method: str


@dataclass(frozen=True)
class Comparison:
    """`recipe` and `environment` hold, by dotted key, the values of those settings alone in which the runs differ, None
    where a run has no such setting. `said` are sentences on what could not be compared, and on what to bear in mind."""

    sides: tuple[Side, ...]
    recipe: dict[str, tuple[Any, ...]]
    environment: dict[str, tuple[Any, ...]]
    tests: tuple[McNemar, ...]
    said: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def _repr_html_(self) -> str:
        """The results, the settings that differ, and the tests; `together.curves_together(sides)` draws the curves."""
        columns = ("run", "path", "accuracy", "95 % interval", "parameters", "multiply-adds", "seconds")
        rows = []
        for side in self.sides:
            counts = ["" if count is None else f"{count:,}" for count in (side.parameters, side.macs)]
            accuracy = "not finished" if side.accuracy is None else f"{side.accuracy:.2%}"
            interval = " to ".join(f"{bound:.2%}" for bound in side.interval or ())
            rows.append((side.letter, side.path, accuracy, interval, *counts, f"{side.seconds:,.1f}"))
        parts = [markup.table(columns, rows, columns[2:])]
        differ = {**self.recipe, **self.environment}
        if differ:
            cells = [(key, *map(shown, values)) for key, values in differ.items()]
            parts.append(markup.table(("where they differ", *(side.letter for side in self.sides)), cells))
        if self.tests:
            numbers = ("both right", "only first", "only second", "neither", "p", "p, Holm")
            tests = [
                (
                    f"{t.first}, {t.second}",
                    t.both,
                    t.only_first,
                    t.only_second,
                    t.neither,
                    f"{t.p:.3g}",
                    f"{t.p_holm:.3g}",
                )
                for t in self.tests
            ]
            parts.append(markup.table(("McNemar's test", *numbers), tests, numbers))
        return "".join(parts + [markup.paragraph(sentence) for sentence in self.said])


def compare(runs: Sequence[Run | str | Path], builder: str | None = None) -> Comparison:
    """Two runs or more, finished or not. Of two, McNemar's test compares both; of more, the first with each other.

    `builder` allows a `package.module:function` to be imported that networks were built by, to count multiply-adds.

    Raises:
        UserError: fewer than two runs, more than there are letters, one of them twice, what is no run, or is damaged.
    """
    opened = [run if isinstance(run, Run) else Run.open(run) for run in runs]
    if not 2 <= len(opened) <= len(LETTERS):
        raise UserError(f"compare takes 2 to {len(LETTERS)} runs, not {len(opened)}")
    places = [run.path.resolve() for run in opened]
    for place, run in enumerate(opened):
        if places[place] in places[:place]:
            raise UserError(f"the run {run.path} is given twice")
    said: list[str] = []
    sides = tuple(_side(letter, run, builder, said) for letter, run in zip(LETTERS, opened, strict=False))
    environment = _differences([_flat(run.environment) for run in opened])
    environment = {key: values for key, values in environment.items() if key not in ELSEWHERE}
    recipe = _differences([_flat({k: v for k, v in run.recipe.to_dict().items() if k != "note"}) for run in opened])
    if {"device", "gpu", "cpus", "threads", "processes", "machine", "platform"} & environment.keys():
        said.append("The runs were not trained on the same machine in the same way, so their times do not compare.")
    return Comparison(sides, recipe, environment, _tests(opened, sides, said), tuple(said))


def mcnemar(only_first: int, only_second: int) -> tuple[float, str]:
    """The two-sided p and the method: how likely so uneven a share of the images in dispute is, or a less even one,
    where both networks are as likely to be the one that is right.

    "exact", by the binomial distribution, below EXACT images in dispute; from there on "chi-squared", with one degree
    of freedom and the continuity correction (Edwards, Psychometrika 13, 1948).
    """
    disputed = only_first + only_second
    if disputed < EXACT:
        tail = sum(math.comb(disputed, k) for k in range(min(only_first, only_second) + 1))
        return min(2 * tail / 2**disputed, 1.0), "exact"
    statistic = max(abs(only_first - only_second) - 1, 0) ** 2 / disputed
    return math.erfc(math.sqrt(statistic / 2)), "chi-squared"


def holm(p_values: Sequence[float]) -> list[float]:
    """The values with Holm's correction: the smallest times their number, the next times one less, never falling."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min((len(p_values) - rank) * p_values[place], 1.0))
        adjusted[place] = highest
    return adjusted


def shown(value: Any) -> str:
    """A setting's value as a table shows it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text[:12] if len(text) == 64 else text  # a sha256


def _side(letter: str, run: Run, builder: str | None, said: list[str]) -> Side:
    recipe, history = run.recipe, run.history
    measured = run.metrics if run.finished else None
    if measured is None:
        said.append(f"{letter} is not finished; go on with: convlens train --resume {run.path}")
    test = measured["test"] if measured else None
    right = sum(row[i] for i, row in enumerate(test["confusion"])) if test else 0
    return Side(
        letter=letter,
        path=str(run.path),
        data=run.environment["data"]["name"],
        recipe=recipe.name,
        model=recipe.model.name,
        finished=measured is not None,
        images=test and test["images"],
        accuracy=test and test["accuracy"],
        interval=test and wilson(right, test["images"]),
        loss=test and test["loss"],
        tta=measured["tta"]["accuracy"] if measured and "tta" in measured else None,
        parameters=measured["parameters"] if measured else None,
        macs=_macs(letter, run, builder, said) if measured else None,
        epoch=measured["epoch"] if measured else None,
        epochs=len(history),
        seconds=sum(row["seconds"] for row in history),
        history=tuple(history),
    )


def _macs(letter: str, run: Run, builder: str | None, said: list[str]) -> int | None:
    try:
        file = run.model_file(builder)
    except UserError as error:
        said.append(f"The multiply-adds of {letter} were not counted: {error}")
        return None
    return summarize(file.model, file.manifest.input.channels, file.manifest.input.size).macs


def _tests(runs: Sequence[Run], sides: Sequence[Side], said: list[str]) -> tuple[McNemar, ...]:
    """The first run against each other one, where both answered the same images; else a sentence says why not."""
    first, *others = sides
    counts: dict[str, tuple[int, int, int, int]] = {}
    answers = _answers(runs[0]) if first.finished else {}
    for other, run in zip(others, runs[1:], strict=True):
        pair = f"{first.letter} and {other.letter}"
        hashes = [each.environment["data"]["sha256"] for each in (runs[0], run)]
        if not (first.finished and other.finished):
            said.append(f"No McNemar test of {pair}: it needs the predictions of two finished runs.")
        elif hashes[0] != hashes[1]:
            shown = " and ".join(found[:12] for found in hashes)
            said.append(
                f"No McNemar test of {pair}: they were trained and tested on different data, or on the same "
                f"pictures at another size (sha256 {shown})."
            )
        elif (theirs := _answers(run)).keys() != answers.keys():
            said.append(f"No McNemar test of {pair}: of the same data they held out different images as the test set.")
        else:
            kinds = [(right, theirs[image]) for image, right in answers.items()]
            both, neither = kinds.count((True, True)), kinds.count((False, False))
            counts[other.letter] = both, kinds.count((True, False)), kinds.count((False, True)), neither
    found = {letter: mcnemar(only_first, only_second) for letter, (_, only_first, only_second, _) in counts.items()}
    corrected = holm([p for p, _ in found.values()])
    return tuple(
        McNemar(first.letter, letter, *counts[letter], p, p_holm, method)
        for (letter, (p, method)), p_holm in zip(found.items(), corrected, strict=True)
    )


def _answers(run: Run) -> dict[str, bool]:
    """Of every test image, by its place or file name, whether it was classified rightly."""
    path = run.path / "predictions.csv"
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = csv.reader(file)
            right = next(rows).index("correct")
            return {row[0]: row[right] == "1" for row in rows}
    except (OSError, ValueError, IndexError, StopIteration, csv.Error) as error:
        raise UserError(f"{path} is missing or damaged: {error!r}") from error


def _flat(values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Nested settings under dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{where}{key}.") if isinstance(value, dict) else {where + key: value}
    return found


def _differences(of_each: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Any, ...]]:
    """The keys whose values are not the same in all, in the order in which they come first, a section's together."""
    keys = list(dict.fromkeys(key for flat in of_each for key in flat))
    sections = [key.partition(".")[0] for key in keys]
    keys.sort(key=lambda key: sections.index(key.partition(".")[0]))
    rows = {key: tuple(flat.get(key) for flat in of_each) for key in keys}
    return {key: row for key, row in rows.items() if any(value != row[0] for value in row)}
