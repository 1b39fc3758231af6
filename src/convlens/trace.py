"""One forward pass, followed: the map of every convolution and pooling as the next layer meets it, and the pixels of
the image that each of its units sees.

A convolution's map is followed through what changes each of its numbers alone, batch norm and dropout, up to its
activation, also where that is a function and no layer. It ends where it is pooled, mixed, or summed with a shortcut,
and where a second function reads it: that of `x * sigmoid(x)` is `x`.
"""

from __future__ import annotations

import math
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
from .explain import as_input, layers_of, uncompiled
from .models.sizes import WINDOWED, Windowed, formula, windows
from .receptive import ACTIVATIONS, behind, overwritten, pointwise, sliced, slides, tensors

CHANNELWISE = {"batch_norm", "dropout", "dropout2d", "feature_dropout", "alpha_dropout", "contiguous", "to", "float"}
BORDERS = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}  # of F.pad, and what numpy calls them


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
        behind the last pixel; all 0 where it sees nothing but padding."""
        (top, bottom), (left, right) = (
            (int(side.starts[place]), int(side.stops[place]))
            for side, place in ((self.rows, row), (self.columns, column))
        )
        return (top, left, bottom, right) if top < bottom and left < right else (0, 0, 0, 0)

    @property
    def largest(self) -> tuple[int, int]:
        """(height, width) of the largest part of the image that a unit sees."""
        rows, columns = (max(int((side.stops - side.starts).max()), 0) for side in (self.rows, self.columns))
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
    they ran; of one that ran twice the last. In evaluation mode, put back afterwards; nothing stays on the model, and
    what torch.compile made is computed without it."""
    layers = {name: layer for name, layer in layers_of(model).items() if isinstance(layer, WINDOWED)}
    # Pixel by pixel in memory our normalisation takes another way, through shapes that hold no rows and columns
    images = as_input(model, images).contiguous()
    following = _Following(images)
    handles = [layer.register_forward_hook(following.begin(name)) for name, layer in layers.items()]
    try:
        with evaluating(model), uncompiled(), following:
            logits = model(images)
    finally:
        for handle in handles:
            handle.remove()
    return logits, list(following.found.values())


@dataclass(frozen=True)
class _Seen:
    """Of a tensor: what its units see, None where that is all of the image; which run of a layer it is the map of, if
    any, `step` functions behind it, and where autograd finds it; and whether a function has read it."""

    field: Field | None
    run: int | None = None
    step: int = 0
    edge: GradientEdge | None = None
    read: bool = False


