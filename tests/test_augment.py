"""augment: each change against a slow loop over images and pixels that draws the same random numbers."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Generator, Tensor, nn

from convlens.augment import augment, crop, cutout, flip, mirror, shift
from convlens.data import Data
from convlens.images import InputSpec
from convlens.recipe import AugmentConfig, Recipe
from convlens.splits import Split
from convlens.training import train

SHAPES = [(40, 3, 6, 9), (40, 1, 7, 5), (1, 3, 4, 4)]


def pictures(shape: tuple[int, ...]) -> Tensor:
    """Without a 0, so that every black pixel was made."""
    return torch.from_numpy(np.random.default_rng(0).integers(1, 256, shape, dtype=np.uint8))


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def slow_flip(images: Tensor, generator: Generator) -> Tensor:
    draws = torch.rand(len(images), 1, 1, 1, generator=generator)
    result = images.clone()
    for i, draw in enumerate(draws.flatten().tolist()):
        if draw < 0.5:
            for x in range(images.shape[3]):
                result[i, :, :, x] = images[i, :, :, images.shape[3] - 1 - x]
    return result


def slow_shift(images: Tensor, pixels: int, generator: Generator) -> Tensor:
    n, _, height, width = images.shape
    offsets = torch.randint(2 * pixels + 1, (2, n), generator=generator) - pixels
    result = torch.zeros_like(images)
    for i in range(n):
        down, right = offsets[:, i].tolist()
        for y in range(height):
            for x in range(width):
                if 0 <= y + down < height and 0 <= x + right < width:
                    result[i, :, y, x] = images[i, :, y + down, x + right]
    return result


def slow_cutout(images: Tensor, side: int, generator: Generator) -> Tensor:
    n, _, height, width = images.shape
    high, wide = min(side, height), min(side, width)
    tops = torch.randint(height - high + 1, (n, 1), generator=generator).flatten().tolist()
    lefts = torch.randint(width - wide + 1, (n, 1), generator=generator).flatten().tolist()
    result = images.clone()
    for i, (top, left) in enumerate(zip(tops, lefts, strict=True)):
        for y in range(top, top + high):
            for x in range(left, left + wide):
                result[i, :, y, x] = 0
    return result


def slow_reflect(images: Tensor, pixels: int, generator: Generator) -> Tensor:
    n, _, height, width = images.shape
    high, wide = min(pixels, height - 1), min(pixels, width - 1)
    tops = torch.randint(2 * high + 1, (n,), generator=generator).tolist()
    lefts = torch.randint(2 * wide + 1, (n,), generator=generator).tolist()
    result = torch.empty_like(images)
    for i, (top, left) in enumerate(zip(tops, lefts, strict=True)):
        padded = np.pad(images[i].numpy(), ((0, 0), (high, high), (wide, wide)), mode="reflect")
        result[i] = torch.from_numpy(padded[:, top : top + height, left : left + width].copy())
    return result


def slow_crop(images: Tensor, side: int, generator: Generator) -> Tensor:
    n, channels, height, width = images.shape
    high, wide = min(side, height), min(side, width)
    if (high, wide) == (height, width):  # nothing to draw
        return images
    tops = torch.randint(height - high + 1, (n,), generator=generator).tolist()
    lefts = torch.randint(width - wide + 1, (n,), generator=generator).tolist()
    result = torch.zeros((n, channels, high, wide), dtype=images.dtype)
    for i, (top, left) in enumerate(zip(tops, lefts, strict=True)):
        for y in range(high):
            for x in range(wide):
                result[i, :, y, x] = images[i, :, top + y, left + x]
    return result


Change = Callable[[Tensor, Generator], Tensor]
PAIRS: dict[str, tuple[Change, Change]] = {"flip": (flip, slow_flip)}
for amount in (1, 2, 5, 12):
    PAIRS[f"shift {amount}"] = (
        lambda images, generator, amount=amount: shift(images, amount, generator),
        lambda images, generator, amount=amount: slow_shift(images, amount, generator),
    )
    PAIRS[f"reflect {amount}"] = (
        lambda images, generator, amount=amount: shift(images, amount, generator, "reflect"),
        lambda images, generator, amount=amount: slow_reflect(images, amount, generator),
    )
    PAIRS[f"crop {amount}"] = (
        lambda images, generator, amount=amount: crop(images, amount, generator),
        lambda images, generator, amount=amount: slow_crop(images, amount, generator),
    )
    PAIRS[f"cutout {amount}"] = (
        lambda images, generator, amount=amount: cutout(images, amount, generator),
        lambda images, generator, amount=amount: slow_cutout(images, amount, generator),
    )


LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", PAIRS)
def test_against_the_slow_loop(name: str, shape: tuple[int, ...], layout: str) -> None:
    fast, slow = PAIRS[name]
    images = pictures(shape).contiguous(memory_format=LAYOUTS[layout])
    before = images.clone()
    for seed in range(3):
        ours, theirs = seeded(seed), seeded(seed)
        got, wanted = fast(images, ours), slow(images, theirs)
        assert got.dtype == torch.uint8
        assert torch.equal(got, wanted)  # the shape, too
        assert torch.equal(ours.get_state(), theirs.get_state())  # as many numbers were drawn
    assert torch.equal(images, before)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", PAIRS)
def test_images_that_lie_pixel_by_pixel_stay_so(name: str, shape: tuple[int, ...]) -> None:
    """Convolutions take them fastest like this; another layout would have them copied in every step."""
    images = pictures(shape).contiguous(memory_format=torch.channels_last)
    assert PAIRS[name][0](images, seeded()).is_contiguous(memory_format=torch.channels_last)


def test_mirror_turns_the_images_it_is_told_to() -> None:
    images = pictures((6, 3, 4, 5))
    which = torch.tensor([True, False, False, True, True, False])
    got = mirror(images, which)
    for i, turned in enumerate(which.tolist()):
        wanted = np.fliplr(images[i].permute(1, 2, 0).numpy()) if turned else images[i].permute(1, 2, 0).numpy()
        assert np.array_equal(got[i].permute(1, 2, 0).numpy(), wanted)


def test_a_view_of_other_images_is_cut_in_the_right_place() -> None:
    """The windows are taken from the memory as it lies: from its middle, or where one image is met many times."""
    images = pictures((9, 3, 6, 7))
    for view in (images[3:8], images[:, :, 1:, 2:], images.flip(0), images[:1].expand(5, -1, -1, -1)):
        for fast, slow in (PAIRS["crop 5"], PAIRS["shift 2"], PAIRS["reflect 2"]):
            assert torch.equal(fast(view, seeded()), slow(view.contiguous(), seeded()))


def test_crop_goes_everywhere() -> None:
    """The place of its corner tells where an image was cut."""
    images = torch.arange(30, dtype=torch.uint8).view(1, 1, 5, 6).expand(400, -1, -1, -1)
    corners = crop(images, 3, seeded())[:, 0, 0, 0]
    assert set(corners.tolist()) == {6 * y + x for y in range(3) for x in range(4)}


def test_a_side_longer_than_the_image_keeps_it() -> None:
    images, generator = pictures((4, 3, 6, 9)), seeded()
    state = generator.get_state()
    assert torch.equal(crop(images, 9, generator), images)
    assert torch.equal(crop(images, 50, generator), images)
    assert torch.equal(generator.get_state(), state)
    assert crop(images, 7, generator).shape == (4, 3, 6, 7)  # the shorter side is kept whole


def test_reflected_pixels_are_the_images_own() -> None:
    """No black comes in, however far it is shifted."""
    images = pictures((200, 1, 4, 5))
    for pixels in (1, 3, 100):
        got = shift(images, pixels, seeded(), "reflect")
        assert got.min() > 0
        assert not torch.equal(got, images)


def test_flip_mirrors_some_and_leaves_the_others() -> None:
    images = pictures((200, 1, 3, 4))
    got = flip(images, seeded())
    mirrored = (got == images.flip(3)).all((1, 2, 3))
    assert ((got == images).all((1, 2, 3)) ^ mirrored).all()
    assert 70 < mirrored.sum() < 130


def test_shift_goes_everywhere_within_its_bounds() -> None:
    """A white pixel in the middle is found at every offset, and nowhere else."""
    images = torch.zeros((400, 1, 9, 9), dtype=torch.uint8)
    images[:, :, 4, 4] = 255
    got = shift(images, 2, seeded())
    places = {(y, x) for _, _, y, x in got.nonzero().tolist()}
    assert places == {(y, x) for y in range(2, 7) for x in range(2, 7)}
    assert (got.sum((1, 2, 3)) == 255).all()


def test_cutout_lies_within_and_reaches_every_corner() -> None:
    got = cutout(pictures((400, 2, 5, 6)), 2, seeded())
    black = got == 0
    assert (black.sum((2, 3)) == 4).all()
    for y in (0, 4):
        for x in (0, 5):
            assert black[:, :, y, x].any()


def test_all_of_them_in_their_order() -> None:
    images = pictures((40, 3, 8, 10))
    got = augment(images, AugmentConfig(flip=True, shift=2, cutout=3, crop=[7]), seeded(4))
    generator = seeded(4)
    shifted = slow_crop(slow_shift(images, 2, generator), 7, generator)
    assert torch.equal(got, slow_cutout(slow_flip(shifted, generator), 3, generator))


def test_what_is_to_be_mirrored_may_be_given() -> None:
    images, mirrored = pictures((40, 3, 8, 10)), torch.arange(40) % 3 == 0
    got = augment(images, AugmentConfig(flip=True, shift=2, fill="reflect"), seeded(4), mirrored)
    assert torch.equal(got, mirror(slow_reflect(images, 2, seeded(4)), mirrored))
    assert torch.equal(augment(images, AugmentConfig(cutout=2), seeded(4), mirrored), slow_cutout(images, 2, seeded(4)))


def test_only_what_is_asked_for() -> None:
    images = pictures((40, 3, 8, 10))
    assert torch.equal(augment(images, AugmentConfig(), seeded()), images)
    assert torch.equal(augment(images, AugmentConfig(flip=True), seeded()), slow_flip(images, seeded()))
    assert torch.equal(augment(images, AugmentConfig(shift=1), seeded()), slow_shift(images, 1, seeded()))
    assert torch.equal(augment(images, AugmentConfig(cutout=1), seeded()), slow_cutout(images, 1, seeded()))
    assert torch.equal(augment(images, AugmentConfig(crop=[5]), seeded()), slow_crop(images, 5, seeded()))
    assert torch.equal(
        augment(images, AugmentConfig(shift=1, fill="reflect"), seeded()), slow_reflect(images, 1, seeded())
    )


# In training ----------------------------------------------------------------------------------------------------


class Witness(nn.Module):
    """Keeps every image that it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(12, 2)
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images.clone())
        return self.head(images.flatten(1).float() / 255)


