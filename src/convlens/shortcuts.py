"""Ways to the same numbers that are shorter: what training computes otherwise than the model says.

`shortcut` reorders what commutes. `Wide` computes convolutions of small feature maps on several images side by side:
oneDNN's kernels for matrix units go through a map row by row and pad each row to a whole tile. A gradient with respect
to the filters multiplies 32 pixels of a row at once, so with maps of 3 x 3 nine tenths of its work are zeros. With
eight images in a row, and between them the columns of zeros that padding would have put there, the sums are the same
and the tiles are full.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .models.ensemble import Ensemble

WIDEST = 8  # pixels: above it, laying images side by side costs as much as it saves
IN_A_ROW = 8  # images; more gained nothing


def shortcut(model: nn.Module) -> nn.Module:
    """A view of `model`, on the same modules, that gives the same outputs and gradients to the last bit in fewer steps.

    In every `nn.Sequential` ReLU goes behind the max pooling that follows it, where it meets a quarter of the pixels:
    both orders give the larger of zero and the window's largest value, and its gradient to the same pixel. The largest
    value of a whole map is pooled by the kernels of windows, which need no atomic additions on a GPU. Behind
    `nn.Flatten` the gradient is brought into the memory layout of the feature maps, once and not in every layer below.
    Modules with hooks stay where they are. Anything but `nn.Sequential` and `Ensemble` is taken as it is.
    """
    if type(model) is Ensemble and not hooked(model):
        view = Ensemble([shortcut(member) for member in model.members], model.mirror is not None)
        view.training = model.training  # of this one alone: those within may have other modes
        return view
    if type(model) is not nn.Sequential or hooked(model):
        return model
    layers = [shortcut(layer) for layer in model]
    for i, (first, second) in enumerate(itertools.pairwise(layers)):
        if type(first) is nn.ReLU and type(second) is nn.MaxPool2d and not hooked(first) and not hooked(second):
            layers[i], layers[i + 1] = second, first
    return nn.Sequential(
        *(_Flatten() if _flattens(layer) else _Largest() if _largest(layer) else layer for layer in layers)
    )


def hooked(module: nn.Module) -> bool:
    return any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks))


def _flattens(layer: nn.Module) -> bool:
    return type(layer) is nn.Flatten and (layer.start_dim, layer.end_dim) == (1, -1) and not hooked(layer)


def _largest(module: nn.Module) -> bool:
    plain = type(module) is nn.AdaptiveMaxPool2d and not module.return_indices and not hooked(module)
    return plain and module.output_size in (1, (1, 1))


class _Largest(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        return F.max_pool2d(maps, maps.shape[-2:])


class _Flatten(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        if maps.ndim == 4 and maps.requires_grad and maps.is_contiguous(memory_format=torch.channels_last):
            maps = maps.view_as(maps)  # a hook on the caller's own tensor would outlive this
            maps.register_hook(lambda gradient: gradient.contiguous(memory_format=torch.channels_last))
        return maps.flatten(1)


def wide_convolutions(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    """`Wide()` for a training step in `bf16` on a CPU with matrix units, else a context that does nothing."""
    units = device.type == "cpu" and torch.cpu._is_amx_tile_supported()  # torch has no public question for this
    return Wide() if units and precision == "bf16" else contextlib.nullcontext()


class Wide(TorchFunctionMode):
    """A context for a forward pass under autocast in which convolutions of small maps, and later their gradients, are
    computed side by side in bf16. The model itself is not touched. Sums are taken in another order than torch's own, so
    results agree to the rounding of bf16."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.conv2d and not kwargs and fits(*args):
            images, weight, *rest = args
            bias = rest[0].bfloat16() if rest and rest[0] is not None else None
            return _SideBySide.apply(images.bfloat16(), weight.bfloat16(), bias)
        return func(*args, **(kwargs or {}))


def fits(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,  # noqa: ARG001 - the arguments of conv2d
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> bool:
    """Whether this convolution keeps the size of its maps (stride 1, half a kernel of padding), and they are small.
    Double precision stays what it is, as under autocast."""
    kernel = tuple(weight.shape[2:])
    return (
        images.ndim == 4
        and torch.float64 not in (images.dtype, weight.dtype)
        and max(kernel) > 1
        and images.shape[3] <= WIDEST
        and images.shape[0] > 1
        and (_pair(stride), _pair(dilation), groups) == ((1, 1), (1, 1), 1)
        and not isinstance(padding, str)
        and kernel == tuple(2 * side + 1 for side in _pair(padding))
    )


def _pair(value: int | Sequence[int]) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value)


class _SideBySide(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.padding = [side // 2 for side in weight.shape[2:]]
        wide = side_by_side(images, ctx.padding[1])
        ctx.save_for_backward(wide, weight)
        ctx.like, ctx.biased = images.shape, bias is not None
        return apart(F.conv2d(wide, weight, bias, padding=ctx.padding), len(images), images.shape[3])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        wide, weight = ctx.saved_tensors
        needed = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.biased and ctx.needs_input_grad[2]]
        of_images, of_weight, of_bias = torch.ops.aten.convolution_backward(
            side_by_side(gradients[0], ctx.padding[1]),
            wide,
            weight,
            [len(weight)] if ctx.biased else None,
            [1, 1],
            ctx.padding,
            [1, 1],
            False,
            [0, 0],
            1,
            needed,
        )
        of_images = apart(of_images, ctx.like[0], ctx.like[3]) if needed[0] else None
        return of_images, of_weight, of_bias


def side_by_side(images: Tensor, gap: int) -> Tensor:
    """(N, C, H, W) -> (N / 8 rounded up, C, H, 8 (W + gap)): eight images in a row, each followed by `gap` columns of
    zeros; missing ones at the end are zeros too. Channels last."""
    n, channels, height, width = images.shape
    rows, over = divmod(n, IN_A_ROW)
    wide = images.new_empty((rows + (over > 0), height, IN_A_ROW, width + gap, channels))
    wide[:, :, :, width:] = 0
    pixels = images.permute(0, 2, 3, 1)
    wide[:rows, :, :, :width] = pixels[: n - over].unflatten(0, (rows, IN_A_ROW)).transpose(1, 2)
    if over:
        wide[rows] = 0
        wide[rows, :, :over, :width] = pixels[n - over :].transpose(0, 1)
    return wide.flatten(2, 3).permute(0, 3, 1, 2)


def apart(wide: Tensor, n: int, width: int) -> Tensor:
    """The first `n` images (N, C, H, W) of what `side_by_side` made, or of maps of the same size. Channels last."""
    images = wide.permute(0, 2, 3, 1).unflatten(2, (IN_A_ROW, -1))[:, :, :, :width].transpose(1, 2).flatten(0, 1)
    return images[:n].permute(0, 3, 1, 2)
