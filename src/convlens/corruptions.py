"""Eight ways in which a picture gets worse, each at five strengths: pure functions on uint8 (N, C, H, W), with an
explicit generator on the batch's device.

The idea is Hendrycks and Dietterich's (arXiv:1903.12261); the kinds and their strengths are our own choice, stated in
each function. What is a length is a share of the image's side, so that digits of 28 pixels and photographs of 224 are
harmed alike. What comes in from outside an image is black.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Generator, Tensor

from .augment import framed
from .errors import UserError, unknown

STRENGTHS = 1, 2, 3, 4, 5


def corrupt(images: Tensor, name: str, strength: int, generator: Generator) -> Tensor:
    """`images` uint8 (N, C, H, W) harmed by the corruption `name`, a key of CORRUPTIONS, at `strength` 1..5.

    Raises:
        UserError: an unknown name or strength.
    """
    if name not in CORRUPTIONS:
        raise unknown("corruption", name, CORRUPTIONS)
    if strength not in STRENGTHS:
        raise UserError(f"a corruption has the strengths 1 to 5, not {strength!r}")
    function, amounts = CORRUPTIONS[name]
    return function(images, amounts[strength - 1], generator)


def noise(images: Tensor, deviation: float, generator: Generator) -> Tensor:
    """Gaussian noise of this standard deviation, a share of white, drawn for every pixel and channel: 0.04, 0.08, 0.12,
    0.18, 0.26."""
    drawn = torch.randn(images.shape, generator=generator, device=images.device)
    return _pixels(images + drawn * (255 * deviation))


def blur(images: Tensor, share: float, _: Generator) -> Tensor:
    """A Gaussian whose standard deviation is this share of the shorter side, cut off at four of them, the image
    mirrored at its edges (as scipy.ndimage does): 0.015, 0.025, 0.035, 0.05, 0.07, of 32 pixels 0.5 to 2.2."""
    sigma = share * min(images.shape[2:])
    rows, columns = (_gaussian(n, sigma).to(images.device) for n in images.shape[2:])
    return _pixels(rows @ images.float() @ columns.T)


def brightness(images: Tensor, added: float, _: Generator) -> Tensor:
    """Every channel brighter by this share of white, cut off there: 0.1, 0.2, 0.3, 0.4, 0.5."""
    return _pixels(images + 255 * added)


def contrast(images: Tensor, kept: float, _: Generator) -> Tensor:
    """Distances from the mean of each channel of each image reduced to this share: 0.75, 0.5, 0.35, 0.2, 0.1."""
    mean = images.float().mean((2, 3), keepdim=True)
    return _pixels(mean + kept * (images - mean))


def shift(images: Tensor, share: float, generator: Generator) -> Tensor:
    """Each image moved by this share of its shorter side in a direction of its own, uniformly drawn, in whole pixels:
    0.04, 0.08, 0.12, 0.16, 0.2."""
    n, _, height, width = images.shape
    angle = 2 * math.pi * torch.rand(n, generator=generator, device=images.device)
    distance = share * min(height, width)
    down, right = (distance * angle.sin()).round().long(), (distance * angle.cos()).round().long()
    y = torch.arange(height, device=images.device) - down[:, None]
    x = torch.arange(width, device=images.device) - right[:, None]
    each = torch.arange(n, device=images.device)[:, None, None]
    moved = images.permute(0, 2, 3, 1)[each, y.clamp(0, height - 1)[:, :, None], x.clamp(0, width - 1)[:, None]]
    inside = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None]
    return torch.where(inside[:, None], moved.permute(0, 3, 1, 2), 0)


def rotation(images: Tensor, degrees: float, generator: Generator) -> Tensor:
    """Each image turned about its middle by these degrees, to a side of its own, both as likely, sampled bilinearly: 6,
    12, 20, 30, 45."""
    height, width = images.shape[2:]
    side = torch.randint(2, (len(images),), generator=generator, device=images.device) * 2.0 - 1
    angle = math.radians(degrees) * side
    cos, sin, nothing, aspect = angle.cos(), angle.sin(), torch.zeros_like(angle), width / height
    x, y = (torch.stack(row, 1) for row in ((cos, -sin / aspect, nothing), (sin * aspect, cos, nothing)))
    return framed(images, torch.stack([x, y], 1), (height, width), "black")


def pixelation(images: Tensor, share: float, _: Generator) -> Tensor:
    """Reduced to this share of the sides, each pixel the mean of the area that it covers, and enlarged again as
    squares: 0.75, 0.5, 0.35, 0.25, 0.18."""
    height, width = images.shape[2:]
    rows, columns = (_covered(n, max(round(share * n), 1)).to(images.device) for n in (height, width))
    return _pixels(F.interpolate(rows @ images.float() @ columns.T, (height, width), mode="nearest-exact"))


def jpeg(images: Tensor, quality: float, _: Generator) -> Tensor:
    """Written as JPEG by Pillow with this quality, colours at half the resolution as is usual, and read again: 80, 50,
    25, 15, 7."""
    out = np.empty((len(images), *images.shape[2:], images.shape[1]), np.uint8)
    for i, pixels in enumerate(images.permute(0, 2, 3, 1).cpu().numpy()):
        file = io.BytesIO()
        Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(file, "JPEG", quality=int(quality))
        with Image.open(file) as read:
            out[i] = np.asarray(read).reshape(pixels.shape)
    return torch.from_numpy(out).permute(0, 3, 1, 2).to(images.device)


Corruption = Callable[[Tensor, float, Generator], Tensor]
CORRUPTIONS: dict[str, tuple[Corruption, tuple[float, ...]]] = {
    "noise": (noise, (0.04, 0.08, 0.12, 0.18, 0.26)),
    "blur": (blur, (0.015, 0.025, 0.035, 0.05, 0.07)),
    "brightness": (brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": (contrast, (0.75, 0.5, 0.35, 0.2, 0.1)),
    "shift": (shift, (0.04, 0.08, 0.12, 0.16, 0.2)),
    "rotation": (rotation, (6, 12, 20, 30, 45)),
    "pixelation": (pixelation, (0.75, 0.5, 0.35, 0.25, 0.18)),
    "JPEG": (jpeg, (80, 50, 25, 15, 7)),
}


def _pixels(values: Tensor) -> Tensor:
    return values.round().clamp(0, 255).to(torch.uint8)


def _covered(n: int, fewer: int) -> Tensor:
    """The reduction of a side of n pixels to `fewer` as a matrix (fewer, n), float32: the share of each that lies in
    the new one."""
    edges = torch.arange(fewer + 1) * n / fewer
    pixel = torch.arange(n)
    overlap = torch.minimum(edges[1:, None], pixel + 1) - torch.maximum(edges[:-1, None], pixel)
    return overlap.clamp(min=0) * fewer / n


def _gaussian(n: int, sigma: float) -> Tensor:
    """The blur along a side of n pixels as a matrix (n, n), float32."""
    reach = round(4 * sigma)
    steps = torch.arange(-reach, reach + 1)
    weights = (-0.5 * (steps.double() / sigma) ** 2).exp()
    place = (torch.arange(n)[:, None] + steps) % (2 * n)  # mirrored with the edge doubled: b a | a b c | c b
    place = torch.minimum(place, 2 * n - 1 - place)
    matrix = torch.zeros(n, n, dtype=torch.float64)
    return matrix.scatter_add_(1, place, (weights / weights.sum()).expand(n, -1)).float()
