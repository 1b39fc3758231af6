"""Muon: the momentum of a convolution's filters is made orthogonal before it becomes a step."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

REST_MOMENTUM = 0.85  # of what is no filter, as in airbench94_muon


class Muon(torch.optim.Optimizer):
    """Muon for convolutions (Jordan, 2024: kellerjordan.github.io/posts/muon), SGD for the rest.

    A group with `filters` true holds weights (out, in, h, w), read as matrices (out, in * h * w): each is scaled to the
    norm sqrt(out), which changes nothing in front of a batch norm, and moves by `lr` times its orthogonalised Nesterov
    momentum. The other groups take SGD steps with Nesterov momentum of 0.85. `weight_decay` is an L2 gradient there and
    is not used for filters, whose norm is fixed. torch's own Muon takes matrices only.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, momentum: float) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": 0.0, "filters": False})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override] # noqa: ARG002 - no step here needs one
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                (self._step_filters if group["filters"] else self._step_rest)(parameters, group)

    def _step_filters(self, filters: list[Tensor], group: dict[str, Any]) -> None:
        gradients = self._nesterov(filters, [p.grad for p in filters if p.grad is not None], group["momentum"])
        norms = torch._foreach_norm(filters)
        torch._foreach_clamp_min_(norms, 1e-7)
        torch._foreach_div_(norms, [len(p) ** 0.5 for p in filters])
        torch._foreach_div_(filters, norms)
        # A row's order does not matter, so it is that of channels last, in which nothing need be copied
        matrices = [gradient.movedim(1, -1).flatten(1) for gradient in gradients]
        updates = all_orthogonal(matrices) if matrices[0].is_cuda else [orthogonal(matrix) for matrix in matrices]
        for p, update in zip(filters, updates, strict=True):
            p.sub_(update.view_as(p.movedim(1, -1)).movedim(-1, 1) * group["lr"])

    def _step_rest(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        if group["weight_decay"]:
            gradients = list(torch._foreach_add(gradients, parameters, alpha=group["weight_decay"]))
        steps = torch._foreach_mul(self._nesterov(parameters, gradients, REST_MOMENTUM), group["lr"])
        torch._foreach_sub_(parameters, steps)

    def _nesterov(self, parameters: list[Tensor], gradients: list[Tensor], momentum: float) -> list[Tensor]:
        for p in parameters:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in parameters]
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, gradients)
        return list(torch._foreach_add(gradients, buffers, alpha=momentum))


def orthogonal(matrix: Tensor, steps: int = 3) -> Tensor:
    """About U V^T of the singular value decomposition U S V^T of `matrix` (m, n), or of each of (N, m, n): the singular
    values come between 0.5 and 1.5, by `steps` of a Newton-Schulz iteration of fifth order. Coefficients: Jordan, 2024.

    An iteration takes x to p x, where p is a polynomial of x x^T alone. So all of them are made on that small matrix,
    with which p commutes, and x is multiplied once: half of the arithmetic for filters of 3 x 3 in a layer that keeps
    its width, three quarters where it trebles.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    product = torch.addmm if matrix.ndim == 2 else torch.baddbmm  # beta x + alpha y z
    wide = matrix.shape[-2] <= matrix.shape[-1]
    x = matrix if wide else matrix.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)  # no singular value is above 1
    square = x @ x.mT
    factors = []
    for step in range(steps):
        p = product(square, square, square, beta=b, alpha=c)
        p.diagonal(dim1=-2, dim2=-1).add_(a)
        factors.append(p)
        if step < steps - 1:
            square = p @ square @ p
    x = functools.reduce(torch.matmul, factors) @ x
    return x if wide else x.mT


def all_orthogonal(matrices: list[Tensor]) -> list[Tensor]:
    """`orthogonal` of each, all at once and in bf16: filled up with zeros to one shape, which changes nothing.
    That is more arithmetic in fewer products, which a GPU likes (as in hiverge's speed-run, 2025)."""
    rows, columns = (max(matrix.shape[i] for matrix in matrices) for i in (0, 1))
    if len(matrices) * rows * columns > 4 * sum(matrix.numel() for matrix in matrices):  # mostly zeros
        return [orthogonal(matrix.bfloat16()).to(matrix.dtype) for matrix in matrices]
    padded = matrices[0].new_zeros((len(matrices), rows, columns), dtype=torch.bfloat16)
    for place, matrix in zip(padded, matrices, strict=True):
        place[: len(matrix), : matrix.shape[1]] = matrix
    found = orthogonal(padded).to(matrices[0].dtype)
    return [x[: len(matrix), : matrix.shape[1]] for x, matrix in zip(found, matrices, strict=True)]
