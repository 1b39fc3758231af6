"""The layer table on terminals of several widths, and in a pipe."""

from __future__ import annotations

import sys

import pytest
import torch
from rich.console import Console
from torch import nn

from convlens import build, console, layertable, summarize
from convlens.models.normalize import Normalize
from convlens.summary import Summary


def shown(monkeypatch, capsys, summary: Summary, width: int | None, formula: bool = False) -> list[str]:
    """The lines that a terminal of this width gets; None: a pipe."""
    if width:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        made = Console(width=width, highlight=False, markup=False, soft_wrap=True, color_system=None)
        monkeypatch.setattr(console, "out", made)
        monkeypatch.setattr(layertable, "out", made)
    layertable.summary_table(summary, "the network", formula)
    return capsys.readouterr().out.splitlines()


@pytest.fixture(scope="module")
def resnet18() -> Summary:
    with torch.device("cpu"):
        return summarize(build("resnet18", channels=3, classes=10, size=(32, 40)), 3, (32, 40))


@pytest.mark.parametrize("width", [80, 100, 160])
def test_no_line_is_broken_or_too_long(monkeypatch, capsys, resnet18: Summary, width: int) -> None:
    lines = shown(monkeypatch, capsys, resnet18, width)
    assert max(map(len, lines)) <= width
    first = next(i for i, line in enumerate(lines) if line.startswith("layer"))
    rows = lines[first + 1 : first + 1 + len(resnet18.rows)]
    assert [line.split()[0] for line in rows] == [row.name.removeprefix("network.") for row in resnet18.rows]
    total = next(line for line in lines if line.startswith("parameters "))
    assert total.split(maxsplit=1)[1] == "11,173,962, all of them trained, 44.7 MB"


def test_cells_say_what_was_measured(monkeypatch, capsys) -> None:
    layers = (nn.Conv2d(1, 4, (5, 3), 2, 1), nn.Conv2d(4, 4, 3, dilation=2, groups=2), nn.Flatten())
    summary = summarize(nn.Sequential(Normalize((0.0,), (1.0,)), *layers), 1, (28, 30))
    wide = [line.split() for line in shown(monkeypatch, capsys, summary, None)]
    assert ["1", "Conv2d", "5x3", "2", "1", "1", "1", "4x13x15", "64", "11,700", "3.12", "kB", "5x3", "2"] in wide
    assert ["2", "Conv2d", "3", "1", "0", "2", "2", "4x9x11", "76", "7,128", "1.58", "kB", "13x11", "2"] in wide
    narrow = [line.split() for line in shown(monkeypatch, capsys, summary, 80)]
    assert ["1", "Conv", "5x3", "/2", "+1", "4x13x15", "64", "11.7", "k", "5x3"] in narrow
    assert ["2", "Conv", "3", "d2", "g2", "4x9x11", "76", "7.13", "k", "13x11"] in narrow
    height, width = "floor((28 + 2·1 - 5) / 2) + 1 = 13  (1 px left over)", "width floor((30 + 2·1 - 3) / 2) + 1 = 15"
    lines = [line.strip() for line in shown(monkeypatch, capsys, summary, 80, formula=True)]
    assert any(line.endswith(height) for line in lines)
    assert any(line.startswith(width) for line in lines)


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, ""),
        (850, "850"),
        (999, "999"),
        (1000, "1 k"),
        (48_120, "48.1 k"),
        (999_700, "1,000 k"),
        (7_900_456, "7.9 M"),
    ],
)
def test_counts_are_rounded_to_three_digits(count: int, said: str) -> None:
    assert layertable._rounded(count) == said
    assert layertable._rounded(count, "B") == (said and (said if " " in said else f"{said} ") + "B")
