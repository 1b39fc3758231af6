"""images: what a picture becomes, whatever its mode, size and orientation, and what is said of what is no picture."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from convlens.errors import UserError
from convlens.images import MAX_PIXELS, MAX_SIDE, InputSpec, preprocess, read_picture
from refusals import refused

RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (8, 12, 3), dtype=np.uint8)  # 8 high, 12 wide
RGB = InputSpec((8, 12), 3)
GRAY = InputSpec((8, 12), 1)


def encode(picture: Image.Image, kind: str = "PNG", **settings: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **settings)
    return file.getvalue()


def chw(pixels: np.ndarray) -> np.ndarray:
    return pixels.transpose(2, 0, 1)


# Pixels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resize", ["fit", "crop", "stretch"])
def test_a_picture_that_fits_is_taken_pixel_for_pixel(tmp_path: Path, resize: str) -> None:
    picture = Image.fromarray(PHOTO)
    (tmp_path / "a.png").write_bytes(encode(picture))
    spec = InputSpec((8, 12), 3, resize)
    for source in (picture, encode(picture), tmp_path / "a.png", str(tmp_path / "a.png")):
        pixels = preprocess(source, spec)
        assert pixels.dtype == np.uint8
        assert pixels.flags.c_contiguous
        np.testing.assert_array_equal(pixels, chw(PHOTO))
    gray = RNG.integers(0, 256, (8, 12), dtype=np.uint8)
    np.testing.assert_array_equal(preprocess(Image.fromarray(gray), InputSpec((8, 12), 1, resize)), gray[None])


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "WEBP", "JPEG"])
def test_the_kinds_of_file_that_are_named_can_be_read(kind: str) -> None:
    flat = np.full((8, 12, 3), (250, 120, 20), dtype=np.uint8)
    settings = {"lossless": True} if kind == "WEBP" else {}
    pixels = preprocess(encode(Image.fromarray(flat), kind, **settings), RGB)
    assert np.abs(pixels.astype(int) - chw(flat)).max() <= (3 if kind == "JPEG" else 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation(orientation: int, kind: str) -> None:
    picture, exif = Image.fromarray(PHOTO), Image.Exif()
    exif[0x0112] = orientation
    data = encode(picture, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    shown = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))  # what Pillow's own help makes of it
    assert shown.shape[:2] == ((8, 12) if orientation < 5 else (12, 8))
    np.testing.assert_array_equal(preprocess(data, InputSpec(shown.shape[:2], 3)), chw(shown))


def test_exif_orientation_of_a_phone() -> None:
    """Orientation 6: the camera was held upright, so what the file has at its left lies at the top."""
    stored = np.zeros((16, 32, 3), dtype=np.uint8)
    stored[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = preprocess(encode(Image.fromarray(stored), "JPEG", exif=exif, quality=100), InputSpec((32, 16), 3))
    assert pixels[:, :8].min() > 240
    assert pixels[:, 8:].max() < 15


@pytest.mark.parametrize(
    "exif",
    [
        pytest.param(b"Exif\0\0no TIFF header at all", id="no header"),
        pytest.param(b"Exif\0\0MM\0*\0\0\0\x08\0\x09\x01\x12", id="cut off"),
        pytest.param(b"Exif\0\0MM\0*\0\0\xff\xff", id="points outside"),
        pytest.param(b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\xff\xff\0\0\0\x08\0\0\0\0", id="tag too large"),
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG"])
def test_damaged_exif_does_no_harm(exif: bytes, kind: str) -> None:
    flat = Image.new("RGB", (12, 8), (255, 0, 0))
    pixels = preprocess(encode(flat, kind, exif=exif), RGB)
    assert pixels[0].min() > 245
    assert pixels[1:].max() < 10


def test_the_orientation_counts_where_another_tag_is_damaged() -> None:
    """A text where the camera's maker should have put a number: Pillow reads such EXIF and cannot write it again."""
    header = b"Exif\0\0MM\0*\0\0\0\x08\0\x02"
    width = b"\x01\x00\0\x02\0\0\0\x03ab\0\0"  # ImageWidth as text
    orientation = b"\x01\x12\0\x03\0\0\0\x01\0\x03\0\0"
    data = encode(Image.fromarray(PHOTO), exif=header + width + orientation + bytes(4))
    np.testing.assert_array_equal(preprocess(data, RGB), chw(PHOTO[::-1, ::-1]))


