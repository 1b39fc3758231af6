"""The network of a run at any moment: what was kept of its epochs, and what a training is at."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch

from convlens import Data, Recipe, load
from convlens.fitting import advance, finish
from convlens.models.articles import cnn_mnist
from convlens.run import Run, start
from convlens.snapshots import kept_epochs, snapshot, stamp
from refusals import refused
from runs import fit_undrawn

RECIPE = Recipe(epochs=7, keep_epochs=3, batch_size=32).override({"model.name": "lenet5", "optim.lr": 0.01})


@functools.cache
def data() -> Data:
    return load("mnist-5k", RECIPE, limit=200)


def logits(run: Run, epoch: int | None = None) -> torch.Tensor:
    with torch.no_grad():
        return snapshot(run, epoch).model(data().test.at(slice(0, 9)))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return fit_undrawn(RECIPE, data(), tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize(
    ("keep", "epochs", "kept"), [(3, 7, [0, 3, 6, 7]), (50, 2, [0, 1, 2]), (1, 3, [0, 3]), (0, 2, [])]
)
def test_epochs_are_kept_evenly_with_the_first_and_the_last(keep, epochs, kept, tmp_path: Path) -> None:
    recipe = RECIPE.override({"keep_epochs": keep, "epochs": epochs})
    assert kept_epochs(fit_undrawn(recipe, data(), tmp_path)) == kept


def test_keeping_them_changes_no_bit(run: Run, tmp_path: Path) -> None:
    plain = fit_undrawn(RECIPE.override({"keep_epochs": 0}), data(), tmp_path)
    timeless = [[{k: v for k, v in row.items() if "second" not in k} for row in each.history] for each in (run, plain)]
    assert timeless[0] == timeless[1]
    assert torch.equal(logits(run), logits(plain))


def test_an_epochs_weights_are_what_the_training_had_then(run: Run, tmp_path: Path) -> None:
    going, rows = start(RECIPE, data(), tmp_path), 0
    refused(lambda: snapshot(going), "first epoch is not done")
    assert stamp(going) == ""
    seen, stamps = {}, []
    for row in advance(going, data()):
        rows, seen[row["epoch"]] = rows + 1, logits(going)  # of the training as it stands
        stamps.append(stamp(going))
        assert not snapshot(going).manifest.metrics
    assert len(set(stamps)) == rows == 7
    for epoch in (3, 6, 7):
        assert torch.equal(seen[epoch], logits(going, epoch))
        assert torch.equal(seen[epoch], logits(run, epoch))
    assert not torch.equal(logits(going, 0), logits(going, 3))
    finish(going, data(), plots=False, report=False)
    assert stamp(going) not in stamps
    assert torch.equal(logits(going), seen[going.metrics["epoch"]])
    assert snapshot(going).manifest.calibration == going.model_file().manifest.calibration


def test_what_was_not_kept_or_may_not_be_imported_is_said(run: Run, tmp_path: Path) -> None:
    refused(lambda: snapshot(run, 1), "weights of epoch 1 were not kept", "0, 3, 6, 7")
    own = RECIPE.override({"model.name": f"{cnn_mnist.__module__}:{cnn_mnist.__name__}", "epochs": 1, "keep_epochs": 1})
    other = fit_undrawn(own, data(), tmp_path)
    refused(lambda: snapshot(other, 0), "not part of ConvLens", f"-m {own.model.name}")
    assert snapshot(other, 0, own.model.name).manifest.builder == own.model.name
