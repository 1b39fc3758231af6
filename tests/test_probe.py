"""`-b auto`: the rule, against rates that are given; and measuring, by what it does and leaves alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import convlens.probe as measuring
from convlens import Data, InputSpec, Recipe, Run, Split, UserError, build, train
from convlens.probe import Probe, images_per_second, probe
from convlens.recipe import AugmentConfig, ModelConfig, OptimConfig


def make_data(count: int) -> Data:
    images = torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = Split(images, torch.arange(count) % 3, torch.arange(count))
    return Data("noise", ("a", "b", "c"), InputSpec((8, 8), 1), (0.5,), (0.3,), True, "", split, None, split)


RECIPE = Recipe(
    device="cpu",
    precision="fp32",
    model=ModelConfig("vgg", args={"widths": [3, 4], "convs": 1}),
    augment=AugmentConfig(flip=True, crop=[6, 8]),
)


def chosen(monkeypatch: pytest.MonkeyPatch, count: int, rates: dict[int, float], recipe: Recipe = RECIPE) -> Probe:
    """What is chosen where these are the images/s; a size that has none does not fit."""

    def rate(recipe: Recipe, _data: Data) -> float:
        if recipe.batch_size not in rates:
            raise torch.OutOfMemoryError
        return rates[recipe.batch_size]

    monkeypatch.setattr(measuring, "images_per_second", rate)
    return probe(recipe, make_data(count))


@pytest.mark.parametrize(
    ("rates", "size", "measured"),
    [
        ({32: 100, 64: 200, 128: 300, 256: 400, 512: 500}, 512, 5),
        ({32: 100, 64: 200, 128: 300, 256: 310, 512: 315}, 128, 5),  # 300 is 95.2 % of 315
        ({32: 100, 64: 200, 128: 290, 256: 310, 512: 320}, 256, 5),
        ({32: 100, 64: 104, 128: 103, 256: 900, 512: 900}, 32, 3),  # two doublings brought nothing: no more is measured
        ({32: 100, 64: 90, 128: 120, 256: 121, 512: 122}, 128, 5),
        ({32: 100, 64: 200, 128: 300}, 128, 3),
        ({32: 100}, 32, 1),
    ],
)
def test_the_smallest_close_to_the_best(monkeypatch, rates: dict[int, float], size: int, measured: int) -> None:
    found = chosen(monkeypatch, 30 * 512, rates)
    assert (found.batch_size, len(found.rates)) == (size, measured)
    assert f"32: {rates[32]:,.0f}" in found.why
    assert ("does not fit" in found.why) is (len(rates) < 5)


RISING = {size: float(size) for size in (32, 64, 128, 256, 512, 1024, 2048)}


@pytest.mark.parametrize(
    ("count", "size"),
    [
        (30 * 512 - 1, 256),  # 512 would make fewer than 30 full steps
        (100_000, 512),  # a CPU is busy with 512
        (30 * 64, 64),
        (30 * 64 - 1, 32),
        (30 * 32 - 1, 16),
        (30 * 8, 8),
        (100, 8),
        (5, 8),
    ],
)
def test_an_epoch_has_thirty_steps(monkeypatch, count: int, size: int) -> None:
    found = chosen(monkeypatch, count, RISING)
    assert found.batch_size == size
    assert bool(found.rates) is (count >= 30 * 64)  # with one candidate there is nothing to measure


def test_parts_of_a_batch_have_an_image_each(monkeypatch) -> None:
    assert chosen(monkeypatch, 100, RISING, replace(RECIPE, accumulate=20)).batch_size == 20
    assert set(chosen(monkeypatch, 30 * 512, RISING, replace(RECIPE, accumulate=100)).rates) == {128, 256, 512}


def test_where_nothing_fits_there_is_a_remedy(monkeypatch) -> None:
    with pytest.raises(UserError, match="a batch of 32 images does not fit into the GPU's memory: set accumulate"):
        chosen(monkeypatch, 30 * 64, {})


@pytest.mark.parametrize("size", [32, 256])
def test_measuring_is_some_steps_of_the_training(monkeypatch, size: int) -> None:
    """Real batches in the last size of the crops; some to warm up, and three windows of 256 images at most; a rate that
    would diverge, a compiler and an epoch count of 0 do not disturb it."""
    seen: list[tuple[int, ...]] = []
    inner = measuring.train

    def spied(model, data, recipe, watch):  # type: ignore[no-untyped-def] # as train
        def both(batches, at):  # type: ignore[no-untyped-def] # as a Watch
            for batch in watch(batches, at):
                seen.append(tuple(batch[0].shape))
                yield batch

        return inner(model, data, recipe, watch=both)

    monkeypatch.setattr(measuring, "train", spied)
    monkeypatch.setattr(measuring, "SECONDS", 1e9)
    recipe = replace(RECIPE, batch_size=size, epochs=0, compile="on", optim=OptimConfig("sgd", 1e30, freeze=[0.0]))
    data = make_data(30 * size)
    assert images_per_second(recipe, data) > 0
    assert seen == [(size, 1, 8, 8)] * (measuring.WARM_UP + 3 * 256 // size)


def test_it_does_not_take_longer_than_it_must(monkeypatch) -> None:
    monkeypatch.setattr(measuring, "SECONDS", 0.0)
    monkeypatch.setattr(measuring, "WINDOWS", 10**9)
    assert images_per_second(replace(RECIPE, batch_size=32), make_data(30 * 32)) > 0


def test_a_training_after_it_is_the_one_without_it() -> None:
    def trained() -> Tensor:
        model = build("vgg", channels=1, classes=3, size=(8, 8), args=RECIPE.model.args, seed=0)
        list(train(model, make_data(1920), replace(RECIPE, epochs=1)))
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    before = trained()
    probe(RECIPE, make_data(1920))
    assert torch.equal(trained(), before)


def test_the_program_measures_says_so_and_stores_the_number(convlens, tmp_path) -> None:
    result = convlens(
        "train",
        "mnist-5k",
        "--limit",
        2400,
        "--epochs",
        1,
        "-b",
        "auto",
        "--no-plots",
        "--no-report",
        "--name",
        "run",
        "--out",
        tmp_path,
    )
    assert result.returncode == 0, result.stderr
    run = Run.open(tmp_path / "run")
    assert run.recipe.batch_size in (32, 64)
    assert run.recipe.note == f"quick with epochs = 1, batch_size = {run.recipe.batch_size}"
    assert f"batch size {run.recipe.batch_size}: the smallest within 5 % of the most images/s (32: " in result.stderr
