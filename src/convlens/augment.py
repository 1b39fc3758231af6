"""Random changes of a batch: pure functions on uint8 (N, C, H, W), with an explicit generator on the batch's device."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from .colour import jitter, tone
from .recipe import AugmentConfig

STRETCH = 4 / 3  # the most that a resized crop changes the ratio of the sides, as in torchvision
SPARED = 32  # pixels of a side that `reduce` leaves
TURN, SHEAR, MOVE, ZOOM = math.radians(30), 0.3, 0.3, math.sqrt(2)  # the most that `warp` does at strength 1


def augment(images: Tensor, config: AugmentConfig, generator: Generator, mirrored: Tensor | None = None) -> Tensor:
    """What the recipe asks for, in this order: resized crop and warp, shift, crop (to the first side in `config.crop`),
    flip, colour, tone, cutout. What mixes images, and so changes labels, is `mix`.

    `mirrored`, bool (N,), says which images to flip; without it each is flipped with probability 1/2.
    """
    if config.scale < 1 or config.warp or config.reduce < 1:
        images = reframe(images, config.scale, config.warp, generator, config.fill, config.reduce)
    if config.shift:
        images = shift(images, config.shift, generator, config.fill)
    if config.crop:
        images = crop(images, config.crop[0], generator)
    if config.flip:
        images = flip(images, generator) if mirrored is None else mirror(images, mirrored)
    if config.colour:
        images = jitter(images, config.colour, generator)
    if config.tone:
        images = tone(images, config.tone, generator)
    if config.cutout:
        images = cutout(images, config.cutout, generator)
    return images


def mix(
    images: Tensor, labels: Tensor, classes: int, config: AugmentConfig, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Each image mixed with another of the batch, and their classes' shares, float (N, classes), from `labels`, int64
    (N,). Where the recipe asks for both mixup and cutmix, the first half of the batch (which is in random order) gets
    the one and the second half the other."""
    ways = [(way, alpha) for way, alpha in ((mixup, config.mixup), (cutmix, config.cutmix)) if alpha]
    partner = torch.randperm(len(images), generator=generator, device=images.device)
    halves = zip(ways, images.tensor_split(len(ways)), images[partner].tensor_split(len(ways)), strict=True)
    mixed = [way(mine, others, alpha, generator) for (way, alpha), mine, others in halves]
    pixels = torch.cat([part for part, _ in mixed], out=torch.empty_like(images))  # in the layout of the images
    share = torch.cat([part for _, part in mixed])[:, None]
    rows = F.one_hot(labels, classes).float()
    return pixels, torch.lerp(rows[partner], rows, share)


def mixup(images: Tensor, others: Tensor, alpha: float, generator: Generator) -> tuple[Tensor, Tensor]:
    """The weighted mean of each image and its partner in `others`, and the image's share in it, float (N,), drawn for
    each from Beta(alpha, alpha) (Zhang et al., arXiv:1710.09412)."""
    share = beta(len(images), alpha, generator)
    mixed = torch.lerp(others.float(), images.float(), share[:, None, None, None])
    return torch.empty_like(images).copy_(mixed.round_()), share


def cutmix(images: Tensor, others: Tensor, alpha: float, generator: Generator) -> tuple[Tensor, Tensor]:
    """A rectangle of each image, of the image's own proportions, replaced by its partner's, and the share of the area
    that remains, float (N,). The rectangle's area is drawn from Beta(alpha, alpha), its centre from the whole image;
    what hangs over the edge is cut off (Yun et al., arXiv:1905.04899)."""
    n, _, height, width = images.shape
    side = (1 - beta(n, alpha, generator)).sqrt()
    centre = torch.rand(2, n, generator=generator, device=images.device)
    inside = []
    for pixels, middle in zip((height, width), centre, strict=True):
        first, last = ((pixels * (middle + sign * side / 2)).round() for sign in (-1, 1))
        place = torch.arange(pixels, device=images.device)
        inside.append((place >= first[:, None]) & (place < last[:, None]))
    replaced = inside[0][:, :, None] & inside[1][:, None, :]
    share = 1 - inside[0].float().mean(1) * inside[1].float().mean(1)
    return torch.where(replaced[:, None], others, images), share


