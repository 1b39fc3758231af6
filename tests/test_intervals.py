"""Wilson's interval against scipy, against his own equation, and against draws."""

from __future__ import annotations

import math
import random

import pytest
from scipy.stats import binomtest

from convlens.intervals import wilson


@pytest.mark.parametrize(("right", "images"), [(0, 1), (1, 1), (0, 50), (50, 50), (1, 50), (812, 1000), (9899, 10_000)])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.999])
def test_it_is_scipys(right: int, images: int, confidence: float) -> None:
    theirs = binomtest(right, images).proportion_ci(confidence, "wilson")
    assert wilson(right, images, confidence) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_by_hand() -> None:
    # 8 of 10, z = 1.96: (8 + 1.9208) / 13.8416 -+ 1.96 sqrt(1.6 + 0.9604) / 13.8416 = 0.7167 -+ 0.2266
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)


def test_both_bounds_lie_so_many_standard_errors_of_their_own_from_the_share() -> None:
    for bound in wilson(812, 1000):
        assert abs(bound - 0.812) / math.sqrt(bound * (1 - bound) / 1000) == pytest.approx(1.959964, abs=1e-5)


def test_the_ends_are_exact_and_no_images_say_nothing() -> None:
    for images in range(1, 300):
        assert wilson(0, images)[0] == 0
        assert wilson(images, images)[1] == 1
    assert wilson(0, 0) == (0, 1)


def test_of_many_tests_ninety_five_in_a_hundred_hold_the_truth() -> None:
    draw = random.Random(0)
    counts = [sum(draw.random() < 0.9 for _ in range(200)) for _ in range(2000)]
    held = sum(low <= 0.9 <= high for low, high in (wilson(count, 200) for count in counts))
    assert 0.935 < held / 2000 < 0.965


@pytest.mark.parametrize(("right", "images", "confidence"), [(-1, 5, 0.95), (6, 5, 0.95), (1, 5, 1.0), (1, 5, 0.0)])
def test_what_is_no_count_is_refused(right: int, images: int, confidence: float) -> None:
    with pytest.raises(ValueError, match="no interval"):
        wilson(right, images, confidence)
