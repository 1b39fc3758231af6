"""How much arithmetic a network is."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def layer_macs(layer: nn.Module, output: Tensor) -> int:
    """Multiply-adds of a layer for one image; additions of biases, norms and poolings are not counted, as is usual."""
    if isinstance(layer, nn.Conv2d):
        return output[0].numel() * layer.weight[0].numel()
    if isinstance(layer, nn.Linear):
        return output[0].numel() * layer.in_features
    return 0


def forward_flops(model: nn.Module, images: Tensor) -> int:
    """Floating point operations of convolutions and linear layers for one image of `images` (N, C, H, W), forward; a
    multiply-add is two. By hooks and not by torch's counter, which imports torch's compiler: two seconds that a short
    training would pay."""
    model = copy.deepcopy(model).eval()  # the caller's own must not notice
    counted: list[int] = []
    for layer in model.modules():
        layer.register_forward_hook(lambda m, _, output: counted.append(layer_macs(m, output)))
    with torch.no_grad():
        model(images)
    return 2 * sum(counted)


def training_flops(model: nn.Module, images: Tensor, labels: Tensor) -> int:
    """The same for one image of a training step, forward and backward, by torch's counter: about three times as much,
    less what needs no gradient (the pixels, a fixed first layer)."""
    from torch.utils.flop_counter import FlopCounterMode

    model = copy.deepcopy(model).train()
    counter = FlopCounterMode(display=False)
    with torch.random.fork_rng(), counter:  # dropout draws
        F.cross_entropy(model(images), labels).backward()
    return counter.get_total_flops() // len(images)
