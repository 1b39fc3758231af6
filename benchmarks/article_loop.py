"""Time an article's own kind of loop against ConvLens, in turn: same network, same batch size, same kind of updates.

    python benchmarks/article_loop.py --data-dir DIR --images 12800 --runs 3

The article's loop is what these tutorials write: a Dataset that makes a PIL image and a float tensor of every picture,
a DataLoader with its defaults, a network in torch's default layout, a plain optimizer, loss.item() in every step.
Both train on the first --images images of the training set; a warm-up of 20 batches each is not counted.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from convlens import RECIPES, Data, Recipe, load, make_model, train

ARTICLES = ("lenet5-mnist", "cnn-mnist", "deepcnn-mnist", "cnn-cifar10", "dropout-cifar10")


class Pictures(Dataset[tuple[Tensor, int]]):
    """Images as tutorials serve them: one at a time, through PIL, to a normalised float tensor."""

    def __init__(self, data: Data, signed: bool) -> None:
        self.images = data.train.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = data.train.labels.tolist()
        self.signed = signed

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        pixels = self.images[index]
        picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
        array = np.array(picture, copy=True).reshape(picture.height, picture.width, -1)
        tensor = torch.from_numpy(array).permute(2, 0, 1).contiguous().to(torch.float32).div(255)
        if self.signed:
            tensor = tensor.sub(0.5).div(0.5)
        return tensor, self.labels[index]


def article_loop(recipe: Recipe, data: Data) -> float:
    """Seconds of one epoch."""
    model = make_model(recipe, data).network.to(memory_format=torch.contiguous_format)
    config = recipe.optim
    if config.name == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=config.lr, momentum=config.momentum)
    else:
        optimizer = torch.optim.Adam(model.parameters(), lr=config.lr)
    criterion = nn.CrossEntropyLoss()
    loader = DataLoader(Pictures(data, recipe.model.normalize == "signed"), batch_size=recipe.batch_size, shuffle=True)
    running = 0.0
    start = time.perf_counter()
    model.train()
    for images, labels in loader:
        optimizer.zero_grad()
        loss = criterion(model(images), labels)
        loss.backward()
        optimizer.step()
        running += loss.item()
    return time.perf_counter() - start


def our_loop(recipe: Recipe, data: Data) -> float:
    """Seconds of one epoch."""
    return next(train(make_model(recipe, data), data, replace(recipe, epochs=1))).seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=list(ARTICLES[:4]))
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--images", type=int, default=12_800)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {options.runs} runs each"
    )
    for name in options.recipes:
        recipe = RECIPES[name]
        data = load("cifar10" if "cifar" in name else "mnist", recipe, options.data_dir)
        few = replace(data, train=data.train.take(torch.arange(options.images)))
        warm = replace(data, train=data.train.take(torch.arange(20 * recipe.batch_size)))
        theirs, ours = [], []
        article_loop(recipe, warm), our_loop(recipe, warm)
        for _ in range(options.runs):
            theirs.append(options.images / article_loop(recipe, few))
            ours.append(options.images / our_loop(recipe, few))
        ratios = [b / a for a, b in zip(theirs, ours, strict=True)]
        row = {
            "recipe": name,
            "article_images_per_second": statistics.median(theirs),
            "convlens_images_per_second": statistics.median(ours),
            "ratio": statistics.median(ratios),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
            "runs": options.runs,
        }
        print(json.dumps(row), flush=True)
        if options.out:
            with options.out.open("a") as lines:
                lines.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
