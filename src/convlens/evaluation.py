"""Logits of a whole split, and the numbers that are read off them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import markup
from .data import Data
from .device import autocast, keep_memory
from .distributed import gathered, portion
from .intervals import wilson
from .splits import Split

LARGEST = 1000 * 3 * 64 * 64  # pixels and channels of a batch: the maps of all its images take many times the memory

SHOWN = 40  # classes that a notebook's table has lines for


@dataclass(frozen=True)
class ClassMetrics:
    """Of one class: `precision` right / predicted so, `recall` right / truly so, `f1` their harmonic mean, `support`
    its images."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class Metrics:
    """`accuracy` and `top5` in 0..1, `loss` the mean cross-entropy in nats; `confusion[i][j]` counts images of class i
    that were taken for class j."""

    images: int
    accuracy: float
    loss: float
    top5: float
    macro_f1: float
    classes: tuple[ClassMetrics, ...]
    confusion: tuple[tuple[int, ...], ...]

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def _repr_html_(self) -> str:
        """The totals, and a line a class; of many classes those of the lowest F1."""
        right = sum(row[i] for i, row in enumerate(self.confusion))
        low, high = wilson(right, self.images)
        said = f"on {self.images:,} images (95 % interval {low:.2%} to {high:.2%}); loss {self.loss:.4f}, "
        said += f"top-5 {self.top5:.2%}, macro F1 {self.macro_f1:.2%}"
        shown = self.classes if len(self.classes) <= SHOWN else sorted(self.classes, key=lambda c: c.f1)[:SHOWN]
        fewer = "" if shown is self.classes else markup.paragraph(f"The {SHOWN} classes of the lowest F1:")
        rows = [(c.name, f"{c.precision:.2%}", f"{c.recall:.2%}", f"{c.f1:.2%}", f"{c.support:,}") for c in shown]
        columns = ("class", "precision", "recall", "F1", "images")
        return (
            markup.paragraph(said, f"accuracy {self.accuracy:.2%}") + fewer + markup.table(columns, rows, columns[1:])
        )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the `with`; then every layer has its own mode again, also where they differed."""
    modes = {layer: layer.training for layer in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for layer, mode in modes.items():
            layer.training = mode


def logits_of(
    model: nn.Module,
    split: Split,
    batch_size: int = 1000,
    tta: str = "none",
    sharded: bool = False,
    precision: str = "fp32",
) -> Tensor:
    """Logits (N, K) float32 on the CPU, in evaluation mode and without gradients; the model's mode is put back.

    Batches of large images are smaller. A split of its own device is moved to the model's batch by batch. `tta`
    averages over views of every image: `mirror` it and its mirror image; `mirror-shift` gives the same pair, moved by
    one pixel along both diagonals, half of the weight (Jordan, arXiv:2404.00498). `sharded` lets each of the processes
    that train together take its share of the images; all get all logits, and all must call it. `precision` bf16 is
    faster on a GPU; what is shipped is fp32.
    """
    keep_memory()
    batch_size = min(batch_size, max(LARGEST // split.store[0].numel(), 1))
    places = torch.arange(len(split), device=split.labels.device)
    places = portion(places) if sharded else places
    device, weighted = next(model.parameters()).device, views(tta)

    def answer(images: Tensor) -> Tensor:
        return torch.stack([weight * model(view(images)).float() for weight, view in weighted]).sum(0)

    with evaluating(model), torch.inference_mode(), autocast(device, precision):
        logits = torch.cat([answer(split.at(part).to(device)) for part in places.split(batch_size)]).cpu()
    return gathered(logits, len(split)) if sharded else logits


def answers_of(model: nn.Module, data: Data, sharded: bool = False) -> dict[str, tuple[Tensor, Tensor]]:
    """Logits (N, K) and labels (N,) of the splits that were not trained on: `test`, and `val` where there is one."""
    splits = {"val": data.val, "test": data.test}
    return {
        name: (logits_of(model, split, sharded=sharded), split.labels.cpu()) for name, split in splits.items() if split
    }


def views(tta: str) -> list[tuple[float, Callable[[Tensor], Tensor]]]:
    """Weights, and functions from images to one view of each."""

    def moved(images: Tensor, by: int) -> Tensor:
        height, width = images.shape[2:]
        return F.pad(images.float(), (1,) * 4, "reflect")[:, :, by : by + height, by : by + width]

    def mirrored(images: Tensor) -> Tensor:
        return images.flip(3)

    if tta == "none":
        return [(1.0, lambda images: images)]
    if tta == "mirror":
        return [(0.5, lambda images: images), (0.5, mirrored)]
    shifted = [
        (0.125, lambda images, by=by, turn=turn: turn(moved(images, by)))
        for by in (0, 2)
        for turn in (lambda images: images, mirrored)
    ]
    return [(0.25, lambda images: images), (0.25, mirrored), *shifted]


def evaluate(
    model: nn.Module,
    split: Split,
    classes: tuple[str, ...] | None = None,
    tta: str = "none",
    precision: str = "fp32",
) -> Metrics:
    """All metrics of `model` on `split`; see `logits_of` for `tta` and `precision`."""
    return metrics_of(logits_of(model, split, tta=tta, precision=precision), split.labels.cpu(), classes)


def metrics_of(logits: Tensor, labels: Tensor, classes: tuple[str, ...] | None = None) -> Metrics:
    """Metrics from logits (N, K) and labels (N,). A class without images, or never predicted, has 0 where it would
    divide by zero; it counts in the macro average unless it is both, as in scikit-learn with zero_division=0."""
    n, k = logits.shape
    classes = classes or tuple(str(i) for i in range(k))
    predicted = logits.argmax(1)
    confusion = torch.zeros(k, k, dtype=torch.int64)
    confusion.index_put_((labels, predicted), torch.ones(n, dtype=torch.int64), accumulate=True)
    right, said, truly = confusion.diag().double(), confusion.sum(0).double(), confusion.sum(1).double()
    precision, recall = right / said.clamp(min=1), right / truly.clamp(min=1)
    f1 = 2 * right / (said + truly).clamp(min=1)
    top = logits.topk(min(5, k), dim=1).indices
    return Metrics(
        images=n,
        accuracy=right.sum().item() / n,
        loss=F.cross_entropy(logits.double(), labels).item(),
        top5=(top == labels[:, None]).any(1).double().mean().item(),
        macro_f1=f1[(said + truly) > 0].mean().item(),
        classes=tuple(
            ClassMetrics(name, precision[i].item(), recall[i].item(), f1[i].item(), int(truly[i]))
            for i, name in enumerate(classes)
        ),
        confusion=tuple(tuple(row) for row in confusion.tolist()),
    )
