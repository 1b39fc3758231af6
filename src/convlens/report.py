"""A run as one HTML file that needs nothing else: what was trained on what, how well, where it errs, how far to trust
it, what is inside, and how to repeat it. The same numbers stand in the file as JSON."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from . import __version__
from .corruptions import CORRUPTIONS, STRENGTHS
from .data import Data
from .errors import UserError
from .files import write_whole
from .intervals import wilson
from .markup import templates
from .modelfile import ModelFile
from .outcomes import Outcomes, read_outcomes
from .pagecharts import map_chart, robustness_charts, training_charts, trust_charts, trust_in
from .pageinside import attempt, inside
from .repeating import evaluating_command, last_name, repeating_command, stand_ins, without_paths
from .robust import robustness
from .run import Run
from .splits import Split
from .thumbnails import LONGEST, heat_tile, thumbnail

LANGUAGES = {"en": "en", "zh": "zh-CN"}
MATRIX = 20  # classes of which every cell of the confusion matrix can be shown and opened
PAIRS = 40  # of more classes: the most frequent confusions, as a list
IN_A_CELL = 24  # images of a cell at most
PIXELS = 3_000_000  # of all images that cells show, together: some 2 MB
SHOWN = 24  # of the worst mistakes, and of the surest right answers
SMOOTH = 48  # pixels of a side from which on images are shown smoothly rather than pixel by pixel
HARMED, LEAST_HARMED = 1000, 50  # test images that are corrupted
ARITHMETIC = 7e11  # multiply-adds that this may take: at most some fifteen seconds on two processors
PIXELS_HARMED = (
    4e8  # and pixels and channels, harmed in every way: at 30 to 110 ns each, mostly JPEG, no more than that
)
GRID = 8  # training images a class
WRAPPER = re.compile(r"(?<![\w.])network\.")  # what the names of all layers of a network begin with
FILTERS: dict[str, Callable[..., str]] = {
    "n": "{:,}".format,
    "short_name": lambda text: WRAPPER.sub("", text),
    "percent": "{:.2%}".format,
    "short": lambda share: f"{share:.2%}" if 0 < share < 0.0995 else f"{share:.1%}",
    "memory": lambda count: f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB",
    "seconds": lambda seconds: f"{seconds:.1f} s" if seconds < 60 else f"{seconds / 60:.1f} min",
}


@dataclass(frozen=True)
class Sources:
    """What a report is made of: a run, and where they can be had its images and its network (or why they cannot)."""

    run: Run
    data: Data | None
    file: ModelFile | None
    lacking: tuple[str, ...] = ()


def open_sources(
    run: Run,
    data_dir: Path | None = None,
    builder: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Sources:
    """What of a run can still be read on this machine; a sentence for each thing that cannot. `data_dir` and `progress`
    are those of `Run.load_data`, `builder` that of `Run.model_file`."""
    data = file = None
    lacking = []
    try:
        data = run.load_data(data_dir, progress)
    except UserError as error:
        lacking.append(str(error))
    if run.finished:
        try:
            file = run.model_file(builder)
        except UserError as error:
            lacking.append(str(error))
    return Sources(run, data, file, tuple(lacking))


def write_report(sources: Sources, path: Path | None = None, language: str = "en") -> Path:
    """Write the page to `path`, by default report.html in the run's folder."""
    path = path or sources.run.path / "report.html"
    text = page(sources, language)
    write_whole(path, text.encode(errors="backslashreplace"))  # a file name need not be UTF-8, a page must
    return path


def page(sources: Sources, language: str = "en") -> str:
    """The whole page. Of a run that is not finished it has what there is."""

    jinja = templates()
    words = {} if language == "en" else json.loads(jinja.get_template(f"report.{language}.json").render())

    def say(text: str, **values: object) -> str:
        return (words[text] if words else text).format(**values)

    jinja.globals["_"] = say
    jinja.filters |= FILTERS
    run, data, file = sources.run, sources.data, sources.file
    environment, recipe, history = run.environment, run.recipe, run.history
    classes, unplaced = tuple(environment["data"]["classes"]), without_paths(run)
    seen = environment["data"]
    environment["data"] = seen | {key: seen[key] and last_name(seen[key]) for key in ("folder", "data_dir")}
    lacking = list(sources.lacking)
    found = {
        "run": run.path.absolute().name,
        "convlens": environment.get("convlens", __version__),
        "finished": run.finished,
        "command": repeating_command(run),
        "recipe": _throughout(recipe.to_dict(), unplaced),
        "environment": environment,
        "history": history,
        "metrics": None,
        "interval": None,
    }
    shown: dict[str, Any] = {
        "recipe": recipe,
        "recipe_toml": unplaced(recipe.to_toml()),
        "stand_ins": stand_ins(run),
        "measuring": evaluating_command(run),
        "early": run.finished and _early(run),
        "smooth": bool(data and min(data.input.size) >= SMOOTH),
        "classes": classes,
        "counts": _counts(run, data, classes),
        "grid": _grid(data) if data else [],
        "charts": training_charts(history, say),
        "results": None,
        "trust": [],
        "robustness": None,
        "inside": None,
    }
    album: dict[str, Any] = {"classes": classes, "cells": {}, "pictures": {}, "words": _words(say)}
    if run.finished:
        metrics = run.metrics
        test = metrics["test"]
        right = sum(row[i] for i, row in enumerate(test["confusion"]))
        outcomes = read_outcomes(run.path / "predictions.csv", classes)
        outcomes = replace(outcomes, names=tuple(map(last_name, outcomes.names)))
        found |= {"metrics": metrics, "interval": wilson(right, test["images"])}
        pictures = _Pictures(outcomes, data)
        shown["results"] = _results(outcomes, test, pictures, album)
        trust = trust_in(outcomes, metrics["calibration"]["temperature"])
        shown["trust"], found["trust"] = trust_charts(trust, say), trust.to_dict()
        if file and (within := attempt(say("Inside"), lambda: inside(file, data, outcomes, say), lacking, say)):
            if within["map"]:
                within["map"] |= {"chart": map_chart(within["map"], classes, len(classes) <= MATRIX, say)}
            within["lacking"] = list(map(unplaced, within["lacking"]))
            shown["inside"], found["layers"] = within, within["summary"].to_dict()
            if data and (limit := _harmed(within["summary"].macs, data.test, len(classes))):
                title = say("Worse images")
                robust = attempt(title, lambda: robustness(file.model, data.test, limit), lacking, say)
                if robust:
                    shown["robustness"] = {"found": robust, "charts": robustness_charts(robust, say)}
                    found["robustness"] = robust.to_dict()
    shown["lacking"] = list(map(unplaced, lacking))
    script = jinja.get_template("report.js").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return jinja.get_template("report.html").render(
        **shown,
        found=found,
        lang=LANGUAGES[language],
        script=script,
        digest=digest,
        numbers=_json(found),
        album=_json(album),
    )


def _json(value: Any) -> str:
    """JSON for the inside of a <script>, which ends at the first `</script` and knows no other escape."""
    text = json.dumps(value, allow_nan=False)  # all but ASCII is escaped, also what of a file's name is not UTF-8
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _throughout(value: Any, change: Callable[[str], str]) -> Any:
    """Settings with `change` made to every text in them."""
    if isinstance(value, dict):
        return {key: _throughout(of, change) for key, of in value.items()}
    if isinstance(value, list):
        return [_throughout(of, change) for of in value]
    return change(value) if isinstance(value, str) else value


def _early(run: Run) -> bool:
    """Whether a finished run was taken as it stood, before its recipe's end and before its patience ran out."""
    recipe, metrics = run.recipe, run.metrics
    tired = recipe.patience > 0 and metrics["epochs"] - metrics["epoch"] >= recipe.patience
    return metrics["epochs"] < recipe.epochs and not tired


def _harmed(macs: int, test: Split, classes: int) -> int:
    """How many test images are harmed in every way; 0 where a network or the images are too large for as many as tell
    anything, or as there are classes: a sample has an image of each."""
    each = ARITHMETIC / max(macs, 1), PIXELS_HARMED / test.store[0].numel()
    count = min(HARMED, int(min(each) / (1 + len(CORRUPTIONS) * len(STRENGTHS))))
    return count if count >= min(max(LEAST_HARMED, classes), len(test)) else 0


def _counts(run: Run, data: Data | None, classes: Sequence[str]) -> dict[str, dict[str, int]]:
    """Images by class and split; without the data, those of the test set, where it was looked at."""
    if data:
        splits = {"train": data.train, "val": data.val, "test": data.test}
        tables = {k: s.labels.bincount(minlength=len(classes)).tolist() for k, s in splits.items() if s is not None}
    elif run.finished:
        tables = {"test": [row["support"] for row in run.metrics["test"]["classes"]]}
    else:
        return {}
    return {name: {split: table[i] for split, table in tables.items()} for i, name in enumerate(classes)}


