"""One training at the terminal: flags to a recipe, signals to a saved run, epochs to lines and a table."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from .console import duration, epoch_line, err, table, watcher
from .data import Data
from .recipe import Recipe, parse_setting
from .recipes import get_recipe
from .run import Run, advance, finish


def recipe_from(name: str, flags: dict[str, Any], settings: Sequence[str]) -> Recipe:
    """The recipe called `name`, with the flags that were given and then the `--set` ones laid over it."""
    base = get_recipe(name)
    given = {key: value for key, value in flags.items() if value is not None}
    if given.get("model.name", base.model.name) != base.model.name:
        base = replace(base, model=replace(base.model, args={}))  # the arguments were the other network's
    return base.override(given | dict(parse_setting(text) for text in settings))


def train_to_the_end(run: Run, data: Data | None, data_dir: Path | None, plots: bool, as_json: bool) -> None:
    """Train, telling stderr how it goes; exits with 130 or 143 where it was interrupted, everything saved."""
    begun = time.perf_counter()
    data = data or run.load_data(data_dir)
    recipe = run.recipe
    held = f", {len(data.val):,} held out" if data.val else ""
    err.print(f"{data.name}: {len(data.train):,} training images{held}, {len(data.test):,} test images -> {run.path}")
    with _stopping() as (stop, caught):
        for row in advance(run, data, stop, watcher(recipe)):
            err.print(epoch_line(row, recipe.epochs))
        if stop.is_set() and not run.ended:
            err.print(f"interrupted; all is saved. Go on with: convlens train --resume {run.path}")
            sys.exit(128 + caught[0])
        metrics = finish(run, data, plots)
    seconds, history = time.perf_counter() - begun, run.history
    if history:
        err.print(_history_table(history))
    kept = f" (the weights of epoch {run.metrics['epoch']}, the best on validation)" if data.val else ""
    err.print(f"test accuracy {metrics.accuracy:.2%} on {metrics.images:,} images{kept}, in {duration(seconds)}")
    if as_json:
        test = {key: value for key, value in metrics.to_dict().items() if key != "classes"}
        print(json.dumps({"run": str(run.path), "epochs": history, "test": test, "seconds": round(seconds, 3)}))
        return
    err.print(f"\nThe run is in {run.path}: plots/, metrics.json, predictions.csv, model.safetensors. What next:")
    err.print(f"  convlens explain {run.path} test:0     what every layer makes of the first test image")
    err.print(f"  convlens evaluate {run.path}           precision, recall and F1 of every class")
    err.print(f"  convlens predict {run.path} PICTURE... classify your own pictures")


def _history_table(history: Sequence[dict[str, Any]]) -> Any:
    columns = [column for column in history[0] if column not in ("lr", "images_per_second")]
    titles = [column.replace("_", " ") for column in columns]
    return table("", titles, [[_cell(c, row[c]) for c in columns] for row in history], titles)


def _cell(column: str, value: float) -> str:
    if column == "epoch":
        return str(value)
    return f"{value:.2%}" if column.endswith("accuracy") else f"{value:.1f}" if column == "seconds" else f"{value:.4f}"


@contextmanager
def _stopping() -> Iterator[tuple[threading.Event, list[int]]]:
    """Ctrl-C and SIGTERM set the event: the step under way ends, all is saved. A second one ends it at once."""
    stop, caught = threading.Event(), list[int]()

    def handle(number: int, _frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        caught.append(number)
        stop.set()

    old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop, caught
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
