"""The arithmetic of one number of a layer's output: the patch times the kernel behind a convolution's, the window
behind a pooling's, the connections behind a linear unit's. In float64, what is computed here is what the layer did."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .anatomy import Step
from .errors import UserError
from .models.ensemble import MeanLogits, MirrorImages
from .models.normalize import Normalize
from .models.sizes import Windowed, windows


@dataclass(frozen=True)
class Arithmetic:
    """How `value` came about. `kind` is convolution, linear, max, mean, affine, pointwise or move.

    `inputs` are the numbers that went in: (C, kH, kW) of a window, whose corner lies at `corner` (row, column) of the
    layer's input, below 0 where it begins in the padding; (F,) of a linear unit; (1,) of what goes number by number.
    `first` is the first of the input's channels among them. `weights` have the same shape, where there are any, and
    `value` is then their products' sum and `bias`. Of an affine step `value` = `weights` x `inputs` + `bias`."""

    kind: str
    value: float
    inputs: Tensor
    weights: Tensor | None = None
    bias: float = 0.0
    corner: tuple[int, int] = (0, 0)
    first: int = 0

    @property
    def shares(self) -> Tensor:
        """What every input channel (C,) of a convolution, or every input (F,) of a linear unit, adds to the sum."""
        products = self.inputs * (1 if self.weights is None else self.weights)
        return products.flatten(1).sum(1) if products.ndim == 3 else products


def arithmetic(step: Step, channel: int, row: int = 0, column: int = 0) -> Arithmetic:
    """Of the number at (channel, row, column) of a step's output, or of its unit `channel` where it is (F,).

    Raises:
        UserError: there is no such number, or nothing is known of how that kind of layer computes.
    """
    at = (channel, row, column)[: step.output.ndim]
    if any(not 0 <= place < size for place, size in zip(at, step.output.shape, strict=True)):
        raise UserError(f"the output of {step.name} is {_by(step.output.shape)}: it has no number at {_by(at)}")
    for kinds, explain in _KINDS.items():
        if isinstance(step.layer, kinds):
            return explain(step.layer, step.input.double(), at, step)
    if step.input.shape == step.output.shape:
        return Arithmetic("pointwise", step.output[at].item(), step.input[at].double().reshape(1))
    raise UserError(f"how a {step.kind} computes its numbers is not known here")


