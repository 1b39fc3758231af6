"""The one place where a picture becomes numbers: bytes, a file or a PIL image -> uint8 (C, H, W).

Whatever reads pictures calls `preprocess`; nothing else in the package resizes or converts one.
"""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import UserError

# Larger pictures are refused before they are decoded: a 20 kB file can claim to be 50,000 pixels wide.
MAX_PIXELS = 100_000_000

# Pillow knows more, but its EPS reader starts Ghostscript, and a picture may come from anywhere.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")


@dataclass(frozen=True)
class InputSpec:
    """What a network takes: `size` is (height, width) in pixels, `channels` 1 (gray) or 3 (RGB).

    `resize`: "fit" scales the whole picture into the size and pads with black, "crop" fills the size and cuts what
    hangs over, "stretch" ignores the proportions. All use an antialiased bicubic filter; a picture that has the size
    already is taken pixel for pixel.
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
        with _unwarned():  # of damaged metadata and, before ours, of the size
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
            small = picture.width * picture.height <= MAX_PIXELS
            if small:
                picture.load()
    except UnidentifiedImageError as error:
        raise UserError(f"{name} is not a picture that can be read (JPEG, PNG, WebP, GIF, TIFF or BMP)") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"{name} claims more pixels than the {MAX_PIXELS:,} that are allowed") from error
    except Exception as error:  # Pillow's decoders raise anything at all on damage
        raise UserError(f"{name} is damaged: {error}") from error
    if not small:
        raise UserError(f"{name} claims {picture.width} x {picture.height} pixels; {MAX_PIXELS:,} are allowed")
    return picture


def preprocess(picture: Image.Image | bytes | str | Path, spec: InputSpec) -> np.ndarray:
    """A picture -> uint8 array (C, H, W) as `spec` says: EXIF orientation applied, transparency laid on white, 16-bit
    gray scaled to 8 bits, CMYK and palettes converted, resized.

    Raises:
        UserError: see `open_picture`.
    """
    if not isinstance(picture, Image.Image):
        picture = open_picture(picture)
    picture = _plain(_upright(picture)).convert("L" if spec.channels == 1 else "RGB")
    height, width = spec.size
    if picture.size != (width, height):
        if spec.resize == "fit":
            scale = min(width / picture.width, height / picture.height)
            inner = max(round(picture.width * scale), 1), max(round(picture.height * scale), 1)
            canvas = Image.new(picture.mode, (width, height))
            at = ((width - inner[0]) // 2, (height - inner[1]) // 2)
            canvas.paste(picture.resize(inner, Image.Resampling.BICUBIC), at)
            picture = canvas
        elif spec.resize == "crop":
            picture = ImageOps.fit(picture, (width, height), Image.Resampling.BICUBIC)
        else:
            picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.array(picture, dtype=np.uint8)  # not asarray: torch warns of what cannot be written to
    return pixels[None] if spec.channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


_gate, _filters, _inside = threading.Lock(), ExitStack(), 0


@contextmanager
def _unwarned() -> Iterator[None]:
    """Without Pillow's warnings. `catch_warnings` changes what the whole process does and puts back what it found, so
    threads that decode side by side share one: the first in opens it, the last out closes it."""
    global _inside
    with _gate:
        if not _inside:
            _filters.enter_context(warnings.catch_warnings(action="ignore"))
        _inside += 1
    try:
        yield
    finally:
        with _gate:
            _inside -= 1
            if not _inside:
                _filters.close()


# What undoes each EXIF orientation. ImageOps.exif_transpose also rewrites the EXIF, and fails where that is damaged.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _upright(picture: Image.Image) -> Image.Image:
    """The picture as its EXIF orientation turns it; where the EXIF cannot be read, as it lies."""
    try:
        with _unwarned():
            turn = _TURNS.get(picture.getexif().get(0x0112, 1))
    except Exception:  # Pillow's EXIF reader, too, raises anything at all
        return picture
    return picture if turn is None else picture.transpose(turn)


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
