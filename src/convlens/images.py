"""The one place where a picture becomes numbers: bytes, a file or a PIL image -> uint8 (C, H, W).

Whatever reads pictures calls `preprocess`; nothing else in the package resizes or converts one.
"""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from .errors import UserError

# Larger pictures are refused before they are decoded: a 20 kB file can claim to be 50,000 pixels wide.
MAX_PIXELS = 100_000_000
# Nor may a side be longer, which is as long as a JPEG's can be: Pillow takes minutes for 40 rows of two million pixels,
# which a WebP of 2 kB can claim.
MAX_SIDE = 65_535
LARGE = 20_000_000  # pixels from which on one picture is decoded at a time, so that memory stays bounded
ONE_LARGE: AbstractContextManager[object] = threading.Lock()

# Pillow knows more, but its EPS reader starts Ghostscript, and a picture may come from anywhere.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")
PICTURES = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp"})  # their endings
# Endings of pictures that are not read: whoever has them must be told, not left to wonder where they went
UNREAD = frozenset(
    {".heic", ".heif", ".avif", ".jxl", ".jp2", ".psd", ".svg", ".eps", ".ico", ".ppm", ".pgm", ".tga", ".exr"}
    | {".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2", ".pef", ".srw"}
)


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


@dataclass(frozen=True)
class Facts:
    """What a file says of itself: (height, width) in pixels as it is seen, Pillow's names of its mode and format, and
    whether it has more frames than the first, which is the one that is used."""

    size: tuple[int, int]
    mode: str
    format: str
    frames: bool


def facts(source: bytes | str | Path) -> Facts:
    """Read the header of a picture. Raises UserError, see `read_picture`, but for damage behind the header."""
    with _reading(source) as picture:
        found = _facts(picture)
        # a PNG has its EXIF anywhere: to ask for it is to decode it all
        return found if found.format == "PNG" else _as_seen(found, _turn(picture))


def read_picture(source: bytes | str | Path, spec: InputSpec, max_pixels: int = MAX_PIXELS) -> tuple[np.ndarray, Facts]:
    """Decode and preprocess a picture: uint8 (H, W, C), and what the file said of itself.

    A JPEG of at least twice the needed size is decoded only as finely as needed: its own scaling by 2, 4 or 8 averages
    as the resizing would, and photographs of a phone are read several times as fast.

    Raises:
        UserError: the file is missing, empty, not a picture, truncated, or larger than `max_pixels` or
            MAX_SIDE.
    """
    with _reading(source, max_pixels) as picture:
        found = _facts(picture)
        picture.draft(None, (max(spec.size),) * 2)
        with ONE_LARGE if picture.width * picture.height > LARGE else nullcontext():
            picture.load()
            turn = _turn(picture)
            return _prepared(picture, turn, spec), _as_seen(found, turn)


@contextmanager
def _reading(source: bytes | str | Path, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """The picture with its header read; whatever goes wrong in the `with` becomes one sentence."""
    name = "the picture" if isinstance(source, bytes) else str(source)
    try:
        if isinstance(source, bytes):
            data = source
        else:
            with open(source, "rb") as file:  # noqa: PTH123 - a Path for each is 3 % of a small picture's decoding
                data = file.read()
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise UserError(f"cannot read {name}: {getattr(error, 'strerror', None) or error}") from error
    if not data:
        raise UserError(f"{name} is empty")
    try:
        with QUIET:
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
            if picture.width * picture.height > max_pixels:
                raise UserError(f"{name} claims {picture.width} x {picture.height} pixels; {max_pixels:,} are allowed")
            if max(picture.size) > MAX_SIDE:
                raise UserError(
                    f"{name} claims {picture.width} x {picture.height} pixels; a side of {MAX_SIDE:,} is allowed"
                )
            yield picture
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise UserError(f"{name} is not a picture that can be read (JPEG, PNG, WebP, GIF, TIFF or BMP)") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"{name} claims more pixels than the {max_pixels:,} that are allowed") from error
    except Exception as error:  # Pillow's decoders raise anything at all on damage
        raise UserError(f"{name} is damaged: {error}") from error


class _Quiet:
    """Inside the `with` warnings are silent: Pillow's remarks on damaged metadata and, before ours, on the size. Unlike
    warnings.catch_warnings it may be entered by several threads at once: the last one out turns them on again."""

    def __init__(self) -> None:
        self.lock, self.inside, self.caught = threading.Lock(), 0, warnings.catch_warnings()

    def __enter__(self) -> None:
        with self.lock:
            self.inside += 1
            if self.inside == 1:
                self.caught = warnings.catch_warnings()
                self.caught.__enter__()
                warnings.simplefilter("ignore")

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.inside -= 1
            if self.inside == 0:
                self.caught.__exit__(None, None, None)


QUIET = _Quiet()


def _facts(picture: Image.Image) -> Facts:
    """As the picture lies, asked before its pixels are read: a JPEG may be smaller afterwards."""
    size = picture.height, picture.width
    return Facts(size, picture.mode, str(picture.format), _has_frames(picture))


def _has_frames(picture: Image.Image) -> bool:
    if picture.format != "GIF" or not isinstance(picture, ImageFile.ImageFile):
        return bool(getattr(picture, "is_animated", False))
    try:  # a GIF is asked in a second reading of its bytes, for the answer is found by decoding on from here
        with Image.open(io.BytesIO(picture.fp.getvalue()), formats=["GIF"]) as again:  # type: ignore[union-attr]
            return bool(getattr(again, "is_animated", False))
    except Exception:  # its later frames may be damaged: nobody needs them
        return False


def _as_seen(found: Facts, turn: Image.Transpose | None) -> Facts:
    """The same, its size as the EXIF orientation turns it."""
    sideways = turn in (
        Image.Transpose.TRANSPOSE,
        Image.Transpose.ROTATE_270,
        Image.Transpose.TRANSVERSE,
        Image.Transpose.ROTATE_90,
    )
    return replace(found, size=found.size[::-1]) if sideways else found


def preprocess(picture: Image.Image | bytes | str | Path, spec: InputSpec, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """A picture -> uint8 array (C, H, W) as `spec` says: EXIF orientation applied, transparency laid on white, 16-bit
    gray scaled to 8 bits, CMYK and palettes converted, resized. A file goes through `read_picture`.

    Raises:
        UserError: see `read_picture`.
    """
    if isinstance(picture, Image.Image):
        pixels = _prepared(picture, _turn(picture), spec)
    else:
        pixels = read_picture(picture, spec, max_pixels)[0]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _prepared(picture: Image.Image, turn: Image.Transpose | None, spec: InputSpec) -> np.ndarray:
    """uint8 (H, W, C)."""
    picture = picture if turn is None else picture.transpose(turn)
    picture = _plain(picture).convert("L" if spec.channels == 1 else "RGB")
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
    return pixels[:, :, None] if spec.channels == 1 else pixels


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


def _turn(picture: Image.Image) -> Image.Transpose | None:
    """What the EXIF orientation asks for; nothing where the EXIF cannot be read."""
    try:
        with QUIET:
            return _TURNS.get(picture.getexif().get(0x0112, 1))
    except Exception:  # Pillow's EXIF reader, too, raises anything at all
        return None


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
