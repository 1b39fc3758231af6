"""A drawn digit against MNIST's own: what was MNIST stays what it is, wherever and however large it is drawn."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from convlens import load
from convlens.digits import prepare_digit
from refusals import refused


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    """Some of MNIST's test digits, uint8 (N, 28, 28)."""
    return load("mnist-5k", limit=1200).test.images[:, 0].numpy()


def drawn(digit: np.ndarray, random: np.random.Generator, scale: int, kind: Image.Resampling) -> np.ndarray:
    """The digit enlarged, somewhere on a larger canvas."""
    side = 28 * scale
    large = np.asarray(Image.fromarray(digit).resize((side, side), kind))
    canvas = np.zeros((side + 150, side + 90), dtype=np.uint8)
    top, left = random.integers(0, 150), random.integers(0, 90)
    canvas[top : top + side, left : left + side] = large
    return canvas


def test_a_digit_of_mnist_is_prepared_already(digits: np.ndarray) -> None:
    """But for the faintest pixels at an edge, which count as noise here."""
    prepared = np.stack([prepare_digit(digit) for digit in digits])
    same = (prepared == digits).all((1, 2))
    assert same.mean() > 0.85
    assert np.abs(prepared.astype(int) - digits).mean() < 2


def test_a_digit_drawn_large_at_any_place_comes_back(digits: np.ndarray) -> None:
    random = np.random.default_rng(0)
    for digit in digits[:60]:
        blocks = prepare_digit(drawn(digit, random, 5, Image.Resampling.NEAREST))
        np.testing.assert_array_equal(blocks, prepare_digit(digit))  # the mean of a block is its number
    smooth = np.stack([prepare_digit(drawn(digit, random, 8, Image.Resampling.BICUBIC)) for digit in digits])
    assert np.corrcoef(smooth.ravel(), digits.ravel())[0, 1] > 0.94


def test_proportions_stay_and_the_centre_of_mass_is_the_middle() -> None:
    random = np.random.default_rng(1)
    for _ in range(50):
        canvas = np.zeros((random.integers(40, 400), random.integers(40, 400)), dtype=np.uint8)
        height, width = random.integers(8, 38, 2)
        canvas[2 : 2 + height, 3 : 3 + width] = random.integers(60, 256, (height, width))
        found = prepare_digit(canvas)
        rows, columns = np.flatnonzero(found.any(1)), np.flatnonzero(found.any(0))
        tall, wide = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
        assert max(tall, wide) == 20
        assert abs(tall / wide - height / width) <= 0.6 * max(tall / wide, 1) / min(tall, wide)
        for axis in (0, 1):
            sums = found.sum(1 - axis, dtype=float)
            assert 13.5 - 1e-9 <= (sums * np.arange(28)).sum() / sums.sum() < 14.5 + 1e-9


def test_ink_on_paper_is_turned_over() -> None:
    canvas = np.zeros((120, 100), dtype=np.uint8)
    canvas[20:90, 40:52], canvas[20:30, 30:60] = 255, 255
    paper = (230 - canvas * (180 / 255)).astype(np.uint8)  # gray paper, and ink that is not black
    np.testing.assert_allclose(prepare_digit(paper), prepare_digit(canvas).astype(float), atol=2)


def test_a_dot_and_a_stroke_are_digits_too() -> None:
    canvas = np.zeros((100, 100), dtype=np.uint8)
    canvas[50, 50] = 255
    assert prepare_digit(canvas)[4:24, 4:24].all()
    canvas[:, 50] = 255
    assert (prepare_digit(canvas)[:, 14] == 255).sum() == 20
    assert prepare_digit(canvas).any(0).sum() == 1


def test_a_heavy_corner_does_not_push_the_digit_out() -> None:
    canvas = np.zeros((200, 200), dtype=np.uint8)
    canvas[:30, :30], canvas[-1, :], canvas[:, -1] = 255, 20, 20
    found = prepare_digit(canvas)
    assert found.shape == (28, 28)
    assert found.any(1).sum() == found.any(0).sum() == 20


@pytest.mark.parametrize("canvas", [np.zeros((50, 40), np.uint8), np.full((50, 40), 255, np.uint8)])
def test_no_ink_is_one_sentence(canvas: np.ndarray) -> None:
    refused(lambda: prepare_digit(canvas), "no ink")
