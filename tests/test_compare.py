"""Runs side by side: tests of significance against scipy and by hand, and what is said where runs do not compare."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from scipy.stats import binomtest, chi2

from convlens import Recipe, Run, load
from convlens.comparepage import page
from convlens.comparing import EXACT, Comparison, compare, holm, mcnemar
from convlens.console import Console
from convlens.fitting import advance
from convlens.intervals import wilson
from convlens.recipe import ModelConfig
from convlens.run import start
from convlens.summary import summarize
from convlens.together import curves_together
from refusals import refused
from runs import fit_undrawn

RECIPE = Recipe(
    epochs=2, batch_size=64, model=ModelConfig("vgg", args={"widths": [8, 16], "convs": 1}), device="cpu", seed=5
)
OTHER = replace(RECIPE, seed=6, model=ModelConfig("lenet5"), optim=replace(RECIPE.optim, lr=0.02))


@pytest.fixture(scope="module")
def data():
    return load("mnist-5k", RECIPE, limit=400)


@pytest.fixture(scope="module")
def pair(data, tmp_path_factory) -> tuple[Run, Run]:
    out = tmp_path_factory.mktemp("runs")
    return fit_undrawn(RECIPE, data, out), fit_undrawn(OTHER, data, out)


@pytest.fixture(scope="module")
def begun(data, tmp_path_factory) -> Run:
    run = start(RECIPE, data, tmp_path_factory.mktemp("runs"))
    next(advance(run, data))
    return run


def copy(run: Run, to: Path) -> Run:
    shutil.copytree(run.path, to)
    return Run.open(to)


def right(run: Run) -> list[bool]:
    with (run.path / "predictions.csv").open(newline="") as file:
        return [row["label"] == row["predicted"] for row in csv.DictReader(file)]


@pytest.mark.parametrize(("first", "second"), [(0, 0), (0, 1), (5, 5), (1, 9), (20, 4), (0, 24), (12, 12)])
def test_few_in_dispute_are_tested_exactly(first: int, second: int) -> None:
    p, method = mcnemar(first, second)
    assert method == "exact"
    assert p == pytest.approx(binomtest(first, first + second).pvalue if first + second else 1.0, abs=1e-12)


@pytest.mark.parametrize(("first", "second"), [(25, 0), (13, 12), (63, 20), (9, 17), (400, 500)])
def test_many_by_chi_squared_with_the_correction(first: int, second: int) -> None:
    p, method = mcnemar(first, second)
    assert method == "chi-squared"
    assert p == pytest.approx(chi2(1).sf((abs(first - second) - 1) ** 2 / (first + second)), abs=1e-12)
    assert p == mcnemar(second, first)[0]
    exact = binomtest(first, first + second).pvalue
    assert p == pytest.approx(exact, rel=0.4, abs=0.006)  # it stands in for the exact one


def test_an_even_dispute_is_no_difference_by_either_method() -> None:
    assert mcnemar(30, 30) == (1.0, "chi-squared")  # the correction must not make a difference of -1 into one
    assert mcnemar(EXACT // 2, EXACT // 2) == (1.0, "exact")


def test_holm_by_hand() -> None:
    # sorted 0.01 x 4, 0.02 x 3, 0.022 x 2 = 0.044 (not below 0.06), 0.6 x 1
    assert holm([0.02, 0.6, 0.01, 0.022]) == pytest.approx([0.06, 0.6, 0.04, 0.06])
    assert holm([0.7, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_two_runs(pair: tuple[Run, Run]) -> None:
    found = compare(pair)
    answers = [right(run) for run in pair]
    (test,) = found.tests
    kinds = list(zip(*answers, strict=True))
    assert (test.both, test.only_first, test.only_second, test.neither) == tuple(
        kinds.count(kind) for kind in ((True, True), (True, False), (False, True), (False, False))
    )
    assert (test.p, test.method) == mcnemar(test.only_first, test.only_second)
    assert test.p_holm == test.p
    for side, run, mine in zip(found.sides, pair, answers, strict=True):
        assert side.accuracy == run.metrics["test"]["accuracy"]
        assert side.interval == wilson(sum(mine), len(mine))
        assert side.parameters == sum(p.numel() for p in run.model_file().model.parameters())
        assert side.macs == summarize(run.model_file().model, 1, (28, 28)).macs
        assert side.seconds == sum(row["seconds"] for row in run.history)
        assert [dict(row) for row in side.history] == run.history
    assert found.recipe == {
        "seed": (5, 6),
        "model.name": ("vgg", "lenet5"),
        "model.args.widths": ([8, 16], None),
        "model.args.convs": (1, None),
        "optim.lr": (0.1, 0.02),
    }
    backwards = list(compare(pair[::-1]).recipe)
    assert backwards == list(found.recipe)  # what only the second has stands with its section
    assert found.environment == {}
    assert found.said == ()


def test_of_three_the_first_is_tested_with_each_and_corrected(pair: tuple[Run, Run], tmp_path) -> None:
    worse = copy(pair[0], tmp_path / "worse")
    path = worse.path / "predictions.csv"
    header, *rows = path.read_text().splitlines()
    spoilt = [",".join([*line.split(",")[:3], "0", *line.split(",")[4:]]) for line in rows[:40]]
    path.write_text("\n".join([header, *spoilt, *rows[40:]]) + "\n")
    found = compare([pair[0], pair[1], worse])
    assert [(test.first, test.second) for test in found.tests] == [("A", "B"), ("A", "C")]
    assert [test.p_holm for test in found.tests] == holm([test.p for test in found.tests])
    assert found.tests[1].only_second == 0
    assert found.tests[1].only_first == sum(right(pair[0])[:40])


def test_other_data_is_not_tested_and_all_else_is_shown(pair: tuple[Run, Run], tmp_path) -> None:
    fewer = fit_undrawn(RECIPE, load("mnist-5k", RECIPE, limit=300), tmp_path)
    found = compare([pair[0], fewer])
    assert found.tests == ()
    (sentence,) = found.said
    assert sentence.startswith("No McNemar test of A and B: they were trained and tested on different data, or on ")
    assert all(run.environment["data"]["sha256"][:12] in sentence for run in (pair[0], fewer))
    assert found.sides[1].accuracy == fewer.metrics["test"]["accuracy"]
    assert {"data.sha256", "data.limit", "data.images.train", "data.images.test"} <= found.environment.keys()
    assert found.recipe == {}


def test_another_test_split_of_the_same_data_is_not_tested(pair: tuple[Run, Run], tmp_path) -> None:
    other = copy(pair[0], tmp_path / "other")
    path = other.path / "predictions.csv"
    path.write_text(path.read_text().replace("\n0,", "\n9999,", 1))
    found = compare([pair[0], other])
    assert found.tests == ()
    assert "of the same data they held out different images as the test set" in found.said[0]


def test_an_unfinished_run_is_said_and_its_curve_shown(pair: tuple[Run, Run], begun: Run) -> None:
    found = compare([pair[0], begun])
    assert f"B is not finished; go on with: convlens train --resume {begun.path}" in found.said
    assert "No McNemar test of A and B: it needs the predictions of two finished runs." in found.said
    assert (found.sides[1].accuracy, found.sides[1].interval, found.sides[1].epochs) == (None, None, 1)
    assert "not finished" in page(found)
    assert len(curves_together(found.sides).get_lines()) == 4  # validation and training of both


def test_another_machine_makes_times_incomparable(pair: tuple[Run, Run], tmp_path) -> None:
    there = copy(pair[0], tmp_path / "there")
    path = there.path / "environment.json"
    environment = json.loads(path.read_text())
    path.write_text(json.dumps({**environment, "threads": 64, "device": "cuda:0"}))
    found = compare([pair[0], there])
    assert found.environment["threads"] == (environment["threads"], 64)
    assert "their times do not compare" in found.said[0]
    assert found.tests[0].p == 1


def test_what_cannot_be_compared_is_refused(pair: tuple[Run, Run], tmp_path) -> None:
    refused(lambda: compare([pair[0]]), "compare takes 2 to 26 runs, not 1")
    refused(lambda: compare([pair[0].path, pair[0].path / ".." / pair[0].path.name]), "is given twice")
    refused(lambda: compare([pair[0].path, tmp_path]), tmp_path, "is not a run folder")
    for name, text in (("none", None), ("empty", ""), ("other", "a,b\n1,2\n"), ("short", "index,correct\n1\n")):
        damaged = copy(pair[0], tmp_path / name)
        path = damaged.path / "predictions.csv"
        path.unlink() if text is None else path.write_text(text)
        refused(lambda run=damaged: compare([pair[0], run]), path, "is missing or damaged")


def test_a_network_of_ones_own_is_counted_where_it_is_named(data, tmp_path, monkeypatch) -> None:
    (tmp_path / "own_net.py").write_text(
        "from torch import nn\n"
        "def net(channels, classes, size):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(channels * size[0] * size[1], classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    own = fit_undrawn(replace(RECIPE, model=ModelConfig("own_net:net")), data, tmp_path)
    twin = copy(own, tmp_path / "twin")
    found = compare([own, twin])
    assert found.sides[0].macs is None
    assert "The multiply-adds of A were not counted" in found.said[0]
    assert "-m own_net:net" in found.said[0]
    assert compare([own, twin], "own_net:net").sides[1].macs == 784 * 10


def test_the_command(pair: tuple[Run, Run], convlens, tmp_path) -> None:
    paths = [run.path for run in pair]
    done = convlens("compare", *paths, "--html", tmp_path / "c.html", "--plot", tmp_path / "c.png", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(json.dumps(compare(pair).to_dict()))
    with Image.open(tmp_path / "c.png") as picture:
        assert picture.width > 800
    text = (tmp_path / "c.html").read_text(encoding="utf-8")
    assert text.count("data:image/png;base64,") == 2
    assert "http" not in text
    assert convlens("compare", *paths, "--html", tmp_path / "none" / "c.html").returncode == 2
    assert "there are: .png, .svg" in convlens("compare", *paths, "--plot", tmp_path / "c.xyz").stderr
    done = convlens("compare", *paths)
    assert "McNemar's test, on the same test images" in done.stdout
    assert f"{pair[1].metrics['test']['accuracy']:.2%}" in done.stdout


@pytest.mark.parametrize("width", [80, 160])
def test_its_tables_fit_a_terminal(pair: tuple[Run, Run], width: int, monkeypatch, capsys) -> None:
    from convlens import console, telling

    found = compare(pair)
    large = replace(found.sides[0], letter="C", parameters=25_557_032, macs=4_089_184_256, epochs=200, seconds=54_321.0)
    found = replace(found, sides=(*found.sides, large))
    monkeypatch.setattr(console, "out", Console(width=width, highlight=False, markup=False, soft_wrap=True))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    telling._tables(found)
    lines = capsys.readouterr().out.splitlines()
    table = lines.index(next(line for line in lines if line.startswith("run ")))
    assert [line.split()[0] for line in lines[table + 1 : table + 4]] == ["A", "B", "C"]  # nothing folded
    assert "4,089,184,256" in lines[table + 3]
    assert all(len(line) <= width for line in lines if str(found.sides[0].path) not in line and "mnist-5k" not in line)


def test_a_page_escapes_what_people_named(pair: tuple[Run, Run], tmp_path) -> None:
    odd = copy(pair[0], tmp_path / "<b>$1_& runs")
    found: Comparison = compare([odd, pair[1]])
    text = page(found)
    assert "<b>$1_" not in text
    assert "&lt;b&gt;$1_&amp; runs" in text
