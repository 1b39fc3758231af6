"""Pictures that stand out are found by hand-made faults, against numbers counted by hand."""

from __future__ import annotations

import io
import math

import numpy as np
import torch
from PIL import Image, ImageFilter

from convlens.quality import Measures, blank, blurred, dark, measure, odd_sizes, outliers
from convlens.splits import Split


def split(images: torch.Tensor) -> Split:
    return Split(images, torch.zeros(len(images), dtype=torch.int64), torch.arange(len(images)))


def textured(count: int, seed: int = 0) -> torch.Tensor:
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (count, 3, 24, 24), np.uint8)
    return torch.from_numpy(pixels)


def test_measures_are_what_they_say() -> None:
    images = textured(5)
    found = measure(split(images))
    for i, image in enumerate(images.double().numpy()):
        gray = image.mean(0)
        assert math.isclose(found.spread[i], max(channel.std() for channel in image), rel_tol=1e-4)
        ordered = np.sort(gray.ravel())
        assert math.isclose(found.bright[i], ordered[math.ceil(0.99 * len(ordered)) - 1], rel_tol=1e-4)
        edges = [
            gray[y - 1, x] + gray[y + 1, x] + gray[y, x - 1] + gray[y, x + 1] - 4 * gray[y, x]
            for y in range(1, 23)
            for x in range(1, 23)
        ]
        assert math.isclose(found.sharpness[i], np.var(edges, ddof=1) / gray.var(ddof=1), rel_tol=1e-3)


def test_blank_dark_and_blurred() -> None:
    images = textured(60)
    images[3] = 0
    images[4] = 255
    images[5] = torch.tensor([10, 200, 30])[:, None, None]
    noisy = Image.fromarray(
        np.full((24, 24, 3), 128, np.uint8) + np.random.default_rng(0).integers(0, 4, (24, 24, 3), np.uint8)
    )
    file = io.BytesIO()
    noisy.save(file, "JPEG", quality=60)
    images[6] = torch.from_numpy(np.asarray(Image.open(file)).copy()).permute(2, 0, 1)
    images[7] //= 10
    images[8] = (images[8] // 8).clamp(max=20)
    images[8, :, :2, 0] = 255  # a lamp in the night
    for place in (9, 10):
        soft = Image.fromarray(images[place].permute(1, 2, 0).numpy()).filter(ImageFilter.GaussianBlur(3))
        images[place] = torch.from_numpy(np.asarray(soft).copy()).permute(2, 0, 1)
    images[11] = 128 + (images[11] // 16)  # little contrast is no blur
    found = measure(split(images))
    assert np.flatnonzero(blank(found)).tolist() == [3, 4, 5, 6]
    assert np.flatnonzero(dark(found)).tolist() == [7, 8]
    assert np.flatnonzero(blurred(found)).tolist() == [9, 10]


def test_a_soft_data_set_is_not_blurred_picture_by_picture() -> None:
    everything = Measures(np.full(50, 60.0), np.full(50, 200.0), np.exp(np.random.default_rng(0).normal(-5, 1, 50)))
    assert not blurred(everything).any()


def test_outliers_are_told_from_the_spread_and_the_factor() -> None:
    same = np.full(100, 64.0)
    assert not outliers(same, 2).any()
    some = same.copy()
    some[[0, 1, 2]] = 20, 65, 200
    assert outliers(some, 2).nonzero()[0].tolist() == [0, 2]
    assert outliers(some, 2)[[0, 2]].tolist() == [-1, 1]
    wide = np.exp(np.random.default_rng(0).normal(5, 1, 1000))
    assert not outliers(wide, 2)[np.abs(np.log(wide) - 5) < 3].any()
    assert outliers(np.append(wide, np.exp(12)), 2)[-1] == 1


def test_odd_sizes() -> None:
    sizes = [(480 + i % 7, 640) for i in range(50)]
    sizes += [(16, 16), (3000, 4000), (120, 2400), (640, 480), (480, 480)]
    assert odd_sizes(sizes).nonzero()[0].tolist() == [50, 51, 52]
    assert odd_sizes([]).tolist() == []