def with_alpha(mode: str, alpha: np.ndarray) -> bytes:
    """A black picture whose transparency is `alpha`, as a PNG of that mode."""
    size = (alpha.shape[1], alpha.shape[0])
    if mode == "P":  # every pixel has its own entry of the palette
        picture = Image.fromarray(np.arange(alpha.size, dtype=np.uint8).reshape(alpha.shape))
        picture = Image.frombytes("P", size, picture.tobytes())
        picture.putpalette(bytes(768))
        return encode(picture, transparency=alpha.tobytes())
    picture = Image.new(mode[:-1], size)
    picture.putalpha(Image.fromarray(alpha))
    assert picture.mode == mode
    return encode(picture)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize("channels", [1, 3])
def test_transparency_lies_on_white(mode: str, channels: int) -> None:
    alpha = RNG.integers(0, 256, (8, 12), dtype=np.uint8)
    alpha[0, :2] = 0, 255
    pixels = preprocess(with_alpha(mode, alpha), InputSpec((8, 12), channels)).astype(int)
    np.testing.assert_array_equal(pixels, np.broadcast_to(255 - alpha.astype(int), (channels, 8, 12)))


def test_transparent_colour_of_an_rgb_png() -> None:
    pixels = np.full((8, 12, 3), 100, dtype=np.uint8)
    pixels[0, 0] = 1, 2, 3
    got = preprocess(encode(Image.fromarray(pixels), transparency=(1, 2, 3)), RGB)
    assert got[:, 0, 0].tolist() == [255, 255, 255]
    assert (got[:, 1:] == 100).all()


def test_transparent_gif() -> None:
    picture = Image.fromarray(np.full((8, 12), 7, dtype=np.uint8)).convert("P")
    picture.putpixel((3, 2), 9)
    got = preprocess(encode(picture, "GIF", transparency=9), GRAY)[0]
    assert got[2, 3] == 255
    assert (np.delete(got.ravel(), 2 * 12 + 3) == 7).all()


def test_half_transparent_colour() -> None:
    got = preprocess(encode(Image.new("RGBA", (12, 8), (200, 100, 0, 51))), RGB)  # a fifth of it, four of white
    np.testing.assert_allclose(got[:, 0, 0], [0.2 * 200 + 204, 0.2 * 100 + 204, 204], atol=1)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits(kind: str) -> None:
    values = RNG.integers(0, 65_536, (8, 12), dtype=np.uint16)
    values[0, :3] = 0, 255, 65_535
    data = encode(Image.fromarray(values), kind)
    np.testing.assert_array_equal(preprocess(data, GRAY)[0], values >> 8)
    np.testing.assert_array_equal(preprocess(data, RGB), np.stack([values >> 8] * 3))


def test_numbers_beyond_sixteen_bits_and_fractions_are_cut_off() -> None:
    whole = np.array([[-5, 0, 65_535, 70_000]], dtype=np.int32)
    assert preprocess(Image.fromarray(whole), InputSpec((1, 4), 1)).ravel().tolist() == [0, 0, 255, 255]
    real = np.array([[-1.0, 0.9, 254.9, 300.0]], dtype=np.float32)
    assert preprocess(Image.fromarray(real), InputSpec((1, 4), 1)).ravel().tolist() == [0, 0, 254, 255]


def test_one_bit() -> None:
    bits = RNG.integers(0, 2, (8, 12)).astype(bool)
    data = encode(Image.fromarray(bits))
    np.testing.assert_array_equal(preprocess(data, GRAY)[0], bits * 255)
    np.testing.assert_array_equal(preprocess(data, RGB), np.stack([bits * 255] * 3))


