"""How sure a network is, against how often it is right: the numbers behind the reliability diagram, the histogram of
right and wrong answers, and the curve of coverage against accuracy. Figures of them are in trustplots.py.

All take `confidence` float (N,) in 0..1, the probability of the answer, and `right` bool (N,).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .calibration import OperatingPoint, expected_error, probabilities_of, selective

BINS = 15  # as in Guo et al., arXiv:1706.04599, and of expected_error


@dataclass(frozen=True)
class Bin:
    """Answers with a confidence in (low, high]: how many are right and wrong, and their mean confidence (None where
    there are none)."""

    low: float
    high: float
    right: int
    wrong: int
    confidence: float | None

    @property
    def accuracy(self) -> float | None:
        return self.right / (self.right + self.wrong) if self.right + self.wrong else None


@dataclass(frozen=True)
class Trust:
    """What the figures of one split are drawn from. `bins` are of the raw answers, `calibrated` of those whose logits
    were divided by the `temperature` (the same where that is 1), with the ECE (0..1) of each; `coverage` is of the
    calibrated ones, as the model file's user sees them."""

    images: int
    temperature: float
    ece: float
    ece_calibrated: float
    bins: tuple[Bin, ...]
    calibrated: tuple[Bin, ...]
    coverage: tuple[OperatingPoint, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it: a bin is a dict with its accuracy, a point [threshold, accuracy, coverage]."""
        return {
            "images": self.images,
            "temperature": self.temperature,
            "ece": self.ece,
            "ece_calibrated": self.ece_calibrated,
            "bins": [vars(each) | {"accuracy": each.accuracy} for each in self.bins],
            "calibrated": [vars(each) | {"accuracy": each.accuracy} for each in self.calibrated],
            "coverage": [[point.threshold, point.accuracy, point.coverage] for point in self.coverage],
        }


def trust(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> Trust:
    """All of it from the raw logits (N, K) and labels (N,) of a split."""
    raw, calibrated = (probabilities_of(logits, divisor).amax(1) for divisor in (1.0, temperature))
    return trust_of(raw, calibrated, logits.argmax(1) == labels, temperature)


def trust_of(raw: Tensor, calibrated: Tensor, right: Tensor, temperature: float) -> Trust:
    """The same from how sure the answers are before and after the temperature, each (N,) in 0..1, and which of them are
    `right`, bool (N,)."""
    return Trust(
        images=len(right),
        temperature=temperature,
        ece=expected_error(raw, right, BINS),
        ece_calibrated=expected_error(calibrated, right, BINS),
        bins=reliability_bins(raw, right),
        calibrated=reliability_bins(calibrated, right),
        coverage=coverage_curve(calibrated, right),
    )


def reliability_bins(confidence: Tensor, right: Tensor, bins: int = BINS) -> tuple[Bin, ...]:
    """Bins of equal width, the first (0, 1/bins]: what reliability diagrams (DeGroot and Fienberg, 1983) and the ECE
    are made of."""
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    into = torch.bucketize(confidence.double(), edges[1:-1])
    images, correct = into.bincount(minlength=bins).tolist(), into[right].bincount(minlength=bins).tolist()
    total = torch.zeros(bins, dtype=torch.float64).index_add_(0, into, confidence.double()).tolist()
    low, high = edges[:-1].tolist(), edges[1:].tolist()
    return tuple(
        Bin(low[i], high[i], correct[i], images[i] - correct[i], total[i] / images[i] if images[i] else None)
        for i in range(bins)
    )


def coverage_curve(confidence: Tensor, right: Tensor, points: int = 200) -> tuple[OperatingPoint, ...]:
    """The accuracy of the surest answers over their share of all images, from all of them to the surest alone (El-Yaniv
    and Wiener, JMLR 11, 2010). Answers that are equally sure come together; of more than `points` thresholds, those
    are kept whose coverage is spread evenly, the first and the last among them."""
    threshold, accuracy, coverage = selective(confidence.double(), right)
    if len(threshold) > points:
        wanted = torch.linspace(float(coverage[0]), float(coverage[-1]), points, dtype=torch.float64)
        places = torch.searchsorted(-coverage, -wanted).clamp(max=len(coverage) - 1)  # coverage falls
        threshold, accuracy, coverage = (values[places.unique()] for values in (threshold, accuracy, coverage))
    rows = zip(threshold.tolist(), accuracy.tolist(), coverage.tolist(), strict=True)
    return tuple(OperatingPoint(*row) for row in rows)
