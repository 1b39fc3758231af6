"""How much accuracy is left when pictures get worse: every corruption at every strength."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from .corruptions import CORRUPTIONS, STRENGTHS, corrupt
from .device import mix_seed
from .errors import UserError
from .evaluation import logits_of
from .splits import Split


@dataclass(frozen=True)
class Withstood:
    """One corruption: the `amounts` that its five strengths stand for (see corruptions.py), and the `accuracy` in 0..1
    that each leaves."""

    corruption: str
    amounts: tuple[float, ...]
    accuracy: tuple[float, ...]

    @property
    def mean(self) -> float:
        return fmean(self.accuracy)


@dataclass(frozen=True)
class Robustness:
    """Accuracy (0..1) on `images` images of the `of` that the split has: `clean`, by corruption, and the `mean` over
    all corruptions and strengths."""

    images: int
    of: int
    clean: float
    rows: tuple[Withstood, ...]

    @property
    def mean(self) -> float:
        return fmean(row.mean for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        rows = [{**asdict(row), "mean": row.mean} for row in self.rows]
        return {"images": self.images, "of": self.of, "clean": self.clean, "mean": self.mean, "rows": rows}


def robustness(
    model: nn.Module,
    split: Split,
    limit: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Robustness:
    """Accuracy of `model` on `split`, clean and under all of CORRUPTIONS, or on a sample of about `limit` of its
    images, drawn by `seed`, of every class in proportion.

    Pixels are harmed on the CPU by numbers that `seed` decides, so they are the same on every device. `progress` is
    told how many of the measurements are done, of how many.

    Raises:
        UserError: a split or a limit without images.
    """
    if not len(split) or (limit is not None and limit < 1):
        raise UserError(f"robustness needs images: the split has {len(split):,}, the limit is {limit}")
    chosen = split.to(torch.device("cpu")) if limit is None else sample(split, limit, seed)
    clean = _accuracy(model, chosen, None, 0, seed)
    rows: list[Withstood] = []
    total = len(CORRUPTIONS) * len(STRENGTHS)
    for number, (name, (_, amounts)) in enumerate(CORRUPTIONS.items()):
        accuracy = []
        for strength in STRENGTHS:
            accuracy.append(_accuracy(model, chosen, name, strength, mix_seed(seed, 0xBAD, number, strength)))
            if progress:
                progress(len(rows) * len(STRENGTHS) + strength, total)
        rows.append(Withstood(name, amounts, tuple(accuracy)))
    return Robustness(len(chosen), len(split), clean, tuple(rows))


def sample(split: Split, limit: int, seed: int) -> Split:
    """About `limit` images of `split`, or all where there are fewer: of every class in proportion, at least one."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(mix_seed(seed, 0xBAD)))
    return split.take(order.to(split.labels.device)).first(limit)


def _accuracy(model: nn.Module, split: Split, name: str | None, strength: int, seed: int) -> float:
    generator, right = torch.Generator().manual_seed(seed), 0
    for places in split.blocks():  # harmed a part at a time: all of a large split may not fit twice into memory
        images: Tensor = split.at(places)
        harmed = corrupt(images, name, strength, generator) if name else images
        part = Split(harmed, split.labels[places], split.index[places])
        right += int((logits_of(model, part).argmax(1) == part.labels).sum())
    return right / len(split)
