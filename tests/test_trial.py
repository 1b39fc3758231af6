"""trial: one training in a process of its own, and what its lines say."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from convlens import Data, Recipe, load
from convlens.evaluation import evaluate
from convlens.flops import training_flops
from convlens.recipe import AugmentConfig, DataConfig, ModelConfig, OptimConfig
from convlens.run import make_model
from convlens.training import train
from convlens.trial import peak_flops, peak_memory, run_flops, trial

TINY = Recipe(
    epochs=1,
    batch_size=50,
    device="cpu",
    precision="fp32",
    model=ModelConfig("vgg", args={"widths": [4, 6], "convs": 1}),
    optim=OptimConfig("adam", 0.01),
    data=DataConfig(val=0.0),
)


@pytest.fixture(scope="module")
def data() -> Data:
    return load("mnist-5k", TINY, limit=300)


@pytest.fixture
def no_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large matrix products take seconds, and one test has them."""
    monkeypatch.setattr("convlens.trial.peak_flops", lambda *_: 1e9)


# As `python -m convlens.trial`, which test_bench.py starts, but without the seconds of large matrix products.
PROGRAM = "from convlens import trial; trial.peak_flops = lambda *_: 1e15; trial.main()"


@pytest.mark.slow
def test_a_process_of_its_own_reports_lines_of_json(data: Data, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(replace(TINY, tta="mirror").to_toml(), encoding="utf-8")
    command = [sys.executable, "-W", "error", "-c", PROGRAM, str(path), "mnist-5k", "--limit", "300"]
    result = subprocess.run(
        [*command, "--seed", "3", "--threads", "1"], capture_output=True, text=True, timeout=600, check=False
    )
    assert result.returncode == 0, result.stderr
    looked, told = map(json.loads, result.stdout.splitlines())
    assert looked["epoch"] == 1
    assert looked["test_accuracy"] == told["accuracy"]
    assert looked["train_seconds"] > 0
    assert looked["evaluate_seconds"] > 0

    assert told["seconds"].keys() == {"import", "data", "compile", "train", "evaluate"}
    assert told["seconds"].pop("compile") == 0
    assert all(value > 0 for value in told["seconds"].values())
    assert told["images_per_second"] == pytest.approx(len(data.train) / told["seconds"]["train"])
    counted = training_flops(make_model(TINY, data), data.train.images[:2], data.train.labels[:2])
    assert told["flops"] == counted * len(data.train)
    assert told["flops_per_second"] == pytest.approx(told["flops"] / told["seconds"]["train"])
    assert told["peak_flops_per_second"] == 1e15
    assert told["peak_memory_bytes"] > 50_000_000  # torch alone is more
    assert told["device_memory_bytes"] is None
    assert (told["peer"], told["precision"], told["threads"], told["device"]) == ("convlens", "fp32", 1, "cpu")
    assert told["versions"] == {"torch": torch.__version__}

    # it is the training of the recipe with the seed that was given
    recipe = replace(TINY, seed=3)
    model = make_model(recipe, data)
    list(train(model, data, recipe))
    assert told["parameters"] == sum(p.numel() for p in model.parameters())
    one_image = 1.01 / len(data.test)  # with other threads the sums differ in their last bits
    assert told["accuracy"] == pytest.approx(evaluate(model, data.test).accuracy, abs=one_image)
    assert told["tta_accuracy"] == pytest.approx(evaluate(model, data.test, tta="mirror").accuracy, abs=one_image)


def lines(recipe: Recipe, data: Data, **settings: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    *epochs, last = trial(recipe, data, **settings)
    return epochs, last


@pytest.mark.usefixtures("no_peak")
def test_it_ends_with_the_epoch_that_is_good_enough(data: Data) -> None:
    recipe = replace(TINY, epochs=4)
    epochs, last = lines(recipe, data, to_accuracy=0.05)
    assert [line["epoch"] for line in epochs] == [1]
    assert last["accuracy"] == epochs[0]["test_accuracy"] >= 0.05
    assert last["images_per_second"] == pytest.approx(len(data.train) / last["seconds"]["train"])
    assert last["flops_per_second"] == pytest.approx(last["flops"] / 4 / last["seconds"]["train"])  # a quarter was done
    assert last["seconds"]["evaluate"] == epochs[0]["evaluate_seconds"]

    epochs, last = lines(recipe, data, to_accuracy=1.1)  # it never is
    assert [line["epoch"] for line in epochs] == [1, 2, 3, 4]
    assert last["seconds"]["train"] == pytest.approx(sum(line["train_seconds"] for line in epochs))


@pytest.mark.usefixtures("no_peak")
def test_the_test_set_is_looked_at_once_or_after_every_epoch(data: Data) -> None:
    recipe = replace(TINY, epochs=2)
    once, last = lines(recipe, data)
    assert [line["epoch"] for line in once] == [2]
    each, last_of_each = lines(recipe.override({"data.test_each_epoch": True}), data)
    assert [line["epoch"] for line in each] == [1, 2]
    assert last["accuracy"] == last_of_each["accuracy"] == once[0]["test_accuracy"]
    assert last["tta_accuracy"] is None


def test_arithmetic_of_growing_crops_is_added_up(data: Data) -> None:
    recipe = replace(TINY, epochs=3, augment=AugmentConfig(crop=[12, 40]))  # 40 keeps the images of 28 x 28 whole
    model = make_model(recipe, data)
    small, large = (
        training_flops(model, data.train.images[:2, :, :side, :side], data.train.labels[:2]) for side in (12, 28)
    )
    assert run_flops(recipe, data) == (small + 2 * large) * len(data.train)
    assert run_flops(TINY, data) == large * len(data.train)


def test_arithmetic_of_frozen_convolutions_is_not_counted(data: Data) -> None:
    recipe = replace(TINY, epochs=2, optim=replace(TINY.optim, freeze=[0.5]))
    model = make_model(recipe, data)
    batch = data.train.images[:2], data.train.labels[:2]
    whole = training_flops(model, *batch)
    for kind in (nn.Conv2d, nn.BatchNorm2d):  # then the second convolution needs no gradient of its images, either
        next(layer for layer in model.modules() if isinstance(layer, kind)).requires_grad_(False)
    less = training_flops(model, *batch)
    assert less < whole
    assert run_flops(recipe, data) == (whole + less) * len(data.train)


def test_arithmetic_of_head_epochs_is_that_of_the_last_layer_backward(data: Data) -> None:
    recipe = replace(TINY, epochs=2, optim=replace(TINY.optim, head_epochs=1))
    model = make_model(recipe, data)
    batch = data.train.images[:2], data.train.labels[:2]
    whole = training_flops(model, *batch)
    for p in list(model.parameters())[:-2]:
        p.requires_grad_(False)
    assert run_flops(recipe, data) == (whole + training_flops(model, *batch)) * len(data.train)


def test_what_the_machine_can_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured with small matrices, for the time's sake."""
    real = torch.randn
    monkeypatch.setattr(torch, "randn", lambda *_, **__: real(64, 64))
    for precision in ("fp32", "bf16"):
        assert peak_flops(torch.device("cpu"), precision) > 0
    peak = peak_memory()
    assert peak is None or peak > 50_000_000
