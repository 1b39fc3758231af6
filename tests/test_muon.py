"""Muon: the orthogonal matrix against the singular value decomposition, the steps against slow ones and torch's SGD."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convlens.muon import REST_MOMENTUM, Muon, all_orthogonal, orthogonal

SHAPES = [(8, 27), (27, 8), (16, 16), (12, 200), (200, 12), (1, 9)]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def with_singular_values(values: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    """U (rows, k), V^T (k, columns) and the matrix that has these singular values between them."""
    u, _, vt = torch.linalg.svd(random(rows, columns), full_matrices=False)
    return u, vt, u * values @ vt


def polynomial(s: Tensor, steps: int = 3) -> Tensor:
    """What an odd polynomial of fifth order does to the singular values, again and again."""
    for _ in range(steps):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return s


def slow_orthogonal(matrix: Tensor) -> Tensor:
    u, s, vt = torch.linalg.svd(matrix.double(), full_matrices=False)
    return (u * polynomial(s / s.square().sum().sqrt()) @ vt).float()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_orthogonal_changes_the_singular_values_and_keeps_the_vectors(shape: tuple[int, int]) -> None:
    matrix = random(*shape, seed=3)
    before = matrix.clone()
    got = orthogonal(matrix)
    assert (got.shape, got.dtype) == (matrix.shape, torch.float32)
    torch.testing.assert_close(got, slow_orthogonal(matrix), atol=1e-5, rtol=1e-4)
    assert torch.equal(matrix, before)


@pytest.mark.parametrize("shape", SHAPES[:-1], ids=str)  # one row is orthogonal as it stands
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_orthogonal_is_about_the_nearest_orthogonal_matrix(shape: tuple[int, int], scale: float) -> None:
    """Singular values that lie up to 5 times apart come to lie about 1, whatever the size of the matrix's numbers."""
    u, vt, matrix = with_singular_values(scale * torch.linspace(1, 0.2, min(shape)), *shape)
    got, target = orthogonal(matrix), u @ vt
    values = torch.linalg.svdvals(got)
    assert values.min() > 0.5
    assert values.max() < 1.5
    assert (got * target).sum() / (got.norm() * target.norm()) > 0.97  # the cosine between the two directions
    start = matrix / matrix.norm()
    assert (got - target).norm() < 0.3 * target.norm()
    assert (start - target).norm() > (got - target).norm()


def test_orthogonal_of_nothing_is_nothing() -> None:
    assert torch.equal(orthogonal(torch.zeros(4, 9)), torch.zeros(4, 9))


def test_all_at_once_is_each_by_itself() -> None:
    """In bf16, as on a GPU: about two digits. Matrices of other shapes in the same stack change nothing."""
    matrices = [random(*shape, seed=i) for i, shape in enumerate(SHAPES)]
    together = all_orthogonal(matrices)
    for matrix, got in zip(matrices, together, strict=True):
        assert (got.shape, got.dtype) == (matrix.shape, torch.float32)
        expected = orthogonal(matrix)
        assert (got - expected).norm() < 0.03 * expected.norm()


def test_a_stack_of_matrices_is_each_by_itself() -> None:
    stack = random(4, 5, 9)
    for matrix, got in zip(stack, orthogonal(stack), strict=True):
        torch.testing.assert_close(got, orthogonal(matrix), atol=1e-6, rtol=1e-4)


def group(parameters: list[nn.Parameter], **settings: Any) -> dict[str, Any]:
    return {"params": parameters, **settings}


LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(6, 2, 3, 3), (40, 2, 3, 3)], ids=["wide", "tall"])
def test_filters_against_a_slow_version(shape: tuple[int, ...], layout: str) -> None:
    """Several steps of two filter banks: Nesterov momentum, norm sqrt(out), the orthogonal step."""
    start = [random(*shape), random(5, 3, 1, 1, seed=1)]
    ours = [nn.Parameter(p.clone().contiguous(memory_format=LAYOUTS[layout])) for p in start]
    optimizer = Muon([group(ours, filters=True, weight_decay=0.5)], lr=0.1, momentum=0.6)
    theirs, buffers = [p.clone() for p in start], [torch.zeros_like(p) for p in start]
    for step, lr in enumerate((0.1, 0.3, 0.05, 0.2)):
        gradients = [random(*p.shape, seed=10 * step + i) for i, p in enumerate(start)]
        optimizer.param_groups[0]["lr"] = lr
        for p, gradient in zip(ours, gradients, strict=True):
            p.grad = gradient.contiguous(memory_format=LAYOUTS[layout])
        optimizer.step()
        for i, gradient in enumerate(gradients):
            buffers[i] = 0.6 * buffers[i] + gradient
            momentum = gradient + 0.6 * buffers[i]
            moved = slow_orthogonal(momentum.reshape(len(momentum), -1)).reshape(momentum.shape)
            scaled = theirs[i] * len(momentum) ** 0.5 / theirs[i].square().sum().sqrt()
            theirs[i] = scaled - lr * moved
            torch.testing.assert_close(ours[i].detach(), theirs[i], atol=1e-4, rtol=1e-4)
        assert all(p.is_contiguous(memory_format=LAYOUTS[layout]) for p in ours)


def test_filters_have_the_norm_of_the_root_of_their_number_before_each_move() -> None:
    filters = nn.Parameter(7 * random(9, 4, 3, 3))
    optimizer = Muon([group([filters], filters=True)], lr=0.0, momentum=0.0)  # a rate of 0: the move itself is nothing
    for seed in range(3):
        direction = filters.detach() / filters.detach().norm()
        filters.grad = random(*filters.shape, seed=seed)
        optimizer.step()
        assert filters.detach().norm().item() == pytest.approx(3, rel=1e-5)
        torch.testing.assert_close(filters.detach() / 3, direction)


def test_the_rest_is_sgd_with_nesterov_momentum() -> None:
    start = [random(4, 6), random(4, seed=1), random(11, seed=2)]
    ours, theirs = ([nn.Parameter(p.clone()) for p in start] for _ in "ab")
    muon = Muon([group(ours[:1], weight_decay=0.03), group(ours[1:], weight_decay=0.0)], lr=0.1, momentum=0.6)
    sgd = torch.optim.SGD(
        [group(theirs[:1], weight_decay=0.03), group(theirs[1:], weight_decay=0.0)], 0.1, REST_MOMENTUM, nesterov=True
    )
    assert REST_MOMENTUM == 0.85
    for step in range(6):
        for optimizer, parameters in ((muon, ours), (sgd, theirs)):
            for index, settings in enumerate(optimizer.param_groups):
                settings["lr"] = 0.1 / (step + 1 + index)  # a schedule, and rates of their own
            for i, p in enumerate(parameters):
                p.grad = random(*p.shape, seed=10 * step + i)
            optimizer.step()
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)
    assert all((a - b).abs().max() > 0.01 for a, b in zip(ours, start, strict=True))


def test_gradients_are_left_as_they_were_and_what_has_none_stays() -> None:
    moved, still, rest = (nn.Parameter(random(3, 2, 2, 2)), nn.Parameter(random(3, 2, 2, 2)), nn.Parameter(random(5)))
    before = [p.detach().clone() for p in (moved, still, rest)]
    optimizer = Muon([group([moved, still], filters=True), group([rest], weight_decay=0.1)], lr=0.1, momentum=0.6)
    moved.grad, rest.grad = random(3, 2, 2, 2, seed=1), random(5, seed=1)
    gradients = [moved.grad.clone(), rest.grad.clone()]
    optimizer.step()
    assert torch.equal(moved.grad, gradients[0])
    assert torch.equal(rest.grad, gradients[1])
    changed = [not torch.equal(p, old) for p, old in zip((moved, still, rest), before, strict=True)]
    assert changed == [True, False, True]
