"""The output-size formula of convolution and pooling, and what to say where an image is too small for it."""

from __future__ import annotations

from torch import nn

from ..errors import UserError

WINDOWED = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)


def output_size(n: int, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1, ceil: bool = False) -> int:
    """Pixels along one side after a convolution or pooling: floor((n + 2p - d(k - 1) - 1) / s) + 1."""
    span = n + 2 * padding - dilation * (kernel - 1) - 1
    out = (-(-span // stride) if ceil else span // stride) + 1
    if ceil and (out - 1) * stride >= n + padding:
        out -= 1  # torch: a window that starts in the padding behind the image is dropped
    return out


def formula(n: int, kernel: int, stride: int, padding: int, dilation: int, ceil: bool = False) -> str:
    """The formula with its numbers: `floor((28 + 2·2 - 5) / 1) + 1 = 28`, and how many pixels a stride leaves over."""
    span = dilation * (kernel - 1) + 1
    window = f"{span}" if dilation == 1 else f"({dilation}·({kernel} - 1) + 1)"
    out = output_size(n, kernel, stride, padding, dilation, ceil)
    text = f"{'ceil' if ceil else 'floor'}(({n} + 2·{padding} - {window}) / {stride}) + 1 = {out}"
    left = (n + 2 * padding - span) % stride
    if left and not ceil:
        text += f"  ({left} px left over)"
    return text


def window(layer: nn.Module) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int]]:
    """(kernel, stride, padding, dilation) of a convolution or pooling layer, each as (height, width)."""

    def pair(value: object) -> tuple[int, int]:
        return tuple(value) if isinstance(value, (tuple, list)) else (value, value)  # type: ignore[return-value] # torch's own unions

    kernel, stride = pair(layer.kernel_size), pair(layer.stride)
    dilation = pair(getattr(layer, "dilation", 1))
    if layer.padding == "same":  # torch pads by d(k - 1) in all; with an even kernel one side gets the odd pixel
        return kernel, stride, tuple(d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True)), dilation  # type: ignore[return-value] # two of two
    return kernel, stride, (0, 0) if layer.padding == "valid" else pair(layer.padding), dilation


def check_fits(layer: nn.Module, name: str, size: tuple[int, int]) -> tuple[int, int]:
    """The (height, width) that `layer` makes of `size`.

    Raises:
        UserError: a side would be smaller than one pixel; the sentence has the layer and the formula.
    """
    out = []
    ceil = bool(getattr(layer, "ceil_mode", False))
    for n, k, s, p, d in zip(size, *window(layer), strict=True):
        out.append(output_size(n, k, s, p, d, ceil))
        if out[-1] < 1:
            raise UserError(
                f"layer {name} ({type(layer).__name__}, kernel {k}) does not fit an image that is {size[0]} x {size[1]} "
                f"there: {formula(n, k, s, p, d, ceil)}"
            )
    return out[0], out[1]


def size_after(layers: nn.Sequential, size: tuple[int, int], name: str = "features") -> tuple[int, int]:
    """(height, width) after all convolutions and poolings of a plain stack. Raises UserError where one does not fit."""
    for index, layer in layers.named_children():
        if isinstance(layer, WINDOWED):
            size = check_fits(layer, f"{name}.{index}", size)
    return size
