"""How much of the image every tensor of a forward pass depends on, and which pixels no layer looks at."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .models.sizes import Window

# The operations with a window, and their arguments in order: what convolution and pooling layers call, too
SLIDING: dict[Any, tuple[str, ...]] = {
    F.conv2d: ("input", "weight", "bias", "stride", "padding", "dilation"),
    F.max_pool2d: ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode"),
    torch.max_pool2d: ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode"),
    F.max_pool2d_with_indices: ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode"),
    F.avg_pool2d: ("input", "kernel_size", "stride", "padding", "ceil_mode"),
}
# Functions by name, whether of torch, of torch.nn.functional or methods of a tensor
ACTIVATIONS = {"relu", "hardtanh", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "selu", "celu", "gelu", "silu",
               "mish", "hardswish", "softplus", "threshold", "tanh", "sigmoid", "hardsigmoid", "softsign",
               "logsigmoid"}  # fmt: skip # a name a line says no more
# What makes each number of a map from those at its own place; what group and layer norm take of a whole map aside
POINTWISE = ACTIVATIONS | {
    "abs", "add", "addcdiv", "addcmul", "alpha_dropout", "batch_norm", "bfloat16", "cat", "chunk", "clamp", "clamp_max",
    "clamp_min", "clip", "clone", "concat", "concatenate", "contiguous", "cos", "detach", "div", "divide", "double",
    "dropout", "dropout2d", "erf", "exp", "expand", "expand_as", "expm1", "feature_alpha_dropout", "feature_dropout",
    "float", "group_norm", "half", "instance_norm", "layer_norm", "lerp", "local_response_norm", "log", "log1p",
    "masked_fill", "maximum", "minimum", "mul", "multiply", "neg", "negative", "pow", "rdiv", "reciprocal", "repeat",
    "rpow", "rsqrt", "rsub", "rtruediv", "sign", "sin", "split", "sqrt", "square", "sub", "subtract",
    "tensor_split", "to", "true_divide", "type", "type_as", "where",
}  # fmt: skip # a name a line says no more
# The same, where they go along the channels
ALONG = {"amax", "amin", "cumsum", "glu", "log_softmax", "logsumexp", "max", "mean", "median", "min", "normalize",
         "softmax", "sort", "std", "sum", "topk", "var"}  # fmt: skip # a name a line says no more


@dataclass(frozen=True)
class Unseen:
    """The layers that read one map of `size` (height, width), all by a window, and how many of its `rows` and `columns`
    none of them looks at."""

    layers: tuple[str, ...]
    size: tuple[int, int]
    rows: int
    columns: int


@dataclass
class _Map:
    """A tensor (which keeps its id alive), its receptive fields and jumps along height and width (the field infinite
    where it sees everything, or is not known), and which rows and columns its readers looked at."""

    tensor: Tensor
    fields: tuple[float, float]
    jumps: tuple[int, int]
    readers: list[str] = field(default_factory=list)
    seen: tuple[Tensor, Tensor] | None = None
    whole: bool = False


class Fields:
    """The receptive field and the jump (pixels of the image between neighbours) of the tensors of a forward pass, one
    operation after the other.

    Araujo, Norris and Sim, "Computing Receptive Fields of Convolutional Neural Networks", Distill 2019: a window of k
    with dilation d adds d(k - 1) jumps, a stride multiplies the jump, a sum takes the larger field of its terms.
    """

    def __init__(self, image: Tensor) -> None:
        self._maps = {id(image): _Map(image, (1, 1), (1, 1))}

    def of(self, tensor: Tensor | None) -> tuple[tuple[int, int], tuple[int, int]] | None:
        """Field and jump (height, width) of a tensor; None where it sees all of the image, or was not followed."""
        found = self._maps.get(id(tensor))
        if found is None or math.inf in found.fields:
            return None
        return (int(found.fields[0]), int(found.fields[1])), found.jumps

    def follow(self, func: Any, args: Any, kwargs: dict[str, Any], out: Any, layer: str) -> None:
        """Note what `func` made of its arguments while `layer` ran."""
        inputs = [self._maps[id(value)] for value in tensors((args, kwargs)) if id(value) in self._maps]
        target = overwritten(func, args, kwargs)
        outputs = [args[0]] if func is Tensor.__setitem__ else tensors(out)
        made = [value for value in outputs if id(value) not in self._maps or value is target]
        if not inputs or not made:
            return
        slide, cut = slides(func, args, kwargs), sliced(func, args)
        sizes, alone = {each.tensor.shape[2:] for each in inputs}, pointwise(func, args, kwargs)
        for each in inputs:
            if slide and each is inputs[0]:
                _look(each, slide, made[0], layer)
            elif not cut:  # a slice is no reader: what reads on is
                each.whole = True
        for value in made:
            still = func is F.pad or (alone and sizes == {value.shape[2:]})
            of = inputs[:1] if behind(func, args, kwargs) else inputs
            fields, jumps = zip(*(_side(i, of, slide, cut, still, value) for i in (0, 1)), strict=True)
            self._maps[id(value)] = _Map(value, fields, jumps)

    def unseen(self) -> list[Unseen]:
        """Every map of which some rows or columns are never looked at."""
        found = []
        for each in self._maps.values():
            if each.seen and not each.whole:
                rows, columns = (int((~side).sum()) for side in each.seen)
                if rows or columns:
                    high, wide = each.tensor.shape[2:]
                    found.append(Unseen(tuple(dict.fromkeys(each.readers)), (high, wide), rows, columns))
        return found


def slides(func: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Window, Window] | None:
    """The windows along height and width of an operation that has one, on images (N, C, H, W)."""
    given = dict(zip(SLIDING.get(func, ()), args, strict=False)) | kwargs
    if func not in SLIDING or given["input"].ndim != 4:
        return None
    kernel = _pair(given["weight"].shape[2:] if "weight" in given else given["kernel_size"])
    stride = _pair(given.get("stride") or (1 if "weight" in given else kernel))  # a pooling steps by its kernel
    dilation, padding = _pair(given.get("dilation", 1)), given.get("padding", 0)
    if padding == "same":  # torch pads by d(k - 1) in all
        padding = [d * (k - 1) / 2 for d, k in zip(dilation, kernel, strict=True)]
    sides = zip(kernel, stride, _pair(0 if padding == "valid" else padding), dilation, strict=True)
    high, wide = (Window(*side, ceil=bool(given.get("ceil_mode", False))) for side in sides)
    return high, wide


def sliced(func: Any, args: Any) -> list[slice] | None:
    """The four slices that an operation takes of maps (N, C, H, W); None where it takes another thing, or none."""
    if func is not Tensor.__getitem__ or args[0].ndim != 4:
        return None
    parts = list(args[1]) if isinstance(args[1], tuple) else [args[1]]
    whole = [slice(None)] * (4 - len(parts) + any(part is Ellipsis for part in parts))
    at = next((i for i, part in enumerate(parts) if part is Ellipsis), len(parts))
    parts[at : at + 1] = whole
    return parts if len(parts) == 4 and all(isinstance(part, slice) for part in parts) else None


def pointwise(func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether an operation is known to make each number of a map from those at its own place alone."""
    name = getattr(func, "__name__", "").strip("_")
    dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
    along = list(dim) if isinstance(dim, list | tuple) else [dim]
    return name in POINTWISE or (
        name in ALONG and len(along) == 1 and isinstance(along[0], int) and along[0] in (1, -3)
    )


