"""Copies of a picture are found, whatever was done to them, and different pictures are not taken for copies."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from convlens import duplicates
from convlens.duplicates import (
    DISTANCE,
    close_pairs,
    find_copies,
    joined,
    likeness,
    mirror,
    perceptual_hashes,
    shapes,
    spectra,
    uncrowded,
)
from convlens.splits import Split


def split(images: torch.Tensor) -> Split:
    return Split(images, torch.zeros(len(images), dtype=torch.int64), torch.arange(len(images)))


def digests(images: torch.Tensor) -> np.ndarray:
    rows = [hashlib.blake2b(image.numpy().tobytes(), digest_size=16).digest() for image in images]
    return np.frombuffer(b"".join(rows), np.uint8).reshape(-1, 16)


def scenes(count: int, side: int = 64, channels: int = 3, seed: int = 0) -> torch.Tensor:
    """Smooth pictures, each another, with more of the low frequencies than of the high, as photographs have."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.zeros(count, channels, side, side)
    for cells, strength in ((3, 60.0), (7, 40.0), (15, 20.0), (side // 2, 8.0)):
        noise = torch.randn(count, channels, cells, cells, generator=generator)
        image += strength * F.interpolate(noise, (side, side), mode="bicubic")
    return (128 + image).clamp(0, 255).byte()


def test_the_hash_is_that_of_imagehash() -> None:
    """imagehash.phash 4.3.2, given the same 32 x 32 gray pixels: two unnormalised cosine transforms by scipy, the 8 x 8
    lowest frequencies, a bit where one is above the median."""
    dct = pytest.importorskip("scipy.fft").dct
    gray = scenes(50, 32, channels=1)
    for image, found in zip(gray, perceptual_hashes(spectra(split(gray))), strict=True):
        low = dct(dct(image[0].numpy().astype(float), axis=0), axis=1)[:8, :8]
        np.testing.assert_array_equal(found.view(8, 8), low > np.median(low))


def test_likeness_is_the_correlation_of_smoothed_pixels() -> None:
    """Of pictures without high frequencies it is the correlation of their pixels, all channels together."""
    at, k = torch.arange(32), torch.arange(12)[:, None]
    waves = torch.cos(torch.pi * k * (2 * at + 1) / 64)
    pixels = waves.T @ torch.randn(40, 3, 12, 12, generator=torch.Generator().manual_seed(0)) @ waves
    shape = shapes(spectra(split(pixels)))
    pairs = torch.combinations(torch.arange(40))
    expected = np.corrcoef(pixels.flatten(1).numpy())[pairs[:, 0], pairs[:, 1]]
    np.testing.assert_allclose(likeness(shape, shape, pairs), expected, atol=1e-4)


def test_a_mirrored_spectrum_is_that_of_the_mirrored_picture() -> None:
    images = scenes(5)
    torch.testing.assert_close(mirror(spectra(split(images))), spectra(split(images.flip(3))), atol=0.5, rtol=1e-3)


@pytest.mark.parametrize("block", [7, 64, 1000])
def test_close_pairs_are_all_that_are_close(monkeypatch, block) -> None:
    monkeypatch.setattr(duplicates, "BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    hashes = torch.rand(200, 64, generator=generator) < 0.5
    hashes[150:] = hashes[:50] ^ (torch.rand(50, 64, generator=generator) < 0.15)
    other = hashes ^ (torch.rand(200, 64, generator=generator) < 0.02)
    for second in (hashes, other):
        expected = {
            (i, j) for i in range(200) for j in range(i + 1, 200) if int((hashes[i] != second[j]).sum()) <= DISTANCE
        }
        assert expected
        found = [tuple(pair) for block in close_pairs(hashes, second) for pair in block.tolist()]
        assert len(found) == len(set(found))
        assert set(found) == expected


def test_joined() -> None:
    assert joined([(5, 4), (1, 2), (9, 8), (2, 4), (8, 9)]) == [(1, 2, 4, 5), (8, 9)]
    assert joined([]) == []


def test_copies_are_found_and_nothing_else() -> None:
    images = scenes(300)
    images[50] = images[3]
    images[51] = images[3]
    images[60] = (images[4].float() * 0.7).byte()
    half = F.interpolate(images[5:6].float(), (32, 32), mode="bilinear", antialias=True)
    images[61] = F.interpolate(half, (64, 64), mode="bilinear")[0].byte()
    images[62] = images[61]
    images[70] = images[6].flip(2)
    found = find_copies(split(images), digests(images))
    assert [(c.places, c.exact) for c in found] == [((3, 50, 51), True), ((4, 60), False), ((5, 61, 62), False)]
    found = find_copies(split(images), digests(images), mirrored=True)
    assert [c.places for c in found] == [(3, 50, 51), (4, 60), (5, 61, 62), (6, 70)]


def test_the_same_shape_in_other_colours_is_no_copy() -> None:
    images = scenes(40)
    images[20] = images[0].roll(1, 0)
    assert find_copies(split(images), digests(images)) == []


def test_one_picture_and_gray_ones() -> None:
    images = scenes(3, 28, channels=1)
    images[2] = images[0]
    assert find_copies(split(images[:1]), digests(images[:1])) == []
    assert [c.places for c in find_copies(split(images), digests(images))] == [(0, 2)]


def test_a_kind_of_picture_that_looks_alike_is_no_crowd_of_copies() -> None:
    """500 variants of one sign, of which two are copies in truth, beside 500 scenes."""
    crowd = scenes(1, 64).float() + 0.3 * (scenes(500, 64, seed=1).float() - 128)
    images = torch.cat([crowd.clamp(0, 255).byte(), scenes(500, seed=2)])
    images[1] = (images[0].float() * 0.9).byte()
    images[600] = (images[700].float() * 0.9).byte()
    pairs, values = duplicates.alike(*[spectra(split(images))] * 2)
    assert len(pairs) > 1000
    assert uncrowded(pairs, values, len(images)).tolist() == [[0, 1], [600, 700]]
    assert [c.places for c in find_copies(split(images), digests(images))] == [(0, 1), (600, 700)]
