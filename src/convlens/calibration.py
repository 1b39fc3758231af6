"""How far a network's answers can be trusted, found from what it said to the validation split: one temperature that
makes its probabilities honest, the accuracy that is left above a threshold, and the energies that are usual."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .operating import BOUNDS, LEAST, Calibration, OperatingPoint

POINTS = 200  # of the curve that goes into a model file
# The shares of validation energies below which, and above which, one is unusual. That foreign images lie above is what
# Liu et al. found; below lies noise, of which some networks with batch norm are far surer than of any image. Few usual
# images are given up for that (a density alone does not tell what is typical: Nalisnick et al., arXiv:1906.02994).
USUAL = 0.01, 0.95


def calibrate(logits: Tensor, labels: Tensor) -> Calibration:
    """From the logits (N, K) and labels (N,) of a validation split."""
    images = len(labels)
    if images < LEAST:
        return Calibration(images=images)
    right = logits.argmax(1) == labels
    # Where all are right, the smaller the temperature the better the fit, and it tells nothing of the next image
    temperature = 1.0 if right.all() else fit_temperature(logits, labels)
    low, high = (energy(logits, temperature).quantile(share).item() for share in USUAL)
    curve = accuracy_curve(probabilities_of(logits, temperature).amax(1), right)
    return Calibration(temperature, images, (low, high), curve)


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The T within BOUNDS at which logits / T have the smallest mean cross-entropy (Guo et al., arXiv:1706.04599).

    The cross-entropy is convex in 1/T, so its slope there, the mean of E[z] - z_label, changes its sign once: bisection
    finds the place; of several that fit alike, the largest.
    """
    logits = logits.double()
    logits = logits - logits.gather(1, labels[:, None])  # the label's own is 0, so that E[z] is the slope

    def slope(scale: float) -> float:
        return ((logits * scale).softmax(1) * logits).sum(1).mean().item()

    low, high = -math.log(BOUNDS[1]), -math.log(BOUNDS[0])
    for _ in range(50):  # of a width of 5 that leaves 1e-14
        middle = (low + high) / 2
        low, high = (middle, high) if slope(math.exp(middle)) < 0 else (low, middle)
    return min(max(math.exp(-(low + high) / 2), BOUNDS[0]), BOUNDS[1])


def probabilities_of(logits: Tensor, temperature: float) -> Tensor:
    """softmax(logits / T), float64 (N, K): in float32 the surest answers would all be 1."""
    return (logits.double() / temperature).softmax(1)


def energy(logits: Tensor, temperature: float) -> Tensor:
    """-T logsumexp(logits / T), float64 (N,): mostly higher for images unlike those of training (Liu et al.,
    arXiv:2010.03759); see USUAL."""
    return -temperature * (logits.double() / temperature).logsumexp(1)


def expected_error(confidence: Tensor, right: Tensor, bins: int = 15) -> float:
    """ECE in 0..1: the mean distance of accuracy from confidence over bins of equal width, (0, 1/15] the first, each
    with the weight of its images (Guo et al., arXiv:1706.04599). `confidence` (N,) in 0..1, `right` bool (N,)."""
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)[1:-1]
    into = torch.bucketize(confidence.double(), edges)
    gaps = torch.zeros(bins, dtype=torch.float64).index_add_(0, into, right.double() - confidence.double())
    return gaps.abs().sum().item() / len(confidence)


def selective(confidence: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every confidence that occurs, rising, with the accuracy of the answers that have it or more and their share of
    all, float64 each; `confidence` float64 (N,), `right` bool (N,)."""
    confidence, order = confidence.sort(descending=True)
    kept = torch.arange(1, len(confidence) + 1)
    accuracy = right[order].double().cumsum(0) / kept
    last = torch.ones(len(confidence), dtype=torch.bool)
    last[:-1] = confidence[1:] < confidence[:-1]  # no threshold parts equal answers
    confidence, accuracy, kept = (values[last].flip(0) for values in (confidence, accuracy, kept))
    return confidence, accuracy, kept.double() / len(right)


def accuracy_curve(confidence: Tensor, right: Tensor, points: int = POINTS) -> tuple[OperatingPoint, ...]:
    """The thresholds at which accuracy reaches a new height, from 0 on; `confidence` float64 (N,), `right` bool (N,).

    For every accuracy the smallest threshold that reaches it is one of these. Each lies half way between the surest
    answer left out and the least sure one kept, so that rounding does not move an image across. Where there are more
    than `points` of them, every so many are kept, the first and the last among them.
    """
    confidence, accuracy, coverage = selective(confidence, right)
    below = confidence.roll(1)
    between = (below + confidence) / 2
    threshold = torch.where(between > below, between, confidence)  # neighbours in floating point have no middle
    threshold[0] = 0
    heights = accuracy.cummax(0).values
    rises = torch.ones_like(accuracy, dtype=torch.bool)
    rises[1:] = heights[1:] > heights[:-1]
    chosen = rises.nonzero().flatten()
    if len(chosen) > points:
        chosen = chosen[torch.linspace(0, len(chosen) - 1, points).long()]
    columns = (values[chosen].tolist() for values in (threshold, accuracy, coverage))
    return tuple(OperatingPoint(*point) for point in zip(*columns, strict=True))


def reliability(logits: Tensor, labels: Tensor, temperature: float) -> dict[str, float]:
    """ECE and mean cross-entropy of a split, of its raw logits and of the calibrated ones."""
    right = logits.argmax(1) == labels
    found: dict[str, float] = {"images": len(labels)}
    for ending, divisor in (("", 1.0), ("_calibrated", temperature)):
        found[f"ece{ending}"] = expected_error(probabilities_of(logits, divisor).amax(1), right)
        found[f"loss{ending}"] = F.cross_entropy(logits.double() / divisor, labels).item()
    return found


def report(calibration: Calibration, answers: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """What metrics.json and `convlens evaluate` say: the temperature, and `reliability` by the name of each split. On
    validation, which the temperature was fitted to, it is at its best; the test set says what it is worth."""
    splits = {name: reliability(*answer, calibration.temperature) for name, answer in answers.items()}
    return {"temperature": calibration.temperature, "note": calibration.note, **splits}
