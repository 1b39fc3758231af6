"""Random changes of the pixels' values: pure functions on uint8 (N, C, H, W), C 1 or 3, with an explicit generator on
the batch's device. Nothing moves, and the layout in memory stays."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue in gray: ITU-R BT.601, as Pillow has it
TONES = 4  # what `tone` chooses from


def jitter(images: Tensor, strength: float, generator: Generator) -> Tensor:
    """Brightness, contrast and saturation of each image, each times a factor of its own in 1 - strength..1 + strength
    (0..1), as torchvision's ColorJitter has them: towards black, the image's mean gray, and each pixel's own gray.

    The three are one affine map of a pixel's channels, so values are cut to 0..255 once, at the end, and not between
    them. A gray image has no saturation.
    """
    n, channels = images.shape[:2]
    factors = 1 + strength * (2 * torch.rand(3, n, 1, 1, generator=generator, device=images.device) - 1)
    brightness, contrast, saturation = factors
    gray = torch.tensor(LUMA if channels == 3 else (1.0,), device=images.device)[:, None]
    own = torch.eye(channels, device=images.device)
    colours = brightness * contrast * (saturation * own + (1 - saturation) * gray)  # (N, from, to)
    pixels = images.permute(0, 2, 3, 1).flatten(1, 2).float()
    level = brightness * (1 - contrast) * (pixels.mean(1, keepdim=True) @ gray)
    changed = torch.bmm(pixels, colours).add_(level).clamp_(0, 255).round_()
    return torch.empty_like(images).copy_(changed.unflatten(1, images.shape[2:]).permute(0, 3, 1, 2))


def tone(images: Tensor, share: float, generator: Generator) -> Tensor:
    """About `share` (0..1) of the images get one of four operations of RandAugment (Cubuk et al., arXiv:1909.13719),
    drawn for each: posterize to 4..7 bits, solarize from a threshold in 128..255 on, autocontrast, equalize, the last
    two channel by channel; all as Pillow does them."""
    n, channels, height, width = images.shape
    device = images.device
    chosen = torch.rand(n, generator=generator, device=device) < share
    which = torch.randint(TONES, (n,), generator=generator, device=device)
    bits = torch.randint(1, 5, (n, 1, 1), generator=generator, device=device)
    threshold = torch.randint(128, 256, (n, 1, 1), generator=generator, device=device)

    # Each of them is a table of 256 new values; an index into all tables stands for a channel of an image and a value
    pixels = images.permute(0, 2, 3, 1).flatten(1)
    of_channel = torch.arange(channels, device=device).repeat(height * width) * 256
    index = pixels.int().add_(of_channel.int()).add_(torch.arange(n, device=device).int()[:, None] * (256 * channels))
    counts = torch.bincount(index.flatten(), minlength=n * channels * 256).view(n, channels, 256)
    value = torch.arange(256, device=device).expand(n, channels, 256)
    posterized = value >> bits << bits
    solarized = torch.where(value < threshold, value, 255 - value)
    choices = torch.stack([posterized, solarized, _stretched(counts), _equalized(counts)])
    tables = torch.where(chosen[:, None, None], choices[which, torch.arange(n, device=device)], value)
    changed = tables.to(torch.uint8).flatten().index_select(0, index.flatten())
    return torch.empty_like(images).copy_(changed.view(n, height, width, channels).permute(0, 3, 1, 2))


def _stretched(counts: Tensor) -> Tensor:
    """The tables (N, C, 256) that bring the least value of each channel to 0 and the greatest to 255."""
    value = torch.arange(256, device=counts.device)
    there = counts > 0
    low = torch.where(there, value, 255).amin(2, keepdim=True)
    high = torch.where(there, value, 0).amax(2, keepdim=True)
    table = ((value - low).clamp(min=0) * 255 // (high - low).clamp(min=1)).clamp(max=255)
    return torch.where(high > low, table, value)


def _equalized(counts: Tensor) -> Tensor:
    """The tables (N, C, 256) that spread the values of each channel evenly; where it has fewer pixels than values, or
    one value only, it stays."""
    value = torch.arange(256, device=counts.device)
    below = counts.cumsum(2) - counts
    high = torch.where(counts > 0, value, 0).amax(2, keepdim=True)
    step = below.gather(2, high) // 255  # of all pixels but those of the greatest value
    table = ((step // 2 + below) // step.clamp(min=1)).clamp(max=255)
    return torch.where(step > 0, table, value)
