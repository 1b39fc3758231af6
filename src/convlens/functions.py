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
_POOLED: dict[str, type[nn.Module]] = {
    "adaptive_avg_pool2d": nn.AdaptiveAvgPool2d,
    "adaptive_max_pool2d": nn.AdaptiveMaxPool2d,
    "mean": nn.AdaptiveAvgPool2d,
    "amax": nn.AdaptiveMaxPool2d,
}
_LAID_OUT = {"flatten", "view", "reshape"}

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
        kwargs, name = kwargs or {}, getattr(func, "__name__", "").strip("_")
        given = tensors((args, kwargs))[:1]
        if self._deep or not given or given[0].ndim < 2 or not given[0].is_floating_point():
            return func(*args, **kwargs)
        if name in _LAID_OUT or name in ("mean", "amax"):  # it depends on what comes of them
            out = func(*args, **kwargs)
            layer = _laid_out(name, given[0], out)
            return self._told(name, layer, given[0], lambda: out) if layer else out
        layer = as_layer(func, args, kwargs)
        if layer is None:
            return func(*args, **kwargs)
        return self._told(name.removesuffix("_with_indices"), layer, given[0], lambda: func(*args, **kwargs))

    def _told(self, name: str, layer: nn.Module, given: Tensor, compute: Callable[[], Any]) -> Any:
        before = self._runs.get(name, 0)
        self._runs[name] = before + 1
        return self._seen(f"{MARK}{name}_{before}" if before else MARK + name, layer, given, compute)


def as_layer(func: Any, args: Any, kwargs: dict[str, Any]) -> nn.Module | None:
    """The layer that does what an activation or pooling function does with these arguments; None for all others."""
    name = getattr(func, "__name__", "").strip("_").removesuffix("_with_indices")
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
    if name in _POOLED:
        return _POOLED[name](kwargs.get("output_size", args[1] if len(args) > 1 else 1))
    return None


def _laid_out(name: str, given: Tensor, out: Any) -> nn.Module | None:
    if not isinstance(out, Tensor) or out.shape[:1] != given.shape[:1]:
        return None
    if name in _POOLED:
        whole = given.ndim == 4 and out.shape in (given.shape[:2], (*given.shape[:2], 1, 1))
        return _POOLED[name](1) if whole else None
    return nn.Flatten() if given.ndim > 2 and out.ndim == 2 else None