class _Following(TorchFunctionMode):
    """Knows for every tensor that came of the images what it is. The tensors themselves are not kept, but for the maps
    `found`, by the number of the layer's run."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.found: dict[int, LayerMaps] = {}
        self._steps: list[int] = []  # of every run, how far behind the layer its map is found
        self._sides = [np.arange(n) for n in images.shape[2:]]
        self._seen = WeakTensorKeyDictionary({images: _Seen(Field(*(Side(side, side + 1) for side in self._sides)))})

    def begin(self, name: str) -> Callable[[Windowed, tuple[Tensor, ...], Any], None]:
        def hook(layer: Windowed, inputs: tuple[Tensor, ...], output: Any) -> None:
            maps = tensors(output)[0]  # a pooling may give the places of its maxima, too
            field = self._seen[maps].field if maps in self._seen else None
            self.found = {run: kept for run, kept in self.found.items() if kept.name != name}
            run, text, edge = len(self._steps), formula(inputs[0].shape[2], *windows(layer)[0]), _edge(maps)
            self.found[run] = LayerMaps(name, layer, maps, field or self._whole(maps), text, edge=edge)
            self._steps.append(0)
            self._seen[maps] = _Seen(field, run, edge=edge)

        return hook

    def _whole(self, maps: Tensor) -> Field:
        sizes = zip(maps.shape[2:], self._sides, strict=True)
        return Field(*(Side(np.zeros(m, dtype=np.int64), np.full(m, len(side))) for m, side in sizes))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        inputs = [tensor for tensor in tensors((args, kwargs)) if tensor in self._seen]
        if not inputs:
            return func(*args, **kwargs)
        before, sizes = [self._seen[tensor] for tensor in inputs], [tensor.shape for tensor in inputs]
        target, plain, run = overwritten(func, args, kwargs), name.strip("_"), before[0].run
        follows = (
            run in self.found
            and args
            and self.found[run].maps is args[0]
            and len(inputs) == 1
            and not before[0].read
            and plain in ACTIVATIONS | CHANNELWISE
        )
        if target is not None and not follows:
            self._save(target)
        out = func(*args, **kwargs)
        made = [args[0]] if name == "__setitem__" else tensors(out)
        made = [tensor for tensor in made if tensor is target or all(tensor is not given for given in inputs)]
        for tensor in inputs if made else ():  # else a size was asked for, or nothing had to be done
            self._read(tensor)
        for tensor in made:
            fields = [seen.field for seen in before]
            self._seen[tensor] = _Seen(_field_after(func, fields, sizes, tensor, args, kwargs))
        if follows and run is not None and made:
            maps, edge = made[0], _edge(made[0])
            self._steps[run] += 1
            activation = plain if plain in ACTIVATIONS else ""
            self.found[run] = replace(self.found[run], maps=maps, activation=activation, edge=edge)
            if not activation:
                self._seen[maps] = _Seen(self._seen[maps].field, run, self._steps[run], edge)
        return out

    def _read(self, tensor: Tensor) -> None:
        """A map ends where it is read for the second time."""
        seen = self._seen[tensor]
        if seen.read and seen.run in self.found and seen.step < self._steps[seen.run]:
            self._steps[seen.run] = seen.step
            self.found[seen.run] = replace(self.found[seen.run], maps=tensor, activation="", edge=seen.edge)
        self._seen[tensor] = replace(seen, read=True)

    def _save(self, target: Tensor) -> None:
        """Keep a copy of the maps in a tensor that is about to be overwritten, as by `out += shortcut`."""
        if target in self._seen:
            self._read(target)
        place = target.untyped_storage().data_ptr()
        for run, kept in self.found.items():
            if kept.maps.untyped_storage().data_ptr() == place:
                self.found[run] = replace(kept, maps=kept.maps.clone())


def _edge(maps: Tensor) -> GradientEdge | None:
    return get_gradient_edge(maps) if maps.requires_grad else None


def _field_after(
    func: Any, fields: list[Field | None], sizes: list[torch.Size], out: Tensor, args: Any, kwargs: Any
) -> Field | None:
    """The field of `out`, which `func` made of tensors with these fields and sizes; None where it, or one of those,
    sees all of the image, or more than is known of it."""
    known = [field for field in fields if field]
    if out.ndim != 4 or len(known) < len(fields) or any(len(size) != 4 for size in sizes):
        return None
    slide, cut, name = slides(func, args, kwargs), sliced(func, args), getattr(func, "__name__", "").strip("_")
    if behind(func, args, kwargs):
        return known[0]
    sides = []
    for axis in (0, 1):
        before = [(field.rows, field.columns)[axis] for field in known]
        n, m = sizes[0][2 + axis], out.shape[2 + axis]
        places = np.arange(m)[:, None]
        if slide:
            window = slide[axis]  # an even kernel with 'same' padding gets the odd pixel behind
            taken = places * window.stride - math.floor(window.padding) + window.dilation * np.arange(window.kernel)
        elif name.startswith("adaptive_"):
            span = -(-n // m) + 1  # no window of torch's is longer: from floor(i n / m) to ceil((i + 1) n / m)
            taken = np.minimum(places * n // m + np.arange(span), -(-(places + 1) * n // m) - 1)
        elif name == "flip":
            turned = {dim % 4 for dim in np.ravel([*args[1:], *kwargs.values()])}
            taken = (places[::-1] if 2 + axis in turned else places).reshape(-1, 1)
        elif name == "pad":
            taken = _padded(n, m, axis, args, kwargs)
        elif cut:
            taken = np.arange(n)[cut[2 + axis]].reshape(-1, 1)
        elif pointwise(func, args, kwargs) and {size[2 + axis] for size in sizes} == {m}:  # also sums of branches
            starts, stops = (np.stack(ends) for ends in zip(*before, strict=True))
            sides.append(Side(starts.min(0), stops.max(0)))
            continue
        else:
            return None
        if len(taken) != m:
            return None
        sides.append(before[0].through(taken))
    return Field(*sides)


def _padded(n: int, m: int, axis: int, args: Any, kwargs: Any) -> np.ndarray:
    """For F.pad along one side, from n pixels to m: which of the former each of the latter is (m, 1)."""
    added = (*kwargs.get("pad", args[1] if len(args) > 1 else ()), 0, 0)  # left, right, top, bottom
    front, behind = added[2 - 2 * axis : 4 - 2 * axis]
    mode = BORDERS.get(kwargs.get("mode", args[2] if len(args) > 2 else "constant"))
    if mode and front >= 0 and behind >= 0:
        return np.pad(np.arange(n), (front, behind), mode)[:, None]  # type: ignore[call-overload] # one of a few words
    return np.arange(m)[:, None] - front
