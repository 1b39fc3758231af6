"""One forward pass, followed: the map of every convolution and pooling as the next layer meets it, and the pixels of
the image that each of its units sees.

A convolution's map is followed through what changes each of its numbers alone, batch norm and dropout, up to its
activation, also where that is a function and no layer. It ends where it is pooled, mixed, or summed with a shortcut.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from .evaluation import evaluating
from .models.sizes import WINDOWED, Windowed, formula, windows

# Functions by name, whether of torch, of torch.nn.functional or methods of a tensor; in place they end in _
RECTIFIERS = {"relu", "hardtanh", "relu6", "leaky_relu", "prelu", "elu", "selu", "celu", "gelu", "silu", "mish",
              "hardswish", "softplus", "threshold"}  # fmt: skip # a name a line says no more
ACTIVATIONS = RECTIFIERS | {"tanh", "sigmoid", "hardsigmoid", "softsign", "logsigmoid"}
CHANNELWISE = {"batch_norm", "dropout", "dropout2d", "feature_dropout", "alpha_dropout", "contiguous", "to", "float"}
# What takes numbers from other places though it may keep the size
MIXING = {"conv_transpose2d", "matmul", "roll", "flip", "permute", "transpose", "reshape", "view", "softmax", "cumsum"}


class Side(NamedTuple):
    """What the n units of a map see along one side of the image: unit i the pixels from starts[i] to stops[i], that one
    not among them. Both int64 (n,). A unit that sees nothing but padding stops before it starts."""

    starts: np.ndarray
    stops: np.ndarray

    def through(self, taken: np.ndarray) -> Side:
        """Of a map whose unit i takes in the units `taken` (m, k) of this one; those off its ends are padding."""
        there = (taken >= 0) & (taken < len(self.starts))
        inside = taken.clip(0, len(self.starts) - 1)
        starts = np.where(there, self.starts[inside], NOWHERE).min(1)
        return Side(starts, np.where(there, self.stops[inside], -NOWHERE).max(1))


NOWHERE = 1 << 40


@dataclass(frozen=True)
class Field:
    """The receptive fields of a map's units, followed window by window and so exact also where padding cuts them
    (Araujo, Norris and Sim, "Computing Receptive Fields of Convolutional Neural Networks", Distill 2019, has the rule
    for those that are not cut). The statistics that group and layer norm take of a whole map are left aside."""

    rows: Side
    columns: Side

    def pixels(self, row: int, column: int) -> tuple[int, int, int, int]:
        """(top, left, bottom, right) of the part of the image that the unit at (row, column) sees, the latter two
        behind the last pixel."""
        (top, bottom), (left, right) = (
            (int(side.starts[place]), int(side.stops[place]))
            for side, place in ((self.rows, row), (self.columns, column))
        )
        return top, left, max(bottom, top), max(right, left)

    @property
    def largest(self) -> tuple[int, int]:
        """(height, width) of the largest part of the image that a unit sees."""
        rows, columns = (int((side.stops - side.starts).max()) for side in (self.rows, self.columns))
        return rows, columns


@dataclass(frozen=True)
class LayerMaps:
    """What a convolution or pooling made of a batch: `maps` (N, C, H, W) behind its `activation` (its name; empty where
    it has none of its own), `field` what a unit sees, `formula` the height in numbers. `edge` is where autograd finds
    the maps, None without gradients."""

    name: str
    layer: Windowed
    maps: Tensor
    field: Field
    formula: str
    activation: str = ""
    edge: GradientEdge | None = None


def trace(model: nn.Module, images: Tensor) -> tuple[Tensor, list[LayerMaps]]:
    """The logits (N, K) of images (N, C, H, W), and the maps of every convolution and pooling in the order in which
    they ran; of one that ran twice the last. In evaluation mode, put back afterwards; nothing stays on the model."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, WINDOWED)}
    # Pixel by pixel in memory our normalisation takes another way, through shapes that hold no rows and columns
    images = images.to(next(model.parameters()).device).contiguous()
    following = _Following(images)
    handles = [layer.register_forward_hook(following.begin(name)) for name, layer in layers.items()]
    try:
        with evaluating(model), following:
            logits = model(images)
    finally:
        for handle in handles:
            handle.remove()
    return logits, list(following.found.values())


@dataclass(frozen=True)
class _Seen:
    """Of a tensor: what its units see, None where that is all of the image, and the layer whose maps it still is, if
    any."""

    field: Field | None
    layer: str = ""


