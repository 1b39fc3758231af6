"""Resized crops and warps, held against Pillow's own resizing and its own affine transform."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Generator, Tensor

from convlens.augment import augment, augmented_size, reduced, reframe
from convlens.recipe import AugmentConfig

SHAPES = [(12, 3, 18, 23), (12, 1, 21, 16), (1, 3, 8, 8), (1, 1, 5, 40)]
LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}


def pictures(shape: tuple[int, ...], low: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(low, 256, shape, dtype=np.uint8))


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def boxes(draws: Tensor, scale: float, height: int, width: int) -> list[tuple[float, float, float, float]]:
    """Left, top, right, bottom of the crops, in pixels."""
    found = []
    for a, r, u, v in draws.T.double().tolist():
        area = scale + (1 - scale) * a
        most = min(4 / 3, 1 / area)
        ratio = math.exp(math.log(1 / most) + (math.log(most) - math.log(1 / most)) * r)
        wide, high = width * math.sqrt(area * ratio), height * math.sqrt(area / ratio)
        left, top = u * (width - wide), v * (height - high)
        found.append((left, top, min(left + wide, width), min(top + high, height)))
    return found


def warped(draws: Tensor, strength: float) -> list[np.ndarray]:
    """For each image the map from a place in the result to one in the image, both in pixels from the middle; the moves
    are in sides of the image."""
    found = []
    for angle, kx, ky, mx, my, zoom in (strength * draws.T.double()).tolist():
        turn = math.radians(30) * angle
        rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
        shear = np.array([[1, 0.3 * kx], [0.3 * ky, 1]])
        found.append(np.column_stack([2 ** (zoom / 2) * rotation @ shear, [0.3 * mx, 0.3 * my]]))
    return found


def through(image: Tensor, box: tuple[float, float, float, float], frame: np.ndarray, fill: str) -> Tensor:
    """Pillow's affine transform of each channel: the frame in a box of the image, which may be mirrored around it."""
    _, height, width = image.shape
    left, top, right, bottom = box
    stretch = np.array([(right - left) / width, (bottom - top) / height])
    matrix = frame[:, :2] * stretch[:, None]
    move = frame[:, 2] * stretch * [width, height] + [(left + right) / 2, (top + bottom) / 2]
    margin = 3 * max(height, width) if fill == "reflect" else 0
    planes = []
    for plane in image.numpy():
        picture = Image.fromarray(np.pad(plane, margin, mode="symmetric").astype(np.float32))
        offset = move - matrix @ [width / 2, height / 2] + margin
        data = (*matrix[0], offset[0], *matrix[1], offset[1])
        planes.append(
            np.array(picture.transform((width, height), Image.Transform.AFFINE, data, Image.Resampling.BILINEAR))
        )
    return torch.from_numpy(np.stack(planes))


def assert_close(got: Tensor, wanted: Tensor) -> None:
    """Rounded values, and exact ones."""
    assert got.shape == wanted.shape
    assert (got.double() - wanted.double()).abs().max() < 0.51


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("scale", [0.02, 0.25, 0.8])
def test_the_resized_crop_is_pillows(scale: float, shape: tuple[int, ...], layout: str) -> None:
    n, _, height, width = shape
    images = pictures(shape).contiguous(memory_format=LAYOUTS[layout])
    before, generator = images.clone(), seeded()
    for _ in range(2):
        other = Generator().set_state(generator.get_state())
        draws = torch.rand(4, n, generator=other)
        got = reframe(images, scale, 0.0, generator)
        assert torch.equal(generator.get_state(), other.get_state())
        assert got.dtype == torch.uint8
        assert got.is_contiguous(memory_format=LAYOUTS[layout])
        for image, result, box in zip(images, got, boxes(draws, scale, height, width), strict=True):
            resized = [
                np.array(
                    Image.fromarray(plane.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR, box)
                )
                for plane in image.numpy()
            ]
            assert_close(result, torch.from_numpy(np.stack(resized)))
    assert torch.equal(images, before)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("fill", ["black", "reflect"])
@pytest.mark.parametrize("scale", [0.3, 1.0])
@pytest.mark.parametrize("strength", [0.2, 1.0])
def test_the_warp_is_pillows(strength: float, scale: float, fill: str, shape: tuple[int, ...], layout: str) -> None:
    n, _, height, width = shape
    images = pictures(shape).contiguous(memory_format=LAYOUTS[layout])
    before, ours, theirs = images.clone(), seeded(), seeded()
    got = reframe(images, scale, strength, ours, fill)
    frames = warped(2 * torch.rand(6, n, generator=theirs) - 1, strength)
    whole = [(0.0, 0.0, float(width), float(height))] * n
    cut = boxes(torch.rand(4, n, generator=theirs), scale, height, width) if scale < 1 else whole
    assert torch.equal(ours.get_state(), theirs.get_state())
    assert got.dtype == torch.uint8
    assert got.is_contiguous(memory_format=LAYOUTS[layout])
    for image, result, box, frame in zip(images, got, cut, frames, strict=True):
        assert_close(result, through(image, box, frame, fill))
    assert torch.equal(images, before)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("reduce", [0.5, 0.75])
