"""Residual networks for small images: ResNet-20 and ResNet-18 (He et al., arXiv:1512.03385), ResNet-9 (Page, 2018)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from .sizes import size_after


def conv_bn(into: int, out: int, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    """Convolution without bias, which the batch norm behind it would cancel."""
    return nn.Sequential(nn.Conv2d(into, out, kernel, stride, padding=kernel // 2, bias=False), nn.BatchNorm2d(out))


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions around a shortcut; where the shape changes the shortcut is a 1 x 1 convolution (`project`)
    or, as in the paper's CIFAR networks, every second pixel and zeros for the new channels (option A)."""

    def __init__(self, into: int, out: int, stride: int, project: bool) -> None:
        super().__init__()
        self.first = conv_bn(into, out, stride)
        self.second = conv_bn(out, out)
        self.relu = nn.ReLU()
        changes = stride != 1 or into != out
        self.shortcut = conv_bn(into, out, stride, kernel=1) if changes and project else nn.Identity()
        self.stride, self.new_channels = stride, 0 if project else out - into

    def forward(self, x: Tensor) -> Tensor:
        short = self.shortcut(x)
        if self.new_channels:
            short = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))
        return self.relu(self.second(self.relu(self.first(x))) + short)


def _resnet(channels: int, classes: int, widths: Sequence[int], blocks: int, project: bool) -> nn.Module:
    into = widths[0]
    stages: list[nn.Module] = []
    for i, width in enumerate(widths):
        for j in range(blocks):
            stages.append(BasicBlock(into, width, stride=2 if i > 0 and j == 0 else 1, project=project))
            into = width
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(into, classes))
    model = nn.Sequential(
        OrderedDict(
            stem=nn.Sequential(*conv_bn(channels, widths[0]), nn.ReLU()), blocks=nn.Sequential(*stages), classifier=head
        )
    )
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return model


def resnet20(channels: int, classes: int, size: tuple[int, int]) -> nn.Module:  # noqa: ARG001 - global pooling: any size
    """16, 32 and 64 maps, three blocks each, option A shortcuts: 269,722 parameters on CIFAR-10."""
    return _resnet(channels, classes, (16, 32, 64), blocks=3, project=False)


def resnet18(channels: int, classes: int, size: tuple[int, int]) -> nn.Module:  # noqa: ARG001 - global pooling: any size
    """64 to 512 maps, two blocks each, a 3 x 3 stem for 32 x 32 images: 11,173,962 parameters on CIFAR-10."""
    return _resnet(channels, classes, (64, 128, 256, 512), blocks=2, project=True)


class ResNet9(nn.Module):
    """See `resnet9`."""

    def __init__(self, channels: int, classes: int, width: int) -> None:
        super().__init__()

        def block(into: int, out: int, pool: bool) -> nn.Sequential:
            return nn.Sequential(*conv_bn(into, out), nn.ReLU(), *([nn.MaxPool2d(2)] if pool else []))

        self.stem = block(channels, width, pool=False)
        self.layer1 = block(width, 2 * width, pool=True)
        self.residual1 = nn.Sequential(block(2 * width, 2 * width, False), block(2 * width, 2 * width, False))
        self.layer2 = block(2 * width, 4 * width, pool=True)
        self.layer3 = block(4 * width, 8 * width, pool=True)
        self.residual3 = nn.Sequential(block(8 * width, 8 * width, False), block(8 * width, 8 * width, False))
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.linear = nn.Linear(8 * width, classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer1(self.stem(x))
        x = self.layer2(x + self.residual1(x))
        x = self.layer3(x)
        x = x + self.residual3(x)
        return 0.125 * self.linear(self.pool(x).flatten(1))  # the scale that its author found for the logits


def resnet9(channels: int, classes: int, size: tuple[int, int], width: int = 64) -> nn.Module:
    """David Page's ResNet-9, "How to train your ResNet": 6,573,120 parameters on CIFAR-10 at width 64.

    Raises:
        UserError: images of less than 8 pixels a side.
    """
    network = ResNet9(channels, classes, width)
    for name in ("layer1", "layer2", "layer3"):  # those that pool
        size = size_after(network.get_submodule(name), size, name)  # type: ignore[arg-type] # which are nn.Sequential
    return network
