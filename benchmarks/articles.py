"""Train the articles' recipes with several seeds and write what docs/articles.md quotes.

    python benchmarks/articles.py cnn-mnist lenet5-mnist --seeds 0 1 2 --data-dir DIR --out results.jsonl

One line of JSON a run: recipe, seed, threads, and for every epoch the training loss and accuracy, the test accuracy
(looked at every epoch, as the articles do; the result is the last one) and the seconds of training and evaluating.

--jpeg-again measures what JPEG costs: it compresses every image once more, at JPEG's usual quality of 75, on a grid
that is moved by 5 pixels so that the new losses do not fall where older ones were.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from convlens import RECIPES, Split, evaluate, load, make_model, train
from convlens.recipe import parse_setting


def through_jpeg(split: Split) -> Split:
    images = split.images.permute(0, 2, 3, 1).roll((5, 5), (1, 2)).contiguous().numpy()
    decoded = np.empty_like(images)
    for i, pixels in enumerate(images):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "jpeg", quality=75)
        decoded[i] = np.asarray(Image.open(file))
    return replace(split, images=torch.from_numpy(decoded).roll((-5, -5), (1, 2)).permute(0, 3, 1, 2).contiguous())


def run(name: str, seed: int, data_dir: str, jpeg_again: bool, settings: list[str]) -> dict[str, object]:
    recipe = RECIPES[name].override({"seed": seed, **dict(parse_setting(text) for text in settings)})
    data = load("cifar10" if "cifar" in name else "mnist", recipe, data_dir)
    if jpeg_again:
        data = replace(data, train=through_jpeg(data.train), test=through_jpeg(data.test))
    model = make_model(recipe, data)
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
    return {
        "recipe": name,
        "seed": seed,
        "jpeg_again": jpeg_again,
        "settings": settings,
        "threads": torch.get_num_threads(),
        "epochs": epochs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", choices=list(RECIPES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--jpeg-again", action="store_true")
    parser.add_argument("--set", dest="settings", nargs="+", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=Path("articles.jsonl"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.recipes:
        for seed in options.seeds:
            result = run(name, seed, options.data_dir, options.jpeg_again, options.settings)
            with options.out.open("a") as lines:
                lines.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
