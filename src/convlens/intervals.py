"""How far a share that was counted on some images may lie from the one on all images there could be."""

from __future__ import annotations

import math
from statistics import NormalDist


def wilson(right: int, images: int, confidence: float = 0.95) -> tuple[float, float]:
    """The bounds, in 0..1, between which the true share lies with `confidence` where `right` of `images` were counted:
    Wilson's score interval, without continuity correction (JASA 22, 1927). Unlike the textbook's p ± 1.96 standard
    errors it stays within 0..1 and has its width also where all or none are right. Of no images nothing is known: 0, 1.

    It takes the images for drawn at random from those that the network will meet; how the training's seed moves the
    share is not in it.

    Raises:
        ValueError: not 0 <= right <= images, or `confidence` not between 0 and 1.
    """
    if not 0 <= right <= images or not 0 < confidence < 1:
        raise ValueError(f"no interval for {right} of {images} at a confidence of {confidence}")
    if images == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    middle = (right + z * z / 2) / (images + z * z)
    half = z * math.sqrt(right * (images - right) / images + z * z / 4) / (images + z * z)
    # where all or none are right the bound is 1 or 0 exactly, which rounding would miss
    return 0.0 if right == 0 else middle - half, 1.0 if right == images else middle + half
