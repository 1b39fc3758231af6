"""Values that draw themselves in a notebook: what is shown is theirs, whatever they are called; nobody else pays."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import sys
from dataclasses import replace
from html import escape
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from IPython.core.formatters import DisplayFormatter
from PIL import Image

from convlens import Recipe, Run, build, compare, feature_maps, load, plots, summarize
from convlens.attribution import attribute
from convlens.evaluation import SHOWN, metrics_of
from convlens.explain import FeatureMap
from convlens.fitting import advance
from convlens.markup import table, tiles
from convlens.overlays import attributions
from convlens.recipe import ModelConfig
from convlens.run import start
from runs import fit_undrawn

RECIPE = Recipe(epochs=2, batch_size=64, model=ModelConfig("vgg", args={"widths": [8], "convs": 1}), device="cpu")


@pytest.fixture(scope="module")
def data():
    return load("mnist-5k", RECIPE, limit=300)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> Run:
    return fit_undrawn(RECIPE, data, tmp_path_factory.mktemp("runs"))


class Cells(HTMLParser):
    """The text of all cells of all tables, and the names of all elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.elements: list[str] = []
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:  # noqa: ARG002 - the parser's own signature
        self.elements.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")
            self._inside = True

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.cells[-1] += data


def shown(value: object) -> dict[str, object]:
    """What Jupyter is sent for the last value of a cell, by kind."""
    return DisplayFormatter().format(value)[0]


def test_metrics_show_their_numbers_and_escape_their_names() -> None:
    logits, labels = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)), torch.arange(50) % 3
    metrics = metrics_of(logits, labels, ("<b>", "a&b", '"c"'))
    text = shown(metrics)["text/html"]
    found = Cells(text)
    assert "b" not in found.elements
    for c in metrics.classes:
        place = found.cells.index(c.name)
        assert found.cells[place + 1 : place + 5] == [f"{v:.2%}" for v in (c.precision, c.recall, c.f1)] + [
            str(c.support)
        ]
    assert f"accuracy {metrics.accuracy:.2%}" in text


def test_of_many_classes_the_worst_are_shown() -> None:
    many = SHOWN + 20
    labels = torch.arange(many).repeat(2)
    logits = torch.nn.functional.one_hot(labels, many).float()
    logits[0] = 0
    logits[0, 5] = 1  # of class 0 one of two is right, and class 5 is said once too often
    found = Cells(shown(metrics_of(logits, labels))["text/html"]).cells[5:]
    assert found[0::5][:2] == ["0", "5"]
    assert len(found) == 5 * SHOWN


def test_a_summary_shows_every_layer_and_the_totals() -> None:
    summary = summarize(build("lenet5", channels=1, classes=10, size=(28, 28)), 1, (28, 28))
    text = shown(summary)["text/html"]
    found = Cells(text)
    for row in summary.rows:
        assert row.name in found.cells
        assert row.formula in found.cells
    assert "5 x 5" in found.cells
    assert "all" in found.cells
    assert f"{summary.parameters:,} parameters" in text
    assert f"{summary.macs:,} multiply-adds" in text
    odd = summarize(build("vgg", channels=1, classes=10, size=(28, 28), args={"widths": [4, 4, 4]}), 1, (28, 28))
    assert odd.notes
    assert all(escape(note.text) in shown(odd)["text/html"] for note in odd.notes)


def test_a_run_shows_its_result_and_its_curves(run: Run) -> None:
    text = shown(run)["text/html"]
    assert f"test accuracy {run.metrics['test']['accuracy']:.2%}" in text
    assert f"{run.metrics['parameters']:,}" in Cells(text).cells
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    assert len(pictures) == 2
    for picture in pictures:
        with Image.open(io.BytesIO(base64.b64decode(picture))) as opened:
            assert opened.width > 250
    assert "http" not in text
    assert len(text) < 200_000


def test_an_unfinished_run_shows_how_to_go_on(data, tmp_path) -> None:
    begun = start(RECIPE, data, tmp_path)
    assert f"convlens train --resume {begun.path}" in shown(begun)["text/html"]
    next(advance(begun, data))
    assert "img" not in Cells(shown(begun)["text/html"]).elements  # one epoch is no curve


def test_a_comparison_shows_results_and_differences(run: Run, data, tmp_path) -> None:
    other = fit_undrawn(replace(RECIPE, seed=3), data, tmp_path)
    found = compare([run, other])
    cells = Cells(shown(found)["text/html"]).cells
    place = cells.index("seed")
    assert cells[place + 1 : place + 3] == ["0", "3"]
    assert f"{found.tests[0].p:.3g}" in cells


def test_a_feature_map_shows_its_tiles(run: Run, data) -> None:
    feature = feature_maps(run.model_file().model, data.test.images[0])[0]
    text = shown(feature)["text/html"]
    assert feature.formula.replace("<", "&lt;") in text
    assert "img" in Cells(text).elements


def test_an_attribution_shows_its_heat_and_its_figure(run: Run, data) -> None:
    model, image = run.model_file().model, data.test.images[0]
    (found,) = attribute(model, image[None], "input-x-gradient", target=3, against=5)
    text = shown(found)["text/html"]
    assert "<strong>input-x-gradient</strong> why class 3 rather than class 5" in text
    (picture,) = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    with Image.open(io.BytesIO(base64.b64decode(picture))) as opened:
        assert opened.size == (280, 280)
    assert "image/png" in shown(attributions(image, [found], data.classes))


def test_tiles_stand_in_rows_on_one_scale() -> None:
    maps = np.zeros((3, 2, 2), np.float32)
    maps[1, 0, 1], maps[2, 1, 0] = 4, 2
    with Image.open(io.BytesIO(tiles(maps, width=16))) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.shape == (2 * 2, 8 * 2, 3)  # three tiles of 2 x 2, two gaps, each pixel twice
    white, dark, half, bright = ((255,) * 3, (68, 1, 84), (32, 144, 140), (253, 231, 36))  # viridis at 0, 1/2, 1
    rows = pixels[::2, ::2]
    assert [tuple(p) for p in rows[0].tolist()] == [dark, dark, white, dark, bright, white, dark, dark]
    assert np.abs(rows[1, 6].astype(int) - half).max() <= 2
    signed = FeatureMap("x", "Conv2d", torch.tensor([[[-1.0, 0.0, 1.0]]]), "")
    with Image.open(io.BytesIO(tiles(signed.maps.numpy(), width=3))) as picture:
        blue, middle, red = np.asarray(picture).reshape(3, 3).astype(int)
    assert blue[2] > blue[0]
    assert red[0] > red[2]
    assert middle.min() > 240


def test_all_of_one_value_is_drawn() -> None:
    for value in (0.0, -2.0):
        with Image.open(io.BytesIO(tiles(np.full((5, 3, 3), value, np.float32)))) as picture:
            assert picture.width > 100


def test_what_plots_returns_is_shown_as_a_picture(run: Run) -> None:
    found = shown(plots.curves(run.history))
    with Image.open(io.BytesIO(found["image/png"])) as picture:
        assert picture.format == "PNG"


def test_a_table_takes_any_text() -> None:
    cells = ["<td>", "&amp;", '"', "\n", "𝄞"]
    assert Cells(table(cells, [cells], cells[:1])).cells == cells * 2


def test_nobody_else_pays() -> None:
    code = (
        "import sys, convlens\nconvlens.Metrics, convlens.Run, convlens.summarize, convlens.feature_maps\n"
        "assert not {'IPython', 'matplotlib', 'jinja2'} & set(sys.modules), 'drawn for nobody'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
