"""Corruptions: each against scipy, Pillow or a slow loop; none changes what it is given."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Generator, Tensor

from convlens.corruptions import (
    CORRUPTIONS,
    STRENGTHS,
    blur,
    brightness,
    contrast,
    corrupt,
    jpeg,
    noise,
    pixelation,
    rotation,
    shift,
)
from refusals import refused


def generator(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def pictures(n: int = 3, channels: int = 3, height: int = 20, width: int = 28) -> Tensor:
    """Light and dark places with a little noise: as smooth as photographs, and each image its own."""
    coarse = torch.rand(n, channels, 6, 6, generator=generator(8)) * 200
    places = F.interpolate(coarse, (height, width), mode="bilinear")
    grain = torch.randn(n, channels, height, width, generator=generator(9)) * 8
    return (places + grain + 20).clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_harms_more_with_its_strength_and_keeps_its_hands_off(name: str, channels: int) -> None:
    images = pictures(4, channels, 32, 40)
    before, damage = images.clone(), []
    for strength in STRENGTHS:
        harmed = corrupt(images, name, strength, generator())
        assert harmed.shape == images.shape
        assert harmed.dtype is torch.uint8
        assert torch.equal(images, before)
        assert torch.equal(harmed, corrupt(images, name, strength, generator()))
        last = images.contiguous(memory_format=torch.channels_last)
        assert torch.equal(harmed, corrupt(last, name, strength, generator()))
        damage.append((harmed.float() - images.float()).abs().mean().item())
    assert damage == sorted(damage)
    assert damage[0] > 0
    assert damage[-1] > 1.5 * damage[0]


def test_only_what_is_drawn_depends_on_the_generator() -> None:
    images = pictures()
    drawn = {name for name in CORRUPTIONS if not torch.equal(*(corrupt(images, name, 5, generator(s)) for s in (0, 1)))}
    assert drawn == {"noise", "shift", "rotation"}


@pytest.mark.parametrize("deviation", CORRUPTIONS["noise"][1])
def test_noise_has_the_deviation_and_is_cut_off(deviation: float) -> None:
    gray = torch.full((2, 3, 100, 100), 128, dtype=torch.uint8)
    added = noise(gray, deviation, generator()).double() - 128
    bounded = torch.randn(2_000_000, generator=generator(1), dtype=torch.float64) * 255 * deviation
    assert added.std().item() == pytest.approx(bounded.clamp(-128, 127).std().item(), rel=0.02)
    assert abs(added.mean().item()) < 1
    white = noise(torch.full((1, 1, 50, 50), 255, dtype=torch.uint8), deviation, generator())
    assert (white == 255).double().mean() > 0.4  # the half that would be brighter does not come out dark


@pytest.mark.parametrize("share", CORRUPTIONS["blur"][1])
def test_blur_is_scipys(share: float) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    images = pictures(2, 3, 20, 31)
    sigma = share * 20
    expected = ndimage.gaussian_filter(images.double().numpy(), (0, 0, sigma, sigma), mode="reflect")
    assert np.abs(blur(images, share, generator()).numpy() - expected).max() < 0.501  # rounded


def test_brightness_and_contrast_are_a_slow_loop() -> None:
    images = pictures(2)
    bright, flat = brightness(images, 0.3, generator()), contrast(images, 0.35, generator())
    for i, c in np.ndindex(2, 3):
        mean = sum(map(int, images[i, c].flatten().tolist())) / images[i, c].numel()
        for y, x in np.ndindex(20, 28):
            value = int(images[i, c, y, x])
            assert abs(int(bright[i, c, y, x]) - min(value + 76.5, 255)) <= 0.5
            assert abs(int(flat[i, c, y, x]) - (mean + 0.35 * (value - mean))) <= 0.501


@pytest.mark.parametrize("share", CORRUPTIONS["shift"][1])
def test_shift_moves_each_image_so_far_in_its_own_direction(share: float) -> None:
    images = pictures(40, 1, 30, 36) | 1  # black is what came in from outside
    moved, ways = shift(images, share, generator()), set()
    for image, result in zip(images[:, 0].numpy(), moved[:, 0].numpy(), strict=True):
        found = []
        for down, right in np.ndindex(15, 15):
            padded = np.pad(image, 7)[14 - down : 44 - down, 14 - right : 50 - right]
            if np.array_equal(padded, result):
                found.append((down - 7, right - 7))
        assert len(found) == 1
        assert abs(np.hypot(*found[0]) - 30 * share) < 0.75  # each of the two is a whole number
        ways.add((np.sign(found[0][0]), np.sign(found[0][1])))
    assert len(ways) >= 4


@pytest.mark.parametrize("degrees", CORRUPTIONS["rotation"][1])
def test_rotation_is_pillows_to_either_side(degrees: float) -> None:
    images = pictures(12, 1, 24, 30)
    turned, sides = rotation(images, degrees, generator()), set()
    for image, result in zip(images[:, 0].numpy(), turned[:, 0].numpy(), strict=True):
        for side in (1, -1):
            expected = np.asarray(Image.fromarray(image).rotate(side * degrees, Image.Resampling.BILINEAR))
            if np.abs(expected.astype(int) - result.astype(int)).max() <= 1:
                sides.add(side)
                break
        else:
            pytest.fail("turned to neither side")
    assert sides == {1, -1}


@pytest.mark.parametrize("share", CORRUPTIONS["pixelation"][1])
def test_pixelation_is_a_slow_loop(share: float) -> None:
    images = pictures(1, 2, 20, 28)
    result = pixelation(images, share, generator()).numpy()
    rows, columns = round(20 * share), round(28 * share)
    finer = images[0].double().repeat_interleave(rows, 1).repeat_interleave(columns, 2)  # both sizes divide its sides
    for c, y, x in np.ndindex(2, 20, 28):
        i, j = int((y + 0.5) * rows / 20), int((x + 0.5) * columns / 28)  # the square that the pixel's middle lies in
        mean = finer[c, i * 20 : (i + 1) * 20, j * 28 : (j + 1) * 28].mean().item()
        assert abs(result[0, c, y, x] - mean) <= 0.501
    assert len(np.unique(result[0, 0], axis=0)) <= rows


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_what_pillow_writes(channels: int) -> None:
    images = pictures(2, channels)
    result = jpeg(images, 15, generator())
    for image, harmed in zip(images, result, strict=True):
        picture = Image.fromarray(image[0].numpy() if channels == 1 else image.permute(1, 2, 0).numpy())
        file = io.BytesIO()
        picture.save(file, format="JPEG", quality=15)
        read = np.asarray(Image.open(io.BytesIO(file.getvalue())))
        assert np.array_equal(
            read if channels == 1 else read.transpose(2, 0, 1), harmed[0] if channels == 1 else harmed
        )


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_images_of_a_few_pixels_and_empty_batches(name: str) -> None:
    for size in ((3, 3), (1, 5)):
        assert corrupt(pictures(2, 1, *size), name, 5, generator()).shape == (2, 1, *size)
    assert corrupt(pictures(1, 3)[:0], name, 3, generator()).shape == (0, 3, 20, 28)


def test_an_unknown_name_or_strength_is_refused() -> None:
    refused(lambda: corrupt(pictures(), "jpg", 1, generator()), "JPEG")
    refused(lambda: corrupt(pictures(), "noise", 6, generator()), "1 to 5", "6")
    refused(lambda: corrupt(pictures(), "noise", 0, generator()), "1 to 5")
