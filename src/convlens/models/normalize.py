"""The first layer of every model: pixels in 0..255 become what the network was trained on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """(N, C, H, W) uint8, or float in 0..255 where gradients to the pixels are wanted -> float, (x / 255 - mean) / std.

    It is part of the model, and so of its file: whoever trains, explains or predicts cannot disagree about it.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        m, s = (torch.tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in (mean, std))
        self.register_buffer("scale", 1 / (255 * s))
        self.register_buffer("shift", -m / s)

    def forward(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1] != len(self.scale):
            raise ValueError(f"images must be (N, {len(self.scale)}, H, W), not {tuple(images.shape)}")
        if images.shape[1] == 1 or not images.is_contiguous(memory_format=torch.channels_last):
            return torch.addcmul(self.shift, images.to(self.scale.dtype), self.scale)
        # Pixel by pixel in memory, three numbers for a pixel are slow to broadcast: a row of them is twice as fast
        n, channels, height, width = images.shape
        rows = images.permute(0, 2, 3, 1).reshape(n, height, width * channels).to(self.scale.dtype)
        shift, scale = self.shift.flatten().repeat(width), self.scale.flatten().repeat(width)
        return torch.addcmul(shift, rows, scale).view(n, height, width, channels).permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        std = 1 / (255 * self.scale.flatten())
        mean = -self.shift.flatten() * std
        return f"mean={[round(v, 4) for v in mean.tolist()]}, std={[round(v, 4) for v in std.tolist()]}"
