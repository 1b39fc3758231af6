"""A comparison of runs as one HTML page, which opens from the disk and needs nothing else."""

from __future__ import annotations

import base64

from .comparing import EXACT, Comparison, shown
from .markup import templates
from .plots import new_axes, rendered
from .together import curves_together


def page(found: Comparison) -> str:
    """The whole page: the runs with their intervals, curves, what differs, McNemar's test."""
    environment = templates()
    environment.filters["shown"] = shown
    bounds = [bound for side in found.sides for bound in side.interval or ()]
    quantities = ("accuracy", "loss") if any(side.history for side in found.sides) else ()
    text = environment.get_template("compare.html").render(
        found=found,
        low=min(bounds, default=0),
        width=max(bounds, default=1) - min(bounds, default=0),
        curves={
            name: base64.b64encode(rendered(curves_together(found.sides, name, new_axes(4.9, 3.6)))).decode()
            for name in quantities
        },
        exact=EXACT,
    )
    return text.encode(errors="backslashreplace").decode()  # a folder's name need not be UTF-8, a page must
