"""The convolutional networks of the articles, layer by layer as they print them (LeNet-5 has its own file).

Each takes any number of channels and classes, and any size that its layers allow.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from .sizes import size_after


def stack(features: nn.Sequential, classifier: nn.Sequential) -> nn.Sequential:
    """The two halves of a classic network under the names that everybody gives them."""
    return nn.Sequential(OrderedDict(features=features, classifier=classifier))


def flat_size(features: nn.Sequential, channels: int, size: tuple[int, int]) -> int:
    """How many numbers `features` leaves of an image for the first linear layer."""
    height, width = size_after(features, size)
    return channels * height * width


def cnn_mnist(channels: int, classes: int, size: tuple[int, int]) -> nn.Module:
    """32 and 64 maps 3 x 3, each ReLU and max pool 2; 3136-128-10 on 28 x 28 gray digits: 421,642 parameters."""
    features = nn.Sequential(
        nn.Conv2d(channels, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )
    classifier = nn.Sequential(
        nn.Flatten(),
        nn.Linear(flat_size(features, 64, size), 128),
        nn.ReLU(),
        nn.Linear(128, classes),
    )
    return stack(features, classifier)


def deepcnn_mnist(channels: int, classes: int, size: tuple[int, int], dropout: float = 0.3) -> nn.Module:
    """32, 64 and 128 maps 3 x 3, each ReLU, max pool 2 (the third with padding 1) and dropout; 2048-625-10 on 28 x 28
    gray digits: 1,379,557 parameters. The linear layers start with Xavier weights (Glorot and Bengio, 2010)."""
    layers: list[nn.Module] = []
    for i, maps in enumerate((32, 64, 128)):
        layers += [
            nn.Conv2d(channels if i == 0 else maps // 2, maps, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2, padding=1 if i == 2 else 0),
            nn.Dropout(dropout),
        ]
    features = nn.Sequential(*layers)
    hidden, out = nn.Linear(flat_size(features, 128, size), 625), nn.Linear(625, classes)
    nn.init.xavier_uniform_(hidden.weight)
    nn.init.xavier_uniform_(out.weight)
    return stack(features, nn.Sequential(nn.Flatten(), hidden, nn.ReLU(), nn.Dropout(dropout), out))


def cnn_cifar10(
    channels: int, classes: int, size: tuple[int, int], dropout: float = 0.3, dropout_hidden: float = 0.5
) -> nn.Module:
    """Two layers of 32 maps 3 x 3 with dropout between, max pool 2; 8192-512-10 on 32 x 32 colour images: 4,210,090
    parameters."""
    features = nn.Sequential(
        nn.Conv2d(channels, 32, 3, padding=1),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )
    classifier = nn.Sequential(
        nn.Flatten(),
        nn.Linear(flat_size(features, 32, size), 512),
        nn.ReLU(),
        nn.Dropout(dropout_hidden),
        nn.Linear(512, classes),
    )
    return stack(features, classifier)
