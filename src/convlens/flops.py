"""How much arithmetic a network is."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode


class FlopCount(TorchDispatchMode):
    """Inside the `with`, `total` grows by the floating point operations of every convolution and product, by the
    formulas of torch's own counter; that one would import torch's compiler, which takes two seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self._formulas = FlopCounterMode(display=False).flop_registry

    @classmethod
    def _should_skip_dynamo(cls) -> bool:  # what is asked for the compiler's sake, and is why that is imported
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if formula := self._formulas.get(func._overloadpacket):
            self.total += formula(*args, **kwargs, out_val=out)
        return out


def layer_macs(layer: nn.Module, output: Tensor) -> int:
    """Multiply-adds of a layer for all of its output; additions of biases, norms and poolings are not counted, as is
    usual."""
    if isinstance(layer, nn.Conv2d | nn.Linear):
        return output.numel() * layer.weight[0].numel()
    return 0


def forward_flops(model: nn.Module, images: Tensor) -> int:
    """Floating point operations of convolutions and linear layers for one image of `images` (N, C, H, W), forward; a
    multiply-add is two."""
    model = copy.deepcopy(model).eval()  # the caller's own must not notice
    counted: list[int] = []
    for layer in model.modules():
        layer.register_forward_hook(lambda m, _, output: counted.append(layer_macs(m, output)))
    with torch.no_grad():
        model(images)
    return 2 * sum(counted) // len(images)


def training_flops(model: nn.Module, images: Tensor, labels: Tensor) -> int:
    """The same for one image of a training step, forward and backward: about three times as much, less what needs no
    gradient (the pixels, a fixed first layer)."""
    model = copy.deepcopy(model).train()
    counter = FlopCount()
    with torch.random.fork_rng(), counter:  # dropout draws
        F.cross_entropy(model(images), labels).backward()
    return counter.total // len(images)
