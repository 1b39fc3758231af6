"""How far a network's answers can be trusted, as its file knows it: the temperature of its probabilities, the accuracy
that is left above a threshold, the energies that are usual. NumPy alone, for who predicts without PyTorch; how these
numbers are found is calibration.py."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import UserError

LEAST = 100  # validation images that anything here is read off; of fewer, a twentieth is a handful
BOUNDS = 0.1, 10.0  # of the temperature; what lies beyond is noise, or a network that has learned nothing


@dataclass(frozen=True)
class OperatingPoint:
    """Answers whose top probability is `threshold` or more: the share of them that is right (`accuracy`), and their
    share of all images (`coverage`); all three in 0..1."""

    threshold: float
    accuracy: float
    coverage: float


@dataclass(frozen=True)
class Calibration:
    """What a model file knows of its validation split. `temperature` divides the logits; 1 where it was not fitted, and
    then `note` says why. `images` is their number; `usual` the 1st and the 95th percentile of their energies; `curve`
    the thresholds at which accuracy reaches a new height, both rising. Below LEAST images the last two are empty."""

    temperature: float = 1.0
    images: int = 0
    usual: tuple[float, float] | None = None
    curve: tuple[OperatingPoint, ...] = ()

    @property
    def note(self) -> str:
        """Why the temperature was not fitted; empty where it was."""
        if self.images < LEAST:
            return f"not calibrated: the model has {self.images or 'no'} validation images, {LEAST} are needed"
        if self.curve[0].accuracy == 1:
            return f"not calibrated: all {self.images:,} validation images are right, which fits any temperature"
        return ""

    def reaching(self, accuracy: float) -> OperatingPoint:
        """The smallest threshold above which at least `accuracy` of the validation answers are right (selective
        classification: El-Yaniv and Wiener, JMLR 11, 2010). Of a curve with more points than a file holds, the next.

        Raises:
            UserError: no threshold reaches it, or there were too few validation images.
        """
        if not self.curve:
            raise UserError(
                f"no accuracy can be promised: the model has {self.images or 'no'} validation images, {LEAST} are "
                "needed; train with more held out (--set data.val=0.1 or more), or choose a threshold yourself"
            )
        found = next((point for point in self.curve if point.accuracy >= accuracy), None)
        if found is None:
            best = self.curve[-1]
            raise UserError(
                f"no threshold reaches an accuracy of {accuracy:g} on the {self.images:,} validation images; the best "
                f"is {math.floor(best.accuracy * 1e4) / 1e4:g}, with {best.coverage:.1%} of them above the threshold"
            )
        return found

    def unusual(self, energy: float) -> bool | None:
        """Whether an energy lies outside of the usual ones; None where they are not known."""
        return None if self.usual is None else not self.usual[0] <= energy <= self.usual[1]

    def to_dict(self) -> dict[str, Any]:
        curve = [[point.threshold, point.accuracy, point.coverage] for point in self.curve]
        return {
            "temperature": self.temperature,
            "images": self.images,
            "usual": self.usual,
            "curve": curve,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Calibration:
        """Raises KeyError, TypeError or ValueError where that is not what `to_dict` gives."""
        temperature, images = float(values["temperature"]), int(values["images"])
        curve = tuple(OperatingPoint(*map(float, point)) for point in values["curve"])
        shares = [share for p in curve for share in (p.threshold, p.accuracy, p.coverage)]
        if not BOUNDS[0] <= temperature <= BOUNDS[1] or not all(0 <= share <= 1 for share in shares):
            raise ValueError("its calibration has numbers out of range")
        if images < LEAST and not curve and values["usual"] is None:
            return cls(temperature, images)
        low, high = map(float, values["usual"])
        if images < LEAST or not curve or not -math.inf < low <= high < math.inf:
            raise ValueError("its calibration is not whole")
        return cls(temperature, images, (low, high), curve)


def probabilities_of(logits: np.ndarray, temperature: float) -> np.ndarray:
    """softmax(logits / T), float64 (N, K): in float32 the surest answers would all be 1."""
    scaled = logits.astype(np.float64) / temperature
    with np.errstate(invalid="ignore"):  # a network that says inf: its rows are nan, which the caller tells
        powers = np.exp(scaled - scaled.max(1, keepdims=True))
        return powers / powers.sum(1, keepdims=True)


def energy(logits: np.ndarray, temperature: float) -> np.ndarray:
    """-T logsumexp(logits / T), float64 (N,): mostly higher for images unlike those of training (Liu et al.,
    arXiv:2010.03759)."""
    scaled = logits.astype(np.float64) / temperature
    highest = scaled.max(1)
    with np.errstate(invalid="ignore"):
        return -temperature * (highest + np.log(np.exp(scaled - highest[:, None]).sum(1)))


def difference(logits: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference of logits (N, K), in parts of the largest of each image's expected ones, or of 1."""
    with np.errstate(invalid="ignore"):  # inf - inf
        apart = np.abs(logits - expected).max(1) / scale(expected)
    return float(np.nan_to_num(apart, nan=np.inf).max())


def margins(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How much logits (N, K) prefer their own label to `labels` (N,), in parts of the largest of each image's, or of 1:
    (N,), 0 or more."""
    return (logits.max(1) - logits[np.arange(len(labels)), labels]) / scale(logits)


def scale(logits: np.ndarray) -> np.ndarray:
    """What differences of logits (N, K) are measured by: the largest of each image's, or 1 where that is smaller."""
    return np.maximum(np.abs(logits).max(1), 1)
