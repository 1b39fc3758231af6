"""Images, filters and maps as data: URIs, the smallest form that shows what is there."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image, features
from torch import Tensor

LONGEST = 96  # pixels of a thumbnail's longer side
WEBP = features.check("webp")
HOT = np.array([255, 176, 0])
BLUE, RED = np.array([33, 102, 172]), np.array([178, 24, 43])  # the ends of RdBu, for weights below and above zero


def uri(pixels: np.ndarray, exact: bool = False) -> str:
    """uint8 (H, W) or (H, W, 3) -> data: URI. What is gray or `exact` keeps every pixel."""
    exact = exact or pixels.ndim == 2
    kind, settings = "png", {}
    if WEBP:
        kind, settings = "webp", {"lossless": True, "method": 2} if exact else {"quality": 88, "method": 2}
    elif not exact:
        kind, settings = "jpeg", {"quality": 85}
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, kind, **settings)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def thumbnail(image: Tensor) -> str:
    """uint8 (C, H, W) -> data: URI, made smaller where it is larger than LONGEST."""
    return _shrunk(_last(image.cpu().numpy()))


def filter_tile(weights: Tensor) -> str:
    """The kernel (in, kH, kW) of one output channel: three input channels as colours around gray; else their mean, blue
    below zero, white at it, red above."""
    values = weights.numpy()
    if len(values) == 3:
        return uri(_last(_bytes(values / max(np.abs(values).max(), 1e-12) * 127.5 + 127.5)), exact=True)
    return uri(_signed(values.mean(0)), exact=True)


def map_tile(values: Tensor, low: float, high: float) -> str:
    """One feature map (H, W) in gray, `low` black and `high` white; a large one is made smaller."""
    return _shrunk(_bytes((values.numpy().clip(low, high) - low) / max(high - low, 1e-12) * 255))


def heat_tile(shares: Tensor) -> str:
    """A table (rows, columns) in 0..1, a pixel a cell: white is 0, dark blue is 1."""
    return uri(_bytes(255 + shares.numpy()[..., None] * (np.array([8, 48, 107]) - 255)), exact=True)


def heat_overlay(image: Tensor, share: Tensor) -> str:
    """`share` (H, W) in 0..1 over the image (C, H, W), grayed and dimmed: orange where it is 1."""
    pixels = image.cpu().float().numpy()
    gray = 40 + 0.45 * pixels.mean(0)[..., None].repeat(3, axis=2)
    return _shrunk(_bytes(gray + share.numpy()[..., None] * (HOT - gray)))


def _signed(values: np.ndarray) -> np.ndarray:
    """(H, W) -> uint8 (H, W, 3): blue below zero, white at it, red above."""
    share = (values / (np.abs(values).max() or 1))[..., None]
    ends = np.where(share < 0, BLUE, RED)
    return _bytes(255 + np.abs(share) * (ends - 255))


def _shrunk(pixels: np.ndarray) -> str:
    scale = LONGEST / max(pixels.shape[:2])
    if scale < 1:
        size = max(round(pixels.shape[1] * scale), 1), max(round(pixels.shape[0] * scale), 1)
        pixels = np.asarray(
            Image.fromarray(np.ascontiguousarray(pixels)).resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
        )
    return uri(pixels)


def _bytes(values: np.ndarray) -> np.ndarray:
    return values.astype(np.uint8)


def _last(values: np.ndarray) -> np.ndarray:
    """(C, H, W) -> (H, W, C), or (H, W) of one channel."""
    return values[0] if len(values) == 1 else values.transpose(1, 2, 0)
