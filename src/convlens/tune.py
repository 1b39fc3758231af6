"""Search a recipe's settings with Optuna (Akiba et al., arXiv:1907.10902) by the validation accuracy alone.

    for trial in search(recipe, data, usual_space(recipe, data), Path("tuned")):
        print(trial.number, trial.state, trial.accuracy, trial.settings)

What a trial did is in a SQLite file before the next one begins, and every trial's settings come from the seed and the
finished trials alone: a search that was killed goes on as if it had not been.
"""

from __future__ import annotations

import inspect
import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import torch

from .data import Data
from .device import mix_seed, pick_device
from .errors import FAILED, UserError
from .evaluation import evaluate
from .files import make_folder
from .models import find_builder
from .optim import RATES
from .recipe import Recipe, parse_setting
from .run import make_model
from .training import Watch, train

if TYPE_CHECKING:  # an extra: imported where a search begins
    import optuna

FIXED = ("data.", "seed", "patience", "device", "name", "note")  # what trials are compared by, or what decides nothing


@dataclass(frozen=True)
class Span:
    """Numbers from `low` to `high`, both among them; logarithmic where those lie a factor of ten or more apart."""

    low: float
    high: float
    whole: bool = False

    @property
    def log(self) -> bool:
        return self.low > 0 and self.high >= 10 * self.low


Space = dict[str, Span | tuple[Any, ...]]  # dotted keys of a recipe to what they may be


@dataclass(frozen=True)
class Trial:
    """One training: `state` is complete, pruned (worse than half of the others after some epoch) or failed, which
    `error` explains. `accuracy` (0..1) is on the validation split after the last of `epochs`; None before the first."""

    number: int
    state: str
    accuracy: float | None
    epochs: int
    seconds: float
    settings: dict[str, Any]
    error: str = ""


