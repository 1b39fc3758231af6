"""A small VGG (Simonyan and Zisserman, arXiv:1409.1556) with batch norm and one linear layer on the pooled maps."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from .articles import stack
from .sizes import size_after


def vgg(
    channels: int,
    classes: int,
    size: tuple[int, int],
    widths: Sequence[int] = (32, 64, 128),
    convs: int = 2,
    dropout: float = 0.0,
) -> nn.Module:
    """A small VGG. For every width: `convs` times (3 x 3 convolution, batch norm, ReLU), then max pool 2; at the end
    global average pool and one linear layer. 288,170 parameters as it stands on gray digits.

    Raises:
        UserError: images too small for its layers.
    """
    layers: list[nn.Module] = []
    into = channels
    for width in widths:
        for _ in range(convs):
            layers += [nn.Conv2d(into, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            into = width
        layers.append(nn.MaxPool2d(2))
    features = nn.Sequential(*layers)
    size_after(features, size)  # for its refusal: behind the global average pool nothing depends on it
    classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(into, classes))
    return stack(features, classifier)
