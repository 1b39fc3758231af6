"""On the real data sets: what left says what PyTorch says, image by image."""

from __future__ import annotations

from pathlib import Path

import pytest

import convlens as api
from convlens import RECIPES, load, verify
from convlens.verifying import allowance
from runs import fit_undrawn

BUDGETS = {  # recipe, settings and training images: seconds of training, and the whole test set but for the flowers'
    "mnist": ("quick", {"epochs": 1, "model.args": {"widths": [8, 16], "convs": 1}}, None),
    "cifar10": ("speed-cifar10-70", {"epochs": 1, "model.args.widths": [16, 32, 32]}, None),
    "flowers": ("photos", {"epochs": 1, "data.size": [32, 32]}, 600),
}


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", BUDGETS)
def test_test_set_predictions_agree(name: str, data_root: Path, tmp_path: Path) -> None:
    recipe_name, settings, limit = BUDGETS[name]
    recipe = RECIPES[recipe_name].override({**settings, "device": "cpu"})
    if name == "flowers":
        if not (data_root / name).is_dir():
            pytest.skip("there are no flowers beside MNIST and CIFAR-10")
        data = load(data_root / name, recipe, limit=limit)
    else:
        data = load(name, recipe, data_root, limit=limit)
    run = fit_undrawn(recipe, data, tmp_path)
    measured = run.metrics["test"]["accuracy"]
    for done in api.export(run.path, ["onnx", "pt2", "onnx-int8"]):
        found = verify(done.path, against=run.path)
        assert found.passed
        assert found.expected == pytest.approx(measured, abs=1e-3)  # training evaluates in the precision of the recipe
        if found.precision == "int8":
            assert len(data.test) * (found.expected - found.accuracy) <= allowance(len(data.test), found.expected)
        else:
            assert all(each.tie for each in found.disagreements)
            assert len(found.disagreements) <= len(data.test) / 10_000
