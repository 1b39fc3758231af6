"""The report: one file that opens by itself, whose numbers are the run's, and that no file's name can break."""

from __future__ import annotations

import ast
import base64
import io
import json
import logging
import os
import re
import shlex
import shutil
import sys
import time
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jinja2 import Environment
from jinja2.ext import extract_from_ast
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from convlens import Recipe, Run, fit, load
from convlens import report as reporting
from convlens.charts import scatter
from convlens.cli import app
from convlens.confidence import trust
from convlens.corruptions import CORRUPTIONS
from convlens.evaluation import metrics_of
from convlens.fitting import advance, finish
from convlens.intervals import wilson
from convlens.outcomes import Outcomes, read_outcomes
from convlens.recipe import DataConfig, ModelConfig
from convlens.recipes import RECIPES
from convlens.repeating import evaluating_command, repeating_command
from convlens.report import open_sources, page, write_report
from convlens.run import start
from convlens.session import recipe_from
from refusals import refused
from runs import fit_undrawn

browsed = pytest.mark.slow  # it takes seconds to start; one that is missing is a failure
RECIPE = Recipe(
    name="quick",
    epochs=3,
    batch_size=64,
    model=ModelConfig("vgg", args={"widths": [4, 8], "convs": 1}),
    device="cpu",
    seed=5,
)
HOSTILE = ('<img src=x onerror="document.title=1">', "a'b\"&amp;", "{{ 7 * 7 }}")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return fit_undrawn(RECIPE, load("mnist-5k", RECIPE, limit=1500), tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def written(run: Run) -> Path:
    return write_report(open_sources(run))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Path:
    """The report of pictures whose classes and files have names that would break a page."""
    root, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number, name in enumerate(HOSTILE):
        (root / name).mkdir()
        for i in range(14):
            pixels = random.integers(0, 90, (20, 20, 3)) + np.eye(3, dtype=int)[number] * 120
            file = (f"</script><b>{i}.png", f"new\nline{i}.png", "\udcff" + f"{i}.png")[i % 3].replace("/", "∕")
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONVLENS_CACHE", str(tmp_path_factory.mktemp("cache")))
        recipe = RECIPES["photos"].override({"epochs": 1, "data.size": [16, 16], "device": "cpu"})
        recipe = replace(recipe, model=ModelConfig("vgg", args={"widths": [4], "convs": 1}))
        made = fit_undrawn(recipe, load(root, recipe), tmp_path_factory.mktemp("runs"))
        return write_report(open_sources(made))


class _Page(HTMLParser):
    """What a browser would load, the scripts by id, the words, and the tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.scripts: dict[str, str] = {}
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self._script: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append((tag, given))
        self.loaded += [value or "" for key, value in attrs if key in ("src", "href", "srcset", "data", "action")]
        if tag in ("script", "style"):
            self._script = given.get("id") or tag

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._script = None

    def handle_data(self, data: str) -> None:
        if self._script is not None:
            self.scripts[self._script] = self.scripts.get(self._script, "") + data
        else:
            self.words += data

    def json(self, name: str) -> dict[str, Any]:
        return json.loads(self.scripts[name])


def parsed(path: Path) -> _Page:
    return _Page(path.read_text(encoding="utf-8"))


def test_the_numbers_in_the_page_are_those_of_the_run(run: Run, written: Path) -> None:
    found = parsed(written).json("numbers")
    assert found["metrics"] == run.metrics
    assert found["history"] == run.history
    assert found["recipe"] == run.recipe.to_dict()
    assert found["environment"] == run.environment
    test = run.metrics["test"]
    assert found["interval"] == [*wilson(round(test["accuracy"] * test["images"]), test["images"])]
    assert found["layers"]["parameters"] == run.metrics["parameters"]
    assert found["robustness"]["images"] == test["images"]
    assert found["robustness"]["clean"] == pytest.approx(test["accuracy"])


def test_a_person_reads_the_same_numbers(run: Run, written: Path) -> None:
    words = " ".join(parsed(written).words.split())
    test = run.metrics["test"]
    for number in (f"{100 * test['accuracy']:.2f}", f"{test['loss']:.4f}", f"{run.metrics['parameters']:,}"):
        assert number in words
    for row in test["classes"]:
        assert f"{row['precision']:.2%}{row['recall']:.2%}{row['f1']:.2%}{row['support']:,}" in words.replace(" ", "")


def test_nothing_is_loaded_but_what_is_in_the_file(written: Path, hostile: Path) -> None:
    for path in (written, hostile):
        for target in parsed(path).loaded:
            assert target.startswith(("data:", "#")), target[:80]
        assert "@import" not in path.read_text()
        assert not re.search(r"url\((?!['\"]?data:)", path.read_text())


def test_every_cell_opens_its_images_the_telling_ones_first(run: Run, written: Path) -> None:
    found, album = parsed(written), parsed(written).json("album")
    confusion = run.metrics["test"]["confusion"]
    outcomes = read_outcomes(run.path / "predictions.csv", album["classes"])
    test = run.load_data().test
    buttons = {given["data-cell"] for tag, given in found.tags if tag == "button" and "data-cell" in given}
    assert buttons == {f"{i}-{j}" for i in range(10) for j in range(10) if confusion[i][j]} == set(album["cells"])
    for cell, (count, places) in album["cells"].items():
        truth, said = map(int, cell.split("-"))
        assert count == confusion[truth][said]
        assert len(places) == min(count, reporting.IN_A_CELL)
        sure = [album["pictures"][str(place)]["p"] for place in places]
        assert sure == sorted(sure, reverse=truth != said)
        for place in places:
            shown = album["pictures"][str(place)]
            assert (shown["true"], shown["said"], shown["name"]) == (truth, said, f"test:{place}")
            assert int(test.labels[place]) == truth
            assert shown["p"] == outcomes.probabilities[place].max()
            assert (_pixels(shown["src"]) == test.at(slice(place, place + 1))[0, 0].numpy()).all()


def _pixels(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("L"))


def test_the_worst_mistakes_are_the_surest(run: Run) -> None:
    outcomes = read_outcomes(run.path / "predictions.csv", run.environment["data"]["classes"])
    wrong = outcomes.labels != outcomes.predicted
    ranked = sorted(outcomes.confidence[wrong], reverse=True)
    assert outcomes.confidence[outcomes.worst(5)].tolist() == ranked[:5]
    surest = outcomes.surest(10)
    assert len(set(outcomes.labels[surest].tolist())) == len(set(outcomes.labels[~wrong].tolist()))
    assert outcomes.right[surest].all()


def test_the_confidence_before_calibration_is_found_again(run: Run) -> None:
    file, data = run.model_file(), run.load_data()
    assert file.manifest.calibration.temperature != 1
    raw = file.model(data.test.images).softmax(1).amax(1)
    outcomes = read_outcomes(run.path / "predictions.csv", data.classes)
    assert outcomes.before(file.manifest.calibration.temperature) == pytest.approx(raw.detach().numpy(), abs=1e-4)


def test_a_test_set_that_was_damaged_is_said(run: Run, tmp_path) -> None:
    text = (run.path / "predictions.csv").read_text().splitlines()
    (tmp_path / "predictions.csv").write_text("\n".join([*text[:3], text[3] + ",1"]))
    refused(
        lambda: read_outcomes(tmp_path / "predictions.csv", run.environment["data"]["classes"]), "damaged", exit_code=1
    )
    (tmp_path / "predictions.csv").write_text(f"{text[0]}\n{'9' * 200_000}")  # a field longer than csv allows
    refused(
        lambda: read_outcomes(tmp_path / "predictions.csv", run.environment["data"]["classes"]), "damaged", exit_code=1
    )


def test_the_command_that_repeats_the_run_trains_the_same(run: Run, tmp_path) -> None:
    words = shlex.split(repeating_command(run))
    assert words[:5] == ["convlens", "train", "mnist-5k", "--recipe", "quick"]
    assert words[-2:] == ["--limit", "1500"]
    result = CliRunner().invoke(app, [*words[1:], "--no-plots", "--no-report", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    again = Run.open(next(tmp_path.iterdir()))
    assert replace(again.recipe, note="") == replace(run.recipe, note="")
    assert again.environment["data"]["sha256"] == run.environment["data"]["sha256"]
    assert again.metrics["test"] == run.metrics["test"]


@pytest.mark.parametrize(
    ("name", "flags", "settings"),
    [
        *((name, {}, ()) for name in RECIPES),
        ("quick", {"model.name": "lenet5", "optim.name": "adamw"}, ("model.args.norm=batch",)),
        ("speed-cifar10", {"augment": "strong", "optim.lr": 0.25}, ("model.args.widths=[8, 8, 8]",)),
        ("photos", {"data.label_column": "true", "data.size": [20, 24]}, ("augment.colour=0.1",)),
    ],
)
def test_a_recipe_is_named_by_what_differs_from_the_known_one(name, flags, settings, run: Run, tmp_path) -> None:
    recipe = recipe_from(name, flags, settings)
    for file in ("environment.json", "split.csv"):
        shutil.copy(run.path / file, tmp_path)
    (tmp_path / "recipe.toml").write_text(recipe.to_toml())
    words = shlex.split(repeating_command(Run.open(tmp_path)))
    result = CliRunner().invoke(app, [*words[1:], "--print-recipe"])
    assert result.exit_code == 0, result.output
    (tmp_path / "again.toml").write_text(result.stdout)
    assert replace(Recipe.from_toml(tmp_path / "again.toml"), note="") == replace(recipe, note="")


def test_a_recipe_of_ones_own_is_named_by_its_file(run: Run, tmp_path) -> None:
    for file in ("environment.json", "split.csv"):
        shutil.copy(run.path / file, tmp_path)
    (tmp_path / "recipe.toml").write_text(replace(RECIPE, name="my own").to_toml())
    assert "--recipe recipe.toml" in repeating_command(Run.open(tmp_path))
    assert "recipe.toml lies in the folder of the run" in _Page(page(open_sources(Run.open(tmp_path)))).words


def test_no_path_of_this_machine_is_in_the_page(hostile: Path, run: Run, tmp_path) -> None:
    made = Run.open(hostile.parent)
    folder = made.environment["data"]["folder"]
    found = parsed(hostile)
    assert Path(folder).is_absolute()
    for path in (folder, str(made.path), str(Path.home()) + "/"):
        assert path not in hostile.read_text(encoding="utf-8")
    assert found.json("numbers")["environment"]["data"]["folder"] == Path(folder).name
    assert shlex.split(found.json("numbers")["command"])[2] == Path(folder).name
    assert f"In place of {Path(folder).name} say where your data lies." in found.words

    copy = tmp_path / "some where" / "run"  # what cannot be read is named by its path
    shutil.copytree(run.path, copy)
    environment = json.loads((copy / "environment.json").read_text())
    environment["data"] |= {"name": "mnist", "data_dir": str(tmp_path / "some where" / "data")}
    (copy / "environment.json").write_text(json.dumps(environment))
    (copy / "model.safetensors").unlink()
    sources = open_sources(Run.open(copy))
    assert len(sources.lacking) == 2
    text = page(replace(sources, lacking=(*sources.lacking, "no /opt/elsewhere/it.png here, see https://a.org/b/c")))
    assert str(tmp_path) not in text
    assert "there is no model file run/model.safetensors" in text
    assert "no it.png here, see https://a.org/b/c" in text
    assert "--data-dir data" in _Page(text).json("numbers")["command"]


def test_the_command_that_measures_more_runs_as_printed(run: Run, tmp_path, monkeypatch) -> None:
    copy = tmp_path / "a run"
    shutil.copytree(run.path, copy)
    text = page(replace(open_sources(Run.open(copy)), data=None))
    (printed,) = re.findall(r'<code id="measuring">(.*?)</code>', text)
    words = shlex.split(unescape(printed))
    assert words == ["convlens", "evaluate", "a run", "--corruptions"]
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(app, [*words[1:], "--limit", "20"]).exit_code == 0
    toml = (copy / "recipe.toml").read_text()
    (copy / "recipe.toml").write_text(toml.replace('name = "vgg"', 'name = "my_net:build"'))
    assert evaluating_command(Run.open(copy)) == "convlens evaluate 'a run' -m my_net:build --corruptions"


def test_a_run_that_was_finished_early_is_not_repeated_by_its_recipe(tmp_path) -> None:
    data = load("mnist-5k", RECIPE, limit=400)
    texts = {}
    for name, patience in (("early", 0), ("tired", 1)):
        begun = start(replace(RECIPE, patience=patience), data, tmp_path, name)
        epochs = advance(begun, data)
        next(epochs), epochs.close()
        finish(begun, data, plots=False, report=False)
        texts[name] = page(open_sources(begun))
    assert "finished early, after 1 of 3 epochs" in texts["early"]
    assert "gives the same numbers" not in texts["early"]
    metrics = begun.metrics | {"epochs": 2}  # as if an epoch had followed that was no better
    (begun.path / "metrics.json").write_text(json.dumps(metrics))
    assert "gives the same numbers" in page(open_sources(begun))


@pytest.mark.parametrize("what", ["model card", "plots", "report"])
@pytest.mark.parametrize("error", [RuntimeError("no such luck"), KeyboardInterrupt()])
def test_what_fails_after_the_results_costs_nothing_else(what: str, error, tmp_path, monkeypatch, caplog) -> None:
    def fail(*_: object) -> None:
        raise error

    target = {
        "model card": "convlens.fitting.model_card",
        "plots": "convlens.gallery.draw_run",
        "report": "convlens.report.page",
    }
    monkeypatch.setattr(target[what], fail)
    words = ["train", "mnist-5k", "--limit", "300", "--epochs", "1", "--out", str(tmp_path), "--name", "it"]
    result = CliRunner().invoke(app, words)
    run = Run.open(tmp_path / "it")
    assert run.finished
    (record,) = [record for record in caplog.records if record.name == "convlens.fitting"]
    assert record.levelno == logging.WARNING
    command = "card" if what == "model card" else "report"
    assert "the run is finished" in record.getMessage()
    assert f"its {what} was left out" in record.getMessage()
    assert record.getMessage().endswith(f": convlens {command} {tmp_path / 'it'}")
    if isinstance(error, KeyboardInterrupt):
        assert result.exit_code == 130
        return
    assert "no such luck" in record.getMessage()
    assert result.exit_code == 0, result.output
    assert f"test accuracy {run.metrics['test']['accuracy']:.2%}" in result.output
    assert (run.path / "MODEL_CARD.md").exists() == (what != "model card")
    assert (run.path / "plots").exists() == (what != "plots")
    assert (run.path / "report.html").exists() == (what != "report")
    assert ("report.html" in result.output) == (what != "report")


class _Odd(nn.Module):
    """Convolutions whose maps no gradient reaches, and a last layer with a single input."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Conv2d(1, 4, 3)
        self.narrow = nn.Linear(4, 1)
        self.last = nn.Linear(1, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            maps = self.maps(images.float()).relu()
        return self.last(self.narrow(maps.mean((2, 3))))


def test_what_a_network_does_not_allow_is_named_and_the_rest_is_there(run: Run) -> None:
    sources = open_sources(run)
    assert sources.file
    found = _Page(page(replace(sources, file=replace(sources.file, model=_Odd().eval()))))
    assert "no gradient reaches" in found.words
    assert "principal components" in found.words
    assert "First filters" in found.words
    assert "robustness" in found.json("numbers")


def test_a_part_that_fails_as_a_whole_is_named(run: Run, monkeypatch) -> None:
    for name, title in (("robustness", "Worse images"), ("inside", "Inside")):
        monkeypatch.setattr(reporting, name, lambda *_: 1 / 0)
        found = _Page(page(open_sources(run)))
        assert f"{title} was left out: ZeroDivisionError('division by zero')" in found.words
        assert found.json("numbers")["metrics"] == run.metrics


def test_the_values_of_trust_are_in_the_file(run: Run, written: Path) -> None:
    found = parsed(written)
    file, test = run.model_file(), run.load_data().test
    temperature = file.manifest.calibration.temperature
    with torch.inference_mode():
        expected = trust(file.model(test.images), test.labels, temperature).to_dict()
    given = found.json("numbers")["trust"]
    assert given["coverage"][0] == pytest.approx(expected["coverage"][0], abs=1e-5)
    assert given["temperature"] == run.metrics["calibration"]["temperature"]
    assert given["ece_calibrated"] == pytest.approx(run.metrics["calibration"]["test"]["ece_calibrated"], abs=1e-4)
    assert given["ece"] == pytest.approx(run.metrics["calibration"]["test"]["ece"], abs=1e-4)
    assert sum(each["right"] + each["wrong"] for each in given["bins"]) == len(test)
    assert given["coverage"][0][2] == 1
    assert given["coverage"][0][1] == pytest.approx(run.metrics["test"]["accuracy"])
    words = " ".join(found.words.split())
    for kind in ("bins", "calibrated"):
        for each, other in zip(given[kind], expected[kind], strict=True):
            assert each["confidence"] == pytest.approx(other["confidence"], abs=0.02)
            if each["accuracy"] is not None:
                assert f"{each['accuracy']:.1%}{each['right'] + each['wrong']}" in words.replace(" ", "")
    assert f"{given['coverage'][0][0]:.4f}" in words


def test_the_sample_that_is_harmed_is_bounded(run: Run) -> None:
    test = run.load_data().test
    assert reporting._harmed(10**6, test, 10) == 1000
    assert reporting._harmed(10**9, test, 10) == 0
    large = replace(test, store=torch.empty(1, device="meta").expand(len(test), 3, 224, 224))
    assert 50 <= reporting._harmed(10**6, large, 10) < 100
    assert reporting._harmed(10**6, large, 100) == 0  # a sample with an image of each class would be larger


def test_a_thousand_classes_cost_no_more_than_their_images() -> None:
    k = 1000
    counts = [[int(i == j) * 3 + int(j == (i + 1) % k) for j in range(k)] for i in range(k)]
    labels = np.arange(k).repeat(4)
    predicted = np.where(np.arange(4 * k) % 4 == 3, (labels + 1) % k, labels)
    probabilities = np.full((4 * k, k), 1 / k)
    outcomes = Outcomes(tuple(map(str, range(4 * k))), labels, predicted, probabilities)
    begun = time.process_time()
    shown = reporting._results(
        outcomes,
        {"confusion": counts, "classes": range(k)},
        reporting._Pictures(outcomes, None),
        {"cells": {}, "pictures": {}},
    )
    assert time.process_time() - begun < 3  # a sum of a row for every cell takes ten
    assert shown["matrix"] == []


def test_the_map_tells_twenty_classes_apart_in_both_themes() -> None:
    groups = [(f"class {i}", [(i, i, False, "x")]) for i in range(20)]
    marks = re.findall(r'<g class="(g\d(?: square)?)">', scatter("map", groups))
    assert len(set(marks)) == 20
    css = (Path(reporting.__file__).parent / "templates" / "report.css").read_text()
    (opacity,) = re.findall(r"\.dot \{[^}]*opacity: ([.\d]+)", css)
    colours = re.findall(r"\.g\d \{ stroke: #(\w{6});", css)
    assert len(set(colours)) == 10
    for card in ("ffffff", "1b1e22"):  # --card, light and dark
        for colour in colours:
            seen, behind = (np.array(list(bytes.fromhex(code))) for code in (colour, card))
            blend = float(opacity) * seen + (1 - float(opacity)) * behind
            light, dark = sorted((_luminance(blend), _luminance(behind)), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 3, (colour, card)


def _luminance(colour: np.ndarray) -> float:
    """As WCAG 2 has it."""
    share = colour / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_only_the_wrapper_is_cut_off_the_names_of_layers() -> None:
    cut = reporting.FILTERS["short_name"]
    assert cut("network.features.0 and network.4 never see") == "features.0 and 4 never see"
    assert cut("body.network.0 and my_network.1") == "body.network.0 and my_network.1"


def test_no_rule_of_the_style_is_for_nothing() -> None:
    folder = Path(reporting.__file__).parent
    css = re.sub(r"\{[^{}]*\}", "{}", (folder / "templates" / "report.css").read_text())
    names = set(re.findall(r"\.([a-z][\w-]*)", css)) - {f"{group}{i}" for group in "sg" for i in range(10)}
    files = ("templates/report.html", "templates/report.js", "charts.py", "pagecharts.py")
    source = " ".join((folder / name).read_text(encoding="utf-8") for name in files)
    given = " ".join(text for quote in "\"'`" for text in re.findall(f"{quote}([^{quote}\n]*){quote}", source))
    assert not [name for name in names if not re.search(rf"(?<![\w-]){name}(?![\w-])", given)]


def test_hostile_names_stay_words(hostile: Path) -> None:
    found = parsed(hostile)
    assert not [given for tag, given in found.tags if tag == "b" or "onerror" in given or given.get("src") == "x"]
    assert [tag for tag, _ in found.tags].count("script") == 3
    for name in HOSTILE:
        assert name in found.words
    names = {shown["name"] for shown in found.json("album")["pictures"].values()}
    assert any("<∕script><b>" in name for name in names)
    assert any("\n" in name for name in names)
    assert any("\udcff" in name for name in names)
    rows = [
        given["title"] for tag, given in found.tags if tag == "th" and given.get("scope") == "row" and "title" in given
    ]
    assert rows == sorted(HOSTILE)  # as they are: none was taken for HTML, or for a template


def test_a_run_that_is_not_finished_has_what_there_is(tmp_path) -> None:
    data = load("mnist-5k", RECIPE, limit=400)
    begun = start(RECIPE, data, tmp_path)
    for epochs in (0, 1, 2):
        text = page(open_sources(begun))
        assert "is not finished" in text
        assert 'id="mistakes"' not in text
        assert _Page(text).json("numbers")["metrics"] is None
        assert ("No epoch has been trained" in text, "One epoch has no curve" in text) == (epochs == 0, epochs == 1)
        if epochs == 0:
            epochs_done = advance(begun, data)
        next(epochs_done)
    epochs_done.close()


def test_without_the_data_the_numbers_are_there_and_no_images(run: Run, tmp_path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run.path, copy)
    environment = json.loads((copy / "environment.json").read_text())
    environment["data"]["sha256"] = "0" * 64
    (copy / "environment.json").write_text(json.dumps(environment))
    sources = open_sources(Run.open(copy))
    assert sources.data is None
    found = _Page(page(sources))
    assert "has other content than" in found.words
    assert found.json("numbers")["metrics"] == run.metrics
    assert {shown["src"] for shown in found.json("album")["pictures"].values()} == {""}
    assert "no image: the data was not found" in found.words
    assert "First filters" in found.words


def test_without_the_network_there_is_no_inside(run: Run) -> None:
    sources = replace(open_sources(run), file=None)
    found = _Page(page(sources))
    assert "First filters" not in found.words
    assert "layers" not in found.json("numbers")
    assert found.json("numbers")["metrics"] == run.metrics


def test_without_captum_its_extra_is_named(run: Run, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "captum", None)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    words = _Page(page(open_sources(run))).words
    assert words.count("pip install 'convlens[explain]'") == 1
    assert "What spoke for the worst mistakes" not in words
    assert "What the layers make of three images" in words


def test_a_network_without_convolutions(run: Run) -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(28 * 28, 10)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.last(images.float().flatten(1))

    sources = open_sources(run)
    assert sources.file
    words = _Page(page(replace(sources, file=replace(sources.file, model=Flat().eval())))).words
    assert "First filters" not in words
    assert "Map of the test images" in words
    assert "convolution" in words


def test_a_run_without_mistakes(run: Run, tmp_path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run.path, copy)
    data, classes = run.load_data(), run.environment["data"]["classes"]
    sure = torch.nn.functional.one_hot(data.test.labels, 10) * 50.0
    metrics = run.metrics | {"test": metrics_of(sure, data.test.labels, tuple(classes)).to_dict()}
    (copy / "metrics.json").write_text(json.dumps(metrics))
    rows = [
        [place, classes[label], classes[label], 1, *(int(i == label) for i in range(10))]
        for place, label in enumerate(data.test.labels.tolist())
    ]
    (copy / "predictions.csv").write_text("head\n" + "".join(",".join(map(str, row)) + "\n" for row in rows))
    found = _Page(page(open_sources(Run.open(copy))))
    assert "every test image was classified correctly" in found.words
    assert set(found.json("album")["cells"]) == {f"{i}-{i}" for i in range(10)}
    assert found.json("numbers")["interval"][1] == 1


def test_one_epoch_and_no_validation(tmp_path) -> None:
    recipe = replace(RECIPE, epochs=1, data=DataConfig(val=0.0))
    path = write_report(open_sources(fit_undrawn(recipe, load("mnist-5k", recipe, limit=300), tmp_path)))
    words = parsed(path).words
    assert "No image was held out" in words
    assert "They were not calibrated" in words
    assert "One epoch has no curve" in words


def test_many_classes_are_a_list_of_the_most_frequent_confusions(tmp_path) -> None:
    data = load("mnist-5k", RECIPE, limit=1200)
    names = tuple(f"class number {i}" for i in range(100))
    generator = torch.Generator().manual_seed(0)
    data = replace(
        data,
        classes=names,
        **{
            key: replace(split, labels=split.labels * 10 + torch.randint(10, (len(split),), generator=generator))
            for key, split in (("train", data.train), ("test", data.test))
        },
        val=None,
    )
    run = fit_undrawn(replace(RECIPE, epochs=1), data, tmp_path)
    found = _Page(page(replace(open_sources(run), data=data)))
    confusion = run.metrics["test"]["confusion"]
    wrong = sorted((confusion[i][j] for i in range(100) for j in range(100) if i != j), reverse=True)
    cells = found.json("album")["cells"]
    assert sorted((count for count, _ in cells.values()), reverse=True) == wrong[: reporting.PAIRS]
    assert len([1 for tag, given in found.tags if tag == "button" and "data-cell" in given]) == reporting.PAIRS


def _texts() -> set[str]:
    """All that the page says: the arguments of `_` in the template and of `say` in Python, and what is said by a
    variable."""
    folder = Path(reporting.__file__).parent
    template = Environment().parse((folder / "templates" / "report.html").read_text(encoding="utf-8"))
    called = [text for _, _, text in extract_from_ast(template, ("_",))]  # a tuple where values are put into it
    texts = {text for each in called if (text := each[0] if isinstance(each, tuple) else each) is not None}
    for name in ("report.py", "pagecharts.py", "pageinside.py"):
        for node in ast.walk(ast.parse((folder / name).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "say":
                texts |= {node.args[0].value} if isinstance(node.args[0], ast.Constant) else set()
    texts |= set(reporting._words(lambda text, **_: text))
    texts |= {
        *CORRUPTIONS,
        "pixels dropped",
        "small field",
        "large field",
        "not run",
        "Grad-CAM",
        "Integrated gradients",
    }
    columns = [f"{split} {quantity}" for split in ("train", "val", "test") for quantity in ("loss", "accuracy")]
    return texts | {*columns, "epoch", "lr", "seconds", "images per second"}


def test_every_word_has_its_chinese_one(run: Run) -> None:
    folder = Path(reporting.__file__).parent
    known = json.loads((folder / "templates" / "report.zh.json").read_text(encoding="utf-8"))
    assert set(known) == _texts()
    for english, chinese in known.items():
        assert set(re.findall(r"\{\w+\}", english)) == set(re.findall(r"\{\w+\}", chinese)), english
    text = page(open_sources(run), "zh")
    assert '<html lang="zh-CN">' in text
    assert not re.search(
        r"\b(is|was|were|the|are)\b", re.sub(r"<pre.*?</pre>|note.*?\n", "", _Page(text).words, flags=re.S)
    )


def test_the_command(run: Run, convlens, tmp_path) -> None:
    result = convlens("report", run.path, "--lang", "zh", "--out", tmp_path / "there.html")
    assert (result.returncode, result.stdout.strip()) == (0, str(tmp_path / "there.html"))
    assert '<html lang="zh-CN">' in (tmp_path / "there.html").read_text()
    for flags, words in (
        (("--lang", "de"), "unknown language 'de'"),
        (("--out", tmp_path / "no" / "where.html"), "folder that exists"),
    ):
        result = convlens("report", run.path, *flags)
        assert result.returncode == 2
        assert words in result.stderr
    assert convlens("report", tmp_path).returncode == 2


def test_a_run_ends_with_its_report(convlens, tmp_path) -> None:
    flags = ("mnist-5k", "--limit", "300", "--epochs", "1", "--no-plots", "--out", tmp_path)
    trained = convlens("train", *flags, "--name", "with")
    assert trained.returncode == 0, trained.stderr
    assert str(tmp_path / "with" / "report.html") in trained.stderr
    assert parsed(tmp_path / "with" / "report.html").json("numbers")["metrics"]
    trained = convlens("train", *flags, "--name", "without", "--no-report")
    assert "report.html" not in trained.stderr
    assert not (tmp_path / "without" / "report.html").exists()


def test_fit_writes_it_too(tmp_path) -> None:
    recipe = replace(RECIPE, epochs=1)
    assert (fit(recipe, load("mnist-5k", recipe, limit=300), tmp_path).path / "report.html").exists()


class _Tab:
    """A page in a browser, which notes what it says and what it asks for."""

    def __init__(self, browser: Any, path: Path, width: int, **settings: Any) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 900}, **settings)
        self.complaints: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.route("**/*", self._ask)
        self.page.goto(path.as_uri())

    def _ask(self, route: Any) -> None:
        if route.request.url.startswith(("file:", "data:")):
            route.continue_()
        else:
            self.complaints.append(f"asked for {route.request.url}")
            route.abort()


@browsed
@pytest.mark.parametrize("width", [360, 1600])
@pytest.mark.parametrize("which", ["written", "hostile"])
def test_in_a_browser_it_fits_and_asks_for_nothing(browser, width: int, which: str, request) -> None:
    tab = _Tab(browser, request.getfixturevalue(which), width)
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert tab.page.title().startswith("vgg")
    for button in ("[data-cell]", ".theme", "th > button", "[data-copy]"):
        tab.page.locator(button).first.click()
        tab.page.keyboard.press("Escape")
    assert tab.page.title().startswith("vgg")
    assert tab.complaints == []
    tab.page.close()


@browsed
@pytest.mark.parametrize("width", [360, 1600])
def test_a_cell_shows_its_images_with_their_names(browser, written: Path, width: int) -> None:
    tab = _Tab(browser, written, width)
    album = parsed(written).json("album")
    cell = next(cell for cell, (count, _) in album["cells"].items() if count > 1 and cell[0] != cell[2])
    tab.page.locator(f'[data-cell="{cell}"]').click()
    dialog = tab.page.locator("dialog[open]")
    shown = [album["pictures"][str(place)] for place in album["cells"][cell][1]]
    assert dialog.locator("img").count() == len(shown)
    assert dialog.locator("img").evaluate_all("images => images.every(image => image.naturalWidth > 0)")
    assert [dialog.locator(".file").nth(i).inner_text() for i in range(len(shown))] == [one["name"] for one in shown]
    text = dialog.locator("li").first.inner_text()
    assert f"{100 * shown[0]['p']:.1f}%" in text
    assert f"true: {shown[0]['true']}" in text
    assert dialog.evaluate("element => element.scrollWidth <= element.clientWidth")
    tab.page.keyboard.press("Escape")
    assert tab.page.locator("dialog[open]").count() == 0
    assert tab.page.evaluate("document.activeElement.dataset.cell") == cell
    assert tab.complaints == []
    tab.page.close()


@browsed
def test_by_keyboard_alone(browser, written: Path) -> None:
    tab = _Tab(browser, written, 1600)
    tab.page.keyboard.press("Tab")
    assert tab.page.evaluate("document.activeElement.className") == "skip"
    stops = []
    for _ in range(60):
        tab.page.keyboard.press("Tab")
        stops.append(tab.page.evaluate("document.activeElement.dataset.cell ?? ''"))
        if stops[-1]:
            break
    assert stops[-1] == next(iter(sorted(parsed(written).json("album")["cells"])))
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert tab.page.evaluate(outline) == "solid"
    row = tab.page.locator(".matrix tbody tr").first.locator("button")
    assert row.count() > 1
    tab.page.keyboard.press("ArrowRight")
    assert tab.page.evaluate("document.activeElement.dataset.cell") == row.nth(1).get_attribute("data-cell")
    tab.page.keyboard.press("Enter")
    assert tab.page.locator("dialog[open]").count() == 1
    tab.page.keyboard.press("Escape")
    tab.page.keyboard.press("Tab")  # the matrix is one stop
    assert not tab.page.evaluate("document.activeElement.dataset.cell ?? ''")
    tab.page.close()


@browsed
def test_values_are_read_by_hovering(browser, written: Path, run: Run) -> None:
    tab = _Tab(browser, written, 1600)
    tab.page.locator("#training .hit").first.hover()
    assert f"{run.history[0]['train_loss']:.4g}" in tab.page.locator(".tip").inner_text()
    maps = tab.page.locator("[data-sees]")
    maps.last.hover()
    assert tab.page.locator(".seen .box").count() == 1
    tab.page.close()


@browsed
def test_values_are_read_by_a_tap(browser, written: Path, run: Run) -> None:
    tab = _Tab(browser, written, 360, has_touch=True, is_mobile=True)
    tab.page.locator("#training .hit").first.tap()
    assert f"{run.history[0]['train_loss']:.4g}" in tab.page.locator(".tip").inner_text()
    tab.page.close()


@browsed
def test_tables_are_sorted_by_their_headings(browser, written: Path, run: Run) -> None:
    tab = _Tab(browser, written, 1600)
    recall = tab.page.locator("#classes th > button").nth(2)
    recall.click()
    rows = tab.page.locator("#classes tbody").first.locator("tr")
    shown = [rows.nth(i).locator("td").nth(1).inner_text() for i in range(10)]
    assert shown == [
        f"{value:.2%}" for value in sorted((c["recall"] for c in run.metrics["test"]["classes"]), reverse=True)
    ]
    assert tab.page.locator("#classes th[aria-sort=descending]").count() == 1
    tab.page.close()


@browsed
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_words_can_be_read_in_light_and_dark(browser, written: Path, scheme: str) -> None:
    tab = _Tab(browser, written, 1600, color_scheme=scheme)
    for _ in range(2):  # as the system asks, and the other by the button
        assert tab.page.evaluate(CONTRAST) == []
        tab.page.locator(".theme").click()
    colours = tab.page.evaluate("getComputedStyle(document.documentElement).colorScheme")
    assert colours == scheme
    tab.page.close()


CONTRAST = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = (colour) => {
    const [r, g, b] = colour.slice(0, 3).map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const colour = rgba(getComputedStyle(element).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return [255, 255, 255];
  };
  const poor = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || element.closest("script, style, .tip, dialog:not([open])") || element.matches(".none")) continue;
    const style = getComputedStyle(element);
    const inside = element.closest("svg") ? style.fill : style.color;
    const [a, b] = [light(rgba(inside)), light(behind(element))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) poor.push(`${element.outerHTML.slice(0, 90)} ${ratio}`);
  }
  return poor;
}"""


@browsed
def test_it_prints(browser, written: Path) -> None:
    tab = _Tab(browser, written, 1600, color_scheme="dark")
    printed = tab.page.pdf(format="A4")
    assert printed.startswith(b"%PDF")
    pages = len(re.findall(rb"/Type\s*/Page\b", printed))
    assert 4 <= pages <= 20
    tab.page.emulate_media(media="print", color_scheme="dark")
    assert tab.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not tab.page.locator(".theme").is_visible()
    tab.page.close()


@browsed
def test_the_chinese_page_in_a_browser(browser, run: Run, tmp_path) -> None:
    tab = _Tab(browser, write_report(open_sources(run), tmp_path / "zh.html", "zh"), 360)
    assert tab.page.evaluate("document.documentElement.lang") == "zh-CN"
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 360
    tab.page.locator("[data-cell]").first.click()
    assert (
        "真实" in tab.page.locator("dialog[open]").inner_text()
        or "判断正确" in tab.page.locator("dialog[open]").inner_text()
    )
    assert tab.complaints == []
    tab.page.close()


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize(("data", "recipe"), [("mnist", "speed-mnist"), ("cifar10", "speed-cifar10-70")])
def test_size_and_time_of_a_real_one(data: str, recipe: str, data_root: Path, tmp_path) -> None:
    loaded = load(data, RECIPES[recipe], data_root)
    run = fit_undrawn(RECIPES[recipe], loaded, tmp_path)
    begun = time.process_time()
    path = write_report(reporting.Sources(run, loaded, run.model_file()))
    seconds = (time.process_time() - begun) / min(os.cpu_count() or 1, 2)
    assert path.stat().st_size < 10e6
    assert seconds < (30 if data == "mnist" else 60)
