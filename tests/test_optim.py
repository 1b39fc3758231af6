"""Schedules at points worked out by hand, optimizers against plain torch, objectives against their formulas."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn

from convlens import build
from convlens.optim import (
    class_weights,
    clipping,
    exchanged,
    make_optimizer,
    objective,
    parameter_groups,
    schedule,
    set_rates,
)
from convlens.recipe import LossConfig, OptimConfig

SCHEDULES = ("constant", "step", "cosine", "one-cycle")


@pytest.mark.parametrize(
    ("settings", "points"),
    [
        ({"schedule": "constant"}, {0: 1, 0.5: 1, 0.999: 1}),
        ({"schedule": "constant", "warmup": 0.2}, {0: 0.001, 0.05: 0.25, 0.1: 0.5, 0.2: 1, 0.9: 1}),
        ({"schedule": "step"}, {0: 1, 0.49: 1, 0.5: 0.1, 0.74: 0.1, 0.75: 0.01, 0.99: 0.01}),
        ({"schedule": "step", "step_at": [0.25], "step_factor": 0.5}, {0.2: 1, 0.25: 0.5, 0.8: 0.5}),
        ({"schedule": "step", "step_at": []}, {0: 1, 0.9: 1}),
        ({"schedule": "step", "warmup": 0.1}, {0: 0.001, 0.05: 0.5, 0.1: 1, 0.6: 0.1, 0.8: 0.01}),
        ({"schedule": "cosine"}, {0: 1, 1 / 3: 0.75, 0.5: 0.5, 2 / 3: 0.25, 0.75: (1 - math.sqrt(0.5)) / 2}),
        ({"schedule": "cosine", "warmup": 0.2}, {0: 0.001, 0.1: 0.5, 0.2: 1, 0.6: 0.5, 0.2 + 0.8 * 2 / 3: 0.25}),
        ({"schedule": "one-cycle"}, {0: 1, 0.25: 0.75, 0.9: 0.1}),
        ({"schedule": "one-cycle", "warmup": 0.25}, {0: 0, 0.125: 0.5, 0.25: 1, 0.625: 0.5, 0.85: 0.2}),
        ({"schedule": "one-cycle", "warmup": 1.0}, {0: 0, 0.5: 0.5, 0.9: 0.9}),
    ],
)
def test_schedules_at_points_worked_out_by_hand(settings: dict[str, Any], points: dict[float, float]) -> None:
    for t, expected in points.items():
        assert schedule(OptimConfig(**settings), t) == pytest.approx(expected, abs=1e-12), t


@settings(max_examples=300, deadline=None)
@given(
    kind=st.sampled_from(SCHEDULES),
    warmup=st.floats(0, 1),
    t=st.floats(0, 1, exclude_max=True),
    step_at=st.lists(st.floats(0, 1), max_size=4),
    step_factor=st.floats(0, 1),
)
def test_schedules_stay_between_0_and_1(
    kind: str, warmup: float, t: float, step_at: list[float], step_factor: float
) -> None:
    config = OptimConfig(schedule=kind, warmup=warmup, step_at=step_at, step_factor=step_factor)  # type: ignore[arg-type] # one of the four
    assert 0 <= schedule(config, t) <= 1


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("warmup", [0.0, 0.3])
def test_schedules_rise_in_the_warm_up_and_never_after(kind: str, warmup: float) -> None:
    config = OptimConfig(schedule=kind, warmup=warmup)  # type: ignore[arg-type] # one of the four
    values = [schedule(config, i / 1000) for i in range(1000)]
    top = round(1000 * warmup)
    assert values[top] == 1
    assert values[: top + 1] == sorted(values[: top + 1])
    assert values[top:] == sorted(values[top:], reverse=True)


def small_model() -> nn.Module:
    return build("vgg", channels=1, classes=3, size=(8, 8), args={"widths": [3, 4], "convs": 1}, seed=5)


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        images = torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8, generator=generator)
        labels = torch.randint(3, (6,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return [p.detach() for p in model.parameters()]


def test_no_optimizer_imports_the_compiler() -> None:
    program = """
