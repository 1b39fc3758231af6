"""The one place where a picture becomes numbers: bytes, a file or a PIL image -> uint8 (C, H, W).

Training on files, predicting, serving and exporting all call `preprocess`; nothing else resizes or converts a picture.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import UserError

# Larger pictures are refused before they are decoded: a 20 kB file can claim to be 50,000 pixels wide.
MAX_PIXELS = 100_000_000


@dataclass(frozen=True)
class InputSpec:
    """What a network takes: `size` is (height, width) in pixels, `channels` 1 (gray) or 3 (RGB).

    `resize`: "fit" scales the whole picture into the size and pads with black, "crop" fills the size and cuts what hangs
    over, "stretch" ignores the proportions. All use an antialiased bicubic filter; a picture that has the size already
    is taken pixel for pixel.
    """

    size: tuple[int, int]
    channels: int
    resize: Literal["fit", "crop", "stretch"] = "crop"


def open_picture(source: bytes | str | Path) -> Image.Image:
    """Decode a picture fully.

    Raises:
        UserError: the file is missing, empty, not a picture, truncated, or larger than MAX_PIXELS.
    """
    name = "the picture" if isinstance(source, bytes) else str(source)
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {name}: {error.strerror}") from error
    if not data:
        raise UserError(f"{name} is empty")
    try:
        picture = Image.open(io.BytesIO(data))
        if picture.width * picture.height > MAX_PIXELS:
            raise UserError(f"{name} claims {picture.width} x {picture.height} pixels; {MAX_PIXELS:,} are allowed")
        picture.load()
    except UnidentifiedImageError as error:
        raise UserError(f"{name} is not a picture that can be read (JPEG, PNG, WebP, GIF, TIFF or BMP)") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"{name} claims more pixels than the {MAX_PIXELS:,} that are allowed") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # Pillow's decoders raise all of these on damage
        raise UserError(f"{name} is damaged: {error}") from error
    return picture


def preprocess(picture: Image.Image | bytes | str | Path, spec: InputSpec) -> np.ndarray:
    """A picture -> uint8 array (C, H, W) as `spec` says: EXIF orientation applied, transparency laid on white, 16-bit
    gray scaled to 8 bits, CMYK and palettes converted, resized.

    Raises:
        UserError: see `open_picture`.
    """
    if not isinstance(picture, Image.Image):
        picture = open_picture(picture)
    picture = _plain(ImageOps.exif_transpose(picture)).convert("L" if spec.channels == 1 else "RGB")
    height, width = spec.size
    if picture.size != (width, height):
        if spec.resize == "fit":
            picture = ImageOps.pad(picture, (width, height), Image.Resampling.BICUBIC)
        elif spec.resize == "crop":
            picture = ImageOps.fit(picture, (width, height), Image.Resampling.BICUBIC)
        else:
            picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(picture, dtype=np.uint8)
    return pixels[None] if spec.channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _plain(picture: Image.Image) -> Image.Image:
    """The same picture in a mode whose conversion to gray or RGB means what a person expects."""
    if picture.mode.startswith("I;16") or picture.mode == "I":
        values = np.asarray(picture, dtype=np.int64)  # "I" is how 16-bit PNGs open in some versions of Pillow
        return Image.fromarray((values.clip(0, 65_535) >> 8).astype(np.uint8))
    if picture.mode == "F":
        return Image.fromarray(np.asarray(picture).clip(0, 255).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture
