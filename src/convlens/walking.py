"""The walk of one picture through a network, as values that JSON takes: layers, their maps, any single number.

Every answer is bounded: a network of a hundred layers with 512 channels is told in parts, the strongest first.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .anatomy import Anatomy, Step, dissect
from .arithmetic import arithmetic
from .channels import strongest_slices
from .errors import UserError, unknown
from .explain import INSIDE, layers_of
from .images import InputSpec
from .joining import Join, joins
from .models.sizes import WINDOWED, formula, in_cells, windows
from .summary import LayerRow, summarize

TOLD = 64  # channels of a layer, input channels of a filter, connections of a unit: the strongest
MAPS = 1 << 22  # bytes of maps in one answer
MIXING = {"GLU", "LogSoftmax", "MultiheadAttention", "Softmax", "Softmax2d", "Softmin"}  # numbers with one another
ACTIVATIONS = {*nn.modules.activation.__all__} - MIXING

Off = Mapping[str, tuple[int, ...]]  # channels that are switched off, by layer


@dataclass(frozen=True)
class Walk:
    """What one image met in the network with some channels `off`; its steps know their effects."""

    image: Tensor
    off: Off
    anatomy: Anatomy

    @property
    def numbers(self) -> int:
        return sum(step.input.numel() + step.output.numel() for step in self.anatomy.steps)


def walk(model: nn.Module, image: Tensor, off: Off) -> Walk:
    """uint8 (C, H, W), from the pixels to the logits. Raises UserError where `off` names what is not there."""
    return Walk(image, off, dissect(model, image, off, effects=True))


def read_off(text: str) -> Off:
    """`layer:3,5;other:1` -> the channels to switch off. Raises UserError where it is not that."""
    off: dict[str, tuple[int, ...]] = {}
    for part in filter(None, text.split(";")):
        layer, colon, numbers = part.rpartition(":")
        channels = numbers.split(",")
        if not colon or not layer or not all(n.isdecimal() and len(n) < 7 for n in channels):
            raise UserError(f"off is layer:3,5;other:1, the channels to switch off by layer, not {text[:80]!r}")
        name = layer.removeprefix(INSIDE)
        off[name] = tuple(sorted({int(n) for n in channels} | {*off.get(name, ())}))
    return off


def layers(model: nn.Module, spec: InputSpec) -> list[dict[str, Any]]:
    """Every layer in the order in which they run, with its sizes, formula, costs and what it sees of the image."""
    blank = torch.zeros(spec.channels, *spec.size, dtype=torch.uint8)
    steps, joined = dissect(model, blank).steps, joins(model, blank)
    of_name: dict[str, list[LayerRow]] = {}
    for row in summarize(model, spec.channels, spec.size).rows:
        of_name.setdefault(row.name.removeprefix(INSIDE), []).append(row)
    return [_layer(step, of_name, joined.get(step.name)) for step in steps]


def _layer(step: Step, rows: dict[str, list[LayerRow]], join: Join | None) -> dict[str, Any]:
    name, _, again = step.name.partition("#")
    runs, which = rows.get(name, []), int(again or 1) - 1
    row = runs[which] if which < len(runs) else None  # a layer without numbers of its own may have none, a function has
    slide = windows(step.layer) if isinstance(step.layer, WINDOWED) else None
    wide = formula(step.input.shape[-1], *slide[1]) if slide else ""
    return {
        "name": step.name,
        "kind": step.kind,
        "from": [*step.sources],
        "joins": {"how": join.how, "of": [[part.name, part.side] for part in join.parts]} if join else None,
        "input": [*step.input.shape],
        "output": [*step.output.shape],
        "channels": len(_maps_of(step.output)),
        "formula": step.formula,
        "formula_width": wide if wide != step.formula else "",
        "parameters": row.parameters if row else 0,
        "macs": row.macs if row else 0,
        "receptive_field": row.receptive_field if row else None,
        **dict(zip(("kernel", "stride", "padding", "dilation"), in_cells(slide), strict=True)),
        "groups": getattr(step.layer, "groups", 1) if slide else 1,
        "padding_mode": getattr(step.layer, "padding_mode", ""),
        "activation": step.kind in ACTIVATIONS,
    }


def ranked(found: Walk) -> list[dict[str, Any]]:
    """Of every layer the range of its numbers, and the channels that move the answer most, with their effects."""
    told = []
    for step in found.anatomy.steps:
        values, moved = _maps_of(step.output), _effects(step)
        order, (low, high) = _order(moved)[:TOLD], _range(values)
        scores = [number(score, 4) for score in moved[order].tolist()]
        about = {"name": step.name, "low": number(low), "high": number(high), "size": [*values.shape[1:]]}
        told.append({**about, "order": order, "scores": scores})
    return told


def maps(found: Walk, layer: str, first: int = 0, count: int = TOLD) -> dict[str, Any]:
    """A layer's maps from the `first` on in the order of their effect, a byte a number: 0 is the layer's lowest number,
    255 its highest."""
    step = found.anatomy.step(layer)
    values = _maps_of(step.output)
    (low, high), size = _range(values), values.shape[1:]
    channels = _order(_effects(step))[max(first, 0) :][: max(min(count, MAPS // max(size.numel(), 1)), 1)]
    scaled = (values[channels].nan_to_num(low, high, low) - low) * (255 / (high - low or 1))
    data = scaled.round().clamp(0, 255).to(torch.uint8).numpy().tobytes()
    told = {"layer": step.name, "size": [*size], "low": number(low), "high": number(high), "channels": channels}
    return {**told, "total": len(values), "data": base64.b64encode(data).decode()}


def values(found: Walk, layer: str, channel: int = 0, side: str = "output") -> dict[str, Any]:
    """One map's real numbers, float32, of what a layer made, or of what went into it with `side` input; those of the
    layer `input` are the pixels, 0..255. Raises UserError where there is no such layer, channel or side."""
    if side not in ("output", "input"):
        raise unknown("side", side, ("output", "input"))
    if layer == "input":
        of = found.image.float()
    else:
        step = found.anatomy.step(layer)
        of = _maps_of(step.output if side == "output" else step.input)
    one = of[_checked(channel, len(of), layer)].contiguous().numpy()
    return {"size": [*one.shape], "data": base64.b64encode(one.astype("<f4").tobytes()).decode()}


def explained(
    found: Walk, layer: str, channel: int, row: int = 0, column: int = 0, given: int | None = None
) -> dict[str, Any]:
    """How one number of a layer came about, see `arithmetic`. A convolution over many channels is told by those that
    add most, and by the `given` one, whatever it adds; a linear unit by its strongest connections; `rest` is what the
    others add. Of a channel that is switched off it is told as if it was on, and `off`. Raises UserError where there
    is no such number, or a convolution does not read the `given` channel."""
    step = found.anatomy.step(layer)
    how = arithmetic(step, *((channel, column) if step.output.ndim == 2 else (channel, row, column)))
    off = channel in found.off.get(step.name.partition("#")[0], ())
    told: dict[str, Any] = {
        "kind": how.kind,
        "value": number(how.value),
        "off": off,
        "corner": [*how.corner],
        "first": how.first,
        "bias": number(how.bias),
        "shape": [*how.inputs.shape],
    }
    shares = how.shares
    order = shares.abs().flatten().sort(descending=True, stable=True).indices[:TOLD]
    if how.kind == "linear" and how.weights is not None:
        rows = zip(order.tolist(), how.inputs[order], how.weights[order], shares[order], strict=True)
        told["strongest"] = [
            {"index": index, "input": number(given), "weight": number(weight), "product": number(product)}
            for index, given, weight, product in rows
        ]
        return {**told, "rest": number(shares.sum() - shares[order].sum())}
    summed = how.kind == "convolution"
    kept = order.sort().values if summed else torch.arange(len(how.inputs))
    if summed and given is not None:
        if not 0 <= given - how.first < len(shares):
            last = how.first + len(shares) - 1
            raise UserError(f"channel {channel} of {layer} reads the channels {how.first} to {last}, not {given}")
        kept = torch.cat([kept, torch.tensor([given - how.first])]).unique()
    told["channels"] = (how.first + kept).tolist()
    told["inputs"] = numbers(how.inputs[kept])
    told["weights"] = None if how.weights is None else numbers(how.weights[kept])
    told["shares"] = numbers(shares[kept]) if summed else []
    return {**told, "rest": number(shares.sum() - shares[kept].sum()) if len(kept) < len(shares) and summed else 0.0}


def filters(model: nn.Module, layer: str, channel: int | None) -> dict[str, Any]:
    """The kernel of a convolution's channel, its slices by input channel, or the weights of a linear unit: those of the
    largest norm. Without a channel the kernels of a convolution's first 64, three slices of each at most."""
    module = _module(model, layer)
    bias = getattr(module, "bias", None)
    if isinstance(module, nn.Conv2d) and channel is None:
        kernels = module.weight.detach().float().cpu()[:TOLD, :3]
        return {"channels": [*range(len(kernels))], "weights": numbers(kernels), "total": module.out_channels}
    if isinstance(module, nn.Conv2d) and channel is not None:
        places, slices = strongest_slices(module, _checked(channel, module.out_channels, layer), TOLD)
        total = module.weight.shape[1]
    elif isinstance(module, nn.Linear) and channel is not None:
        row = module.weight[_checked(channel, module.out_features, layer)].detach().float().cpu()
        order = row.abs().sort(descending=True, stable=True).indices[:TOLD]
        places, slices, total = order.tolist(), row[order], module.in_features
    else:
        kind = type(module).__name__
        raise UserError(f"the layer {layer} ({kind}) has no kernels to show: convolutions have, and a linear unit")
    own = 0.0 if bias is None else number(bias[channel].detach())
    return {"channels": places, "weights": numbers(slices), "bias": own, "total": total}


