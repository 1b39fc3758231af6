"""The command that trains a run again: it needs no file of the run where its recipe has a name that ConvLens knows."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from .recipe import Recipe, parse_setting
from .recipes import RECIPES
from .run import Run

FLAGS = {"model.name": "-m", "epochs": "--epochs", "batch_size": "-b", "optim.lr": "--lr", "seed": "--seed"}


def repeating_command(run: Run) -> str:
    """For a shell. The recipe is named by what differs from the one it was made from; where that cannot be said in
    flags, by the run's own recipe.toml."""
    recipe, seen = run.recipe, run.environment
    data, processes = seen["data"], seen.get("processes", 1)
    words = ["torchrun", "--nproc-per-node", str(processes), "-m"] if processes > 1 else []
    words += ["convlens", "train", data.get("folder") or data["name"]]
    changes = _changes(recipe)
    if changes is None:
        words += ["--recipe", str(run.path / "recipe.toml")]
    else:
        words += ["--recipe", recipe.name]
        for key, text in changes.items():
            words += [FLAGS[key], text] if key in FLAGS else ["--set", f"{key}={text}"]
    words += ["--data-dir", data["data_dir"]] if data.get("data_dir") else []
    words += ["--limit", str(data["limit"])] if data.get("limit") else []
    return shlex.join(words)


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
