"""The pictures of a finished run, one PNG each: curves, predictions, mistakes, confusion, filters, feature maps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
from torch import Tensor, nn

from . import plots
from .data import Data
from .errors import UserError
from .evaluation import Metrics
from .explain import feature_maps, first_filters
from .files import make_folder
from .splits import Split


@matplotlib.rc_context({"text.parse_math": False})  # a $ in a class's name begins no formula
def draw_run(
    folder: Path, model: nn.Module, data: Data, history: Sequence[dict[str, Any]], logits: Tensor, metrics: Metrics
) -> list[Path]:
    """Draw everything into `folder`. Pictures that make no sense for this run (a curve of one epoch, no mistakes) are
    left out."""
    make_folder(folder)
    test, probabilities = data.test, logits.softmax(1)
    drawn = []
    if len(history) > 1:
        drawn += [plots.save(plots.curves(history, q), folder / f"{q}.png") for q in ("loss", "accuracy")]
    drawn.append(plots.save(plots.confusion(metrics), folder / "confusion.png"))
    some = torch.linspace(0, len(test) - 1, min(32, len(test))).long()
    title = f"Predictions for {len(some)} test images (accuracy on all {len(test):,}: {metrics.accuracy:.2%})"
    drawn.append(plots.save(_gallery(data, probabilities, some, title), folder / "predictions.png"))
    wrong = (probabilities.argmax(1) != test.labels).nonzero().flatten()
    if len(wrong):
        surest = wrong[probabilities[wrong].amax(1).argsort(descending=True)][:32]
        which = f"The {len(surest)} most confident of" if len(wrong) > len(surest) else "All"
        title = f"{which} {len(wrong):,} mistakes in {len(test):,} test images"
        drawn.append(plots.save(_gallery(data, probabilities, surest, title), folder / "mistakes.png"))
    try:
        name, weights = first_filters(model)
        drawn.append(plots.save(plots.filters(weights, name), folder / "filters.png"))
    except UserError:  # a network of the user's own without any convolution has no filters to draw
        pass
    return drawn + draw_feature_maps(folder, model, test.at(slice(1))[0], data.classes[int(test.labels[0])])


@matplotlib.rc_context({"text.parse_math": False})  # a $ in a class's name begins no formula
def draw_feature_maps(folder: Path, model: nn.Module, image: Tensor, caption: str) -> list[Path]:
    """The image, and a PNG for every convolution, numbered in the order in which they run."""
    make_folder(folder)
    drawn = [plots.save(plots.image_grid(image[None], [caption]), folder / "maps-00-image.png")]
    for i, feature in enumerate(feature_maps(model, image, convolutions_only=True), start=1):
        drawn.append(plots.save(plots.feature_map(feature), folder / f"maps-{i:02d}-{feature.name}.png"))
    return drawn


@matplotlib.rc_context({"text.parse_math": False})  # a $ in a class's name begins no formula
def draw_data(folder: Path, data: Data) -> list[Path]:
    """A grid of training images, three or more of every class, and the number of images of every class."""
    make_folder(folder)
    train = data.train
    each = max(3, 40 // len(data.classes)) if len(data.classes) <= 20 else 1
    chosen = torch.cat([(train.labels == c).nonzero().flatten()[:each] for c in range(len(data.classes))])
    captions = [data.classes[c] for c in train.labels[chosen].tolist()]
    columns = 10 if len(chosen) > 32 else 8
    grid = plots.image_grid(train.at(chosen), captions, title=f"{data.name}: training images", columns=columns)
    every = torch.cat([s.labels for s in (train, data.val, data.test) if s is not None])
    counts = plots.class_counts(every, data.classes, f"{data.name}: {len(every):,} images in all splits")
    return [plots.save(grid, folder / "samples.png"), plots.save(counts, folder / "class-counts.png")]


def _gallery(data: Data, probabilities: Tensor, chosen: Tensor, title: str) -> Any:
    part: Split = data.test.take(chosen)
    return plots.gallery(part.images, part.labels, probabilities[chosen], data.classes, title)
