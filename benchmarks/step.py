"""Where the time of a training step goes, by torch.profiler, before and after.

    python benchmarks/step.py cnn-mnist speed-cifar10 --data-dir DIR

Before: fp32, torch's default layout, memory given back to the system after every step, no shortcuts. After: as the
engine does it.
The shares are of the operators' own time; ms a step is measured without the profiler, in both ways in turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import replace

import torch
from torch.profiler import profile

from convlens import Data, Recipe, load, make_model, train, training
from convlens.bench import data_of
from convlens.recipes import get_recipe

KINDS = {
    "convolution, backward": ("convolution_backward",),
    "convolution, forward": ("mkldnn_convolution", "cudnn_convolution"),
    "batch norm": ("native_batch_norm", "native_batch_norm_backward", "cudnn_batch_norm"),
    "activation": ("clamp_min", "threshold_backward", "gelu", "gelu_backward", "silu", "silu_backward", "relu"),
    "pooling": ("max_pool2d_with_indices", "max_pool2d_with_indices_backward", "avg_pool2d", "avg_pool2d_backward"),
    "matrix products": ("mm", "addmm", "bmm", "mkldnn_linear"),
    "dropout": ("bernoulli_", "native_dropout"),
    "gathering images": ("index", "index_select"),
}


def epoch_seconds(recipe: Recipe, data: Data, plain: bool) -> float:
    model = make_model(recipe, data)
    if plain:
        model = model.to(memory_format=torch.contiguous_format)
    return next(train(model, data, recipe)).seconds


def measure(name: str, data_dir: str | None, steps: int, plain: bool) -> dict[str, object]:
    """One recipe in one way; a process of its own, for kept memory stays kept."""
    recipe = get_recipe(name).override({"epochs": 1, "data.val": 0.0, **({"precision": "fp32"} if plain else {})})
    if plain:
        training.keep_memory = lambda: None
        training.shortcut = lambda model: model
    data = load(data_of(recipe), recipe, data_dir)
    data = replace(data, train=data.train.take(torch.arange(steps * recipe.batch_size)))
    epoch_seconds(recipe, data, plain)
    seconds = [epoch_seconds(recipe, data, plain) for _ in range(3)]
    with profile() as profiled:
        epoch_seconds(recipe, data, plain)
    events = {event.key.removeprefix("aten::"): event.self_cpu_time_total for event in profiled.key_averages()}
    total = sum(events.values())
    shares = {kind: sum(events.get(op, 0) for op in ops) / total for kind, ops in KINDS.items()}
    return {"ms": 1000 * statistics.median(seconds) / steps, "shares": {**shares, "the rest": 1 - sum(shares.values())}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--data-dir")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.recipes[0], options.data_dir, options.steps, options.plain)))
        return
    for name in options.recipes:
        found = []
        for plain in (True, False):
            again = [sys.executable, __file__, name, "--one", "--steps", str(options.steps), *["--plain"] * plain]
            again += ["--data-dir", options.data_dir] if options.data_dir else []
            said = subprocess.run(again, check=True, capture_output=True, text=True).stdout
            found.append(json.loads(said.splitlines()[-1]))
        before, after = found
        print(
            f"\n{name}, {torch.get_num_threads()} threads: {before['ms']:.1f} ms a step before, {after['ms']:.1f} after"
        )
        for kind in before["shares"]:
            print(f"  {kind:<24}{before['shares'][kind]:7.1%}{after['shares'][kind]:9.1%}")


if __name__ == "__main__":
    main()