def _grid(data: Data) -> list[tuple[str, list[str]]]:
    """A few training images of every class, from all over the split."""
    each = GRID if len(data.classes) <= MATRIX else 1
    rows = []
    for label, name in enumerate(data.classes):
        members = (data.train.labels == label).nonzero().flatten()
        places = members[torch.linspace(0, len(members) - 1, min(each, len(members))).long()]
        rows.append((name, [thumbnail(image) for image in data.train.at(places)]))
    return rows


class _Pictures:
    """The thumbnails of test images, each made once: "" where the data is gone."""

    def __init__(self, outcomes: Outcomes, data: Data | None) -> None:
        self._outcomes, self._data, self._made = outcomes, data, dict[int, str]()

    def __call__(self, place: int) -> str:
        if self._data is None:
            return ""
        if place not in self._made:
            self._made[place] = thumbnail(self._data.test.at(slice(place, place + 1))[0])
        return self._made[place]

    def in_a_cell(self, cells: int) -> int:
        """How many images each of so many cells may show."""
        if self._data is None:
            return IN_A_CELL
        height, width = self._data.input.size
        pixels = min(height, LONGEST) * min(width, LONGEST)
        return max(min(IN_A_CELL, PIXELS // (pixels * max(cells, 1))), 4)


def _results(outcomes: Outcomes, test: dict[str, Any], pictures: _Pictures, album: dict[str, Any]) -> dict[str, Any]:
    """Per-class rows, the confusion matrix or its largest cells, and the two galleries; what cells open goes into
    `album`."""
    counts, k = test["confusion"], len(test["classes"])
    cells = [(i, j) for i in range(k) for j in range(k) if counts[i][j]]
    cells.sort(key=lambda cell: (cell[0] == cell[1], -counts[cell[0]][cell[1]]))
    pairs = [cell for cell in cells if cell[0] != cell[1]][:PAIRS]
    openable = cells if k <= MATRIX else pairs
    most = pictures.in_a_cell(len(openable))
    for i, j in openable:
        places = outcomes.cell(i, j)[:most].tolist()
        album["cells"][f"{i}-{j}"] = [counts[i][j], places]
    worst, surest = outcomes.worst(SHOWN).tolist(), outcomes.surest(SHOWN).tolist()
    for place in {p for _, places in album["cells"].values() for p in places} | {*worst, *surest}:
        album["pictures"][str(place)] = _answer(outcomes, pictures, place)
    matrix = [[_strength(count, of) for count in row] for row in counts for of in (sum(row),)] if k <= MATRIX else []
    return {
        "matrix": matrix,
        "whole": k <= MATRIX,
        "heat": "" if k <= MATRIX else _heat(counts),
        "pairs": pairs,
        "in_a_cell": most,
        "worst": [album["pictures"][str(place)] for place in worst],
        "surest": [album["pictures"][str(place)] for place in surest],
        "wrong": int((~outcomes.right).sum()),
    }


def _answer(outcomes: Outcomes, pictures: _Pictures, place: int) -> dict[str, Any]:
    truth, said = int(outcomes.labels[place]), int(outcomes.predicted[place])
    row = outcomes.probabilities[place]
    return {
        "name": outcomes.names[place],
        "true": truth,
        "said": said,
        "p": float(row[said]),
        "q": float(row[truth]),
        "src": pictures(place),
    }


def _strength(count: int, of: int) -> float:
    """How deep a cell is coloured, 0..1: the root of its share, for a confusion is rare. Between 0.65 and 0.9 neither
    black nor white text is easy to read."""
    root = (count / max(of, 1)) ** 0.5
    return round(root if root < 0.65 else max(root, 0.9), 3)


def _heat(counts: Sequence[Sequence[int]]) -> str:
    table = torch.tensor(counts, dtype=torch.float64)
    return heat_tile((table / table.sum(1, keepdim=True).clamp(min=1)).sqrt())


def _words(say: Callable[..., str]) -> dict[str, str]:
    """What the script says."""
    texts = (
        "images: {n}",
        "images: {n}; the {m} surest are shown",
        "images: {n}; the {m} least sure are shown",
        "{a}, taken for {b}",
        "{a}, rightly",
        "true: {a}",
        "no image: the data was not found",
        "Copied",
        "Dark page",
        "Light page",
    )
    return {text: say(text, n="{n}", m="{m}", a="{a}", b="{b}") for text in texts}