def behind(func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a call lays images behind others: to one batch, whose first ones are those of the first."""
    return func is torch.cat and (args[1] if len(args) > 1 else kwargs.get("dim", 0)) in (0, -4)


def overwritten(func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor | None:
    """The tensor that a call writes into, as `x += y`, `x[0] = y` and `relu(x, inplace=True)` do."""
    name = getattr(func, "__name__", "")
    if kwargs.get("out") is not None:
        return kwargs["out"]
    in_place = kwargs.get("inplace") or name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
    return args[0] if in_place and args else None


def tensors(values: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists and dicts, in order."""
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, dict):
        values = values.values()
    elif not isinstance(values, list | tuple):
        return []
    return [tensor for value in values for tensor in tensors(value)]


def _look(image: _Map, slide: tuple[Window, Window], out: Tensor, layer: str) -> None:
    sides = []
    for n, count, window in zip(image.tensor.shape[2:], out.shape[2:], slide, strict=True):
        corners = torch.arange(count) * window.stride - math.floor(window.padding)  # 'same' pads less at the start
        looked = (corners[:, None] + torch.arange(window.kernel) * window.dilation).flatten()
        sides.append(torch.zeros(n, dtype=torch.bool).index_fill_(0, looked[(looked >= 0) & (looked < n)], True))
    before = image.seen or (torch.zeros_like(sides[0]), torch.zeros_like(sides[1]))
    image.seen = before[0] | sides[0], before[1] | sides[1]
    image.readers.append(layer)


def _side(
    side: int,
    inputs: list[_Map],
    slide: tuple[Window, Window] | None,
    cut: list[slice] | None,
    still: bool,
    out: Tensor,
) -> tuple[float, int]:
    """Field and jump of `out` along the height (side 0) or the width (1); `still` where no number moves, but by
    padding."""
    extent, jump = max(each.fields[side] for each in inputs), max(each.jumps[side] for each in inputs)
    if slide:
        window = slide[side]
        return extent + window.dilation * (window.kernel - 1) * jump, jump * window.stride
    if cut and out.ndim == 4:
        return extent, jump * (cut[2 + side].step or 1)  # every second row, as in a shortcut
    if out.ndim != 4 or not still:
        return math.inf, jump  # flattened, pooled to one number, mixed, or not known: it sees everything
    return extent, jump


def _pair(value: Any) -> tuple[Any, Any]:
    high, wide = value if isinstance(value, tuple | list) else (value, value)
    return high, wide
