"""The drawing of a network: every layer is in one box, sizes are to scale, nothing overlaps."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import Polygon, Rectangle
from PIL import Image
from torch import nn

from convlens import build, summarize
from convlens.drawing import MOST, blocks_of, network
from convlens.models.normalize import Normalize
from convlens.plots import save
from convlens.summary import Summary


def deep(layers: int = 120, side: int = 64) -> Summary:
    """As many convolutions, of which every twelfth halves the sides and every fifth changes the width."""
    stack: list[nn.Module] = [Normalize((0.0,), (1.0,), 1)]
    width = 1
    for i in range(layers):
        wider = 4 + 4 * (i // 5)
        stack += [nn.Conv2d(width, wider, 3, 1 + (i % 24 == 23), 1), nn.BatchNorm2d(wider), nn.ReLU()]
        width = wider
    with torch.device("cpu"):
        return summarize(nn.Sequential(*stack, nn.Flatten(), nn.LazyLinear(10)), 1, (side, side))


def of(name: str, size: tuple[int, int] = (32, 40)) -> Summary:
    return summarize(build(name, channels=3, classes=10, size=size), 3, size)


@pytest.fixture(scope="module")
def summaries() -> dict[str, Summary]:
    return {"vgg": of("vgg"), "resnet18": of("resnet18"), "speednet": of("speednet"), "deep": deep()}


NAMES = ["vgg", "resnet18", "speednet", "deep"]


@pytest.mark.parametrize("name", NAMES)
def test_every_layer_is_in_one_box_in_order(name: str, summaries: dict[str, Summary]) -> None:
    summary = summaries[name]
    for most in (MOST, 6, 1000):
        blocks = blocks_of(summary, most)
        assert len(blocks) <= most
        assert [n for block in blocks for n in block.names] == ["input", *(row.name for row in summary.rows)]
        assert sum(block.parameters for block in blocks) == summary.parameters
        assert sum(block.macs for block in blocks) == summary.macs
        assert blocks[-1].output == (10,)


def test_what_passes_on_belongs_to_what_multiplied() -> None:
    blocks = blocks_of(summarize(build("lenet5", channels=1, classes=10, size=(28, 28)), 1, (28, 28)))
    kinds = [block.kinds for block in blocks]
    assert kinds[:4] == [("Normalize",), ("Conv 5", "ReLU"), ("AvgPool 2/2",), ("Conv 5", "ReLU")]
    assert kinds[4:] == [("AvgPool 2/2",), ("Flatten",), ("Linear", "ReLU"), ("Linear", "ReLU"), ("Linear",)]


@pytest.mark.parametrize("name", NAMES)
def test_boxes_are_to_scale_and_texts_do_not_overlap(name: str, summaries: dict[str, Summary]) -> None:
    summary = summaries[name]
    axes = network(summary, name)
    blocks = blocks_of(summary)
    boxes = [p for p in axes.patches if isinstance(p, Rectangle) and p.get_edgecolor()[:3] == (0, 0, 0)]
    assert len(boxes) == len(blocks)
    maps = [(box, block.output) for box, block in zip(boxes, blocks, strict=True) if len(block.output) == 3]
    first, (_, height, _) = maps[0]
    for box, (_, high, _) in maps:
        assert box.get_height() / first.get_height() == pytest.approx(math.sqrt(high / height))
    assert len([p for p in axes.patches if isinstance(p, Polygon)]) == 2 * len(maps)
    bars = [p for p in axes.patches if isinstance(p, Rectangle) and p not in boxes]
    costs = [b.parameters for b in blocks if b.parameters], [b.macs for b in blocks if b.macs]
    for drawn, counts in zip((bars[: len(costs[0])], bars[len(costs[0]) :]), costs, strict=True):
        shares = [bar.get_height() / max(b.get_height() for b in drawn) for bar in drawn]
        assert shares == pytest.approx([count / max(counts) for count in counts])
    canvas = axes.figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    places = [text.get_window_extent(canvas.get_renderer()) for text in axes.texts]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(places, 2))


@pytest.mark.parametrize("ending", [".png", ".svg"])
def test_both_kinds_of_files(ending: str, tmp_path: Path, summaries: dict[str, Summary]) -> None:
    file = save(network(summaries["deep"], "deep"), tmp_path / f"net{ending}")
    if ending == ".svg":
        assert file.read_text().rstrip().endswith("</svg>")
    else:
        with Image.open(file) as picture:
            assert 600 < picture.width < 3000