import sys
import torch
from convlens.models import build
from convlens.optim import make_optimizer
from convlens.recipe import OptimConfig

for name in ("sgd", "adam", "adamw", "rmsprop", "muon"):
    model = build("vgg", channels=1, classes=3, size=(8, 8), args={"widths": [3, 4], "convs": 1})
    optimizer = make_optimizer(model, OptimConfig(name, 0.01))
    optimizer.zero_grad()
    model(torch.zeros(2, 1, 8, 8, dtype=torch.uint8)).sum().backward()
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
assert "torch._dynamo" not in sys.modules
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_torchs_own_imports_it_still() -> None:
    """Where it no longer does, ours need no taking apart."""
    program = """
import sys
import torch

torch.optim.SGD(torch.nn.Linear(1, 1).parameters())
assert "torch._dynamo" in sys.modules
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("config", "plain"),
    [
        (OptimConfig("sgd", 0.1, momentum=0.0), lambda p: torch.optim.SGD(p, 0.1)),
        (
            OptimConfig("sgd", 0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
            lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
        ),
        (
            OptimConfig("adam", 0.01, beta1=0.8, beta2=0.99, weight_decay=0.01),
            lambda p: torch.optim.Adam(p, 0.01, betas=(0.8, 0.99), weight_decay=0.01),
        ),
        (
            OptimConfig("adamw", 0.01, weight_decay=0.1),
            lambda p: torch.optim.AdamW(p, 0.01, betas=(0.9, 0.999), weight_decay=0.1),
        ),
        (
            OptimConfig("rmsprop", 0.01, momentum=0.5, weight_decay=0.01),
            lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.5, weight_decay=0.01),
        ),
    ],
    ids=["sgd-plain", "sgd-nesterov", "adam", "adamw", "rmsprop"],
)
def test_optimizers_against_plain_torch(config: OptimConfig, plain: Any) -> None:
    ours, theirs = small_model(), small_model()
    start = [p.detach().clone() for p in ours.parameters()]
    got = steps(ours, make_optimizer(ours, config))
    expected = steps(theirs, plain(theirs.parameters()))
    for a, b, before in zip(got, expected, start, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
        assert not torch.equal(a, before)


def names_in(group: dict[str, Any], model: nn.Module) -> set[str]:
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)] for p in group["params"]}


def test_rates_lie_where_a_recorded_step_reads_them() -> None:
    """A GPU's are tensors, which keep their place; a CPU's are numbers."""
    optimizer = make_optimizer(small_model(), OptimConfig("sgd", lr=0.2, bias_lr=0.4))
    kept = optimizer.param_groups[0]["lr"] = torch.tensor(9.0)
    set_rates(optimizer, 0.5)
    assert optimizer.param_groups[0]["lr"] is kept
    assert [float(group["lr"]) for group in optimizer.param_groups] == pytest.approx(
        [group["peak"] * 0.5 for group in optimizer.param_groups]
    )


def test_groups_are_filters_linear_weights_and_the_rest() -> None:
    model = small_model()
    config = OptimConfig(lr=0.1, linear_lr=0.02, bias_lr=3.0, weight_decay=0.3)
    filters, linear, rest = parameter_groups(model, config)
    assert names_in(filters, model) == {"network.features.0.weight", "network.features.4.weight"}
    assert names_in(linear, model) == {"network.classifier.3.weight"}
    assert names_in(filters, model) | names_in(linear, model) | names_in(rest, model) == {
        name for name, _ in model.named_parameters()
    }
    assert [group["peak"] for group in (filters, linear, rest)] == [0.1, 0.02, 3.0]
    assert [group["weight_decay"] for group in (filters, linear, rest)] == [0.3, 0.3, 0.3]
    assert [group["peak"] for group in parameter_groups(model, OptimConfig(lr=0.1))] == [0.1, 0.1, 0.1]


def test_biases_and_norms_are_not_decayed_where_the_recipe_says_so() -> None:
    groups = parameter_groups(small_model(), OptimConfig(weight_decay=0.3, decay_all=False))
    assert [group["weight_decay"] for group in groups] == [0.3, 0.3, 0.0]


def test_decay_moves_only_what_is_decayed() -> None:
    """With gradients of zero, SGD with L2 shrinks a weight by lr * decay and leaves the rest."""
    model = small_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = make_optimizer(model, OptimConfig("sgd", 0.5, momentum=0.0, weight_decay=0.2, decay_all=False))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        factor = 1 - 0.5 * 0.2 if p.ndim > 1 else 1.0
        torch.testing.assert_close(p.detach(), factor * before[name])


def test_frozen_parameters_are_not_trained() -> None:
    model = small_model()
    frozen = next(model.parameters())
    frozen.requires_grad_(False)
    for config in (OptimConfig(), OptimConfig(decay_all=False)):
        given = [p for group in parameter_groups(model, config) for p in group["params"]]  # type: ignore[attr-defined] # a list
        assert len(given) == len(list(model.parameters())) - 1
        assert all(p is not frozen for p in given)


@pytest.fixture
def answers() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(5, 4, generator=generator, dtype=torch.float64), torch.randint(4, (5,), generator=generator)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_cross_entropy_with_smoothing_by_hand(answers: tuple[Tensor, Tensor], smoothing: float) -> None:
    logits, labels = answers
    total = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        log_sum = math.log(sum(math.exp(z) for z in row))
        for j, z in enumerate(row):
            target = smoothing / 4 + (1 - smoothing) * (j == label)
            total -= target * (z - log_sum)
    loss = objective(nn.Identity(), LossConfig(label_smoothing=smoothing))
    assert loss(logits, labels).item() == pytest.approx(total / 5, rel=1e-12)
    assert loss(logits, labels).item() == F.cross_entropy(logits, labels, label_smoothing=smoothing).item()


def test_squared_error_by_hand(answers: tuple[Tensor, Tensor]) -> None:
    logits, labels = answers
    total = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        norm = sum(math.exp(z) for z in row)
        total += sum((math.exp(z) / norm - (j == label)) ** 2 for j, z in enumerate(row))
    assert objective(nn.Identity(), LossConfig("mse"))(logits, labels).item() == pytest.approx(total / 20, rel=1e-12)


def test_class_weights_are_scikit_learns_and_1_on_average() -> None:
    labels = torch.tensor([0] * 7 + [1] * 2 + [2] * 40)
    weights = class_weights(labels, 3)
    expected = compute_class_weight("balanced", classes=labels.unique().numpy(), y=labels.numpy())
    assert weights.tolist() == pytest.approx(expected.tolist(), rel=1e-6)
    assert weights[labels].mean().item() == pytest.approx(1, rel=1e-6)


def test_a_class_without_images_weighs_nothing() -> None:
    weights = class_weights(torch.tensor([0, 0, 0, 2]), 4)
    assert weights.tolist() == pytest.approx([4 / 6, 0, 2, 0])


WEIGHTS = torch.tensor([0.5, 2.0, 0.25, 3.0], dtype=torch.float64)


def test_weighted_cross_entropy_by_hand(answers: tuple[Tensor, Tensor]) -> None:
    """Of hard labels, and of rows of probabilities, such as mixed images have."""
    logits, labels = answers
    rows = torch.rand(5, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    rows /= rows.sum(1, keepdim=True)
    loss = objective(nn.Identity(), LossConfig(), weights=WEIGHTS)
    for given_labels, shares in ((labels, torch.eye(4)[labels]), (rows, rows)):
        total = 0.0
        for row, share in zip(logits.tolist(), shares.tolist(), strict=True):
            log_sum = math.log(sum(math.exp(z) for z in row))
            total -= sum(w * p * (z - log_sum) for w, p, z in zip(WEIGHTS.tolist(), share, row, strict=True))
        assert loss(logits, given_labels).item() == pytest.approx(total / 5, rel=1e-9)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weighted_cross_entropy_is_torchs_but_for_its_denominator(
    answers: tuple[Tensor, Tensor], smoothing: float
) -> None:
    """torch divides by the weights of the batch at hand, so the mean over parts of a batch would be another one."""
    logits, labels = answers
    ours = objective(nn.Identity(), LossConfig(label_smoothing=smoothing), weights=WEIGHTS)
    theirs = F.cross_entropy(logits, labels, WEIGHTS, label_smoothing=smoothing)
    assert (ours(logits, labels) * 5 / WEIGHTS[labels].sum()).item() == pytest.approx(theirs.item(), rel=1e-12)
    parts = ours(logits[:2], labels[:2]) * 2 / 5 + ours(logits[2:], labels[2:]) * 3 / 5
    assert parts.item() == pytest.approx(ours(logits, labels).item(), rel=1e-12)


@pytest.mark.parametrize("limit", [0.0, 1.0, 1e6])
def test_clipping_is_of_the_norm_of_all_gradients_together(limit: float) -> None:
    model = small_model()
    optimizer = make_optimizer(model, OptimConfig())
    generator = torch.Generator().manual_seed(4)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator)
    next(model.parameters()).grad = None  # it has been frozen
    before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    norm = math.sqrt(sum((g.double() ** 2).sum().item() for g in before))
    assert 1 < norm < 1e6
    clipping(optimizer, limit)()
    after = [p.grad for p in model.parameters() if p.grad is not None]
    for g, old in zip(after, before, strict=True):
        if limit == 1:
            torch.testing.assert_close(g, old / norm, rtol=1e-5, atol=0)
        else:
            assert torch.equal(g, old)


def test_values_are_exchanged_and_put_back_also_after_an_error() -> None:
    one, other = nn.Parameter(torch.zeros(2)), torch.ones(2)

    def fails() -> None:
        with exchanged([one], [other]):
            assert (one.tolist(), other.tolist()) == ([1, 1], [0, 0])
            one.data += 1
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fails()
    assert (one.tolist(), other.tolist()) == ([0, 0], [2, 2])


@pytest.mark.parametrize("loss", [LossConfig(), LossConfig("mse")])
def test_l1_by_hand(answers: tuple[Tensor, Tensor], loss: LossConfig) -> None:
    logits, labels = answers
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -2.0], [3.0, -4.0]]))
        model.bias.copy_(torch.tensor([0.5, -0.5]))
    plain = objective(model, loss)(logits, labels)
    total = objective(model, loss, l1=0.01)(logits, labels)
    assert (total - plain).item() == pytest.approx(0.01 * 11, rel=1e-6)
    total.backward()
    assert torch.equal(model.weight.grad, 0.01 * model.weight.sign())
    model.bias.requires_grad_(False)
    assert (objective(model, loss, l1=0.01)(logits, labels) - plain).item() == pytest.approx(0.01 * 10, rel=1e-6)


def test_weight_decay_of_sgd_is_the_gradient_of_l2() -> None:
    """One step with weight_decay equals one step on the loss plus weight_decay / 2 * sum of squares."""
    decayed, explicit = small_model(), small_model()
    images = torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(6) % 3
    for model, decay in ((decayed, 0.1), (explicit, 0.0)):
        optimizer = make_optimizer(model, OptimConfig("sgd", 0.1, momentum=0.0, weight_decay=decay))
        loss = F.cross_entropy(model(images), labels)
        if decay == 0:
            loss = loss + 0.1 / 2 * sum((p**2).sum() for p in model.parameters())
        loss.backward()
        optimizer.step()
    start = copy.deepcopy(small_model())
    for a, b, before in zip(decayed.parameters(), explicit.parameters(), start.parameters(), strict=True):
        torch.testing.assert_close(a, b)
        assert not torch.equal(a, before)
