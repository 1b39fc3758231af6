"""Random changes of a batch: pure functions on uint8 (N, C, H, W), with an explicit generator on the batch's device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from .recipe import AugmentConfig


def augment(images: Tensor, config: AugmentConfig, generator: Generator) -> Tensor:
    """What the recipe asks for, in this order: shift, flip, cutout."""
    if config.shift:
        images = shift(images, config.shift, generator)
    if config.flip:
        images = flip(images, generator)
    if config.cutout:
        images = cutout(images, config.cutout, generator)
    return images


def flip(images: Tensor, generator: Generator) -> Tensor:
    """Mirror each image left to right with probability 1/2."""
    mirrored = torch.rand(len(images), 1, 1, 1, generator=generator, device=images.device) < 0.5
    return torch.where(mirrored, images.flip(3), images)


def shift(images: Tensor, pixels: int, generator: Generator) -> Tensor:
    """Move each image by -pixels..pixels in both directions; what comes in from outside is black (0)."""
    n, channels, height, width = images.shape
    padded = F.pad(images, (pixels,) * 4)
    offset = torch.randint(2 * pixels + 1, (2, n), generator=generator, device=images.device)
    rows = offset[0, :, None] + torch.arange(height, device=images.device)
    columns = offset[1, :, None] + torch.arange(width, device=images.device)
    image = torch.arange(n, device=images.device)
    channel = torch.arange(channels, device=images.device)
    return padded[
        image[:, None, None, None], channel[None, :, None, None], rows[:, None, :, None], columns[:, None, None, :]
    ]


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
    return images.masked_fill((inside_y[:, :, None] & inside_x[:, None, :])[:, None], 0)