def softmax(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """(K, 3) float64: of every class its logit over the temperature, e to the power of that less the largest of them,
    and the share of that in the sum, its probability."""
    scaled = logits.double() / temperature
    powers = (scaled - scaled.max()).exp()
    return torch.stack([scaled, powers, powers / powers.sum()], 1)


def _convolution(layer: nn.Conv2d, image: Tensor, at: tuple[int, ...], _step: Step) -> Arithmetic:
    channel, row, column = at
    weights = layer.weight[channel].detach().double().cpu()
    first = channel // (layer.out_channels // layer.groups) * len(weights)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    patch, corner = _window(layer, image[first : first + len(weights)], row, column, mode)
    bias = 0.0 if layer.bias is None else layer.bias[channel].item()
    return Arithmetic("convolution", (patch * weights).sum().item() + bias, patch, weights, bias, corner, first)


def _max(layer: nn.MaxPool2d, image: Tensor, at: tuple[int, ...], _step: Step) -> Arithmetic:
    patch, corner = _window(layer, image[at[0] : at[0] + 1], at[1], at[2], fill=-math.inf)
    return Arithmetic("max", patch.max().item(), patch, corner=corner, first=at[0])


def _mean(layer: nn.AvgPool2d, image: Tensor, at: tuple[int, ...], _step: Step) -> Arithmetic:
    patch, corner = _window(layer, image[at[0] : at[0] + 1], at[1], at[2])
    # torch divides by what lies in the image and its padding, not by what ceil_mode adds behind it
    sides, padded = image.shape[1:], layer.count_include_pad
    count = 1
    for start, side, window in zip(corner, sides, windows(layer), strict=True):
        low, high = (-int(window.padding), side + int(window.padding)) if padded else (0, side)
        count *= max(min(start + window.kernel, high) - max(start, low), 0)
    divisor = layer.divisor_override or count
    value = patch.sum().item() / divisor
    return Arithmetic("mean", value, patch, torch.full_like(patch, 1 / divisor), 0.0, corner, at[0])


def _adaptive(layer: nn.Module, image: Tensor, at: tuple[int, ...], step: Step) -> Arithmetic:
    places, sizes = (at[1:], step.output.shape[1:]) if len(at) > 1 else ((0, 0), (1, 1))  # x.mean((2, 3)) has no places
    spans = [
        (math.floor(place * n / m), math.ceil((place + 1) * n / m))
        for place, n, m in zip(places, image.shape[1:], sizes, strict=True)
    ]
    (top, bottom), (left, right) = spans
    patch = image[at[0] : at[0] + 1, top:bottom, left:right]
    if isinstance(layer, nn.AdaptiveMaxPool2d):
        return Arithmetic("max", patch.max().item(), patch, corner=(top, left), first=at[0])
    weights = torch.full_like(patch, 1 / patch.numel())
    return Arithmetic("mean", patch.mean().item(), patch, weights, 0.0, (top, left), at[0])


def _linear(layer: nn.Linear, image: Tensor, at: tuple[int, ...], _step: Step) -> Arithmetic:
    given = image[at[:-1]]  # of a token, where there are several
    weights = layer.weight[at[-1]].detach().double().cpu()
    bias = 0.0 if layer.bias is None else layer.bias[at[-1]].item()
    return Arithmetic("linear", (given * weights).sum().item() + bias, given, weights, bias)


def _mean_of_members(_layer: MeanLogits, rows: Tensor, at: tuple[int, ...], _step: Step) -> Arithmetic:
    """As a linear unit with a connection to each member, all of one weight."""
    given = rows[:, at[0]]
    return Arithmetic("linear", given.mean().item(), given, torch.full_like(given, 1 / len(given)))


def _batch_norm(layer: nn.BatchNorm2d, image: Tensor, at: tuple[int, ...], _step: Step) -> Arithmetic:
    if layer.running_mean is None or layer.running_var is None:  # that of the image itself
        return _standardised(layer, image, at, image[at[0]])
    return _scaled(layer, image, at, layer.running_mean[at[0]].item(), layer.running_var[at[0]].item())


def _instance_norm(layer: nn.InstanceNorm2d, image: Tensor, at: tuple[int, ...], step: Step) -> Arithmetic:
    return _batch_norm(layer, image, at, step)  # type: ignore[arg-type] # of one image it is that


def _group_norm(layer: nn.GroupNorm, image: Tensor, at: tuple[int, ...], _step: Step) -> Arithmetic:
    return _standardised(layer, image, at, image.reshape(layer.num_groups, -1)[at[0] * layer.num_groups // len(image)])


def _layer_norm(layer: nn.LayerNorm, image: Tensor, at: tuple[int, ...], _step: Step) -> Arithmetic:
    """Over the last sides, each place of which has a weight of its own."""
    whole = image.ndim - len(layer.normalized_shape)
    among = image[at[:whole]]
    return _scaled(layer, image, at, among.mean().item(), among.var(correction=0).item(), at[whole:])


def _standardised(layer: nn.Module, image: Tensor, at: tuple[int, ...], among: Tensor) -> Arithmetic:
    return _scaled(layer, image, at, among.mean().item(), among.var(correction=0).item())


def _scaled(
    layer: Any, image: Tensor, at: tuple[int, ...], mean: float, variance: float, of: tuple[int, ...] | None = None
) -> Arithmetic:
    """`of` is where in the weights a number's own are; without it they are those of its channel."""
    of = of or at[:1]
    scale = 1 / math.sqrt(variance + layer.eps)
    scale *= 1.0 if layer.weight is None else layer.weight[of].item()
    shift = (0.0 if layer.bias is None else layer.bias[of].item()) - mean * scale
    return _affine(image[at], scale, shift)


def _normalize(layer: Normalize, image: Tensor, at: tuple[int, ...], _step: Step) -> Arithmetic:
    of = (at[0] if len(image) > 1 else 0, *at[1:])  # a gray image may become one of three channels
    return _affine(image[of], layer.scale.flatten()[at[0]].item(), layer.shift.flatten()[at[0]].item())


def _mirror(_layer: MirrorImages, image: Tensor, at: tuple[int, ...], _step: Step) -> Arithmetic:
    """The image itself is left as it is."""
    return _affine(image[at], 1.0, 0.0)


def _affine(number: Tensor, scale: float, shift: float) -> Arithmetic:
    weights = torch.tensor([scale], dtype=torch.float64)
    return Arithmetic("affine", number.item() * scale + shift, number.reshape(1), weights, shift)


def _flatten(_layer: nn.Flatten, image: Tensor, at: tuple[int, ...], _step: Step) -> Arithmetic:
    """Where a number of the long row came from: `first` is the channel, `corner` the place."""
    number = image.reshape(-1)[at[0]]
    shape = (1, 1, *image.shape)[-3:]
    channel, place = divmod(at[0], shape[1] * shape[2])
    return Arithmetic("move", number.item(), number.reshape(1), corner=divmod(place, shape[2]), first=channel)


_KINDS: dict[Any, Callable[[Any, Tensor, tuple[int, ...], Step], Arithmetic]] = {
    nn.Conv2d: _convolution,
    nn.MaxPool2d: _max,
    nn.AvgPool2d: _mean,
    (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d): _adaptive,
    nn.Linear: _linear,
    nn.BatchNorm2d: _batch_norm,
    nn.InstanceNorm2d: _instance_norm,
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    Normalize: _normalize,
    nn.Flatten: _flatten,
    MeanLogits: _mean_of_members,
    MirrorImages: _mirror,
}


def _window(
    layer: Windowed, image: Tensor, row: int, column: int, mode: str = "constant", fill: float = 0.0
) -> tuple[Tensor, tuple[int, int]]:
    """What the window of the output's (row, column) covers of an image (C, H, W): (C, kH, kW), and where the window
    begins. What lies outside is as the layer pads it, or `fill`."""
    places, pads, corner = [], [], []
    for n, window, place in zip(image.shape[1:], windows(layer), (row, column), strict=True):
        before = int(window.padding)  # of "same" and an even kernel the pixel more is behind
        start, reach = place * window.stride, window.dilation * (window.kernel - 1) + 1
        behind = max(int(2 * window.padding) - before, start + reach - before - n)  # ceil_mode goes beyond the padding
        places.append(torch.arange(start, start + reach, window.dilation))
        pads.append((before, behind))
        corner.append(start - before)
    (top, bottom), (left, right) = pads
    value = fill if mode == "constant" else None
    padded = F.pad(image[None], (left, right, top, bottom), mode, value)[0]
    return padded[:, places[0]][:, :, places[1]], (corner[0], corner[1])


def _by(sizes: tuple[int, ...] | torch.Size) -> str:
    return " x ".join(map(str, sizes))
