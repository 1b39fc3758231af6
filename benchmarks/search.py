"""Search a recipe's settings on a validation split; the test set is never looked at.

    python benchmarks/search.py speed-cifar10-85 --data cifar10 --data-dir DIR --vary epochs=4,6 optim.lr=0.06,0.12

Every combination of the varied settings (or, with --random N, N of them drawn) is trained with every seed on 90 % of
the training images, and measured on the rest, with the recipe's test-time augmentation if it has one. A line of JSON a
trial goes to --out, and a table, the best first, to the terminal. Trials that --out already holds are not trained
again, so a search can be stopped and taken up.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from convlens import Data, Recipe, UserError, evaluate, load, make_model, train
from convlens.device import pick_device
from convlens.flops import forward_flops
from convlens.recipe import parse_setting
from convlens.recipes import get_recipe


def choices(text: str) -> tuple[str, list[Any]]:
    """`optim.lr=0.06,0.12` -> ("optim.lr", [0.06, 0.12]); values that hold commas are separated by `;` instead."""
    key, values = text.split("=", 1)
    parts = values.split(";" if ";" in values or "[" in values else ",")
    return key, [parse_setting(f"{key}={value}")[1] for value in parts]


def trial(recipe: Recipe, data: Data) -> dict[str, Any]:
    model = make_model(recipe, data)
    flops = forward_flops(model, data.train.images[:1])
    before = time.process_time()
    epochs = list(train(model, data, recipe))
    cpu_seconds = time.process_time() - before  # of all threads: steadier than the clock where others compute, too
    metrics = evaluate(model, data.val or data.train, tta=recipe.tta)  # main() sets data.val
    return {
        "seed": recipe.seed,
        "seconds": sum(epoch.seconds for epoch in epochs),
        "cpu_seconds": cpu_seconds,
        "val_accuracy": metrics.accuracy,
        "val_loss": metrics.loss,
        "train_loss": epochs[-1].loss,
        "forward_flops": flops,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--data", required=True)
    parser.add_argument("--data-dir")
    parser.add_argument("--vary", nargs="*", default=[], metavar="KEY=A,B,C")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="the same in every trial")
    parser.add_argument("--random", type=int, metavar="N", help="only N of the combinations, drawn at random")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--out", type=Path, default=Path("search.jsonl"))
    options = parser.parse_args()

    fixed = dict(parse_setting(text) for text in options.set)
    base = replace(get_recipe(options.recipe), patience=0).override({"data.val": 0.1, **fixed})
    # one split for all seeds: they differ in the training alone
    data = load(options.data, base, options.data_dir).to(pick_device(base.device))
    varied = dict(choices(text) for text in options.vary)
    settings = [dict(zip(varied, values, strict=True)) for values in itertools.product(*varied.values())]
    if options.random:
        settings = random.Random(0).sample(settings, min(options.random, len(settings)))
    known = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    rows = []
    for setting in settings:
        found = []
        for seed in options.seeds:
            key = {"recipe": base.name, "set": {**fixed, **setting}, "seed": seed}
            row = next((row for row in known if key.items() <= row.items()), None)
            if row is None:
                try:
                    row = key | trial(base.override({**setting, "seed": seed}), data)
                except UserError as error:  # it diverged, or the combination makes no sense: a result, too
                    row = key | {"error": str(error), "val_accuracy": 0.0, "cpu_seconds": 0.0}
                with options.out.open("a") as lines:
                    lines.write(json.dumps(row) + "\n")
            found.append(row)
        accuracies = [row["val_accuracy"] for row in found]
        seconds = statistics.median(row["cpu_seconds"] for row in found)
        rows.append((statistics.mean(accuracies), seconds, setting))
        failed = next((row["error"] for row in found if "error" in row), "")
        print(f"{rows[-1][0]:.4f}  {seconds:7.1f} CPU s  n={len(found)}  {setting}  {failed}", flush=True)
    print("\nbest first")
    for accuracy, seconds, setting in sorted(rows, key=lambda row: -row[0]):
        print(f"{accuracy:.4f}  {seconds:7.1f} CPU s  {setting}")


if __name__ == "__main__":
    main()