def beta(count: int, alpha: float, generator: Generator) -> Tensor:
    """Float (count,) from Beta(alpha, alpha), any alpha above 0: torch's own draws from its global generator only.

    By the polar form of Student's t with 2 alpha degrees of freedom, of which this is a function (Devroye, "Random
    variate generation in one line of code", 1996).
    """
    radius, angle = torch.rand(2, count, generator=generator, device=generator.device)
    t = torch.expm1(-radius.log() / alpha).sqrt() * (2 * math.pi * angle).cos()
    return (1 + t.atan().sin()) / 2  # t / sqrt(1 + t^2), also where t is infinite


def reframe(
    images: Tensor, scale: float, warp: float, generator: Generator, fill: str = "black", reduce: float = 1.0
) -> Tensor:
    """Each image through a frame of its own: a crop and a warp, which are one affine map, sampled once and bilinearly.

    The random resized crop (Szegedy et al., arXiv:1409.4842): `scale`..1 of the image's area, uniformly, and the sides'
    ratio times 3/4..4/3, as far as it fits, from anywhere within, brought to `reduced` sides. None is made smaller by
    more than 1 / `reduce`, too little to be antialiased. 1: no crop. What a crop shows is larger than in the whole
    images of the test, at a `scale` of 0.25 by a third on average; with a `reduce` of 0.75 it has the same size, and a
    step takes half of the arithmetic (the observation of Touvron et al., arXiv:1906.06423).

    The warp, in what was cropped: turned, sheared and moved in both directions, enlarged or reduced, each uniformly up
    to `warp` (0..1) times 30 degrees, 0.3, 0.3 of the side, a factor of sqrt(2) (its exponent). These are the geometric
    operations of RandAugment (Cubuk et al., arXiv:1909.13719), all at once and not a drawn few of them in turn. What
    comes in from outside the image is black (0), or with `reflect` the image mirrored.
    """
    n, _, height, width = images.shape
    frames = torch.eye(2, 3, device=images.device).expand(n, 2, 3)
    if warp:
        frames = _warps(warp * (2 * torch.rand(6, n, generator=generator, device=images.device) - 1), width / height)
    if scale < 1:
        side, centre = _crops(torch.rand(4, n, generator=generator, device=images.device), scale)
        frames = torch.cat([frames[:, :, :2] * side, frames[:, :, 2:] * side + centre], 2)
    beyond = fill if warp else "reflect"  # a crop shows nothing from outside to be blackened
    return framed(images, frames, reduced((height, width), reduce), beyond)


def augmented_size(size: tuple[int, int], config: AugmentConfig) -> tuple[int, int]:
    """(height, width) of what `augment` makes of images of `size`."""
    height, width = (min([side, *config.crop[:1]]) for side in reduced(size, config.reduce))
    return height, width


def reduced(size: tuple[int, int], reduce: float) -> tuple[int, int]:
    """`reduce` times the sides of an image (height, width), but not below 32 pixels: small ones have none to spare."""
    height, width = (max(round(side * reduce), min(side, SPARED)) for side in size)
    return height, width


def flip(images: Tensor, generator: Generator) -> Tensor:
    """Mirror each image left to right with probability 1/2."""
    return mirror(images, torch.rand(len(images), generator=generator, device=images.device) < 0.5)


def mirror(images: Tensor, which: Tensor) -> Tensor:
    """Mirror the images left to right for which `which`, bool (N,), is true."""
    return torch.where(which[:, None, None, None], images.flip(3), images)


def shift(images: Tensor, pixels: int, generator: Generator, fill: str = "black") -> Tensor:
    """Move each image by -pixels..pixels in both directions; what comes in from outside is black (0), or with `reflect`
    the image's own border mirrored (no further than its side allows)."""
    height, width = images.shape[2:]
    if fill == "reflect":
        high, wide = min(pixels, height - 1), min(pixels, width - 1)
        rows, columns = (_reflected(n, pad, images.device) for n, pad in ((height, high), (width, wide)))
        padded = images.permute(0, 2, 3, 1)[:, rows[:, None], columns].permute(0, 3, 1, 2)  # keeps the pixels together
    else:
        high = wide = pixels
        padded = F.pad(images, (pixels,) * 4)
    top = torch.randint(2 * high + 1, (len(images),), generator=generator, device=images.device)
    left = torch.randint(2 * wide + 1, (len(images),), generator=generator, device=images.device)
    return _windows(padded, top, left, height, width)


def crop(images: Tensor, side: int, generator: Generator) -> Tensor:
    """A square of `side` pixels from anywhere in each image; a side of the image that is shorter is kept whole."""
    height, width = (min(side, n) for n in images.shape[2:])
    if (height, width) == images.shape[2:]:
        return images
    top = torch.randint(images.shape[2] - height + 1, (len(images),), generator=generator, device=images.device)
    left = torch.randint(images.shape[3] - width + 1, (len(images),), generator=generator, device=images.device)
    return _windows(images, top, left, height, width)


