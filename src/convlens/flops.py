"""How much arithmetic a network is, by torch's own counter."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def forward_flops(model: nn.Module, images: Tensor) -> int:
    """Floating point operations of convolutions and matrix products for one image of `images` (N, C, H, W), forward;
    a multiply-add is two."""
    model = copy.deepcopy(model).eval()  # the caller's own must not notice
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(images)
    return counter.get_total_flops() // len(images)


def training_flops(model: nn.Module, images: Tensor, labels: Tensor) -> int:
    """The same for one image of a training step, forward and backward: about three times as much, less what needs no
    gradient (the pixels, a fixed first layer)."""
    model = copy.deepcopy(model).train()
    counter = FlopCounterMode(display=False)
    with torch.random.fork_rng(), counter:  # dropout draws
        F.cross_entropy(model(images), labels).backward()
    return counter.get_total_flops() // len(images)
