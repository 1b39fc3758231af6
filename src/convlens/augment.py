"""Random changes of a batch: pure functions on uint8 (N, C, H, W), with an explicit generator on the batch's device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from .recipe import AugmentConfig


def augment(images: Tensor, config: AugmentConfig, generator: Generator, mirrored: Tensor | None = None) -> Tensor:
    """What the recipe asks for, in this order: shift, crop (to the first side in `config.crop`), flip, cutout.

    `mirrored`, bool (N,), says which images to flip; without it each is flipped with probability 1/2.
    """
    if config.shift:
        images = shift(images, config.shift, generator, config.fill)
    if config.crop:
        images = crop(images, config.crop[0], generator)
    if config.flip:
        images = flip(images, generator) if mirrored is None else mirror(images, mirrored)
    if config.cutout:
        images = cutout(images, config.cutout, generator)
    return images


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