def mirrored_in_training(flip_ok: bool) -> int:
    """How many of the images that training meets in two epochs are mirrored, of 2 x 20."""
    images = torch.tensor([[0, 0, 200, 250]] * 3, dtype=torch.uint8).expand(20, 1, 3, 4)
    split = Split(images, torch.arange(20) % 2, torch.arange(20))
    data = Data("made up", ("a", "b"), InputSpec((3, 4), 1), (0.5,), (0.5,), flip_ok, "", split, None, split)
    recipe = Recipe().override({"epochs": 2, "batch_size": 8, "augment.flip": True, "data.val": 0.0, "device": "cpu"})
    model = Witness()
    epochs = list(train(model, data, recipe))
    assert [epoch.complete for epoch in epochs] == [True, True]
    seen = torch.cat(model.seen)
    assert len(seen) == 40
    mirrored = (seen == images[:1].flip(3)).all((1, 2, 3))
    assert (mirrored ^ (seen == images[:1]).all((1, 2, 3))).all()
    return int(mirrored.sum())


def test_what_must_not_be_mirrored_never_is() -> None:
    assert mirrored_in_training(flip_ok=False) == 0


def test_what_may_be_mirrored_is() -> None:
    assert 5 < mirrored_in_training(flip_ok=True) < 35
