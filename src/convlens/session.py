"""One training at the terminal: flags to a recipe, signals to a saved run, epochs to lines and a table."""

from __future__ import annotations

import gc
import json
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from .console import calibration_line, decoding, duration, epoch_line, err, table, trial_line, trials_table, watcher
from .data import Data, is_path, load
from .device import pick_device
from .distributed import in_turn, most, on_main, rank, world
from .errors import UserError
from .evaluation import Metrics
from .files import write_whole
from .fitting import advance, finish
from .live import stoppable
from .lr_find import RangeTest
from .models import find_builder, is_outside, own_code
from .optim import RATES
from .probe import probe
from .recipe import Recipe, parse_setting
from .recipes import get_augmentation, get_recipe
from .run import Run
from .tune import Space, best_first, best_recipe, past, search

# A learning rate belongs to its optimizer: what is usual for SGD makes Adam diverge.
USUAL_LR = {"sgd": 0.1, "adam": 1e-3, "adamw": 1e-3, "rmsprop": 1e-4, "muon": 0.1}


def usual_recipe(data: str | None) -> str:
    """The recipe of who names none: for a data set with a name, or for pictures of one's own."""
    return "photos" if data and is_path(data) else "quick"


def recipe_from(name: str, flags: dict[str, Any], settings: Sequence[str]) -> Recipe:
    """The recipe called `name`, with the flags that were given and then the `--set` ones laid over it. The flag
    `augment` is the name of a level."""
    base = get_recipe(name)
    given = {key: value for key, value in flags.items() if value is not None}
    level = given.pop("augment", None)
    given |= dict(parse_setting(text) for text in settings)
    if not given and level is None:
        return base
    if level is not None:
        base = replace(base, augment=get_augmentation(level))
    if "model.name" in given:
        # The arguments were those of the recipe's network; another may take images of one size only
        base = replace(base, model=replace(base.model, args={}), augment=replace(base.augment, reduce=1.0))
    if given.get("optim.name", base.optim.name) != base.optim.name:
        given.setdefault("optim.lr", USUAL_LR.get(str(given["optim.name"]), base.optim.lr))
    told = {"augment": level} if level else {}
    changes = ", ".join(f"{key} = {value}" for key, value in (told | given).items())
    return replace(base.override(given), note=f"{base.name} with {changes}")


def data_for(recipe: Recipe, name: str, data_dir: Path | None, limit: int | None) -> Data:
    """The data set that a command names, decoding told to stderr; a misspelt model or device costs no download."""
    find_builder(recipe.model.name), pick_device(recipe.device)
    return in_turn(load, name, recipe, data_dir, limit, None, decoding())


def resumable(path: Path, model: str | None) -> Run:
    """The run to go on with, whose network must be `model` where that is given. Raises UserError where it cannot be."""
    run = Run.open(path)
    own = run.recipe.model.name
    if run.finished:
        raise UserError(f"the run {path} is finished: there is nothing to resume")
    if is_outside(own) and model != own:
        raise UserError(f"the run {path} trains {own}, which is not part of ConvLens; to run that code: -m {own}")
    if model not in (None, own):
        raise UserError(f"the run {path} trains {own}, not {model}")
    return run


def measured_batch_size(recipe: Recipe, data: Data) -> int:
    """What `-b auto` means for this recipe on these images, and here; stderr is told which size, and why."""
    if world() > 1:
        raise UserError("-b auto measures a single process: under torchrun give -b a number")
    err.print("measuring batch sizes ...")
    found = probe(recipe, data)
    err.print(f"batch size {found.batch_size}: {found.why}")
    return found.batch_size


def train_to_the_end(
    run: Run,
    data: Data,
    plots: bool,
    report: bool,
    as_json: bool,
    device: str | None = None,
    no_more: bool = False,
) -> None:
    """Train (or, with `no_more`, take the run as it stands), telling stderr how it goes; exits with 130 or 143 where it
    was interrupted, everything saved, also where the run was being finished by then and now is."""
    begun = time.perf_counter()
    gc.freeze()  # what was imported stays: to search it for garbage takes a tenth of a second, again and again
    recipe = on_main(lambda: run.recipe)
    path = shlex.quote(str(run.path))
    own = own_code(recipe.model.name)
    for sentence in data.said:
        err.print(sentence)
    held = f", {len(data.val):,} held out" if data.val else ""
    err.print(f"{data.name}: {len(data.train):,} training images{held}, {len(data.test):,} test images -> {run.path}")
    with _stopping() as (stop, caught), stoppable(run, stop):
        for row in () if no_more else advance(run, data, stop, watcher(recipe), device):
            err.print(epoch_line(row, recipe.epochs))
        number = most(caught[0] if caught else 0)
        if number and not on_main(lambda: run.ended):
            err.print(f"interrupted; all is saved. Go on with: convlens train --resume {path}{own}")
            sys.exit(128 + number)
        if stop.is_set() and not number:
            err.print("stopped from the page: what is trained is kept, and the run finished with it")
        metrics = finish(run, data, plots, report, device)
    if not rank():
        _say_trained(run, data, metrics, time.perf_counter() - begun, report, as_json)
    if caught:  # who pressed Ctrl-C expects nothing more of this command, not even the page
        sys.exit(128 + caught[0])