def usual_space(recipe: Recipe, data: Data) -> Space:
    """Around `recipe`: a tenth to ten times its learning rates; weight decay; half and twice its batch and its widths,
    where the network has such an argument; label smoothing to 0.2; mirroring where the data set allows it, shifts to
    an eighth and cutout to half of the images' side."""
    space: Space = {f"optim.{key}": Span(lr / 10, lr * 10) for key in RATES if (lr := getattr(recipe.optim, key))}
    # AdamW's is multiplied by the learning rate, which is a hundred times smaller (Loshchilov, Hutter, 1711.05101)
    space["optim.weight_decay"] = Span(1e-3, 1.0) if recipe.optim.name == "adamw" else Span(1e-5, 1e-2)
    space["batch_size"] = _scaled(recipe.batch_size)
    taken = inspect.signature(find_builder(recipe.model.name)).parameters
    for key in ("width", "widths"):
        default = taken[key].default if key in taken else inspect.Parameter.empty
        own = recipe.model.args.get(key, default)
        if key in taken and own is not inspect.Parameter.empty:
            space[f"model.args.{key}"] = _scaled(own)
    if recipe.loss.name == "cross-entropy":
        space["loss.label_smoothing"] = Span(0.0, 0.2)
    side = min(data.input.size)
    space["augment.shift"] = Span(0, max(side // 8, 1), whole=True)
    space["augment.cutout"] = Span(0, max(side // 2, 1), whole=True)
    if data.flip_ok:
        space["augment.flip"] = (False, True)
    return space


def _scaled(own: Any) -> tuple[Any, ...]:
    def times(factor: float) -> Any:
        return [max(round(factor * n), 1) for n in own] if isinstance(own, Sequence) else max(round(factor * own), 1)

    return tuple(times(factor) for factor in (0.5, 1, 2))


def vary(text: str, recipe: Recipe) -> tuple[str, Span | tuple[Any, ...]]:
    """`optim.lr=0.01..0.5` or `batch_size=64,128`, values that hold commas separated by `;`, as a part of a Space.

    Raises:
        UserError: it is neither, or the recipe has no such key or does not take such a value.
    """
    key, equals, values = (part.strip() for part in text.partition("="))
    if not equals or not key or not values:
        raise UserError(f"--vary takes KEY=LOW..HIGH or KEY=A,B,C, such as optim.lr=0.01..0.5, not {text!r}")
    if key.startswith(FIXED):
        raise UserError(f"--vary does not take {key}: trials are compared on one validation split, by one seed")
    low, dots, high = values.partition("..")
    if not dots:
        parts = values.split(";" if ";" in values or "[" in values else ",")
        chosen = tuple(parse_setting(f"{key}={part}")[1] for part in parts)
        for value in chosen:
            recipe.override({key: value})  # says so where it is not allowed
        return key, chosen
    ends = [parse_setting(f"{key}={part}")[1] for part in (low, high)]
    numbers = all(type(end) in (int, float) and math.isfinite(end) for end in ends)
    if not numbers or ends[0] >= ends[1]:
        raise UserError(f"--vary {key}=LOW..HIGH takes two numbers, the smaller one first, not {values!r}")
    for end in ends:
        recipe.override({key: end})
    current: Any = recipe.to_dict()
    for part in key.split("."):
        current = current.get(part)  # an argument of the model need not have been given
    return key, Span(
        ends[0], ends[1], whole=all(isinstance(end, int) for end in ends) and not isinstance(current, float)
    )


def search(
    recipe: Recipe,
    data: Data,
    space: Space,
    folder: str | Path,
    trials: int | None = 20,
    timeout: float | None = None,
    stop: threading.Event | None = None,
    watch: Callable[[Recipe], Watch | None] | None = None,
) -> Iterator[Trial]:
    """Train with settings from `space` until `folder`/trials.db has `trials` finished ones, yielding each that it adds.

    Settings are drawn by the tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011), the first ten at
    random. A trial whose best validation accuracy is below the median of the earlier ones at the same epoch is
    pruned, after the first quarter of its epochs and once five are complete. `data.test` is never looked at.

    Args:
        timeout: no trial begins when so many seconds have passed.
        stop: set from anywhere, ends the search after the step under way; that trial does not count.
        watch: gives what wraps the batches of a trial's epochs, as a progress bar does.

    Raises:
        UserError: Optuna is missing, nothing is held out, the folder's trials are of another search, or another process
            searches there.
    """
    try:
        import optuna
    except ImportError as error:
        raise UserError("a search needs Optuna: pip install 'convlens[tune]'") from error
    if recipe.epochs == 0:
        raise UserError("a recipe of 0 epochs has nothing to search: set epochs to 1 or more")
    if data.val is None:
        raise UserError("trials are compared on a validation split, and none is held out: --set data.val=0.1")
    device = pick_device(recipe.device)
    data = replace(data, train=data.train.to(device), val=data.val.to(device))
    make_model(recipe, data)  # what cannot be built at all is said before anything is written
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    stop, begun = stop or threading.Event(), time.perf_counter()
    with _only_one(Path(folder)):
        study = _open(Path(folder), recipe, data, space)
        for left in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):  # by a process that was killed
            study.tell(left.number, state=optuna.trial.TrialState.FAIL)
        while (trials is None or len(finished(study)) < trials) and not stop.is_set():
            if timeout is not None and time.perf_counter() - begun >= timeout:
                return
            done = len(finished(study))
            study.sampler = optuna.samplers.TPESampler(seed=mix_seed(recipe.seed, done) % 2**32)
            _try(study, study.ask(_distributions(space)), recipe, data, stop, watch)
            if len(now := finished(study)) > done:
                yield now[-1]


def _try(
    study: optuna.Study,
    trial: optuna.Trial,
    recipe: Recipe,
    data: Data,
    stop: threading.Event,
    watch: Callable[[Recipe], Watch | None] | None,
) -> None:
    """Train with the trial's settings and tell the study how it ended."""
    from optuna.trial import TrialState

    assert data.val is not None  # noqa: S101 - search() looked
    try:
        made = recipe.override({**_settings(trial.params), "patience": 0})
        model = make_model(made, data)
        for epoch in train(model, data, made, stop=stop, watch=watch and watch(made)):
            if not epoch.complete:
                break
            accuracy = evaluate(model, data.val).accuracy
            trial.report(accuracy, epoch.index)
            if epoch.index == made.epochs:
                study.tell(trial, accuracy)
                return
            if trial.should_prune():
                study.tell(trial, state=TrialState.PRUNED)
                return
        study.tell(trial, state=TrialState.FAIL)
    except (UserError, MemoryError, torch.OutOfMemoryError) as error:  # it diverged, does not fit: a result, too
        trial.set_user_attr("error", str(error))
        study.tell(trial, state=TrialState.PRUNED)


def finished(study: optuna.Study) -> list[Trial]:
    """The trials of a study that came to an end, in the order in which they did, counted from 1."""
    from optuna.trial import TrialState

    found = []
    for number, trial in enumerate(study.get_trials(states=[TrialState.COMPLETE, TrialState.PRUNED]), start=1):
        error = trial.user_attrs.get("error", "")
        state = "failed" if error else "complete" if trial.state == TrialState.COMPLETE else "pruned"
        epochs = trial.last_step or 0
        accuracy = trial.intermediate_values.get(epochs)
        seconds = trial.duration.total_seconds() if trial.duration else 0.0
        found.append(Trial(number, state, accuracy, epochs, seconds, _settings(trial.params), error))
    return found


def past(folder: str | Path) -> list[Trial]:
    """The finished trials that a search left in `folder`."""
    import optuna

    return finished(optuna.load_study(study_name="convlens", storage=_url(Path(folder))))


def best_first(trials: Sequence[Trial]) -> list[Trial]:
    """The complete ones, the most accurate first; of equal ones the earlier."""
    return sorted((t for t in trials if t.state == "complete"), key=lambda t: -(t.accuracy or 0.0))


def best_recipe(recipe: Recipe, data: Data, trials: Sequence[Trial]) -> Recipe:
    """`recipe` with the settings of the best trial. Raises UserError where none is complete."""
    best = next(iter(best_first(trials)), None)
    if best is None:
        why = next((f": {t.error}" for t in trials if t.error), "")
        raise UserError(f"no trial of {len(trials)} came to its end{why}", FAILED)
    note = (
        f"The best of {len(trials)} trials around {recipe.name} on {data.name}: {best.accuracy:.2%} on the "
        f"{len(data.val or ())} validation images that chose it, so expect a little less. The test set was "
        "not looked at."
    )
    return replace(recipe.override(best.settings), name=f"{recipe.name}-tuned", note=note)


def _distributions(space: Space) -> dict[str, optuna.distributions.BaseDistribution]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    def of(values: Span | tuple[Any, ...]) -> optuna.distributions.BaseDistribution:
        if not isinstance(values, Span):
            return CategoricalDistribution([json.dumps(value) for value in values])  # it takes no lists
        if values.whole:
            return IntDistribution(int(values.low), int(values.high), log=values.log)
        return FloatDistribution(values.low, values.high, log=values.log)

    return {key: of(values) for key, values in space.items()}


def _settings(params: dict[str, Any]) -> dict[str, Any]:
    """What was drawn, as the values of a recipe: choices are JSON."""
    return {key: json.loads(value) if isinstance(value, str) else value for key, value in params.items()}


def _open(folder: Path, recipe: Recipe, data: Data, space: Space) -> optuna.Study:
    """The study in the folder, a new one or what an earlier search of the same things left."""
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    decides = {key: value for key, value in recipe.to_dict().items() if key not in ("name", "note", "device")}
    spans = {key: vars(value) if isinstance(value, Span) else value for key, value in space.items()}
    of = json.dumps({"recipe": decides, "data": data.sha256, "space": spans}, sort_keys=True)
    try:
        study = optuna.create_study(
            study_name="convlens",
            storage=_url(folder),
            direction="maximize",
            pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=recipe.epochs // 4),
            load_if_exists=True,
        )
        if study.user_attrs.setdefault("of", of) != of:
            raise UserError(
                f"{folder} holds trials of another recipe, data set or --vary; give the same, or another --out"
            )
        study.set_user_attr("of", of)
    except (SQLAlchemyError, optuna.exceptions.OptunaError, RuntimeError) as error:
        raise UserError(f"{folder / 'trials.db'} cannot be used for trials: {str(error).splitlines()[0]}") from error
    return study


def _url(folder: Path) -> str:
    return f"sqlite:///{folder / 'trials.db'}"


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Make the folder. Raises UserError where another process searches in it."""
    if "?" in str(folder):
        raise UserError(f"SQLite's addresses do not take a question mark: choose another --out than {str(folder)!r}")
    make_folder(folder)
    lock = filelock.FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise UserError(f"another process searches in {folder}: wait for it, or give another --out") from error
    try:
        yield
    finally:
        lock.release()