def cutout(images: Tensor, side: int, generator: Generator) -> Tensor:
    """Blacken one square of `side` pixels in each image, its corner anywhere such that it lies within
    (DeVries and Taylor, arXiv:1708.04552, who also let it hang over the edge)."""
    n, _, height, width = images.shape
    high, wide = min(side, height), min(side, width)
    top = torch.randint(height - high + 1, (n, 1), generator=generator, device=images.device)
    left = torch.randint(width - wide + 1, (n, 1), generator=generator, device=images.device)
    y = torch.arange(height, device=images.device)
    x = torch.arange(width, device=images.device)
    inside_y = (y >= top) & (y < top + high)
    inside_x = (x >= left) & (x < left + wide)
    return torch.where((inside_y[:, :, None] & inside_x[:, None, :])[:, None], 0, images)  # keeps the layout


def _reflected(n: int, pad: int, device: torch.device) -> Tensor:
    """The indices of 0..n-1 with `pad` mirrored ones at both ends: 2 1 | 0 1 2 3 | 2 1."""
    inner = torch.arange(-pad, n + pad, device=device).abs()
    return torch.minimum(inner, 2 * (n - 1) - inner)


def _crops(draws: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Sides and centres (N, 2, 1) of crops as x and y of a square from -1 to 1, from `draws` (4, N) in 0..1."""
    area = scale + (1 - scale) * draws[0]
    most = (1 / area).clamp(max=STRETCH).log()  # neither side may be longer than the image's
    ratio = (most * (2 * draws[1] - 1)).exp()
    side = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], 1)
    return side[:, :, None], ((1 - side) * (2 * draws[2:].T - 1))[:, :, None]


def _warps(draws: Tensor, aspect: float) -> Tensor:
    """Affine maps (N, 2, 3) from the place of a pixel in the result to its place in the image, both as x and y of a
    square from -1 to 1, from `draws` (6, N) in -1..1, for images of width / height `aspect`."""
    angle, shear_x, shear_y, move_x, move_y, zoom = draws
    cos, sin, size = (TURN * angle).cos(), (TURN * angle).sin(), ZOOM**zoom
    shear_x, shear_y = SHEAR * shear_x, SHEAR * shear_y
    x = size * (cos - sin * shear_y), size * (cos * shear_x - sin) / aspect, 2 * MOVE * move_x
    y = size * (sin + cos * shear_y) * aspect, size * (sin * shear_x + cos), 2 * MOVE * move_y
    return torch.stack([torch.stack(x, 1), torch.stack(y, 1)], 1)


def framed(images: Tensor, frames: Tensor, size: tuple[int, int], fill: str) -> Tensor:
    """What each image shows through its frame, an affine map (N, 2, 3) as `_warps` has it, in pixels of `size` (height,
    width) and the images' layout."""
    height, width = size
    x, y = ((2 * torch.arange(pixels, device=images.device) + 1) / pixels - 1 for pixels in (width, height))
    # not affine_grid: x and y of all places, each in a plane of its own, are made and read faster than in pairs
    places = (frames[:, :, :1] * x)[:, :, None] + (frames[:, :, 1:2] * y + frames[:, :, 2:])[:, :, :, None]
    mode = "reflection" if fill == "reflect" else "border"
    seen = F.grid_sample(images.float(), places.permute(0, 2, 3, 1), padding_mode=mode, align_corners=False).round_()
    if fill == "black":  # with a hard edge, as Pillow's; a product takes a fraction of masked_fill's time
        seen.mul_(places.abs().amax(1, keepdim=True) <= 1)
    last = images.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    return seen.to(torch.uint8, memory_format=layout)


def _windows(images: Tensor, top: Tensor, left: Tensor, height: int, width: int) -> Tensor:
    """Of each image the window whose upper left corner is (top, left), in the layout of the images.

    All windows of an image are a view of it; one index then copies the chosen ones, a row of pixels at a time.
    """
    n, channels, h, w = images.shape
    of_image, of_channel, of_row, of_column = images.stride()
    every = images.as_strided(
        (n, h - height + 1, w - width + 1, height, width, channels),
        (of_image, of_row, of_column, of_row, of_column, of_channel),
    )
    return every[torch.arange(n, device=images.device), top, left].permute(0, 3, 1, 2)
