"""The command that trains a run again: it needs no file of the run where its recipe has a name that ConvLens knows.
What others may read of it names no folder of the machine that it was trained on."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from .models import is_outside
from .recipe import Recipe, parse_setting
from .recipes import RECIPES
from .run import Run

FLAGS = {"model.name": "-m", "epochs": "--epochs", "batch_size": "-b", "optim.lr": "--lr", "seed": "--seed"}
PATH = re.compile(r"""(?<![\w.:/\\~-])(?:~|[A-Za-z]:)?[/\\][^\s'"`,;:)]+""")  # absolute, within a sentence


def repeating_command(run: Run) -> str:
    """For a shell. The recipe is named by what differs from the one it was made from; where that cannot be said in
    flags, by the run's own recipe.toml. Of absolute paths the last names stand there: see `stand_ins`."""
    recipe, seen = run.recipe, run.environment
    data, processes = seen["data"], seen.get("processes", 1)
    words = ["torchrun", "--nproc-per-node", str(processes), "-m"] if processes > 1 else []
    words += ["convlens", "train", last_name(data.get("folder") or data["name"])]
    changes = _changes(recipe)
    if changes is None:
        words += ["--recipe", last_name(str(run.path / "recipe.toml"))]
    else:
        words += ["--recipe", recipe.name]
        shown = without_paths(run)
        for key, text in ((key, shown(text)) for key, text in changes.items()):
            words += [FLAGS[key], text] if key in FLAGS else ["--set", f"{key}={text}"]
    words += ["--data-dir", last_name(data["data_dir"])] if data.get("data_dir") else []
    words += ["--limit", str(data["limit"])] if data.get("limit") else []
    return shlex.join(words)


def evaluating_command(run: Run) -> str:
    """The command that measures a finished run on worse images; of an absolute path to the run its name stands there,
    so it is called where the run's folder lies."""
    name = run.recipe.model.name
    own = ["-m", name] if is_outside(name) else []
    return shlex.join(["convlens", "evaluate", last_name(str(run.path)), *own, "--corruptions"])


def stand_ins(run: Run) -> list[str]:
    """What in `repeating_command` stands for a place on the disk that others have to put in: where the data lies."""
    data = run.environment["data"]
    return [last_name(path) for path in (data.get("folder"), data.get("data_dir")) if path]


def last_name(path: str) -> str:
    """Of an absolute path its last name; a relative one, or what is none, stays."""
    for kind in (PureWindowsPath, PurePosixPath):
        if kind(path).is_absolute() or path.startswith("~"):
            return kind(path).name or path
    return path


def without_paths(run: Run) -> Callable[[str], str]:
    """A function of text: absolute paths in it, of the run, its data and its recipe first of all, become last names."""
    data = run.environment["data"]
    texts = [data.get("folder"), data.get("data_dir"), *(value for _, value in _leaves(run.recipe.to_dict()))]
    texts += [str(run.path.absolute()), str(run.path.resolve()), str(Path.home())]
    known = {text for text in texts if isinstance(text, str) and last_name(text) != text}
    longest_first = "|".join(re.escape(text) for text in sorted(known, key=len, reverse=True))
    exact = re.compile(rf"(?:{longest_first})(?![\w.-])")

    def shown(text: str) -> str:
        named = exact.sub(lambda found: last_name(found[0]), text)
        return PATH.sub(lambda found: last_name(found[0]), named)

    return shown


def _changes(recipe: Recipe) -> dict[str, str] | None:
    """What makes `recipe` of the one that has its name, each value as a flag takes it; None where nothing does."""
    base = RECIPES.get(recipe.name)
    if base is None:
        return None
    changes: dict[str, Any] = {}
    if recipe.model != base.model:  # to name a network takes away the arguments of the recipe's own
        changes["model.name"] = recipe.model.name
        base = replace(base, model=replace(base.model, args={}), augment=replace(base.augment, reduce=1.0))
    if recipe.optim.name != base.optim.name:  # to name an optimizer gives it a rate of its own
        changes |= {"optim.name": recipe.optim.name, "optim.lr": recipe.optim.lr}
    before = dict(_leaves(base.to_dict()))
    changes |= {key: value for key, value in _leaves(recipe.to_dict()) if key not in before or before[key] != value}
    changes.pop("note", None)
    texts = {key: _text(value) for key, value in changes.items()}
    said = dict(parse_setting(f"{key}={text}") for key, text in texts.items())
    return texts if replace(base.override(said), note=recipe.note) == recipe else None


def _text(value: Any) -> str:
    """As `--set` reads it: JSON's way to write a value is TOML's too, and most strings need no quotes."""
    plain = isinstance(value, str) and parse_setting(f"key={value}")[1] == value
    return value if plain else json.dumps(value, ensure_ascii=False)


def _leaves(values: dict[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{where}{key}.")
        else:
            yield where + key, value