def test_cmyk_jpeg() -> None:
    for ink, colour in (((0, 255, 255, 0), (255, 0, 0)), ((0, 0, 0, 255), (0, 0, 0)), ((0, 0, 0, 0), (255, 255, 255))):
        data = encode(Image.new("CMYK", (12, 8), ink), "JPEG", quality=100)
        assert Image.open(io.BytesIO(data)).mode == "CMYK"
        np.testing.assert_allclose(preprocess(data, RGB)[:, 4, 4], colour, atol=4)


def test_gray_and_colour() -> None:
    gray = RNG.integers(0, 256, (8, 12), dtype=np.uint8)
    np.testing.assert_array_equal(preprocess(encode(Image.fromarray(gray)), RGB), np.stack([gray] * 3))
    luma = PHOTO @ np.array([0.299, 0.587, 0.114])  # ITU-R 601, which Pillow documents
    assert np.abs(preprocess(encode(Image.fromarray(PHOTO)), GRAY)[0] - luma).max() <= 1


def test_palette() -> None:
    picture = Image.fromarray(PHOTO).quantize(16)
    np.testing.assert_array_equal(preprocess(encode(picture), RGB), chw(np.asarray(picture.convert("RGB"))))


# Sizes ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def flag() -> Image.Image:
    """40 wide, 20 high, in four vertical stripes: red, green, blue, white."""
    pixels = np.zeros((20, 40, 3), dtype=np.uint8)
    pixels[:, :10, 0] = pixels[:, 10:20, 1] = pixels[:, 20:30, 2] = 255
    pixels[:, 30:] = 255
    return Image.fromarray(pixels)


def stripe(colour: np.ndarray) -> str:
    """The nearest name of a colour; the filter overshoots a little at the edges."""
    names = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255,) * 3, "black": (0,) * 3}
    return min(names, key=lambda name: np.abs(colour.astype(int) - names[name]).sum())


@pytest.mark.parametrize(
    ("resize", "row"),
    [
        ("stretch", ["red"] * 3 + ["green"] * 3 + ["blue"] * 3 + ["white"] * 3),
        ("crop", ["green"] * 6 + ["blue"] * 6),  # the middle half
        ("fit", ["red"] * 3 + ["green"] * 3 + ["blue"] * 3 + ["white"] * 3),
    ],
)
def test_wide_picture_in_a_square(flag: Image.Image, resize: str, row: list[str]) -> None:
    pixels = preprocess(flag, InputSpec((12, 12), 3, resize))
    assert pixels.shape == (3, 12, 12)
    assert [stripe(pixels[:, 6, x]) for x in range(12)] == row
    bars = [y for y in range(12) if all(stripe(pixels[:, y, x]) == "black" for x in range(12))]
    assert bars == ([0, 1, 2, 9, 10, 11] if resize == "fit" else [])


@pytest.mark.parametrize("resize", ["fit", "crop", "stretch"])
def test_height_comes_before_width(flag: Image.Image, resize: str) -> None:
    assert preprocess(flag, InputSpec((5, 9), 3, resize)).shape == (3, 5, 9)
    assert preprocess(flag, InputSpec((9, 5), 1, resize)).shape == (1, 9, 5)


@pytest.mark.parametrize("resize", ["fit", "crop", "stretch"])
@pytest.mark.parametrize("size", [(1, 3000), (3000, 1), (1, 1)])
def test_extreme_proportions(resize: str, size: tuple[int, int]) -> None:
    pixels = preprocess(Image.new("RGB", size, "white"), InputSpec((16, 16), 3, resize))
    assert pixels.shape == (3, 16, 16)
    assert pixels.max() == 255  # however thin, something of it is left


@pytest.mark.parametrize("resize", ["fit", "crop", "stretch"])
def test_shrinking_is_antialiased(resize: str) -> None:
    """A fine chessboard shrinks to gray; taking single pixels would give black and white."""
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    pixels = preprocess(Image.fromarray(board), InputSpec((8, 8), 1, resize))
    assert np.abs(pixels.astype(int) - 127).max() < 8


