"""The networks of our own speed recipes: a whitening first layer, batch norm that learns its biases only, and no more
arithmetic than the accuracy asks for. In the line of cifar10-fast (Page, 2018), hlb-CIFAR10 and cifar10-airbench
(Jordan, arXiv:2404.00498)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..errors import UserError, unknown
from .articles import flat_size, stack
from .sizes import size_after

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}
HEADS: dict[str, Callable[[], list[nn.Module]]] = {
    "max": lambda: [nn.AdaptiveMaxPool2d(1)],
    "average": lambda: [nn.AdaptiveAvgPool2d(1)],
    "flat": list,
}
EPS = 5e-4  # added to the variances that whitening divides by


class Whiten(nn.Conv2d):
    """A convolution whose outputs are uncorrelated and of variance 1 on the images it was fitted to: the `components`
    strongest principal components of their `kernel` x `kernel` patches (0: all of them), and their negatives. Its
    filters are not trained; its bias is, where it has one."""

    def __init__(self, channels: int, kernel: int, stride: int, components: int = 0, bias: bool = True) -> None:
        patch = channels * kernel**2
        if not 0 <= components <= patch:
            raise UserError(f"components must be at most the {patch} numbers of a patch (0: all), not {components}")
        super().__init__(channels, 2 * (components or patch), kernel, stride, bias=bias)
        self.weight.requires_grad = False

    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """Set the filters from normalised images, float (N, C, H, W)."""
        (high, wide), step = self.kernel_size, max(self.stride[0], 2)
        windows = images.unfold(2, high, step).unfold(3, wide, step)  # F.unfold would go image by image on a GPU
        patches = windows.permute(0, 2, 3, 1, 4, 5).reshape(-1, images.shape[1] * high * wide)
        variances, components = torch.linalg.eigh((patches.T @ patches / len(patches)).cpu().double())
        strongest = slice(len(variances) - len(self.weight) // 2, None)  # eigh sorts from the weakest
        filters = (components / (variances + EPS).sqrt())[:, strongest].T.reshape(-1, *self.weight.shape[1:])
        self.weight.copy_(torch.cat([filters, -filters]).float())
        if self.bias is not None:
            self.bias.zero_()


def speednet(
    channels: int,
    classes: int,
    size: tuple[int, int],
    widths: Sequence[int] = (64, 256, 256),
    convs: int = 2,
    whiten: int = 2,
    whiten_stride: int = 1,
    components: int = 0,
    whiten_bias: bool = True,
    activation: str = "gelu",
    pool: str | Sequence[str] = "max",
    padding: int = 1,
    head: str = "max",
    momentum: float = 0.4,
) -> nn.Module:
    """A whitening convolution and a small batch-norm network. For every width `convs` times (3 x 3 convolution, batch
    norm, activation), the first halving the sides, as long as they have two pixels; then one linear layer. 1,972,792
    parameters as it stands on colour images.

    `whiten` is the side of the first layer's filters, 0 for none; it keeps that many `components`, the strongest, 0 for
    all; without `whiten_bias` nothing in it is trained, which saves its gradients. `activation` relu, gelu or silu.
    `pool` max (max pooling behind the first convolution of a width) or stride (that convolution has stride 2), or a
    list of these, for the widths in their order: the last goes for all further widths, and what is left over for none,
    such that a recipe's list goes with any widths. `padding` is that of the 3 x 3 convolutions. `head` says what the
    linear layer sees: the max or the average of every map, or flat, all of it. `momentum` is the weight of the newest
    batch in the statistics that batch norm keeps.

    Raises:
        UserError: an unknown choice, or images too small for its layers.
    """
    pools = [pool] if isinstance(pool, str) else list(pool)
    if not pools:
        raise UserError("pool must be max or stride, or a list of these with at least one of them, not []")
    for kind, given, choices in (
        ("activation", activation, ACTIVATIONS),
        *(("pool", each, ("max", "stride")) for each in pools),
        ("head", head, HEADS),
    ):
        if str(given) not in choices:  # a recipe may hold anything here
            raise unknown(kind, str(given), choices)
    for kind, step, low, high in (("padding", padding, 0, 2), ("whiten_stride", whiten_stride, 1, 32)):
        if type(step) is not int or not low <= step <= high:
            raise UserError(f"{kind} must be a whole number from {low} to {high}, not {step!r:.40}")
    act = ACTIVATIONS[activation]
    layers: list[nn.Module] = []
    into = channels
    if whiten:
        first = Whiten(channels, whiten, whiten_stride, components, whiten_bias)
        layers += [first, act()]
        into = first.out_channels
    halvings = itertools.chain(pools, itertools.repeat(pools[-1]))
    for width, halving in zip(widths, halvings, strict=False):
        for i in range(convs):
            stride = 2 if i == 0 and halving == "stride" else 1
            convolution = nn.Conv2d(into, width, 3, stride, padding, bias=False)
            with torch.no_grad():  # nn.init.dirac_ goes filter by filter; the rest of them keeps torch's own start
                same = convolution.weight[: min(into, width)].zero_()
                same[:, :, 1, 1].diagonal().fill_(1)
            norm = nn.BatchNorm2d(width, eps=1e-5, momentum=momentum)
            norm.weight.requires_grad = False
            layers.append(convolution)
            if i == 0 and halving == "max" and min(size_after(nn.Sequential(*layers), size)) > 1:
                layers.append(nn.MaxPool2d(2))
            layers += [norm, act()]
            into = width
    features = nn.Sequential(*layers)
    flat = flat_size(features, into, size)  # also for its refusal of images that are too small
    linear = nn.Linear(flat if head == "flat" else into, classes, bias=False)
    nn.init.normal_(linear.weight, std=1 / linear.in_features)
    return stack(features, nn.Sequential(*HEADS[head](), nn.Flatten(), linear))
