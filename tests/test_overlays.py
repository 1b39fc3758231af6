"""The figures of explanations: what is drawn where, on which scale, and under which words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from PIL import Image
from torch import Tensor

from convlens import build
from convlens.attribution import Attribution
from convlens.overlays import attributions, draw_attributions, draw_wishes, settings_line, title
from convlens.splits import Split

CLASSES = ("cat", "a/b $x$", "dog")


@pytest.fixture
def image() -> Tensor:
    return torch.randint(0, 256, (3, 12, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def signed() -> Attribution:
    heat = torch.linspace(-1, 3, 240).view(12, 20)
    settings = {"baseline": [1.2, 3.0, 200.0], "window": 4, "gap": 0.01234}
    return Attribution("occlusion", 0, 0.8312, heat.expand(3, 12, 20), heat, signed=True, against=2, settings=settings)


@pytest.fixture
def unsigned() -> Attribution:
    heat = torch.linspace(0, 5, 240).view(12, 20)
    return Attribution("grad-cam", 1, 0.5, heat[None], heat, signed=False, layer="features.3", settings={"relu": True})


def words(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_a_row_is_image_heat_and_both(image: Tensor, signed: Attribution, unsigned: Attribution) -> None:
    axes = attributions(image, [signed, unsigned], CLASSES, truth="dog")
    below, above = axes.images[:4], axes.images[4:]  # rows are drawn from below
    for pictures, found in ((above, signed), (below, unsigned)):
        picture, heat, gray, over = pictures
        assert np.array_equal(picture.get_array(), image.permute(1, 2, 0).numpy())
        for layer in (heat, over):
            assert np.array_equal(layer.get_array(), found.heat.numpy())
            end = np.quantile(found.heat.abs().numpy(), 0.995)
            assert layer.get_clim() == pytest.approx((-end if found.signed else 0, end))
            assert layer.get_cmap().name == ("RdBu_r" if found.signed else "inferno")
        assert gray.get_extent() == over.get_extent()
        assert over.get_alpha().max() == pytest.approx(0.85)
        assert over.get_alpha()[found.heat == 0].max(initial=0) == 0
        left, right, bottom, top = picture.get_extent()
        assert (right - left) / (top - bottom) == pytest.approx(20 / 12)
        assert right < heat.get_extent()[0] < heat.get_extent()[1] < over.get_extent()[0]
    assert above[0].get_extent()[2] > below[0].get_extent()[3]
    said = words(axes)
    assert "cat (83.1%) and not dog; in truth dog" in said
    assert "Occlusion: baseline 1 3 200, window 4, gap 0.012; red speaks for cat, blue for dog" in said
    assert "a/b $x$ (50.0%); in truth dog" in said
    assert "Grad-CAM at features.3" in said
    scales = [child.get_ylabel() for child in axes.child_axes]
    assert scales == ["weighted maps", "fall of the difference of logits"]


def test_words(signed: Attribution) -> None:
    assert title(replace(signed, against=None), CLASSES) == "cat (83.1%)"
    assert settings_line(replace(signed, method="saliency", settings={})) == "Saliency"


def test_heat_without_any_heat_is_drawn(image: Tensor, unsigned: Attribution) -> None:
    axes = attributions(image[:1], [replace(unsigned, heat=torch.zeros(12, 20))], CLASSES)
    assert axes.images[1].get_clim() == (0, 1)
    assert axes.images[0].get_array().shape == (12, 20)


def test_a_file_each_named_by_what_it_shows(
    image: Tensor, signed: Attribution, unsigned: Attribution, tmp_path: Path
) -> None:
    drawn = draw_attributions(tmp_path / "new", image, [signed, unsigned], CLASSES)
    assert [path.name for path in drawn] == ["occlusion-cat-not-dog.png", "grad-cam-a_b_x_.png"]
    for path in drawn:
        with Image.open(path) as picture:
            assert picture.width > 800
            assert np.asarray(picture.convert("L"))[:, -3:].min() == 255  # nothing is cut off at its right edge


def test_wishes_and_means_are_drawn(tmp_path: Path) -> None:
    model = build("cnn-mnist", channels=1, classes=3, size=(8, 8))
    split = Split(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 1, 0]), torch.arange(4))  # no class 2
    drawn, found = draw_wishes(tmp_path, model, split, CLASSES)
    assert [path.name for path in drawn] == ["class-means.png", "wishes.png"]
    assert found.targets == (0, 1, 2)
    assert found.images.shape == (3, 1, 8, 8)