# What is no picture ---------------------------------------------------------------------------------------------


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A small, well-formed PNG that claims a size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_the_png_below_is_well_formed() -> None:
    assert preprocess(png(2, 1, b"\0\x07\x09"), InputSpec((1, 2), 1)).ravel().tolist() == [7, 9]


@pytest.mark.parametrize("side", [10_001, 12_000, 50_000, 2**31 - 1])
def test_bomb(tmp_path: Path, side: int) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png(side, side))
    assert path.stat().st_size < 100
    refused(lambda: preprocess(path, RGB), path, "pixels", f"{MAX_PIXELS:,}", "allowed")


def test_a_side_that_is_very_long() -> None:
    """Of rows of millions of pixels Pillow copies what it has of one again and again, for minutes."""
    wide = png(MAX_SIDE, 1, b"\0" + bytes(MAX_SIDE))
    assert preprocess(wide, InputSpec((1, 2), 1)).shape == (1, 1, 2)
    refused(lambda: preprocess(png(MAX_SIDE + 1, 1), RGB), "65536 x 1 pixels", "a side of 65,535 is allowed")
    refused(lambda: preprocess(png(1, MAX_SIDE + 1), RGB), "1 x 65536 pixels", "a side of 65,535 is allowed")
    picture = Image.fromarray(PHOTO)
    moving = bytearray(encode(picture, "WEBP", save_all=True, append_images=[picture.rotate(180)]))
    at = moving.index(b"VP8X") + 12  # its canvas: three bytes each for the width and the height, less one
    moving[at : at + 6] = struct.pack("<I", 2_097_212)[:3] + struct.pack("<I", 39)[:3]
    refused(lambda: preprocess(bytes(moving), RGB), "2097213 x 40 pixels")


def test_large_pictures_are_allowed_without_a_warning() -> None:
    """Pillow warns from 89 million pixels on; that many are let through here, if they are there at all."""
    refused(lambda: preprocess(png(10_000, 9_500), RGB), "damaged")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_truncated(tmp_path: Path, kind: str) -> None:
    large = Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encode(large, kind)
    path = tmp_path / "cut.picture"
    path.write_bytes(data[: len(data) // 2])
    refused(lambda: preprocess(path, RGB), path)
    refused(lambda: preprocess(data[:5], RGB), "the picture")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(b"", "is empty", id="empty"),
        pytest.param(b"not a picture\n" * 50, "is not a picture that can be read (JPEG, PNG, WebP", id="text"),
        pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not a picture", id="PostScript"),
        pytest.param(b"GIF89a", "is not a picture", id="header alone"),
    ],
)
def test_files_that_are_no_pictures(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    refused(lambda: read_picture(path, RGB), path, words)
    refused(lambda: preprocess(content, RGB), "the picture", words)


def test_no_file(tmp_path: Path) -> None:
    refused(lambda: preprocess(tmp_path / "none.png", RGB), "cannot read", tmp_path / "none.png", "No such file")
    refused(lambda: preprocess(tmp_path, RGB), "cannot read", tmp_path, "directory")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_damage_is_refused_or_read_and_nothing_else(kind: str) -> None:
    """Some bytes overwritten, 150 times: a warning or any other error would fail the test."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    settings = {"exif": exif} if kind in ("JPEG", "WEBP", "TIFF", "PNG") else {}
    whole, rng = encode(Image.fromarray(PHOTO), kind, **settings), np.random.default_rng(1)
    read, said = 0, ""
    for _ in range(150):
        data = bytearray(whole)
        for place in rng.integers(0, min(len(data), 200), 3):
            data[place] = rng.integers(0, 256)
        try:
            read += preprocess(bytes(data), RGB).shape == (3, 8, 12)
        except UserError as error:
            said += str(error)
    assert read > 0
    assert said
    assert "\n" not in said
