"""speed-cifar10 beside the speed-run scripts of others: one GPU, the same images, one after the other.

    python benchmarks/gpu.py airbench94_muon.py cifar10_speedrun.py --runs 20 --data-dir DIR

The scripts are those of github.com/KellerJordan/cifar10-airbench and github.com/hiverge/cifar10-speedrun, as they are,
with what they need (torch on a GPU, torchvision) in this Python's environment. They read `cifar10/train.pt` in the
folder they are started in: here that holds the images of --data-dir, so all train on the same ones. Each run of theirs
prints a line with its accuracies and seconds; the first --runs count, then they are stopped. Ours trains as often in
one process, after one training that does not count. Seconds, theirs and ours: training and the evaluation with
test-time augmentation, without compiling.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch

from convlens import Data, Recipe, evaluate, load, make_model, train
from convlens.device import Timer, pick_device
from convlens.evaluation import logits_of, metrics_of
from convlens.recipe import parse_setting
from convlens.recipes import get_recipe

ROW = re.compile(r"\|[^|]*\|\s*eval\s*\|[^|]*\|\s*([\d.]+)\s*\|\s*([\d.]+)\s*\|\s*([\d.]+)\s*\|")
Result = tuple[float, float, float]  # accuracy, with test-time augmentation, seconds


def rows(lines: Iterable[str]) -> Iterator[Result]:
    """The runs in a script's table; its first line is that of the warm-up."""
    found = (match for line in lines for match in ROW.finditer(line))
    for match in islice(found, 1, None):
        accuracy, with_tta, seconds = (float(text) for text in match.groups())
        yield accuracy, with_tta, seconds


def theirs(script: Path, data: Data, runs: int) -> list[Result]:
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cifar10"
        cache.mkdir()
        for name, split in (("train", data.train), ("test", data.test)):
            images = split.images.permute(0, 2, 3, 1).contiguous()
            torch.save({"images": images, "labels": split.labels, "classes": list(data.classes)}, cache / f"{name}.pt")
        with subprocess.Popen(
            [sys.executable, "-u", str(script.absolute())], cwd=folder, stdout=subprocess.PIPE, text=True
        ) as process:
            found = list(islice(rows(process.stdout or ()), runs))
            process.kill()
    if len(found) < runs:
        sys.exit(f"{script.name} ended after {len(found)} of {runs} runs")
    return found


def ours(recipe: Recipe, data: Data, runs: int) -> list[Result]:
    device = pick_device(recipe.device)
    recipe = replace(recipe, compile="on") if recipe.compile == "auto" else recipe
    labels = data.test.labels
    data, found = data.to(device), []
    for seed in range(-1, runs):
        seeded = replace(recipe, seed=max(seed, 0))
        timer = Timer(device)
        model = make_model(seeded, data)  # with the fitting of the whitening layer, as in theirs
        for _ in train(model, data, seeded):
            pass
        logits = logits_of(model, data.test, batch_size=5000, tta=recipe.tta, precision="bf16")
        with_tta = metrics_of(logits, labels).accuracy
        seconds = timer.seconds()
        if seed >= 0:
            found.append((evaluate(model, data.test).accuracy, with_tta, seconds))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scripts", nargs="*", type=Path)
    parser.add_argument("--recipe", default="speed-cifar10")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of the recipe")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--data-dir")
    parser.add_argument("--limit", type=int, help=argparse.SUPPRESS)  # fewer images, to try things
    options = parser.parse_args()
    recipe = get_recipe(options.recipe).override(dict(parse_setting(text) for text in options.set))
    data = load("cifar10", recipe, options.data_dir, options.limit)
    sides = {options.recipe: lambda: ours(recipe, data, options.runs)}
    sides |= {script.name: lambda script=script: theirs(script, data, options.runs) for script in options.scripts}
    for name, side in sides.items():
        accuracy, with_tta, seconds = (list(column) for column in zip(*side(), strict=True))
        print(
            f"{name:<24}n={len(seconds)}  {statistics.mean(accuracy):.2%}  with test-time augmentation "
            f"{statistics.mean(with_tta):.2%}  {statistics.median(seconds):.3f} s ({min(seconds):.3f} to "
            f"{max(seconds):.3f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
