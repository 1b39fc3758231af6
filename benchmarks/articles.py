"""Train the articles' recipes with several seeds and write what docs/articles.md quotes.

    python benchmarks/articles.py cnn-mnist lenet5-mnist --seeds 0 1 2 --data-dir DIR --out results.jsonl

One line of JSON a run: recipe, seed, threads, and for every epoch the training loss and accuracy, the test accuracy
(looked at every epoch, as the articles do; the result is the last one) and the seconds of training and evaluating.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import torch

from convlens import RECIPES, build, evaluate, load, train


def run(name: str, seed: int, data_dir: str) -> dict[str, object]:
    recipe = replace(RECIPES[name], seed=seed)
    data = load("cifar10" if "cifar" in name else "mnist", recipe, data_dir)
    half = (0.5,) * data.input.channels
    mean, std = (half, half) if recipe.model.normalize == "signed" else (None, None)
    model = build(
        recipe.model.name,
        channels=data.input.channels,
        classes=len(data.classes),
        size=data.input.size,
        mean=mean,
        std=std,
        args=recipe.model.args,
        seed=seed,
    )
    epochs = []
    for epoch in train(model, data, recipe):
        start = time.perf_counter()
        accuracy = evaluate(model, data.test).accuracy
        seconds = time.perf_counter() - start
        epochs.append(
            {
                "loss": epoch.loss,
                "train_accuracy": epoch.accuracy,
                "test_accuracy": accuracy,
                "seconds": epoch.seconds,
                "evaluation_seconds": seconds,
            }
        )
        print(name, seed, epoch.index, round(epoch.loss, 4), accuracy, round(epoch.seconds, 1), flush=True)
    return {"recipe": name, "seed": seed, "threads": torch.get_num_threads(), "epochs": epochs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", choices=list(RECIPES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("articles.jsonl"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.recipes:
        for seed in options.seeds:
            result = run(name, seed, options.data_dir)
            with options.out.open("a") as lines:
                lines.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
