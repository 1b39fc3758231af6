"""The range test: the losses of a loop by hand, a suggestion that trains, and nothing left changed."""

from __future__ import annotations

import itertools
import json
import math
import shlex
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convlens import Data, InputSpec, Split, build, evaluate, find_lr, load, make_model, train
from convlens.data import batches
from convlens.errors import FAILED, UserError
from convlens.lr_find import DECADES, STEPS, has_diverged, read_off, running_average
from convlens.optim import RATES, make_optimizer
from convlens.recipe import AugmentConfig, OptimConfig, Recipe
from convlens.recipes import get_recipe
from refusals import refused


def make_data(count: int = 64, side: int = 12) -> Data:
    """Three classes, told apart by which rows are bright."""
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(0, 120, (count, 1, side, side), dtype=torch.uint8, generator=generator)
    labels = torch.arange(count) % 3
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:, 4 * label : 4 * label + 4] += 120
    split = Split(images, labels, torch.arange(count))
    return Data("rows", ("a", "b", "c"), InputSpec((side, side), 1), (0.3,), (0.3,), True, "", split, None, split)


def small(dropout: float = 0.0) -> nn.Module:
    args = {"widths": [4, 6], "convs": 1, "dropout": dropout}
    return build("vgg", channels=1, classes=3, size=(12, 12), mean=(0.3,), std=(0.3,), args=args, seed=1)


RECIPE = Recipe(batch_size=16, seed=5, precision="fp32", augment=AugmentConfig(shift=1))


@pytest.mark.parametrize(
    "optim",
    [
        OptimConfig("sgd", 0.1, momentum=0.9, weight_decay=1e-3, schedule="one-cycle", warmup=0.3),
        OptimConfig("adam", 0.01, schedule="cosine"),
        OptimConfig("rmsprop", 0.001),
        OptimConfig("muon", 0.1, momentum=0.6, linear_lr=0.02, bias_lr=3.0, freeze=[0.0]),
    ],
    ids=lambda optim: optim.name,
)
def test_against_a_loop_by_hand(optim: OptimConfig) -> None:
    data, recipe = make_data(), replace(RECIPE, optim=optim)
    found = find_lr(small(), data, recipe, steps=20)
    model = small().train()
    optimizer = make_optimizer(model, optim)
    own = {"filters": optim.lr, "linear": optim.linear_lr or optim.lr, "rest": optim.bias_lr or optim.lr}
    losses = []
    epochs = itertools.chain.from_iterable(batches(data.train, 16, recipe.augment, 5, e) for e in itertools.count(1))
    for step, (images, labels) in enumerate(itertools.islice(epochs, len(found.losses))):
        for group, lr in zip(optimizer.param_groups, own.values(), strict=True):
            group["lr"] = lr * 1e-5 * 10 ** (step / 20)
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert found.rates == pytest.approx([optim.lr * 1e-5 * 10 ** (i / 20) for i in range(len(losses))])
    early = found.rates.index(found.lowest)  # what comes after it magnifies every rounding
    assert early > 3 * 20
    assert found.losses[:early] == pytest.approx(losses[:early], rel=1e-2)


class Linear(nn.Module):
    """Logits of a softmax regression, all zero at first."""

    def __init__(self, size: int = 144) -> None:
        super().__init__()
        self.layer = nn.Linear(size, 3, bias=False)
        nn.init.zeros_(self.layer.weight)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images.flatten(1).float() / 255)


