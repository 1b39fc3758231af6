"""Layers that are no modules: what a network's own code calls as a function, `F.relu(x)`, `x.relu()`,
`F.max_pool2d(x, 2)` or `x.flatten(1)`, seen as the layer that does the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .receptive import slides, tensors

MARK = "F."  # what the names of functions begin with; no module's does
_BENT: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU, "relu6": nn.ReLU6, "leaky_relu": nn.LeakyReLU, "elu": nn.ELU, "selu": nn.SELU, "celu": nn.CELU,
    "gelu": nn.GELU, "silu": nn.SiLU, "mish": nn.Mish, "softplus": nn.Softplus, "softsign": nn.Softsign,
    "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "hardtanh": nn.Hardtanh, "hardswish": nn.Hardswish,
    "hardsigmoid": nn.Hardsigmoid, "logsigmoid": nn.LogSigmoid,
}  # fmt: skip # a name a line says no more
_ADAPTIVE = {"adaptive_avg_pool2d": nn.AdaptiveAvgPool2d, "adaptive_max_pool2d": nn.AdaptiveMaxPool2d}
_WHOLE = {"mean": nn.AdaptiveAvgPool2d, "amax": nn.AdaptiveMaxPool2d}  # where they leave one number of each map
_LAID_OUT = {"flatten", "view", "reshape"}  # where they leave one row

# (its name, the layer that does the same, what it was given, the call itself) -> what the network gets for it
Seen = Callable[[str, nn.Module, Tensor, Callable[[], Any]], Any]


class Functions(TorchFunctionMode):
    """Inside the `with`, `seen` is asked for every such function that runs outside of the layers of `within`, which are
    modules that compute by themselves.

    They are named in the order in which they run: F.relu, F.max_pool2d, F.relu_1, as torch.fx does. What stands for an
    activation has its kind and not its parameters: a slope of F.leaky_relu is not in the layer.
    """

    def __init__(self, within: list[nn.Module], seen: Seen) -> None:
        super().__init__()
        self._within, self._seen = within, seen
        self._deep, self._runs, self._handles = 0, dict[str, int](), list[Any]()

    def __enter__(self) -> Functions:
        for layer in self._within:
            self._handles.append(layer.register_forward_pre_hook(self._enter, prepend=True))
            self._handles.append(layer.register_forward_hook(self._leave))
        return super().__enter__()

    def __exit__(self, *wrong: Any) -> None:
        super().__exit__(*wrong)
        while self._handles:
            self._handles.pop().remove()

    def _enter(self, _layer: nn.Module, _inputs: Any) -> None:
        self._deep += 1

    def _leave(self, _layer: nn.Module, _inputs: Any, _output: Any) -> None:
        self._deep -= 1

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, _name(func)
        given = next(iter(tensors((args, kwargs))), None)
        if self._deep or given is None or given.ndim < 2 or not given.is_floating_point():
            return func(*args, **kwargs)
        layer = as_layer(func, args, kwargs)
        if layer:
            return self._told(name, layer, given, lambda: func(*args, **kwargs))
        out = func(*args, **kwargs)
        layer = _by_result(name, given, out)
        return self._told(name, layer, given, lambda: out) if layer else out

    def _told(self, name: str, layer: nn.Module, given: Tensor, compute: Callable[[], Any]) -> Any:
        before = self._runs.get(name, 0)
        self._runs[name] = before + 1
        return self._seen(f"{MARK}{name}_{before}" if before else MARK + name, layer, given, compute)


def as_layer(func: Any, args: Any, kwargs: dict[str, Any]) -> nn.Module | None:
    """The layer that does what an activation or pooling function does with these arguments; None for all others."""
    name = _name(func)
    if name in _BENT:
        return _BENT[name]()
    if name in ("max_pool2d", "avg_pool2d"):
        slide = slides(func, args, kwargs)
        if slide is None:
            return None
        high, wide = slide
        kernel, stride = (high.kernel, wide.kernel), (high.stride, wide.stride)
        padding = (int(high.padding), int(wide.padding))
        if name == "max_pool2d":
            return nn.MaxPool2d(kernel, stride, padding, (high.dilation, wide.dilation), ceil_mode=high.ceil)
        rest = dict(zip(("count_include_pad", "divisor_override"), args[5:], strict=False)) | kwargs
        counted, divisor = rest.get("count_include_pad", True), rest.get("divisor_override")
        return nn.AvgPool2d(kernel, stride, padding, high.ceil, counted, divisor)
    if name in _ADAPTIVE:
        return _ADAPTIVE[name](kwargs.get("output_size", args[1] if len(args) > 1 else 1))
    return None


def _by_result(name: str, given: Tensor, out: Any) -> nn.Module | None:
    """The same of a function of which only what came out says whether it did what a layer does."""
    if name in _WHOLE and given.ndim == 4 and out.shape in (given.shape[:2], (*given.shape[:2], 1, 1)):
        return _WHOLE[name](1)
    if name in _LAID_OUT and given.ndim > 2 and out.ndim == 2 and len(out) == len(given):
        return nn.Flatten()
    return None


def _name(func: Any) -> str:
    return getattr(func, "__name__", "").strip("_").removesuffix("_with_indices")
