"""A search goes on after any end as if there had been none, prunes what lags, and looks at no test set."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import filelock
import pytest
import torch

from convlens import Data, InputSpec, Recipe, Split, evaluate, make_model, train
from convlens.errors import FAILED
from convlens.recipe import LossConfig, ModelConfig, OptimConfig
from convlens.recipes import get_recipe
from convlens.tune import Space, Span, Trial, best_first, best_recipe, past, search, usual_space, vary
from interruptions import stop_after
from refusals import refused

pytest.importorskip("optuna")

RECIPE = Recipe(
    name="small",
    epochs=3,
    batch_size=20,
    precision="fp32",
    model=ModelConfig("vgg", args={"widths": [4, 6], "convs": 1}),
    optim=OptimConfig("sgd", 0.05),
)
SPACE: Space = {"optim.lr": Span(0.001, 0.1), "batch_size": (10, 20), "model.args.widths": ([4, 6], [6, 8])}


class Untouched(Split):
    """A test set that must not be looked at."""

    def __init__(self) -> None: ...

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError("the test set was looked at")


@pytest.fixture(scope="module")
def data() -> Data:
    """Three classes, told apart by which rows are bright."""
    generator = torch.Generator().manual_seed(1)

    def split(n: int) -> Split:
        images = torch.randint(0, 200, (n, 1, 12, 12), dtype=torch.uint8, generator=generator)
        labels = torch.arange(n) % 3
        for image, label in zip(images, labels.tolist(), strict=True):
            image[:, 4 * label : 4 * label + 4] += 50
        return Split(images, labels, torch.arange(n))

    shape = InputSpec((12, 12), 1)
    return Data("rows", ("a", "b", "c"), shape, (0.4,), (0.3,), False, "sha", split(60), split(45), Untouched())


def plain(trials: list[Trial]) -> list[Trial]:
    return [replace(trial, seconds=0.0) for trial in trials]


@pytest.fixture(scope="module")
def unbroken(data: Data, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Trial], Path]:
    folder = tmp_path_factory.mktemp("unbroken")
    return list(search(RECIPE, data, SPACE, folder, trials=12)), folder


def test_trials_are_what_they_say(unbroken: tuple[list[Trial], Path], data: Data) -> None:
    trials, folder = unbroken
    assert [trial.number for trial in trials] == list(range(1, 13))
    assert past(folder) == trials
    for trial in trials:
        assert 0.001 <= trial.settings["optim.lr"] <= 0.1
        assert trial.settings["batch_size"] in (10, 20)
        assert trial.settings["model.args.widths"] in ([4, 6], [6, 8])
    assert len({trial.settings["optim.lr"] for trial in trials}) == 12
    assert any(trial.settings["optim.lr"] < 0.01 for trial in trials)  # logarithmic: half of the draws
    assert data.val is not None
    best = best_first(trials)[0]
    assert best.accuracy == max(trial.accuracy or 0 for trial in trials if trial.state == "complete")
    made = best_recipe(RECIPE, data, trials)
    model = make_model(made, data)
    list(train(model, data, made))
    assert evaluate(model, data.val).accuracy == best.accuracy


def test_the_best_recipe_is_the_best_trials(unbroken: tuple[list[Trial], Path], data: Data, tmp_path: Path) -> None:
    trials, _ = unbroken
    made = best_recipe(RECIPE, data, trials)
    (tmp_path / "best.toml").write_text(made.to_toml())
    again = Recipe.from_toml(tmp_path / "best.toml")
    assert again == made
    assert replace(again, name="small", note="") == RECIPE.override(best_first(trials)[0].settings)
    assert made.name == "small-tuned"
    assert "best of 12 trials around small on rows" in made.note
    assert "45 validation images" in made.note
    assert "test set was not looked at" in made.note


def test_a_search_in_parts_is_the_search(unbroken: tuple[list[Trial], Path], data: Data, tmp_path: Path) -> None:
    parts, told = [1, 2, 5, 12], []
    for count in parts:
        told.append(list(search(RECIPE, data, SPACE, tmp_path, trials=count)))
    assert [len(some) for some in told] == [b - a for a, b in zip([0, *parts], parts, strict=False)]
    assert plain([trial for some in told for trial in some]) == plain(unbroken[0])
    assert list(search(RECIPE, data, SPACE, tmp_path, trials=4)) == []  # there are more


def test_a_stopped_trial_does_not_count(unbroken: tuple[list[Trial], Path], data: Data, tmp_path: Path) -> None:
    stop = threading.Event()
    watch = stop_after(stop, 40)
    told = list(search(RECIPE, data, SPACE, tmp_path, trials=12, stop=stop, watch=lambda _: watch))
    assert 1 < len(told) < 12
    assert past(tmp_path) == told
    told += search(RECIPE, data, SPACE, tmp_path, trials=12)
    assert plain(told) == plain(unbroken[0])


def test_stopped_at_the_end_of_an_epoch_it_does_not_count_either(data: Data, tmp_path: Path) -> None:
    stop = threading.Event()
    watch = stop_after(stop, 3)
    space: Space = {"optim.lr": Span(0.01, 0.1)}
    assert list(search(RECIPE, data, space, tmp_path, stop=stop, watch=lambda _: watch)) == []


def test_no_trial_begins_after_the_timeout(data: Data, tmp_path: Path) -> None:
    assert list(search(RECIPE, data, SPACE, tmp_path, timeout=0)) == []
    (one,) = search(RECIPE, data, SPACE, tmp_path, trials=1, timeout=1000)
    assert one.state == "complete"


def test_what_lags_is_pruned(data: Data, tmp_path: Path) -> None:
    """Rates of which one learns nothing: dropped after an epoch, once five others are complete."""
    recipe = replace(RECIPE, seed=4)
    space: Space = {"optim.lr": (0.05, 0.04, 0.03, 1e-9)}
    trials = list(search(recipe, data, space, tmp_path, trials=14))
    pruned = [trial for trial in trials if trial.state == "pruned"]
    assert pruned
    assert any(trial.settings["optim.lr"] == 1e-9 for trial in pruned)
    assert all(trial.epochs < 3 for trial in pruned)
    assert sum(trial.state == "complete" for trial in trials[: pruned[0].number - 1]) >= 5
    assert best_first(trials)[0].settings["optim.lr"] != 1e-9


def test_a_trial_that_fails_is_a_result(data: Data, tmp_path: Path) -> None:
    space: Space = {"optim.lr": (0.05, 1e30)}
    trials = list(search(RECIPE, data, space, tmp_path / "some", trials=6))
    failed = [trial for trial in trials if trial.state == "failed"]
    assert 0 < len(failed) < 6
    assert all("the loss is" in t.error and t.accuracy is None and t.settings["optim.lr"] == 1e30 for t in failed)
    trials = list(search(RECIPE, data, {"optim.lr": (1e30, 1e31)}, tmp_path / "none", trials=2))
    refused(lambda: best_recipe(RECIPE, data, trials), "no trial of 2 came to its end: the loss is", exit_code=FAILED)


def test_another_search_in_the_same_folder(unbroken: tuple[list[Trial], Path], data: Data, tmp_path: Path) -> None:
    folder = tmp_path / "trials"
    shutil.copytree(unbroken[1], folder)

    def go(recipe: Recipe = RECIPE, data: Data = data, space: Space = SPACE) -> Iterator[Trial]:
        return search(recipe, data, space, folder, trials=12)

    assert list(go()) == []
    assert list(go(replace(RECIPE, note="said otherwise"))) == []
    for other in (
        go(replace(RECIPE, epochs=4)),
        go(data=replace(data, sha256="x")),
        go(space={"optim.lr": Span(0.001, 0.2)}),
    ):
        refused(lambda other=other: list(other), "another recipe, data set or --vary", "--out")
    lock = filelock.FileLock(folder / ".lock")
    with lock:
        refused(lambda: list(go()), "another process searches in", folder)
    (folder / "trials.db").write_bytes(b"no database, but long enough for one" * 100)
    refused(lambda: list(go()), "trials.db cannot be used for trials")


def test_what_a_search_needs(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(lambda: list(search(RECIPE, replace(data, val=None), SPACE, tmp_path)), "validation", "--set data.val=0.1")
    refused(lambda: list(search(replace(RECIPE, epochs=0), data, SPACE, tmp_path)), "epochs")
    refused(lambda: list(search(RECIPE, data, SPACE, tmp_path / "a?b")), "question mark")
    wrong = replace(RECIPE, model=ModelConfig("vgg", args={"widht": 3}))
    refused(lambda: list(search(wrong, data, SPACE, tmp_path / "new")), "widht")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setitem(sys.modules, "optuna", None)
    refused(lambda: list(search(RECIPE, data, SPACE, tmp_path)), "pip install 'convlens[tune]'")


@pytest.mark.parametrize(
    ("text", "key", "expected"),
    [
        ("optim.lr=0.01..0.5", "optim.lr", Span(0.01, 0.5)),
        ("optim.lr=1..2", "optim.lr", Span(1, 2)),
        ("epochs=4..8", "epochs", Span(4, 8, whole=True)),
        ("model.args.dropout=0..0.5", "model.args.dropout", Span(0, 0.5)),
        ("model.args.convs=1..3", "model.args.convs", Span(1, 3, whole=True)),
        (" batch_size = 32, 64 ", "batch_size", (32, 64)),
        ("optim.name=sgd,muon", "optim.name", ("sgd", "muon")),
        ("augment.flip=true,false", "augment.flip", (True, False)),
        ("model.args.widths=[8, 16];[16, 32]", "model.args.widths", ([8, 16], [16, 32])),
        ("augment.crop=[]", "augment.crop", ([],)),
    ],
)
def test_vary(text: str, key: str, expected: Any) -> None:
    assert vary(text, get_recipe("quick")) == (key, expected)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("optim.lr", ["--vary takes KEY=LOW..HIGH or KEY=A,B,C", "'optim.lr'"]),
        ("=1,2", ["--vary takes"]),
        ("optim.lr=", ["--vary takes"]),
        ("optim.lrr=0.1,0.2", ["did you mean 'optim.lr'?"]),
        ("optim.lr=0.5..0.1", ["two numbers, the smaller one first", "'0.5..0.1'"]),
        ("optim.lr=0.1..", ["two numbers"]),
        ("optim.lr=0.1..inf", ["two numbers"]),
        ("optim.name=adam..sgd", ["two numbers"]),
        ("optim.lr=-1..1", ["optim.lr must be 0 or more"]),
        ("optim.name=sgd,adan", ["did you mean 'adam'?"]),
        ("batch_size=0.5..2", ["batch_size must be a whole number"]),
        ("data.val=0.1,0.2", ["--vary does not take data.val"]),
        ("seed=1,2", ["--vary does not take seed"]),
    ],
)
def test_what_vary_refuses(text: str, words: list[str]) -> None:
    refused(lambda: vary(text, get_recipe("quick")), *words)


def test_spans() -> None:
    assert [Span(0.01, 0.1).log, Span(0.02, 0.1).log, Span(0, 5).log, Span(1, 10, True).log] == [
        True,
        False,
        False,
        True,
    ]


def test_the_usual_space(data: Data) -> None:
    space = usual_space(get_recipe("quick"), data)
    assert space == {
        "optim.lr": Span(0.1 / 10, 0.1 * 10),
        "optim.weight_decay": Span(1e-5, 1e-2),
        "batch_size": (64, 128, 256),
        "model.args.widths": ([8, 16, 32], [16, 32, 64], [32, 64, 128]),
        "loss.label_smoothing": Span(0, 0.2),
        "augment.shift": Span(0, 1, whole=True),
        "augment.cutout": Span(0, 6, whole=True),
    }
    mirrored = usual_space(get_recipe("speed-cifar10"), replace(data, flip_ok=True))
    assert mirrored["augment.flip"] == (False, True)
    assert {"optim.lr", "optim.linear_lr", "optim.bias_lr"} < mirrored.keys()
    other = replace(RECIPE, model=ModelConfig("resnet9"), optim=OptimConfig("adamw"), loss=LossConfig("mse"))
    space = usual_space(other, data)
    assert space["model.args.width"] == (32, 64, 128)
    assert space["optim.weight_decay"] == Span(1e-3, 1.0)
    assert "loss.label_smoothing" not in space
    assert not any(key.startswith("model.") for key in usual_space(replace(RECIPE, model=ModelConfig("lenet5")), data))


FLAGS = (
    "mnist-5k",
    "--limit",
    "300",
    "--epochs",
    "2",
    "--trials",
    "3",
    "--vary",
    "optim.lr=0.01..1",
    "--vary",
    "batch_size=32,64",
)


@pytest.mark.slow
def test_killed_and_taken_up_at_the_terminal(convlens, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "convlens", "tune", *FLAGS, "--out", str(tmp_path / "cut")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("trial 1/3"):
                process.kill()
                break
    assert process.returncode == -signal.SIGKILL
    left = 3 - len(past(tmp_path / "cut"))
    assert 0 < left < 3
    found = {}
    for name in ("cut", "whole"):
        result = convlens("tune", *FLAGS, "--out", tmp_path / name, "--json")
        assert result.returncode == 0, result.stderr
        assert sum(line.startswith("trial ") for line in result.stderr.splitlines()) == (left if name == "cut" else 3)
        found[name] = json.loads(result.stdout)
        best = Recipe.from_toml(found[name]["recipe"])
        assert {key: found[name]["best"]["settings"][key] for key in ("optim.lr", "batch_size")} == {
            "optim.lr": best.optim.lr,
            "batch_size": best.batch_size,
        }
        assert found[name]["recipe"] == str(tmp_path / name / "best.toml")
    for one, other in zip(found["cut"]["trials"], found["whole"]["trials"], strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    trained = convlens("train", "mnist-5k", "--limit", "300", "--recipe", found["cut"]["recipe"], "--print-recipe")
    assert "best of 3 trials around quick" in trained.stdout


@pytest.mark.slow
def test_interrupted_at_the_terminal(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "convlens",
        "tune",
        *FLAGS,
        "--trials",
        "50",
        "--out",
        str(tmp_path / "a b"),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("trial "):
                process.send_signal(signal.SIGINT)
                break
        out, rest = process.communicate()
    assert process.returncode == 130
    assert "the same command goes on" in rest
    assert "Traceback" not in rest
    assert out.startswith("The best of ")
    assert Recipe.from_toml(tmp_path / "a b" / "best.toml").name == "quick-tuned"


def test_without_a_validation_split_at_the_terminal(convlens, tmp_path: Path) -> None:
    result = convlens("tune", "mnist-5k", "--recipe", "speed-mnist", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.strip().splitlines()[-1].endswith("--set data.val=0.1")
    assert list(tmp_path.iterdir()) == []
