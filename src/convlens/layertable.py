"""The layer table on the terminal."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .console import out, print_table

if TYPE_CHECKING:  # torch takes a second to import
    from .summary import LayerRow, Summary


def summary_table(summary: Summary, name: str, with_formula: bool) -> None:
    """The layer table, its totals and notes. A narrow terminal gets the columns that fit: windows as `5 /2 +1` (kernel,
    stride, padding), counts rounded; with the formula, that column and no others. A pipe gets everything."""
    channels, height, width = summary.input
    out.print(f"{name} on {height} x {width} images of {channels} channel{'s' if channels > 1 else ''}\n")
    wide = not sys.stdout.isatty() or out.width >= 150
    if wide:
        columns = ["layer", "kind", "kernel", "stride", "padding", "output", "parameters", "multiply-adds"]
        columns += ["activations", "receptive field", "jump"]
        rows = [_wide_row(row) for row in summary.rows]
        if any(row.dilation not in ("", "1") or row.groups > 1 for row in summary.rows):
            columns[5:5] = ["dilation", "groups"]
            for cells, row in zip(rows, summary.rows, strict=True):
                cells[5:5] = [row.dilation, str(row.groups) if row.kernel else ""]
    elif with_formula:
        columns, rows = ["layer", "output"], [[_name(row), _sizes(row.output)] for row in summary.rows]
    else:
        columns = ["layer", "kind", "window", "output", "params", "MACs", "field"]
        rows = [_narrow_row(row) for row in summary.rows]
        if out.width >= 95:
            columns += ["jump", "memory"]
            for cells, row in zip(rows, summary.rows, strict=True):
                cells += [_both(row.jump), _rounded(row.activation_bytes, "B")]
    if with_formula:
        columns.append(f"output height{' = floor((n + 2·padding - kernel) / stride) + 1' if wide else ''}")
        for cells, row in zip(rows, summary.rows, strict=True):
            cells.append(f"{row.formula}; width {row.formula_width}" if row.formula_width else row.formula)
    numbers = {"layer", "kind", "output", columns[-1] if with_formula else ""}
    print_table("", columns, rows, [column for column in columns if column not in numbers])
    trained = "all" if summary.trainable == summary.parameters else f"{summary.trainable:,}"
    weights, memory = _rounded(summary.weight_bytes, "B"), _rounded(summary.activation_bytes, "B")
    out.print(f"\nparameters     {summary.parameters:,}, {trained} of them trained, {weights}")
    out.print(f"multiply-adds  {summary.macs:,} for one image")
    out.print(f"activations    {memory} for one image in fp32, all outputs together")
    margin = " " * len("activations    ")
    for note in summary.notes:
        columns_left = out.width if sys.stdout.isatty() else 1000
        out.print(
            textwrap.fill(_short(note.text), columns_left, initial_indent="note" + margin[4:], subsequent_indent=margin)
        )


def _wide_row(row: LayerRow) -> list[str]:
    cells = [_name(row), row.kind, row.kernel, row.stride, row.padding, _sizes(row.output)]
    cells += [f"{row.parameters:,}" if row.parameters else "", f"{row.macs:,}" if row.macs else ""]
    return [*cells, _rounded(row.activation_bytes, "B"), _both(row.receptive_field), _both(row.jump)]


def _narrow_row(row: LayerRow) -> list[str]:
    window = row.kernel and row.kernel + "".join(
        f" {sign}{value}"
        for sign, value, usual in (
            ("/", row.stride, "1"),
            ("+", row.padding, "0"),
            ("d", row.dilation, "1"),
            ("g", str(row.groups), "1"),
        )
        if value != usual
    )
    kind = re.sub(r"([a-z])2d\b", r"\1", row.kind)
    cells = [_name(row), kind, window, _sizes(row.output)]
    return [*cells, _rounded(row.parameters), _rounded(row.macs), _both(row.receptive_field)]


def _name(row: LayerRow) -> str:
    return _short(row.name)


def _sizes(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _both(sides: tuple[int, int] | None) -> str:
    return "all" if sides is None else str(sides[0]) if sides[0] == sides[1] else _sizes(sides)


def _rounded(count: int, unit: str = "") -> str:
    """`850`, `48.1 k`, `1.2 M`; with the unit B `18.8 kB`; nothing for 0."""
    if not count:
        return ""
    for power, prefix in ((9, "G"), (6, "M"), (3, "k")):
        if count >= 10**power:
            return (
                f"{count / 10**power:.3g} {prefix}{unit}"
                if count < 999.5 * 10**power
                else f"{count / 10**power:,.0f} {prefix}{unit}"
            )
    return f"{count} {unit}".rstrip()


def _short(text: str) -> str:
    """Names without what they all begin with in a network of `build`."""
    return re.sub(r"\bnetwork\.", "", text)
