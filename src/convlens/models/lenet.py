"""LeNet-5 (LeCun, Bottou, Bengio and Haffner, 1998), in the form that is taught today and with its classic variants."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ..errors import unknown
from .articles import flat_size, stack

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh}
POOLINGS: dict[str, Callable[[int], nn.Module]] = {"average": nn.AvgPool2d, "max": nn.MaxPool2d}
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda _: nn.Identity(),
    "batch": nn.BatchNorm2d,  # Ioffe and Szegedy, arXiv:1502.03167
    # Krizhevsky, Sutskever and Hinton, 2012: n = 5, alpha = 1e-4 (torch divides it by n), beta = 0.75, k = 2
    "local-response": lambda _: nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0),
}


def lenet5(
    channels: int,
    classes: int,
    size: tuple[int, int],
    activation: str = "relu",
    pooling: str = "average",
    norm: str = "none",
) -> nn.Module:
    """6 maps 5 x 5 with padding 2, pool 2, 16 maps 5 x 5, pool 2, 120-84-classes: 61,706 parameters on 28 x 28 gray
    digits. `activation` relu, sigmoid or tanh; `pooling` average or max; `norm` none, batch or local-response.

    Raises:
        UserError: an unknown choice, or images too small for its layers.
    """
    for kind, given, choices in (
        ("activation", activation, ACTIVATIONS),
        ("pooling", pooling, POOLINGS),
        ("norm", norm, NORMS),
    ):
        if str(given) not in choices:  # a recipe may hold anything here
            raise unknown(kind, str(given), choices)
    act = ACTIVATIONS[activation]

    def block(into: int, out: int, padding: int) -> list[nn.Module]:
        layers = [nn.Conv2d(into, out, 5, padding=padding), NORMS[norm](out), act(), POOLINGS[pooling](2)]
        return [layer for layer in layers if not isinstance(layer, nn.Identity)]

    features = nn.Sequential(*block(channels, 6, 2), *block(6, 16, 0))
    classifier = nn.Sequential(
        nn.Flatten(),
        nn.Linear(flat_size(features, 16, size), 120),
        act(),
        nn.Linear(120, 84),
        act(),
        nn.Linear(84, classes),
    )
    return stack(features, classifier)
