"""The figures of channels and embeddings: which there are, what stands in them, and that they fit their page."""

from __future__ import annotations

import json
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from convlens import Data, Recipe, Run, build, load
from convlens.channels import rank_channels
from convlens.closeup import Row, Shown, embedding_map, picture_rows, ranked_channels
from convlens.insight import blocks, draw_image, draw_network, findings, walk
from convlens.plots import new_axes
from runs import fit_undrawn


@pytest.fixture(scope="module")
def data() -> Data:
    return load("mnist-5k", Recipe(), limit=240)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Data]:
    data = load("mnist-5k", Recipe(), limit=240)
    recipe = Recipe().override({"model.name": "lenet5", "epochs": 1})
    return fit_undrawn(recipe, data, tmp_path_factory.mktemp("insight")), data


def texts(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_a_convolution_and_its_pooling_share_a_row() -> None:
    image = torch.randint(0, 256, (1, 1, 28, 28), dtype=torch.uint8)
    plain = blocks(rank_channels(build("cnn-mnist", channels=1, classes=10, size=(28, 28)), image))
    assert [shown.name for shown, _, _ in plain] == ["network.features.0", "network.features.3"]
    assert plain[0][2] == (
        "features.0",
        "Conv2d, relu: 32 maps of 28 x 28",
        "floor((28 + 2·1 - 3) / 1) + 1 = 28",
        "then MaxPool2d: 32 maps of 14 x 14",
        "floor((28 + 2·0 - 2) / 2) + 1 = 14",
        "each number sees 3 x 3 pixels",
    )
    speed = blocks(rank_channels(build("speednet", channels=1, classes=10, size=(28, 28)), image))
    pooled = [
        (shown.name, type(filters).__name__) for shown, filters, _ in speed if "Pool" in type(shown.layer).__name__
    ]
    assert pooled[0] == ("network.features.3", "Conv2d")  # the pooling has the activation, the convolution the filters
    first = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(288, 2))
    alone = blocks(rank_channels(first, image.float()))
    assert [(shown.name, filters is None) for shown, filters, _ in alone] == [("0", True), ("1", False)]


