"""Changes of the pixels' values, held against Pillow and against the same steps image by image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Generator, Tensor

from convlens.augment import augment
from convlens.colour import LUMA, jitter, tone
from convlens.recipe import AugmentConfig

SHAPES = [(40, 3, 18, 21), (40, 1, 17, 16), (1, 3, 4, 4), (1, 1, 1, 1), (1, 3, 1, 5), (3, 3, 40, 3)]
LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}


def pictures(shape: tuple[int, ...], low: int = 0, high: int = 256) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(low, high, shape, dtype=np.uint8))


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def pil(image: Tensor) -> Image.Image:
    """A uint8 (C, H, W) tensor as Pillow has it."""
    pixels = image.permute(1, 2, 0).numpy()
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def tensor(picture: Image.Image) -> Tensor:
    pixels = np.asarray(picture)
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1).copy()).permute(2, 0, 1)


def slow_jitter(images: Tensor, strength: float, generator: Generator) -> Tensor:
    """One step after the other, in double precision; without cutting in between."""
    n, channels = images.shape[:2]
    factors = 1 + strength * (2 * torch.rand(3, n, generator=generator) - 1)
    weights = np.array(LUMA if channels == 3 else (1.0,))
    result = torch.empty_like(images)
    for i, (brightness, contrast, saturation) in enumerate(factors.T.double().tolist()):
        image = images[i].permute(1, 2, 0).double().numpy()
        image = image * brightness
        mean = (image @ weights).mean()
        image = mean + (image - mean) * contrast
        gray = (image @ weights)[:, :, None]
        image = gray + (image - gray) * saturation
        result[i] = torch.from_numpy(image.clip(0, 255).round()).permute(2, 0, 1)
    return result


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("strength", [0.1, 0.5, 1.0])
def test_jitter_against_the_steps_by_hand(strength: float, shape: tuple[int, ...], layout: str) -> None:
    images = pictures(shape).contiguous(memory_format=LAYOUTS[layout])
    before = images.clone()
    for seed in range(3):
        ours, theirs = seeded(seed), seeded(seed)
        got, wanted = jitter(images, strength, ours), slow_jitter(images, strength, theirs)
        assert got.dtype == torch.uint8
        assert got.is_contiguous(memory_format=LAYOUTS[layout])
        apart = (got.int() - wanted.int()).abs()
        assert apart.max() <= 1  # of a value half way between two
        assert (apart > 0).float().mean() < 0.01 or apart.sum() <= 1
        assert torch.equal(ours.get_state(), theirs.get_state())
    assert torch.equal(images, before)


@pytest.mark.parametrize("shape", SHAPES[:2], ids=str)
def test_jitter_is_pillows_where_nothing_is_cut(shape: tuple[int, ...]) -> None:
    images = pictures(shape, 90, 150)
    factors = 1 + 0.3 * (2 * torch.rand(3, len(images), generator=seeded()) - 1)
    got = jitter(images, 0.3, seeded())
    for i, (brightness, contrast, saturation) in enumerate(factors.T.tolist()):
        picture = ImageEnhance.Brightness(pil(images[i])).enhance(brightness)
        picture = ImageEnhance.Contrast(picture).enhance(contrast)
        if shape[1] == 3:
            picture = ImageEnhance.Color(picture).enhance(saturation)
        assert (got[i].int() - tensor(picture).int()).abs().max() <= 3  # it rounds after each of the three
    assert not torch.equal(got, images)


def test_jitter_draws_each_factor_for_each_image() -> None:
    """One picture many times: gray where colour went, and never twice the same."""
    image = pictures((1, 3, 8, 8), 60, 180)
    got = jitter(image.expand(200, -1, -1, -1), 0.8, seeded())
    assert len({tuple(picture.flatten().tolist()) for picture in got}) == 200
    spread = (got.amax(1).int() - got.amin(1).int()).float().mean((1, 2))
    assert spread.min() < 0.3 * spread.median()
    level = got.float().mean((1, 2, 3))
    assert level.min() < 0.4 * level.median()


def test_a_gray_picture_stays_gray() -> None:
    gray = pictures((20, 1, 9, 8))
    assert torch.equal(jitter(gray.expand(-1, 3, -1, -1), 0.5, seeded())[:, :1], jitter(gray, 0.5, seeded()))


def operation(which: int, bits: int, threshold: int, picture: Image.Image) -> Image.Image:
    match which:
        case 0:
            return ImageOps.posterize(picture, 8 - bits)
        case 1:
            return ImageOps.solarize(picture, threshold)
        case 2:
            return ImageOps.autocontrast(picture)
        case _:
            return ImageOps.equalize(picture)


def slow_tone(images: Tensor, share: float, generator: Generator) -> tuple[Tensor, list[int | None]]:
    n = len(images)
    chosen = torch.rand(n, generator=generator) < share
    which = torch.randint(4, (n,), generator=generator).tolist()
    bits = torch.randint(1, 5, (n,), generator=generator).tolist()
    threshold = torch.randint(128, 256, (n,), generator=generator).tolist()
    result, done = images.clone(), []
    for i in range(n):
        done.append(which[i] if chosen[i] else None)
        if chosen[i]:
            result[i] = tensor(operation(which[i], bits[i], threshold[i], pil(images[i])))
    return result, done


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("low", "high"), [(0, 256), (100, 140), (7, 8), (0, 2)])
def test_tone_is_pillows(low: int, high: int, shape: tuple[int, ...], layout: str) -> None:
    images = pictures(shape, low, high).contiguous(memory_format=LAYOUTS[layout])
    before, met = images.clone(), set()
    for seed in range(6):
        ours, theirs = seeded(seed), seeded(seed)
        got, (wanted, done) = tone(images, 0.7, ours), slow_tone(images, 0.7, theirs)
        met |= set(done)
        assert got.dtype == torch.uint8
        assert got.is_contiguous(memory_format=LAYOUTS[layout])
        for i, which in enumerate(done):
            # Pillow's factor of autocontrast is a rounded one, and what it gives is cut, not rounded
            assert (got[i].int() - wanted[i].int()).abs().max() <= (which == 2)
        assert torch.equal(ours.get_state(), theirs.get_state())
    assert len(images) == 1 or met == {None, 0, 1, 2, 3}
    assert torch.equal(images, before)


def test_what_is_stretched_reaches_from_black_to_white() -> None:
    images = pictures((400, 3, 20, 20), 50, 200)
    got, (_, done) = tone(images, 1.0, seeded()), slow_tone(images, 1.0, seeded())
    stretched = got[[which == 2 for which in done]]
    assert len(stretched) > 60
    assert (stretched.amin((2, 3)) == 0).all()
    assert (stretched.amax((2, 3)) == 255).all()


def test_views_of_other_images() -> None:
    images = pictures((9, 3, 20, 17))
    for view in (images[3:8], images[:, :, 1:, 2:], images.flip(0), images[:1].expand(5, -1, -1, -1)):
        assert torch.equal(jitter(view, 0.4, seeded()), jitter(view.contiguous(), 0.4, seeded()))
        assert torch.equal(tone(view, 1.0, seeded()), tone(view.contiguous(), 1.0, seeded()))


def test_in_the_recipes_order() -> None:
    images = pictures((20, 3, 20, 17))
    generator = seeded(5)
    wanted = tone(jitter(images, 0.4, generator), 0.5, generator)
    assert torch.equal(augment(images, AugmentConfig(colour=0.4, tone=0.5), seeded(5)), wanted)
