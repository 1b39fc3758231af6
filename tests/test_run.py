"""The run folder through the API: what is stored is what counts, and nothing is lost or mixed up."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from convlens import Recipe, Run, UserError, build, fit, load, make_model, train
from convlens.evaluation import evaluate
from convlens.fitting import advance, finish, kept_model
from convlens.recipe import AugmentConfig, DataConfig, LossConfig, ModelConfig, OptimConfig
from convlens.recipes import AUGMENTATIONS
from convlens.run import only_one, start
from convlens.session import recipe_from
from runs import fit_undrawn

RECIPE = Recipe(
    epochs=3, batch_size=64, model=ModelConfig("vgg", args={"widths": [8, 16], "convs": 1}), device="cpu", seed=5
)


@pytest.fixture(scope="module")
def data():
    return load("mnist-5k", RECIPE, limit=400)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> Run:
    return fit_undrawn(RECIPE, data, tmp_path_factory.mktemp("runs"))


def begun(data, out: Path) -> Run:
    """A run that stands after its first epoch."""
    run = start(RECIPE, data, out)
    next(advance(run, data))
    return run


def test_a_run_loads_its_own_data_again_also_a_limited_one(finished: Run, data) -> None:
    again = finished.load_data()
    for mine, theirs in ((again.train, data.train), (again.val, data.val), (again.test, data.test)):
        assert torch.equal(mine.images, theirs.images)
        assert torch.equal(mine.index, theirs.index)
    assert (again.limit, again.sha256) == (400, data.sha256)


def test_the_stored_split_counts_and_not_the_recipes_seed(data, tmp_path) -> None:
    other = replace(RECIPE, seed=77)
    run = start(other, data, tmp_path)  # held out with seed 5, trained with 77
    assert torch.equal(run.load_data().val.index, data.val.index)
    assert not torch.equal(load("mnist-5k", other, limit=400).val.index, data.val.index)


def test_a_damaged_split_or_environment_is_said(finished: Run, tmp_path) -> None:
    for name, text in (("split.csv", "index,split\n1,train\n"), ("environment.json", "{}"), ("environment.json", "{")):
        copy = tmp_path / f"{name}{len(text)}"
        copy.mkdir()
        for file in ("recipe.toml", "environment.json", "split.csv"):
            (copy / file).write_bytes((finished.path / file).read_bytes())
        (copy / name).write_text(text)
        with pytest.raises(UserError, match="damaged"):
            Run.open(copy).load_data()


def test_the_kept_weights_are_those_of_the_best_validation_loss(finished: Run, data) -> None:
    losses = [row["val_loss"] for row in finished.history]
    best = min(range(3), key=losses.__getitem__)
    model, epoch = kept_model(finished, data)
    assert epoch == best + 1 == finished.metrics["epoch"]
    assert evaluate(model, data.val).loss == pytest.approx(losses[best], abs=1e-6)
    assert evaluate(finished.model_file().model, data.test).accuracy == finished.metrics["test"]["accuracy"]


def test_the_validation_loss_is_the_recipes_own(data, tmp_path) -> None:
    run = fit_undrawn(replace(RECIPE, epochs=1, loss=LossConfig("mse")), data, tmp_path)
    model, _ = kept_model(run, data)
    model.eval()
    with torch.no_grad():
        wrong = model(data.val.images).softmax(1) - torch.eye(10)[data.val.labels]
    assert run.history[0]["val_loss"] == pytest.approx(wrong.square().mean().item(), abs=1e-6)


@pytest.mark.parametrize("val", [0.1, 0.0])
def test_with_an_average_it_is_the_average_that_is_looked_at_kept_and_saved(val: float, tmp_path) -> None:
    recipe = replace(RECIPE, optim=replace(RECIPE.optim, ema=0.9, schedule="cosine"), data=DataConfig(val=val))
    data = load("mnist-5k", recipe, limit=400)
    run = fit_undrawn(recipe, data, tmp_path)
    model, epoch = kept_model(run, data)
    reference, ends = make_model(recipe, data), []
    for done in train(reference, data, recipe):
        ends.append(([p.detach().clone() for p in reference.parameters()], evaluate(reference, data.test).accuracy))
        if data.val:
            assert run.history[done.index - 1]["val_loss"] == pytest.approx(
                evaluate(reference, data.val).loss, rel=1e-6
            )
    parameters, accuracy = ends[epoch - 1]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), parameters, strict=True))
    saved = run.model_file().model.parameters()
    assert all(torch.equal(a, b) for a, b in zip(saved, parameters, strict=True))
    assert run.metrics["test"]["accuracy"] == accuracy


def test_patience_counts_by_the_average(tmp_path) -> None:
    optim = OptimConfig("sgd", 0.3, ema=0.5, schedule="step", step_at=[0.5])
    recipe = replace(RECIPE, epochs=40, patience=2, optim=optim)
    data = load("mnist-5k", recipe, limit=300)
    run = fit_undrawn(recipe, data, tmp_path)
    losses = [row["val_loss"] for row in run.history]
    best = min(range(len(losses)), key=losses.__getitem__)
    assert len(losses) == best + 3 < 40
    model, epoch = kept_model(run, data)
    assert epoch == best + 1
    assert evaluate(model, data.val).loss == pytest.approx(losses[best], rel=1e-6)


def test_the_validation_loss_knows_no_class_weights(tmp_path) -> None:
    recipe = replace(RECIPE, epochs=1, data=DataConfig(balance="weights"))
    data = load("mnist-5k", recipe, limit=400)
    labels = data.train.labels.clamp(max=3)  # most of the images are of one class
    data = replace(data, train=replace(data.train, labels=labels))
    run = fit_undrawn(recipe, data, tmp_path)
    model, _ = kept_model(run, data)
    assert run.history[0]["val_loss"] == pytest.approx(evaluate(model, data.val).loss, rel=1e-6)


def test_a_second_process_may_not_train_the_same_run(data, tmp_path) -> None:
    run = begun(data, tmp_path)
    with only_one(run):
        code = (
            "import sys; from convlens import Run; from convlens.run import only_one\n"
            "with only_one(Run.open(sys.argv[1])): pass"
        )
        result = subprocess.run(
            [sys.executable, "-c", code, str(run.path)], capture_output=True, text=True, check=False
        )
        assert "is being trained by another process" in result.stderr
    with only_one(run):
        pass


def test_without_its_checkpoint_a_run_does_not_start_over(data, tmp_path) -> None:
    run = begun(data, tmp_path)
    before = (run.path / "history.jsonl").read_text()
    run.last.unlink()
    with pytest.raises(UserError, match="cannot be taken up"):
        next(advance(run, data))
    assert (run.path / "history.jsonl").read_text() == before


def test_a_changed_batch_size_is_said(data, tmp_path) -> None:
    run = begun(data, tmp_path)
    (run.path / "recipe.toml").write_text(replace(RECIPE, batch_size=32).to_toml())
    with pytest.raises(UserError, match=r"put the run's recipe.toml back"):
        next(advance(run, data))


def test_a_run_can_be_finished_early(data, tmp_path) -> None:
    run = begun(data, tmp_path)
    finish(run, data, plots=False, report=False)
    assert (run.metrics["epochs"], run.finished) == (1, True)
    with pytest.raises(UserError, match="no epoch yet"):
        finish(start(RECIPE, data, tmp_path), data)


def test_a_loss_that_overflows_in_the_last_step_fails_and_can_be_read(data, tmp_path) -> None:
    recipe = RECIPE.override({"optim.lr": 1e30, "epochs": 1, "batch_size": 1000})
    run = start(recipe, data, tmp_path)
    with pytest.raises(UserError, match="overflowed") as caught:
        list(advance(run, data))
    assert caught.value.exit_code == 1
    assert run.history == []


def test_seconds_count_both_sides_of_an_interruption(data, tmp_path) -> None:
    run, stop = start(RECIPE, data, tmp_path), threading.Event()

    def two_steps(batches, position):
        for batch in batches:
            if position.step == 1:
                stop.set()
            yield batch

    assert list(advance(run, data, stop, two_steps)) == []
    notes = json.loads(_metadata(run.last)["notes"])
    assert notes["step"] == 2
    assert notes["seconds"] > 0
    (row, *_) = list(advance(run, data))
    assert row["seconds"] > notes["seconds"]


def _metadata(path: Path) -> dict[str, str]:
    import safetensors

    with safetensors.safe_open(path, framework="pt") as file:
        return file.metadata()


def test_runs_number_themselves_and_refuse_a_taken_name(data, tmp_path) -> None:
    assert [start(RECIPE, data, tmp_path).path.name for _ in range(2)] == ["mnist-5k-vgg-1", "mnist-5k-vgg-2"]
    start(RECIPE, data, tmp_path, "mine")
    with pytest.raises(UserError, match="never overwritten"):
        start(RECIPE, data, tmp_path, "mine")
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_dollar_in_a_class_name_is_no_formula(data, tmp_path) -> None:
    odd = replace(data, classes=("$1_", "$2^$", *data.classes[2:]))
    run = fit(replace(RECIPE, epochs=1), odd, tmp_path)
    assert (run.path / "plots" / "confusion.png").exists()


def test_flags_that_change_the_network_or_the_optimizer_change_what_belongs_to_it() -> None:
    assert recipe_from("quick", {}, ()).model.args == {"widths": [16, 32, 64], "convs": 1}
    assert recipe_from("quick", {"model.name": "vgg"}, ()).model.args == {}
    assert recipe_from("quick", {}, ("model.name=lenet5", "model.args.norm=batch")).model.args == {"norm": "batch"}
    assert recipe_from("quick", {"optim.name": "adamw"}, ()).optim.lr == 1e-3
    assert recipe_from("quick", {"optim.name": "adamw", "optim.lr": 0.5}, ()).optim.lr == 0.5
    assert recipe_from("lenet5-mnist", {"epochs": 2}, ()).note == "lenet5-mnist with epochs = 2"
    assert build("lenet5", channels=1, classes=10, size=(28, 28), args={"norm": "batch"})


def test_a_level_of_augmentation_replaces_the_recipes_and_settings_win_over_it() -> None:
    assert recipe_from("quick", {"augment": "none"}, ()).augment == AugmentConfig()
    light = recipe_from("speed-cifar10", {"augment": "light"}, ())  # which shifts by itself
    assert light.augment == AUGMENTATIONS["light"]
    assert light.note == "speed-cifar10 with augment = light"
    for setting in ("augment.colour=0.9", "augment={colour = 0.9}"):
        strong = recipe_from("quick", {"augment": "strong", "epochs": 2}, (setting,))
        assert strong.augment == replace(AUGMENTATIONS["strong"], colour=0.9)
        assert strong.epochs == 2
    for level in ("medium", ""):
        with pytest.raises(UserError, match=f"unknown augmentation '{level}'; there are: none, light, strong"):
            recipe_from("quick", {"augment": level}, ())


def test_a_run_made_for_another_device_can_be_finished_here(data, tmp_path) -> None:
    run = begun(data, tmp_path)
    (run.path / "recipe.toml").write_text(replace(RECIPE, device="cuda:99").to_toml())
    with pytest.raises(UserError, match="cuda:99"):
        list(advance(run, data))
    assert len(list(advance(run, data, device="cpu"))) == 2
    assert finish(run, data, plots=False, report=False, device="cpu").images == len(data.test)


@pytest.mark.parametrize("tta", ["mirror", "mirror-shift"])
def test_views_are_measured_beside_the_plain_accuracy(tta, data, tmp_path) -> None:
    run = fit_undrawn(replace(RECIPE, epochs=1, tta=tta), data, tmp_path)
    model = run.model_file().model
    plain, averaged = evaluate(model, data.test), evaluate(model, data.test, tta=tta)
    assert run.metrics["test"]["loss"] == pytest.approx(plain.loss, rel=1e-6)
    assert run.metrics["test"]["accuracy"] == plain.accuracy
    assert run.metrics["tta"] == {
        "views": tta,
        "accuracy": averaged.accuracy,
        "loss": pytest.approx(averaged.loss, rel=1e-6),
    }
    assert averaged.loss != plain.loss


def test_without_views_none_are_measured(finished: Run) -> None:
    assert "tta" not in finished.metrics