def test_ranked_channels_stand_in_their_order_with_their_scores() -> None:
    model = build("lenet5", channels=1, classes=10, size=(28, 28))
    image = torch.randint(0, 256, (1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    rows = blocks(rank_channels(model, image[None]))
    axes = ranked_channels(image, rows, "a title", "some\nlines", count=3)
    said = texts(axes)
    for shown, _, lines in rows:
        assert set(lines) <= set(said)
        place = said.index(lines[-1])
        for channel in shown.top(3):
            place = said.index(f"channel {channel}", place)  # of this row, and in this order
            score = shown.scores[0, channel].item()
            assert said[place + 1] == f"{'+' if score >= 0 else '−'}{abs(score):.2f}"
    assert len(axes.images) == 1 + 2 * 3 * 3  # the image; of two layers three channels with map, patch and filter


@pytest.mark.parametrize(("rows", "pictures"), [(1, 9), (8, 10), (10, 10)])
def test_a_page_of_pictures_is_no_larger_than_a_page(rows: int, pictures: int) -> None:
    some = tuple(Shown(torch.zeros(3, 9, 7, dtype=torch.uint8), "a long caption") for _ in range(pictures - 1))
    axes = picture_rows([Row(("name", "more"), some[:1], some)] * rows, "title", "text", ("first", "others"))
    width, height = axes.figure.get_size_inches()
    assert width <= 10.1
    assert height <= 10.5
    assert {"title", "text", "first", "others", "name", "a long caption"} <= set(texts(axes))


def test_right_and_wrong_are_told_by_marks() -> None:
    picture = torch.zeros(1, 4, 4, dtype=torch.uint8)
    axes = picture_rows([Row(("n",), (), (Shown(picture, "cat", True), Shown(picture, "dog", False)))], "t", "x")
    assert {"✓ cat", "✗ dog"} <= set(texts(axes))


def test_a_map_marks_mistakes_and_names_classes() -> None:
    points, labels = torch.randn(40, 2), torch.arange(40) % 3
    predicted = labels.clone()
    predicted[:5] = (labels[:5] + 1) % 3
    axes = embedding_map(points, labels, predicted, ("a", "b", "$c"), "title", ("x", "y"))
    assert texts(axes) == ["a", "b", "$c"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["right (35)", "mistakes (5)"]
    right, wrong = (np.asarray(found.get_offsets()) for found in axes.collections)
    np.testing.assert_allclose(wrong, points[:5], rtol=1e-6)
    np.testing.assert_allclose(right, points[5:], rtol=1e-6)


def test_an_image_with_and_without_a_walk(data: Data, tmp_path: Path) -> None:
    model = build("lenet5", channels=1, classes=10, size=(28, 28))
    image = data.test.at(slice(1))[0]
    drawn, alone = draw_image(tmp_path, model, image, data.classes, "a $caption")
    assert [path.name for path in drawn] == ["channels.png"]
    found = walk(model, data, most=50)
    assert found.extent == f"50 of {len(data.train):,} training images"
    drawn, result = draw_image(tmp_path, model, image, data.classes, "a caption", found)
    assert [path.name for path in drawn] == ["channels.png", "examples.png", "neighbours.png"]
    for path in drawn:
        with Image.open(path) as picture:
            assert picture.width > 1000
    assert json.loads(json.dumps(result))["layers"] == alone["layers"]
    assert len(result["neighbours"]) == 8
    assert {n["train"] for n in result["neighbours"]} <= set(found.places.tolist())
    assert result["class"] == data.classes[int(rank_channels(model, image[None]).classes[0])]


def test_a_training_image_is_no_neighbour_of_its_own(data: Data, tmp_path: Path) -> None:
    model = build("lenet5", channels=1, classes=10, size=(28, 28))
    found, image = walk(model, data, most=50), data.train.at(slice(1))[0]
    assert found.places[0] == 0
    with_it, without = (
        draw_image(tmp_path, model, image, data.classes, "caption", found, itself)[1]["neighbours"]
        for itself in (None, 0)
    )
    assert with_it[0] == {**with_it[0], "train": 0, "distance": pytest.approx(0, abs=1e-6)}
    assert without[:7] == with_it[1:]
    assert len(without) == 8


def test_what_sees_only_padding_is_left_empty(data: Data, tmp_path: Path) -> None:
    model = nn.Sequential(Floats(), nn.Conv2d(1, 2, 1, padding=2), nn.Flatten(), nn.Linear(2 * 32 * 32, 10))
    with torch.no_grad():
        model[1].bias.fill_(9.0)
        model[1].weight.fill_(-1.0)
        model[1].weight[0] = 1.0
    found = walk(model, data, most=30)
    drawn, result = draw_image(tmp_path, model, data.test.at(slice(1))[0], data.classes, "caption", found)
    assert [0, 0, 0, 0] in [top["sees"] for top in result["layers"][0]["top"]]
    assert len(drawn) == 3


def test_the_networks_ranking_is_taken_in_parts(data: Data, tmp_path: Path, monkeypatch) -> None:
    model = build("lenet5", channels=1, classes=10, size=(28, 28))
    found, drawn, sizes = walk(model, data, most=30), [], []
    monkeypatch.setattr("convlens.insight.picture_rows", lambda rows, *_: drawn.append(rows) or new_axes(2, 2))
    handle = model.register_forward_pre_hook(lambda _, x: sizes.append(len(x[0])) if torch.is_grad_enabled() else None)
    draw_network(tmp_path, model, found)
    assert sizes == [min(len(data.test), 64)]
    sizes.clear()
    monkeypatch.setattr("convlens.insight.NUMBERS", 784 * 10)
    draw_network(tmp_path, model, found)
    handle.remove()
    assert max(sizes) == 10
    whole, parts = ([row.lines for row in drawn[i]] for i in (0, len(drawn) // 2))
    assert whole == parts


def test_a_network_without_convolutions_has_neighbours(data: Data, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).to(torch.float32)
    pixels = data.test.at(slice(1))[0].float()
    found = walk(nn.Sequential(Floats(), *model), data, most=30)
    drawn, result = draw_image(tmp_path, model, pixels, data.classes, "caption", found)
    assert [path.name for path in drawn] == ["neighbours.png"]
    assert result["layers"] == []


class Floats(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float()


def test_the_network_itself(data: Data, tmp_path: Path) -> None:
    model = build("lenet5", channels=1, classes=10, size=(28, 28))
    with torch.no_grad():
        first = model.network.features[0]
        first.weight[2], first.bias[2] = 0, -1
        first.weight[4], first.bias[4] = first.weight[1], first.bias[1]
    found = walk(model, data, most=100)
    drawn, result = draw_network(tmp_path, model, found)
    assert [path.name for path in drawn] == ["examples.png", "typical.png", "map-pca.png"]
    assert findings(found.survey)[0] == "network.features.0: of 6 channels 1 dead (2) and 1 duplicate (4 equals 1)"
    assert len(findings(found.survey)) == 1  # the pooling behind it says nothing new
    result = json.loads(json.dumps(result))
    assert result["layers"][0]["dead"] == [2]
    assert len(result["map"]) == len(data.test)


def test_the_command_looks_at_a_network(trained: tuple[Run, Data], convlens, tmp_path: Path) -> None:
    run, data = trained
    result = convlens("explain", run.path, "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"in {len(data.train):,} training images" in result.stderr
    assert "3 pictures in" in result.stderr
    assert len(list((tmp_path / "network").glob("*.png"))) == 3
    assert "dead" in result.stdout

    asked = ("explain", run.path, "test:1", "--method", "none", "--no-feature-maps", "--out", tmp_path, "--json")
    (row,) = json.loads(convlens(*asked).stdout)["images"]
    assert len(row["channels"]["neighbours"]) == 8
    assert [Path(path).name for path in row["files"]] == ["channels.png", "examples.png", "neighbours.png"]

    assert "looked for in" in convlens(*asked).stderr
    heats = ("explain", run.path, "test:1", "--method", "grad-cam", "--layer", "features.0", "--no-channels")
    (row,) = json.loads(convlens(*heats, "--no-feature-maps", "--out", tmp_path, "--json").stdout)["images"]
    assert row["attributions"][0]["layer"] == "network.features.0"  # tables call it as it was given
    asked = ("explain", run.path, "train:3", "--method", "none", "--no-feature-maps", "--out", tmp_path, "--json")
    (row,) = json.loads(convlens(*asked).stdout)["images"]
    assert 3 not in [near["train"] for near in row["channels"]["neighbours"]]


@pytest.mark.slow
def test_the_command_lays_out_a_map(trained: tuple[Run, Data], convlens, tmp_path: Path, monkeypatch) -> None:
    run, _ = trained
    monkeypatch.setitem(sys.modules, "umap", None)
    missing = convlens("explain", run.path, "--map", "umap", "--out", tmp_path)
    assert missing.returncode == 2
    assert "pip install 'convlens[map]'" in missing.stderr
    assert "looked for in" not in missing.stderr  # that is said before the long walk
    laid_out = types.SimpleNamespace(
        UMAP=lambda **_: types.SimpleNamespace(fit_transform=lambda numbers: numbers[:, :2])
    )
    monkeypatch.setitem(sys.modules, "umap", laid_out)
    assert convlens("explain", run.path, "--map", "umap", "--out", tmp_path).returncode == 0
    assert (tmp_path / "network" / "map-umap.png").exists()
    wrong = convlens("explain", run.path, "--map", "tsne")
    assert (wrong.returncode, "there are: pca, umap" in wrong.stderr) == (2, True)


def test_the_command_does_without_data_that_is_gone(convlens, trained, tmp_path: Path, monkeypatch) -> None:
    run, data = trained
    moved = tmp_path / "run"
    shutil.copytree(run.path, moved)
    seen = json.loads((moved / "environment.json").read_text())
    seen["data"]["name"] = "mnist"
    (moved / "environment.json").write_text(json.dumps(seen))
    monkeypatch.setenv("CONVLENS_CACHE", str(tmp_path / "empty"))
    monkeypatch.delenv("CONVLENS_DATA", raising=False)
    Image.fromarray(data.test.at(slice(1))[0, 0].numpy()).save(tmp_path / "digit.png")
    result = convlens("explain", moved, tmp_path / "digit.png", "--no-feature-maps", "--method", "none")
    assert result.returncode == 0, result.stderr
    assert "are left out: the data set mnist is not on this disk" in result.stderr
    assert [path.name for path in (moved / "explain" / "digit").iterdir()] == ["channels.png"]
    itself = convlens("explain", moved)
    assert itself.returncode == 2
    assert "the data set mnist is not on this disk; --data-dir says where it is" in itself.stderr
