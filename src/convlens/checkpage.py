"""The findings of `check` as one HTML page with thumbnails, which opens from the disk and needs nothing else."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

from PIL import Image

from .album import Album
from .checking import Report
from .errors import UserError
from .findings import Finding, Item
from .images import InputSpec, preprocess
from .markup import templates

THUMBNAIL = 96  # pixels of its longer side
SHOWN = 40  # thumbnails a finding: fifteen kinds of them make a page of about 2 MB
COPIES = 4  # thumbnails of one picture's copies


def page(report: Report) -> str:
    """The whole page. Of each finding the first SHOWN pictures are shown, and named; a terminal or JSON names all."""
    album = report.album
    place_of = {name: place for place, name in enumerate(album.names)}
    sections = [(finding, _rows(album, finding, place_of)) for finding in report.findings]
    found = report.to_dict()
    largest = max((count for row in found["counts"].values() for count in row.values()), default=0)
    text = templates().get_template("check.html").render(found=found, sections=sections, largest=max(largest, 1))
    return text.encode(errors="backslashreplace").decode()  # a file name need not be UTF-8, a page must


def _rows(album: Album, finding: Finding, place_of: dict[str, int]) -> list[dict[str, Any]]:
    """The items that are shown: their note, and of each file its name and thumbnail ("" where it has none)."""
    return [
        {"note": item.note, "files": files, "more": len(item.files) - len(files)}
        for item, files in _some(album, finding.items, place_of)
    ]


def _some(
    album: Album, items: tuple[Item, ...], place_of: dict[str, int]
) -> Iterator[tuple[Item, list[tuple[str, str]]]]:
    room = SHOWN
    for item in items:
        shown = item.files[: min(room, COPIES)]
        if room <= 0 or (room < 2 <= len(item.files)):  # half of a pair shows nothing
            return
        room -= max(len(shown), 1)
        yield item, [(name, _thumbnail(album, place_of[name]) if name in place_of else "") for name in shown]


def _thumbnail(album: Album, place: int) -> str:
    """A data: URI. Of a file it is made anew, in the file's own proportions; else of the pixels that are trained on."""
    fact = album.facts[place]
    if album.root and fact:
        scale = THUMBNAIL / max(fact.size)
        height, width = (max(round(side * scale), 1) for side in fact.size)
        try:
            pixels = preprocess(album.root / album.names[place], InputSpec((height, width), 3, "stretch"))
        except UserError:  # changed since it was decoded
            return ""
        kind, settings = "jpeg", {"quality": 75}
    else:
        pixels, kind, settings = album.pictures.at(slice(place, place + 1))[0].numpy(), "png", {}
    file = io.BytesIO()
    image = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
    Image.fromarray(image.copy()).save(file, kind, **settings)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