def _say_trained(run: Run, data: Data, metrics: Metrics, seconds: float, report: bool, as_json: bool) -> None:
    recipe, history = run.recipe, run.history
    path = shlex.quote(str(run.path))
    own = own_code(recipe.model.name)
    if history:
        err.print(_history_table(history))
    epoch = run.metrics["epoch"]
    kept = f" (the weights of epoch {epoch}, the best on validation)" if data.val and epoch else ""
    err.print(f"test accuracy {metrics.accuracy:.2%} on {metrics.images:,} images{kept}, in {duration(seconds)}")
    err.print(calibration_line(run.metrics["calibration"]))
    if as_json:
        test = {key: value for key, value in metrics.to_dict().items() if key != "classes"}
        print(json.dumps({"run": str(run.path), "epochs": history, "test": test, "seconds": round(seconds, 3)}))
        return
    if report and (run.path / "report.html").exists():
        err.print(f"\nThe report is {run.path / 'report.html'}: one page to look at, to print and to send.")
    err.print(f"\nThe run is in {run.path}: plots/, metrics.json, predictions.csv, model.safetensors. What next:")
    err.print(f"  convlens explain {path} test:0{own}     what every layer makes of the first test image")
    err.print(f"  convlens evaluate {path}{own}           precision, recall and F1 of every class")
    err.print(f"  convlens predict {path} PICTURE...{own} classify your own pictures")


def say_rate(
    found: RangeTest,
    recipe: Recipe,
    picture: Path,
    command: Sequence[str],
    said: dict[str, Any],
    settings: Sequence[str],
) -> None:
    """Tell stderr the suggested rate, and the command that trains with it: `command` with the flags and `--set` ones
    that the test was given. Rates of groups of their own go with it in the same ratio."""
    optim = recipe.optim
    own = {f"optim.{key}": value for key in RATES if (value := getattr(optim, key))}
    words = [*command, *(str(word) for flag, value in said.items() if value is not None for word in (flag, value))]
    for text in (text for text in settings if parse_setting(text)[0] not in own):
        words += ["--set", text]
    words += ["--lr", f"{found.suggestion:.2g}"]
    for key, value in own.items():
        if key != "optim.lr":
            words += ["--set", f"{key}={value * found.suggestion / optim.lr:.2g}"]
    end = f"it {'diverged' if found.diverged else 'was still finite'} at {found.rates[-1]:.2g}"
    err.print(f"the loss was lowest at a learning rate of {found.lowest:.2g}; {end} (picture: {picture})")
    err.print(f"suggestion: a third of that, {found.suggestion:.2g}. To train with it:\n  {shlex.join(words)}")


def search_to_the_end(
    recipe: Recipe,
    data: Data,
    space: Space,
    folder: Path,
    trials: int | None,
    timeout: float | None,
    as_json: bool,
) -> None:
    """Search, telling stderr of every trial, and write the best recipe so far after each; exits with 130 or 143 where
    it was interrupted."""
    best = folder / "best.toml"
    with _stopping() as (stop, caught):
        for trial in search(recipe, data, space, folder, trials, timeout, stop, watcher):
            err.print(trial_line(trial, trials))
            if trial.state == "complete":
                write_whole(best, best_recipe(recipe, data, past(folder)).to_toml())
    done = past(folder)
    if caught and not done:
        sys.exit(128 + caught[0])
    write_whole(best, best_recipe(recipe, data, done).to_toml())
    if as_json:
        rows = [asdict(trial) for trial in done]
        print(json.dumps({"best": asdict(best_first(done)[0]), "recipe": str(best), "trials": rows}))
    else:
        trials_table(best_first(done)[:5], f"The best of {len(done)} trials, by the validation split")
    if caught:
        err.print(f"interrupted; the same command goes on where {folder} stands")
        sys.exit(128 + caught[0])
    words = ["convlens", "train", data.folder or data.name, "--recipe", str(best)]
    err.print(f"\nTo train with the best: {shlex.join(words)}")


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
    """Ctrl-C, SIGTERM and a closed terminal set the event: the step under way ends, all is saved. A second one ends the
    program at once, at the last checkpoint."""
    stop, caught = threading.Event(), list[int]()

    def handle(number: int, _frame: object) -> None:
        if caught:  # not `stop`, which another process of this training may have set
            sys.exit(128 + number)
        caught.append(number)
        stop.set()
        with suppress(OSError):  # the terminal that it would be said to may be what went away
            err.print("saving, then stopping; once more to stop at once")

    numbers = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    old = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield stop, caught
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