def test_a_reduced_crop_is_what_the_whole_one_shows_between_its_pixels(reduce: float, layout: str) -> None:
    """On ramps, which a bilinear look at any place reads exactly."""
    down, right = torch.meshgrid(torch.arange(64) * 4, torch.arange(80) * 3, indexing="ij")
    images = torch.stack([down, right, torch.full((64, 80), 9)]).to(torch.uint8).expand(5, -1, -1, -1)
    images = images.contiguous(memory_format=LAYOUTS[layout])
    whole = reframe(images, 0.5, 0.0, seeded())
    got = reframe(images, 0.5, 0.0, seeded(), reduce=reduce)
    assert got.shape == (5, 3, 64 * reduce, 80 * reduce)
    assert got.dtype == torch.uint8
    assert got.is_contiguous(memory_format=LAYOUTS[layout])
    expected = F.interpolate(whole.float(), got.shape[2:], mode="bilinear", align_corners=False)
    assert (got.float() - expected).abs().max() <= 1  # each was rounded
    alone = augment(images, AugmentConfig(reduce=reduce), seeded())
    assert alone.shape == got.shape


@pytest.mark.parametrize(("reduce", "crop"), [(1.0, []), (0.75, []), (1.0, [40]), (0.75, [40]), (0.5, [60])])
def test_the_size_that_images_are_brought_to(reduce: float, crop: list[int]) -> None:
    config = AugmentConfig(reduce=reduce, crop=crop)
    assert augment(pictures((2, 3, 64, 50)), config, seeded()).shape[2:] == augmented_size((64, 50), config)


def test_small_sides_are_not_reduced() -> None:
    assert reduced((64, 64), 0.75) == (48, 48)
    assert reduced((40, 20), 0.75) == (32, 20)
    assert reduced((32, 8), 0.1) == (32, 8)
    images = pictures((4, 3, 24, 40))
    assert reframe(images, 0.5, 0.2, seeded(), reduce=0.5).shape == (4, 3, 24, 32)


def test_crops_have_the_areas_and_the_places_that_they_should() -> None:
    """A ramp from left to right and one from top to bottom tell where a crop was."""
    count, side = 2000, 200
    ramp = torch.arange(side, dtype=torch.uint8)
    images = torch.stack([ramp.expand(side, -1), ramp[:, None].expand(-1, side)]).expand(count, -1, -1, -1)
    got = reframe(images, 0.25, 0.0, seeded()).double()
    left, right = got[:, 0, 0, 0], got[:, 0, 0, -1]
    top, bottom = got[:, 1, 0, 0], got[:, 1, -1, 0]
    wide, high = (right - left) / (side - 1), (bottom - top) / (side - 1)
    area, ratio = wide * high, wide / high
    assert area.min() > 0.24
    assert abs(area.mean() - 0.625) < 0.02
    assert abs((area < 0.5).double().mean() - 1 / 3) < 0.04
    assert 0.73 < ratio.min() < 0.77
    assert 1.31 < ratio.max() < 1.36
    assert abs(ratio.log().mean()) < 0.02
    free = (wide < 0.8) & (high < 0.8)  # room to be elsewhere
    for first, length in ((left, wide), (top, high)):
        place = (first / ((1 - length) * side))[free]
        assert abs(place.mean() - 0.5) < 0.04
        assert place.min() < 0.05
        assert place.max() > 0.95


def test_black_comes_in_from_outside_and_mirrored_pixels_do_not() -> None:
    images = pictures((60, 1, 15, 20), low=1)
    assert (reframe(images, 1.0, 0.7, seeded()) == 0).flatten(1).any(1).float().mean() > 0.8
    assert reframe(images, 1.0, 0.7, seeded(), "reflect").min() > 0
    assert reframe(images, 0.3, 0.0, seeded()).min() > 0


def test_in_the_recipes_order() -> None:
    images = pictures((20, 3, 20, 17))
    config = AugmentConfig(scale=0.5, warp=0.4, fill="reflect", cutout=5)
    generator = seeded(5)
    first = reframe(images, 0.5, 0.4, generator, "reflect")
    assert torch.equal(augment(images, config, seeded(5)), augment(first, AugmentConfig(cutout=5), generator))
