"""A drawn digit as MNIST's own digits were prepared, so that a network which was trained on them can read it.

LeCun, Cortes and Burges (yann.lecun.com/exdb/mnist): the digit, without changing its proportions, fills a box of
20 x 20 pixels, gray where it is scaled; the box lies in an image of 28 x 28 such that the centre of mass of the ink is
in the middle. Measured on MNIST itself: the middle is pixel 14 in both directions, and whole pixels are shifted.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from .errors import UserError

SIDE, BOX, MIDDLE = 28, 20, 14
INK = 16  # of 255: what is fainter at the edges is noise, or a brush's blur; 92 of 100 MNIST digits stay as they are


def prepare_digit(gray: np.ndarray) -> np.ndarray:
    """White ink on black, uint8 (H, W) of any size -> uint8 (28, 28) as MNIST has it. Where the border is brighter than
    the middle of the range it is ink on paper: turned over, and stretched so that the paper is black and the darkest
    ink white.

    Raises:
        UserError: there is no ink.
    """
    border = np.concatenate([gray[0], gray[-1], gray[:, 0], gray[:, -1]])
    if (paper := np.median(border)) > 127:
        ink_on_it = np.clip(paper - gray, 0, None)
        gray = (ink_on_it * (255 / max(ink_on_it.max(), INK))).astype(np.uint8)
    strong = gray >= INK
    if not strong.any():
        raise UserError("there is no ink in this picture: draw a digit in white on black")
    rows, columns = (np.flatnonzero(strong.any(axis)) for axis in (1, 0))
    ink = gray[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    boxed = _fitted(ink)
    height, width = boxed.shape
    mass = boxed.astype(np.float64)
    centre = [(mass.sum(1 - axis) * np.arange(mass.shape[axis])).sum() / mass.sum() for axis in (0, 1)]
    # A digit that is far heavier on one side stays inside all the same
    top, left = (
        min(max(math.ceil(MIDDLE - 0.5 - c), 0), SIDE - n) for c, n in zip(centre, (height, width), strict=True)
    )
    prepared = np.zeros((SIDE, SIDE), dtype=np.uint8)
    prepared[top : top + height, left : left + width] = boxed
    return prepared


def _fitted(ink: np.ndarray) -> np.ndarray:
    """The same in a box: its longer side has 20 pixels, each the mean of what it covers."""
    scale = BOX / max(ink.shape)
    height, width = (max(round(n * scale), 1) for n in ink.shape)
    kind = Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(ink).resize((width, height), kind))
