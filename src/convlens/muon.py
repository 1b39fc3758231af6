"""Muon: the momentum of a convolution's filters is made orthogonal before it becomes a step."""

from __future__ import annotations

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
        for p, gradient in zip(filters, gradients, strict=True):
            p.mul_(len(p) ** 0.5 / p.norm().clamp_min(1e-7))
            p.sub_(orthogonal(gradient.flatten(1)).view(p.shape), alpha=group["lr"])

    def _step_rest(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        if group["weight_decay"]:
            gradients = list(torch._foreach_add(gradients, parameters, alpha=group["weight_decay"]))
        torch._foreach_add_(parameters, self._nesterov(parameters, gradients, REST_MOMENTUM), alpha=-group["lr"])

    def _nesterov(self, parameters: list[Tensor], gradients: list[Tensor], momentum: float) -> list[Tensor]:
        for p in parameters:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in parameters]
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, gradients)
        return list(torch._foreach_add(gradients, buffers, alpha=momentum))


def orthogonal(matrix: Tensor, steps: int = 3) -> Tensor:
    """About U V^T of the singular value decomposition U S V^T of `matrix` (m, n): the singular values come between 0.5
    and 1.5, by `steps` of a Newton-Schulz iteration of fifth order. Coefficients: Jordan, 2024. bf16 on a GPU."""
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else matrix.T
    x = x.bfloat16() if matrix.is_cuda else x
    x = x / (x.norm() + 1e-7)  # no singular value is above 1
    for _ in range(steps):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return (x if wide else x.T).to(matrix.dtype)