class _Following(TorchFunctionMode):
    """Knows for every tensor that came of the images what it is. The tensors themselves are not kept."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.found: dict[str, LayerMaps] = {}
        self._sides = [np.arange(n) for n in images.shape[2:]]
        self._seen = WeakTensorKeyDictionary({images: _Seen(Field(*(Side(side, side + 1) for side in self._sides)))})

    def begin(self, name: str) -> Callable[[Windowed, tuple[Tensor, ...], Tensor], None]:
        def hook(layer: Windowed, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            field = self._seen[output].field if output in self._seen else None
            self.found.pop(name, None)
            text = formula(inputs[0].shape[2], *windows(layer)[0])
            self.found[name] = LayerMaps(name, layer, output, field or self._whole(output), text, edge=_edge(output))
            self._seen[output] = _Seen(field, name)

        return hook

    def _whole(self, maps: Tensor) -> Field:
        sizes = zip(maps.shape[2:], self._sides, strict=True)
        return Field(*(Side(np.zeros(m, dtype=np.int64), np.full(m, len(side))) for m, side in sizes))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        inputs = [a for a in _flat([*args, *kwargs.values()]) if isinstance(a, Tensor) and a in self._seen]
        if not inputs:
            return func(*args, **kwargs)
        before, sizes = [self._seen[a] for a in inputs], [a.shape for a in inputs]
        plain = name if name.startswith("__") else name.rstrip("_")
        follows = before[0].layer and args and inputs[0] is args[0] and plain in ACTIVATIONS | CHANNELWISE
        if before[0].layer and plain != name and not follows:
            kept = self.found[before[0].layer]  # it is about to be overwritten, as by `out += shortcut`
            self.found[before[0].layer] = replace(kept, maps=kept.maps.clone())
        out = func(*args, **kwargs)
        if isinstance(out, Tensor):
            self._seen[out] = _Seen(_field_after(plain, [b.field for b in before], sizes, out, args, kwargs))
            if follows:
                layer, field = before[0].layer, self._seen[out].field
                activation = plain if plain in ACTIVATIONS else ""
                self.found[layer] = replace(self.found[layer], maps=out, activation=activation, edge=_edge(out))
                self._seen[out] = _Seen(field, "" if activation else layer)
        return out


def _edge(maps: Tensor) -> GradientEdge | None:
    return get_gradient_edge(maps) if maps.requires_grad else None


def _field_after(
    name: str, fields: list[Field | None], sizes: list[torch.Size], out: Tensor, args: Any, kwargs: Any
) -> Field | None:
    """The field of `out`, which the function `name` made of tensors with these fields and sizes; None where it, or one
    of those, sees all of the image, or more than is known of it."""
    known = [field for field in fields if field]
    if name in MIXING or out.ndim != 4 or len(known) < len(fields) or any(len(size) != 4 for size in sizes):
        return None
    sides = []
    for axis in (0, 1):
        before = [(field.rows, field.columns)[axis] for field in known]
        n, m = sizes[0][2 + axis], out.shape[2 + axis]
        places = np.arange(m)[:, None]
        if name in _SLIDING:
            kernel, stride, padding, dilation = _slide(name, axis, args, kwargs)
            taken = places * stride - padding + dilation * np.arange(kernel)
        elif name.startswith("adaptive_"):
            span = -(-n // m) + 1  # no window of torch's is longer: from floor(i n / m) to ceil((i + 1) n / m)
            taken = np.minimum(places * n // m + np.arange(span), -(-(places + 1) * n // m) - 1)
        elif name == "pad":
            added = (*kwargs.get("pad", args[1] if len(args) > 1 else ()), 0, 0)  # left, right, top, bottom
            taken = places - added[2 - 2 * axis]
        elif name == "__getitem__" and isinstance(args[1], tuple) and len(args[1]) == 4:
            taken = np.arange(n)[args[1][2 + axis]].reshape(-1, 1)
        elif {size[2 + axis] for size in sizes} == {m}:  # number by number, and sums of branches
            starts, stops = (np.stack(ends) for ends in zip(*before, strict=True))
            sides.append(Side(starts.min(0), stops.max(0)))
            continue
        else:
            return None
        if len(taken) != m:
            return None
        sides.append(before[0].through(taken))
    return Field(*sides)


# The functions with a window, and the arguments that say how it slides; those of layers end here, too
_SLIDING: dict[str, tuple[str, ...]] = {
    "conv2d": ("input", "weight", "bias", "stride", "padding", "dilation"),
    "max_pool2d": ("input", "kernel_size", "stride", "padding", "dilation"),
    "avg_pool2d": ("input", "kernel_size", "stride", "padding"),
}


def _slide(name: str, axis: int, args: Any, kwargs: Any) -> tuple[int, int, int, int]:
    """Kernel, stride, padding in front and dilation along the height (axis 0) or the width (1)."""
    given = dict(zip(_SLIDING[name], args, strict=False)) | kwargs
    kernel = given["weight"].shape[2:] if name == "conv2d" else given["kernel_size"]
    stride = given.get("stride") or (1 if name == "conv2d" else kernel)  # a pooling steps by its kernel unless told
    padding, dilation = given.get("padding", 0), given.get("dilation", 1)

    def along(value: Any) -> int:
        return value[axis if len(value) > 1 else 0] if isinstance(value, (tuple, list)) else value

    if padding == "same":  # an even kernel gets the odd pixel behind
        before = along(dilation) * (along(kernel) - 1) // 2
    else:
        before = 0 if padding == "valid" else along(padding)
    return along(kernel), along(stride), before, along(dilation)


def _flat(values: Any) -> list[Any]:
    if isinstance(values, (list, tuple)):
        return [item for value in values for item in _flat(value)]
    return [values]