def _module(model: nn.Module, layer: str) -> nn.Module:
    modules, name = layers_of(model), layer.partition("#")[0]
    found = modules.get(name) or modules.get(INSIDE + name)
    if not name or found is None:
        raise UserError(f"unknown layer {layer[:80]!r}")
    return found


def _maps_of(output: Tensor) -> Tensor:
    """(C, H, W) of any layer's output: a unit is a map of one number, a token of a transformer a map of one row."""
    if output.ndim == 3:
        return output
    return output.reshape(len(output), 1, -1) if output.ndim > 1 else output.reshape(-1, 1, 1)


def _effects(step: Step) -> Tensor:
    assert step.effects is not None  # noqa: S101 - a walk asks for them
    return step.effects


def _order(moved: Tensor) -> list[int]:
    """Channels by the size of their effect, largest first."""
    return moved.abs().nan_to_num(0).sort(descending=True, stable=True).indices.tolist()


def _range(values: Tensor) -> tuple[float, float]:
    low, high = (bound.item() for bound in values.aminmax()) if values.numel() else (0.0, 0.0)
    if math.isfinite(low) and math.isfinite(high):
        return low, high
    finite = values[values.isfinite()]
    return (finite.min().item(), finite.max().item()) if finite.numel() else (0.0, 0.0)


def _checked(channel: int, count: int, layer: str) -> int:
    if not 0 <= channel < count:
        raise UserError(f"the layer {layer} has no channel {channel}: they are numbered from 0 to {count - 1}")
    return channel


def numbers(values: Tensor) -> list[Any]:
    """Nested lists of `number`."""
    return [_each(value) for value in values.tolist()]


def _each(value: Sequence[Any] | float) -> Any:
    return [_each(one) for one in value] if isinstance(value, list) else number(value)


def number(value: Any, digits: int = 8) -> float | None:
    """A number with as many digits as float32 has; None where it is not finite, which JSON cannot say."""
    plain = float(value)
    return float(f"{plain:.{digits}g}") if math.isfinite(plain) else None
