"""One training in a process of its own, reported as lines of JSON: what `convlens bench` starts again and again.

    python -m convlens.trial recipe.toml mnist --seed 3

A line after every epoch where the test set is looked at then, and one at the end: seconds of importing, data,
compiling, training and evaluating, accuracy, memory, arithmetic. The scripts in benchmarks/peers report alike.
"""

from __future__ import annotations

import time

STARTED = time.perf_counter()

import argparse  # noqa: E402 - the clock of the import runs before all else
import itertools  # noqa: E402
import json  # noqa: E402
import statistics  # noqa: E402
import sys  # noqa: E402
from collections.abc import Iterable, Iterator  # noqa: E402
from dataclasses import replace  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from .augment import augmented_size  # noqa: E402
from .data import Data, load, steps_per_epoch  # noqa: E402
from .device import Timer, pick_device, pick_precision  # noqa: E402
from .errors import UserError  # noqa: E402
from .evaluation import evaluate  # noqa: E402
from .flops import training_flops  # noqa: E402
from .models.ensemble import members_of  # noqa: E402
from .optim import body_of, freezable, hold  # noqa: E402
from .recipe import Recipe  # noqa: E402
from .run import make_model  # noqa: E402
from .training import Position, augmentation, compiles, frozen_layers, seen_flops, train  # noqa: E402


def trial(recipe: Recipe, data: Data, to_accuracy: float | None = None) -> Iterator[dict[str, Any]]:
    """Train and yield the lines. `to_accuracy` ends the run after the first epoch whose test accuracy reaches it.

    Raises:
        UserError: a recipe without epochs, or a loss that is not finite.
    """
    if recipe.epochs == 0:
        raise UserError("a recipe of 0 epochs has nothing to measure: set epochs to 1 or more")
    device = pick_device(recipe.device)
    preparing = Timer(device)
    data = data.to(device)
    model = make_model(recipe, data)
    seconds = {"data": preparing.seconds(), "compile": 0.0, "train": 0.0, "evaluate": 0.0}
    stamps: list[float] = []

    def watch(batches: Iterable[tuple[Tensor, Tensor]], _position: Position) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in batches:
            stamps.append(time.perf_counter())
            yield batch

    accuracy, seen = 0.0, 0
    look_each_epoch = recipe.data.test_each_epoch or to_accuracy is not None
    training = Timer(device)  # also of what train() does before its first step, and between the epochs
    for epoch in train(model, data, recipe, watch=watch):
        spent = training.seconds()
        seconds["train"] += spent
        seen += epoch.images
        if look_each_epoch or epoch.index == recipe.epochs:
            looking = Timer(device)
            accuracy = evaluate(model, data.test).accuracy
            looked = looking.seconds()
            seconds["evaluate"] += looked
            yield {
                "epoch": epoch.index,
                "train_seconds": spent,
                "evaluate_seconds": looked,
                "test_accuracy": accuracy,
            }
            if to_accuracy is not None and accuracy >= to_accuracy:
                break
        training = Timer(device)
    forward = seen_flops(model, data.train.at(slice(1)))
    # Where the model is compiled its first step does it; the others say what a step takes otherwise.
    if compiles(recipe, device, forward * len(data.train) * recipe.epochs) and len(stamps) > 2:
        steps = [after - before for before, after in itertools.pairwise(stamps)]
        seconds["compile"] = max(steps[0] - statistics.median(steps[1:]), 0.0)
        seconds["train"] -= seconds["compile"]
    flops = run_flops(recipe, data)
    precision = pick_precision(recipe.precision, device, forward)
    yield {
        "peer": "convlens",
        "seconds": seconds,
        "images_per_second": seen / seconds["train"],
        "accuracy": accuracy,
        "tta_accuracy": evaluate(model, data.test, tta=recipe.tta).accuracy if recipe.tta != "none" else None,
        "peak_memory_bytes": peak_memory(),
        "device_memory_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        "flops": flops,
        "flops_per_second": flops * seen / (recipe.epochs * len(data.train)) / seconds["train"],
        "peak_flops_per_second": peak_flops(device, precision),
        "precision": precision,
        "parameters": sum(p.numel() for p in model.parameters()),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "versions": {"torch": torch.__version__},
    }


def run_flops(recipe: Recipe, data: Data) -> int:
    """Floating point operations of all training steps of a run, counted at each side that its images are cropped to and
    for each number of convolutions that learn no more."""
    model, total = make_model(recipe, data), 0
    body, layers = body_of(model), freezable(model, recipe.optim)
    steps = steps_per_epoch(data.train, recipe.batch_size)
    counted: dict[tuple[int, int, int, bool], int] = {}
    for epoch, step in itertools.product(range(1, recipe.epochs + 1), range(steps)):
        height, width = augmented_size(data.input.size, augmentation(recipe, epoch, data.flip_ok))
        key = height, width, frozen_layers(recipe, epoch, step, steps), epoch <= recipe.optim.head_epochs
        if key not in counted:
            hold(body, layers, *key[2:])
            some = slice(2 * len(members_of(model)))  # two for each: with fewer, all members learn from all
            images, labels = data.train.at(some)[:, :, :height, :width], data.train.labels[some]
            counted[key] = training_flops(model, images, labels)
        total += counted[key] * min(recipe.batch_size, len(data.train) - step * recipe.batch_size)
    return total


def peak_flops(device: torch.device, precision: str) -> float:
    """The most floating point operations a second that a square matrix product reaches here and now."""
    best = 0.0
    for n in (1024, 2048, 4096) if device.type == "cpu" else (4096, 8192):
        a, b = (
            torch.randn(n, n, device=device).to(torch.bfloat16 if precision == "bf16" else torch.float32) for _ in "ab"
        )
        for _ in range(5):
            timer = Timer(device)
            a @ b
            best = max(best, 2 * n**3 / timer.seconds())
    return best


def peak_memory() -> int | None:
    """The most bytes that this process has had in memory; None on Windows, which does not say."""
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="a recipe file")
    parser.add_argument("data")
    parser.add_argument("--data-dir")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--to-accuracy", type=float)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    imported = time.perf_counter() - STARTED
    try:
        _report(options, imported)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


def _report(options: argparse.Namespace, imported: float) -> None:
    recipe = replace(Recipe.from_toml(options.recipe), seed=options.seed)
    loading = time.perf_counter()
    data = load(options.data, recipe, options.data_dir, options.limit)
    loaded = time.perf_counter() - loading
    for line in trial(recipe, data, options.to_accuracy):
        if "seconds" in line:
            line["seconds"] = {"import": imported, **line["seconds"], "data": loaded + line["seconds"]["data"]}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
