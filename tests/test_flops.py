"""flops: against a count by hand, and without a trace in the model that is counted."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convlens import build
from convlens.flops import forward_flops, training_flops
from convlens.models.normalize import Normalize

# Multiply-adds of one image of 3 x 8 x 8: 4 filters of 3 x 3 at 8 x 8 places, 6 of 3 x 3 at 4 x 4, 96 numbers to 5
FIRST, SECOND, LAST = 8 * 8 * 4 * 3 * 9, 4 * 4 * 6 * 4 * 9, 96 * 5


def network() -> nn.Sequential:
    return nn.Sequential(
        Normalize((0.5,) * 3, (0.25,) * 3),
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, padding=1),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(96, 5),
    )


def images(count: int, side: int = 8) -> Tensor:
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_multiply_add_is_two_operations(count: int) -> None:
    assert forward_flops(network(), images(count)) == 2 * (FIRST + SECOND + LAST)


@pytest.mark.parametrize("count", [2, 7])
def test_training_is_three_times_as_much_but_for_the_gradient_of_the_pixels(count: int) -> None:
    labels = torch.arange(count) % 5
    assert training_flops(network(), images(count), labels) == 2 * (2 * FIRST + 3 * SECOND + 3 * LAST)


def test_a_fixed_first_layer_needs_no_backward_pass() -> None:
    model = network()
    model[1].weight.requires_grad = False
    assert training_flops(model, images(2), torch.arange(2)) == 2 * (FIRST + 3 * SECOND + 3 * LAST)
    model, whitening = build("speednet", channels=3, classes=5, size=(16, 16)), 2 * 15 * 15 * 24 * 3 * 2 * 2
    counted = training_flops(model, images(2, 16), torch.arange(2))
    assert counted == 3 * forward_flops(model, images(2, 16)) - 2 * whitening


def test_the_callers_model_does_not_notice() -> None:
    model = network()
    F.cross_entropy(model(images(4)), torch.arange(4)).backward()
    model[0].eval()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    modes = [layer.training for layer in model.modules()]
    assert len(gradients) == len(list(model.parameters()))
    forward_flops(model, images(3))
    training_flops(model, images(3), torch.arange(3))
    assert [layer.training for layer in model.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        assert p.grad is not None
        assert torch.equal(p.grad, gradient)


def test_counting_before_a_training_draws_no_random_numbers() -> None:
    model, state = network(), torch.get_rng_state()
    forward_flops(model, images(3))
    assert torch.equal(torch.get_rng_state(), state)
