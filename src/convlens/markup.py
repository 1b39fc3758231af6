"""Small pieces of HTML that need nothing else, for values that draw themselves in a notebook (`_repr_html_`), and the
templates of whole pages."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # whoever has an array to draw has numpy already
    import numpy as np
    from jinja2 import Environment

WIDTH = 560  # pixels that the tiles of a layer's maps fill at most


def templates(keep_trailing_newline: bool = False) -> Environment:
    """What reads the package's templates: in those of HTML all that is filled in is escaped, and a name that is not
    given is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape  # notebooks draw without it

    return Environment(
        loader=PackageLoader("convlens"),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=keep_trailing_newline,
    )


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], numbers: Sequence[str] = ()) -> str:
    """A table whose cells are text, whatever is in them; the columns in `numbers` are set flush right."""
    sides = ["right" if column in numbers else "left" for column in columns]

    def line(kind: str, cells: Sequence[object]) -> str:
        drawn = zip(cells, sides, strict=True)
        return "".join(
            f'<{kind} style="text-align: {side}; white-space: nowrap">{escape(str(cell))}</{kind}>'
            for cell, side in drawn
        )

    body = "".join(f"<tr>{line('td', row)}</tr>" for row in rows)
    return f"<table><thead><tr>{line('th', columns)}</tr></thead><tbody>{body}</tbody></table>"


def paragraph(text: str, title: str = "") -> str:
    """Text, behind a title in bold where there is one."""
    bold = f"<strong>{escape(title)}</strong> " if title else ""
    return f"<p>{bold}{escape(text)}</p>"


def picture(png: bytes, what: str) -> str:
    """A PNG, in the HTML itself."""
    data = base64.b64encode(png).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{escape(what)}" style="max-width: 100%">'


def tiles(maps: np.ndarray, width: int = WIDTH) -> bytes:
    """A PNG of maps (N, H, W) in rows on one scale: from 0 to the largest value, dark to bright; where there are
    negative ones, blue and red around a white 0."""
    import matplotlib
    import numpy as np
    from PIL import Image

    n, h, w = maps.shape
    rows = -(-n // math.ceil(math.sqrt(2 * n)))  # fewer than columns, which fill them as evenly as they can
    columns = -(-n // rows)
    high = float(np.abs(maps).max()) or 1.0
    signed = bool(maps.min() < 0)
    colors = matplotlib.colormaps["RdBu_r" if signed else "viridis"]
    drawn = colors((maps / high + 1) / 2 if signed else maps / high, bytes=True)[..., :3]
    canvas = np.full((rows * (h + 1) - 1, columns * (w + 1) - 1, 3), 255, np.uint8)
    for i, tile in enumerate(drawn):
        y, x = (i // columns) * (h + 1), (i % columns) * (w + 1)
        canvas[y : y + h, x : x + w] = tile
    scale = max(width // canvas.shape[1], 1)
    file = io.BytesIO()
    Image.fromarray(canvas.repeat(scale, 0).repeat(scale, 1)).save(file, "png")
    return file.getvalue()
