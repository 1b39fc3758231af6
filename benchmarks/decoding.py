"""Pictures to batches: `convlens.load` against the usual way (an image folder, a transform a picture, a DataLoader).

    python benchmarks/decoding.py FOLDER [--size 64] [--runs 5]

The usual way is written here with Pillow and torch, as torchvision's ImageFolder, Resize, CenterCrop, ToTensor and
Normalize do it, with two workers that stay alive between the passes; their start is counted. Both give normalised
float batches of 64. A first pass of ours starts with an empty cache. The operating system holds the files in memory
for both. Medians of the runs, in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ImageFolder(Dataset[tuple[Tensor, int]]):
    def __init__(self, root: Path, size: int) -> None:
        classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
        self.samples = [(path, i) for i, name in enumerate(classes) for path in sorted((root / name).rglob("*.jpg"))]
        self.size = size
        self.mean, self.std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.samples[index]
        with path.open("rb") as file:
            picture = Image.open(file).convert("RGB")
        width, height = picture.size
        scale = self.size / min(width, height)
        picture = picture.resize((round(width * scale), round(height * scale)), Image.Resampling.BILINEAR)
        left, top = (picture.width - self.size) // 2, (picture.height - self.size) // 2
        picture = picture.crop((left, top, left + self.size, top + self.size))
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous().float().div(255)
        return pixels.sub_(self.mean).div_(self.std), label


def usual(root: Path, size: int, passes: int) -> Iterator[float]:
    started = time.perf_counter()
    loader = DataLoader(ImageFolder(root, size), 64, shuffle=True, num_workers=2, persistent_workers=True)
    for _ in range(passes):
        seen = sum(len(images) for images, _ in loader)
        yield seen / (time.perf_counter() - started)
        started = time.perf_counter()


def ours(root: Path, size: int, passes: int) -> Iterator[float]:
    from convlens import Recipe, load
    from convlens.data import batches
    from convlens.models.normalize import Normalize
    from convlens.recipe import AugmentConfig, DataConfig

    with tempfile.TemporaryDirectory() as cache:
        os.environ["CONVLENS_CACHE"] = cache
        started = time.perf_counter()
        data = load(root, Recipe(data=DataConfig(val=0.0, test=0.001, size=[size, size])))
        normalize = Normalize(data.mean, data.std)
        for epoch in range(passes):
            seen = sum(len(normalize(images)) for images, _ in batches(data.train, 64, AugmentConfig(), 0, epoch))
            yield seen / (time.perf_counter() - started)
            started = time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    ways = {"usual": usual, "convlens": ours}
    speeds: dict[str, list[list[float]]] = {name: [] for name in ways}  # of each run, images a second of each pass
    for _ in range(options.runs):
        for name, way in ways.items():
            speeds[name].append(list(way(options.folder, options.size, passes=3)))
    found: dict[str, object] = {
        "pictures": len(ImageFolder(options.folder, options.size)),
        "runs": options.runs,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
    }
    for which, passes in (("first", slice(1)), ("later", slice(1, None))):
        theirs, own = ([statistics.median(run[passes]) for run in speeds[name]] for name in ways)
        ratios = [b / a for a, b in zip(theirs, own, strict=True)]
        found[f"{which}_pass"] = {
            "usual_per_second": round(statistics.median(theirs)),
            "convlens_per_second": round(statistics.median(own)),
            "ratio": {"median": round(statistics.median(ratios), 2), "of": [round(ratio, 2) for ratio in ratios]},
        }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
