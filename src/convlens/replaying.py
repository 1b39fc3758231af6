"""The golden batch answered again: whether a network still says what it said when it was saved."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .formats import Shipped
from .operating import difference, margins, probabilities_of

# How far logits may lie apart, in parts of the largest of an image's logits, or of 1 where that is smaller: sums in
# float32 that are taken in another order differ by some 1e-6 of it. In int8 a sum that falls between two steps of a map
# may be rounded to either, and the layers behind it carry that on: with all of onnxruntime's optimisations and with
# none, logits of 1,500 images were at most 1.2e-2 apart.
CLOSE = {"fp32": 1e-4, "int8": 5e-2}
TIE = 1e-4  # of two logits: what is further apart is no rounding of float32
PROBABLE = 1e-4  # how far probabilities may lie from those that the logits and the temperature give


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. `passed` is None where it cannot be told, and `said` says why."""

    name: str
    passed: bool | None
    said: str


def golden_checks(shipped: Shipped) -> list[Check]:
    """That its logits are the golden ones, and, of a graph, that its probabilities go with them."""
    golden = shipped.golden
    logits, probabilities = shipped.outputs(golden.images)
    replayed = alike("golden batch", logits, golden.logits, CLOSE[shipped.precision])
    return [replayed, *probabilities_alike("probabilities", shipped, logits, probabilities)]


def probabilities_alike(
    name: str, shipped: Shipped, logits: np.ndarray, probabilities: np.ndarray | None
) -> list[Check]:
    """Whether the probabilities that a graph gives are those of its logits at the temperature in its metadata; nothing
    where it gives none."""
    if probabilities is None:
        return []
    temperature = shipped.manifest.calibration.temperature
    apart = float(np.nan_to_num(np.abs(probabilities - probabilities_of(logits, temperature)), nan=np.inf).max())
    said = (
        f"{len(logits):,} images: {apart:.1e} from those of its logits at T = {temperature:.4g}, {PROBABLE:.0e} allowed"
    )
    return [Check(name, apart <= PROBABLE, said)]


def alike(name: str, logits: np.ndarray, expected: np.ndarray, allowed: float) -> Check:
    """Whether logits (N, K) are those expected, and their labels, but for ties."""
    apart, labels = difference(logits, expected), logits.argmax(1)
    equal = int((labels == expected.argmax(1)).sum())
    tied = int(((labels != expected.argmax(1)) & (margins(expected, labels) <= TIE)).sum())
    said = f"{len(labels)} images: logits {apart:.1e} apart, {allowed:.0e} allowed; {equal} labels equal"
    said += f", {tied} tied" if tied else ""
    return Check(name, bool(apart <= allowed and equal + tied == len(labels)), said)
