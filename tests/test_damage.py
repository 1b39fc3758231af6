"""Two thousand damaged pictures: no crash, no hang; every bad file is named, every good one is used."""

from __future__ import annotations

import csv
import io
import struct
import subprocess
import sys
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convlens.images import FORMATS, MAX_PIXELS

KINDS = [
    ("jpg", "RGB", {"format": "JPEG"}),
    ("jpg", "L", {"format": "JPEG"}),
    ("jpg", "CMYK", {"format": "JPEG"}),
    ("jpeg", "RGB", {"format": "JPEG", "progressive": True}),
    ("png", "1", {"format": "PNG"}),
    ("png", "L", {"format": "PNG"}),
    ("png", "P", {"format": "PNG"}),
    ("png", "LA", {"format": "PNG"}),
    ("png", "RGBA", {"format": "PNG"}),
    ("png", "I;16", {"format": "PNG"}),
    ("webp", "RGB", {"format": "WEBP"}),
    ("webp", "RGBA", {"format": "WEBP", "lossless": True}),
    ("gif", "P", {"format": "GIF", "frames": 3}),
    ("tif", "RGB", {"format": "TIFF"}),
    ("tif", "CMYK", {"format": "TIFF", "compression": "tiff_lzw"}),
    ("tiff", "F", {"format": "TIFF"}),
    ("tiff", "I;16", {"format": "TIFF", "frames": 2}),
    ("bmp", "RGB", {"format": "BMP"}),
]


def whole(mode: str, settings: dict[str, object], random: np.random.Generator) -> bytes:
    """A real file of one kind: a smooth picture of random colours, about 50 pixels a side."""
    colours = Image.fromarray(random.integers(0, 256, (5, 5, 3), np.uint8))
    picture = colours.resize((50, 40), Image.Resampling.BICUBIC)
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    else:
        picture = picture.convert(mode)
    settings = dict(settings)
    if frames := settings.pop("frames", 0):
        settings |= {"save_all": True, "append_images": [picture.rotate(90 * i) for i in range(1, int(str(frames)))]}
    out = io.BytesIO()
    picture.save(out, **settings)  # type: ignore[arg-type] # keywords of each format
    return out.getvalue()


