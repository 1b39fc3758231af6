"""The layer table: what every layer makes of its input, what it costs, and how much of the image it sees.

Measured by one forward pass, not read off the code: hooks see the sizes, and a torch function mode follows the
receptive field through every operation, also those that are not layers (a pooling function, the sum of a residual
block).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from . import markup
from .evaluation import evaluating
from .flops import layer_macs
from .models.sizes import WINDOWED, formula, windows


@dataclass(frozen=True)
class LayerRow:
    """One layer. `output` (C, H, W) or (C,); `macs` multiply-adds for one image; `receptive_field` and `jump` in pixels
    of the image along its height, None once a layer sees all of it (or an operation that is not followed came before);
    `formula` the output height with its numbers."""

    name: str
    kind: str
    kernel: str
    stride: str
    padding: str
    output: tuple[int, ...]
    parameters: int
    macs: int
    receptive_field: int | None
    jump: int | None
    formula: str


@dataclass(frozen=True)
class Summary:
    """All layers of a model for images of `input` (C, H, W), in the order in which they run, and the totals."""

    input: tuple[int, int, int]
    rows: tuple[LayerRow, ...]
    parameters: int
    macs: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def _repr_html_(self) -> str:
        """A line a layer, the formula of its size last."""
        numbers = ("parameters", "multiply-adds", "receptive field")
        columns = ("layer", "kind", "kernel", "stride", "padding", "output", *numbers, "output height")
        rows = []
        for row in self.rows:
            sees = "all" if row.receptive_field is None else str(row.receptive_field)
            counts = [f"{count:,}" if count else "" for count in (row.parameters, row.macs)]
            cells = (row.name, row.kind, row.kernel, row.stride, row.padding, " x ".join(map(str, row.output)))
            rows.append((*cells, *counts, sees, row.formula))
        channels, height, width = self.input
        said = f"and {self.macs:,} multiply-adds for one image of {channels} x {height} x {width}"
        return markup.paragraph(said, f"{self.parameters:,} parameters") + markup.table(columns, rows, numbers)


def summarize(model: nn.Module, channels: int, size: tuple[int, int]) -> Summary:
    """The table of `model` for images of this size: one pass of one empty image, in evaluation mode, mode put back."""
    rows: list[LayerRow] = []
    image = torch.zeros(1, channels, *size, dtype=torch.uint8, device=next(model.parameters()).device)
    fields = _ReceptiveFields(image)
    handles = [
        layer.register_forward_hook(_row(name, rows, fields))
        for name, layer in model.named_modules()
        if name and (not list(layer.children()) or list(layer.parameters(recurse=False)))
    ]
    try:
        with evaluating(model), torch.no_grad(), fields:
            model(image)
    finally:
        for handle in handles:
            handle.remove()
    return Summary(
        (channels, *size), tuple(rows), sum(p.numel() for p in model.parameters()), sum(row.macs for row in rows)
    )


def _row(
    name: str, rows: list[LayerRow], fields: _ReceptiveFields
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        kernel = stride = padding = text = ""
        if isinstance(layer, WINDOWED):
            high, wide = windows(layer)
            sides = zip(high[:3], wide[:3], strict=True)
            kernel, stride, padding = (f"{h:g}" if h == w else f"{h:g}x{w:g}" for h, w in sides)
            text = formula(inputs[0].shape[2], *high)
        field, jump = fields.of(output)
        rows.append(
            LayerRow(
                name=name,
                kind=type(layer).__name__,
                kernel=kernel,
                stride=stride,
                padding=padding,
                output=tuple(output.shape[1:]),
                parameters=sum(p.numel() for p in layer.parameters(recurse=False)),
                macs=layer_macs(layer, output),
                receptive_field=None if math.isinf(field) else int(field),
                jump=None if math.isinf(field) else jump,
                formula=text,
            )
        )

    return hook


class _ReceptiveFields(TorchFunctionMode):
    """The receptive field and the jump (pixels of the image between neighbours) of every tensor of a forward pass.

    Araujo, Norris and Sim, "Computing Receptive Fields of Convolutional Neural Networks", Distill 2019: a window of k
    with dilation d adds d(k - 1) jumps, a stride multiplies the jump, a sum takes the larger field of its terms.
    """

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self._known: dict[int, tuple[Tensor, float, int]] = {id(image): (image, 1, 1)}  # the tensor keeps its id alive

    def of(self, tensor: Tensor) -> tuple[float, int]:
        _, field, jump = self._known.get(id(tensor), (tensor, math.inf, 1))
        return field, jump

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        inputs = [a for a in _flat(args) if isinstance(a, Tensor) and id(a) in self._known]
        if isinstance(out, Tensor) and inputs and id(out) not in self._known:
            field, jump = max(self.of(a)[0] for a in inputs), max(self.of(a)[1] for a in inputs)
            height = inputs[0].shape[2] if inputs[0].ndim == 4 else 1
            if func in _SLIDING:
                kernel, stride, dilation = _slide(func, args, kwargs or {})
                field, jump = field + dilation * (kernel - 1) * jump, jump * stride
            elif func is Tensor.__getitem__ and out.ndim == 4:
                jump *= max(round(height / out.shape[2]), 1)  # every second row, as in a shortcut
            elif out.ndim != 4 or (out.shape[2] != height and func is not F.pad):
                field = math.inf  # flattened or pooled to one number: it sees everything
            self._known[id(out)] = (out, field, jump)
        return out


# The operations with a window, and the arguments that say how it slides: also those of layers end here.
_SLIDING: dict[Any, tuple[str, ...]] = {
    F.conv2d: ("input", "weight", "bias", "stride", "padding", "dilation"),
    F.max_pool2d: ("input", "kernel", "stride", "padding", "dilation"),
    torch.max_pool2d: ("input", "kernel", "stride", "padding", "dilation"),
    F.avg_pool2d: ("input", "kernel", "stride"),
}


def _slide(func: Any, args: Any, kwargs: Any) -> tuple[int, int, int]:
    """Kernel, stride and dilation along the height."""
    given = dict(zip(_SLIDING[func], args, strict=False)) | kwargs
    kernel = given["weight"].shape[2:] if "weight" in given else given.get("kernel", given.get("kernel_size"))
    stride = given.get("stride") or (1 if "weight" in given else kernel)  # a pooling steps by its kernel unless told
    high = [side[0] if isinstance(side, tuple | list) else side for side in (kernel, stride, given.get("dilation", 1))]
    return high[0], high[1], high[2]


def _flat(values: Any) -> list[Any]:
    if isinstance(values, (list, tuple)):
        return [item for value in values for item in _flat(value)]
    return [values]