def test_on_a_quadratic_problem_the_suggestion_is_stable_and_not_timid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradient descent on a quadratic diverges from 2 / (the largest eigenvalue of its Hessian) on."""
    monkeypatch.setattr(
        "convlens.training.objective",
        lambda *_: lambda logits, labels: F.mse_loss(logits, F.one_hot(labels, 3).float()),
    )
    data = make_data()
    pixels = data.train.images.flatten(1).double() / 255
    limit = 2 / torch.linalg.eigvalsh(2 / (3 * len(pixels)) * pixels.T @ pixels).max().item()
    recipe = Recipe(batch_size=64, precision="fp32", optim=OptimConfig("sgd", 1.0, momentum=0.0))
    found = find_lr(Linear(), data, recipe)
    assert found.diverged
    assert limit / 10 < found.suggestion < limit
    assert limit / 2 < found.lowest < 5 * limit


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["quick", "speed-mnist"])
def test_the_suggestion_trains_and_thirty_times_as_much_does_not(recipe: str) -> None:
    made = get_recipe(recipe).override({"data.val": 0.1, "epochs": 3})
    data = load("mnist-5k", made, limit=1500)
    assert data.val is not None
    lr = find_lr(make_model(made, data), data, made).suggestion
    accuracies = []
    for times in (1, 30):
        share = times * lr / made.optim.lr
        rates = {f"optim.{key}": getattr(made.optim, key) * share for key in RATES}
        model = make_model(made, data)
        try:
            list(train(model, data, made.override(rates)))
            accuracies.append(evaluate(model, data.val).accuracy)
        except UserError:  # it diverged
            accuracies.append(0.0)
    assert accuracies[0] > 0.85
    assert accuracies[1] < accuracies[0] - 0.1


def test_nothing_is_left_changed() -> None:
    model = small(dropout=0.3)
    model.eval()
    next(model.parameters()).requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    learns = [p.requires_grad for p in model.parameters()]
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first = find_lr(model, make_data(), RECIPE, steps=20)
    assert torch.equal(torch.rand(2), expected)
    assert not any(module.training for module in model.modules())
    assert [p.requires_grad for p in model.parameters()] == learns
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert find_lr(model, make_data(), RECIPE, steps=20) == first


def test_only_the_training_split_is_looked_at() -> None:
    data = make_data()
    empty = Split(torch.empty(0), torch.empty(0), torch.empty(0))
    unseen = replace(data, val=empty, test=empty)
    assert find_lr(small(), unseen, RECIPE, steps=20) == find_lr(small(), data, RECIPE, steps=20)


def test_a_loss_that_is_not_finite_ends_it() -> None:
    class Bursts(Linear):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) / (self.layer.weight.abs().max() < 0.05)

    found = find_lr(Bursts(), make_data(), replace(RECIPE, optim=OptimConfig("sgd", 1.0)))
    assert found.diverged
    assert len(found.losses) == len(found.rates) < DECADES * STEPS
    assert all(map(math.isfinite, found.losses))


def test_a_loss_that_falls_nowhere_is_a_sentence() -> None:
    data = make_data(60)
    same = replace(data, train=replace(data.train, store=torch.zeros_like(data.train.images)))
    refused(lambda: find_lr(Linear(), same, RECIPE), "fell at no learning rate", "--steps 200", exit_code=FAILED)
    refused(lambda: find_lr(small(), data, replace(RECIPE, optim=OptimConfig(lr=0.0))), "optim.lr is 0", "--lr 0.1")


def test_reading_off_a_curve() -> None:
    """Flat, then down to 1 at a rate of 0.1, then up."""
    rates = [1e-4 * 10 ** (i / 20) for i in range(90)]
    losses = [2.0 if r < 1e-3 else 2 - math.log10(r / 1e-3) / 2 if r < 0.1 else 1 + 20 * (r - 0.1) for r in rates]
    found = read_off(rates, losses, 20, diverged=True)
    assert 0.1 <= found.lowest < 0.2  # the average lags behind
    assert found.suggestion == found.lowest / 3
    assert not has_diverged(found.smoothed[:75], 20)
    assert has_diverged([1.0] * 20 + [1.0, 4.1], 20)
    assert not has_diverged([1.0] * 20 + [1.0, 3.9], 20)
    assert not has_diverged([1.0, 9.0], 20)  # too early to tell


def test_the_running_average_by_hand() -> None:
    losses = [3.0, 1.0, 2.0, 5.0]
    for i, value in enumerate(running_average(losses)):
        weights = [0.9**age for age in range(i, -1, -1)]
        by_hand = sum(w * loss for w, loss in zip(weights, losses, strict=False)) / sum(weights)
        assert value == pytest.approx(by_hand)


def test_the_command_says_what_to_type_next(convlens, tmp_path) -> None:
    flags = ("--recipe", "speed-mnist", "-b", "32", "--set", "optim.bias_lr=1.0", "--limit", "600", "--steps", "20")
    result = convlens("lr-find", "mnist-5k", *flags, "--out", tmp_path / "found", "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["picture"] == str(tmp_path / "found" / "lr-find.png")
    assert [path.name for path in (tmp_path / "found").iterdir()] == ["lr-find.png"]
    assert found["suggestion"] == pytest.approx(found["lowest"] / 3)
    command = shlex.split(result.stderr.splitlines()[-1])
    assert command[:3] == ["convlens", "train", "mnist-5k"]
    printed = convlens(*command[1:], "--print-recipe").stdout.splitlines()
    share = found["suggestion"] / 0.6
    for key, value in (("lr", found["suggestion"]), ("bias_lr", share), ("linear_lr", 0.1 * share)):
        assert f"{key} = {float(f'{value:.2g}')}" in printed
    assert "batch_size = 32" in printed
    assert "--limit 600" in result.stderr