def damaged(data: bytes, random: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    for _ in range(40):
        yield "cut", data[: random.integers(1, len(data))]
    for _ in range(45):
        flipped = bytearray(data)
        for place in random.integers(0, len(data), random.integers(1, 6)):
            flipped[place] ^= 1 << int(random.integers(8))
        yield "flips", bytes(flipped)
    for _ in range(15):
        start = int(random.integers(len(data)))
        yield "hole", data[:start] + bytes(int(random.integers(1, 200))) + data[start + 100 :]
    for _ in range(15):
        start = int(random.integers(min(60, len(data))))
        yield "header", data[:start] + random.bytes(4) + data[start + 4 :]


def png_of(width: int, height: int, kind: int, body: bytes) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def oddities() -> Iterator[tuple[str, bytes]]:
    yield "bomb.png", png_of(60_000, 60_000, 2, b"")
    yield "bomb-small.png", png_of(10_001, 10_000, 2, b"")
    yield "promise.png", png_of(9_000, 9_000, 6, b"")  # within the limit, and nothing behind the header
    yield "large.png", png_of(8_000, 8_000, 0, bytes(8_001 * 8_000))  # 62 kB that are 64 million pixels: whole
    yield "large-too.png", png_of(8_000, 8_000, 0, bytes(8_001 * 8_000))
    yield (
        "bomb.gif",
        b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + b"\0\0\0," + struct.pack("<4H", 0, 0, 65_535, 65_535),
    )
    yield (
        "bomb.bmp",
        b"BM" + struct.pack("<IHHI", 100, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, 50_000, 50_000, 1, 24, *[0] * 6),
    )
    yield "page.jpg", b"<html><body>404 not found</body></html>"
    yield "text.png", "no picture at all, but words: \u4f60\u597d".encode()
    yield "magic.jpg", b"\xff\xd8\xff\xe0"
    yield "archive.jpg", b"PK\x03\x04" + bytes(100)
    yield "program.gif", b"\x7fELF" + bytes(500)
    yield "postscript.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n"
    yield "zeros.bmp", bytes(3000)
    yield "empty.webp", b""


def corpus(root: Path) -> list[Path]:
    random = np.random.default_rng(2024)
    for folder in ("first", "second"):
        (root / folder).mkdir(parents=True)
    paths = []
    for number, (ending, mode, settings) in enumerate(KINDS):
        for i in range(4):  # whole ones, so that both classes have what can be learnt from
            path = root / ("first", "second")[i % 2] / f"whole-{number:02}-{i}.{ending}"
            path.write_bytes(whole(mode, settings, random))
            paths.append(path)
        for i, (what, data) in enumerate(damaged(whole(mode, settings, random), random)):
            path = root / ("first", "second")[i % 2] / f"{what}-{number:02}-{i:03}.{ending}"
            path.write_bytes(data)
            paths.append(path)
    for name, data in oddities():
        path = root / "first" / name
        path.write_bytes(data)
        paths.append(path)
    lying = root / "second" / "a-jpeg.png"  # a wrong ending is no reason: the content counts
    lying.write_bytes(whole("RGB", {"format": "JPEG"}, random))
    return [*paths, lying]


def pillow_reads(path: Path) -> bool:
    """The judgement by itself: Pillow alone, one file after the other."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    return False
                picture.load()
                picture.convert("RGB")
    except Exception:
        return False
    return True


# Not getrusage of the ended process: Linux counts in it what the process that started it had at that moment.
PROGRAM = """
import sys
from pathlib import Path
from convlens.cli import main
try:
    main()
finally:
    status = Path("/proc/self/status").read_text()
    (Path(sys.argv[-1]) / "peak").write_text(status.split("VmHWM:")[1].split()[0])
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is asked for as Linux tells it")
def test_two_thousand_damaged_pictures(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CONVLENS_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "corpus"
    paths = corpus(root)
    assert len(paths) > 2000
    command = [sys.executable, "-W", "error", "-c", PROGRAM, "train", str(root), "--set", "data.max_bad=1"]
    command += ["--set", "model.args.widths=[4,8]", "--size", "32", "--epochs", "1", "--no-plots", "--no-report"]
    ended = subprocess.run([*command, "--name", "run", "--out", str(tmp_path)], capture_output=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    peak = 1024 * int((tmp_path / "peak").read_text())
    assert peak < 1.2e9, f"{peak / 1e6:,.0f} MB"

    with (tmp_path / "run" / "bad_files.csv").open(newline="") as file:
        bad = {row["path"]: row["reason"] for row in csv.DictReader(file)}
    with (tmp_path / "run" / "split.csv").open(newline="") as file:
        used_ones = {row["path"] for row in csv.DictReader(file)}
    names = {path.relative_to(root).as_posix(): path for path in paths}
    assert not bad.keys() & used_ones
    assert bad.keys() | used_ones == names.keys()
    readable = {name for name, path in names.items() if pillow_reads(path)}
    assert used_ones ^ readable == set()
    assert all(name in used_ones for name in names if "whole" in name)
    assert {"first/large.png", "first/large-too.png", "second/a-jpeg.png"} <= used_ones
    reasons = Counter(reason.partition(":")[0] for reason in bad.values())
    print(f"{len(used_ones):,} used, {len(bad):,} bad, peak {peak / 1e6:,.0f} MB: {reasons.most_common(4)}")
    assert len(bad) > 800, "the damage did no harm"
    assert "claims more pixels" in bad["first/bomb.png"]
    assert bad["first/empty.webp"] == "the file is empty"
    assert all(reason.startswith("the file ") for reason in bad.values())
