"""The output-size formula of convolution and pooling, and what to say where an image is too small for it."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from ..errors import UserError

WINDOWED = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
Windowed = nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d


class TooSmallError(UserError):
    """An image is too small for a layer."""


class Window(NamedTuple):
    """A convolution or pooling along one side. `padding` is what both ends get; half a pixel more where an even kernel
    with 'same' padding gives one end a pixel more than the other."""

    kernel: int
    stride: int = 1
    padding: float = 0
    dilation: int = 1
    ceil: bool = False


def output_size(n: int, kernel: int, stride: int = 1, padding: float = 0, dilation: int = 1, ceil: bool = False) -> int:
    """Pixels along one side after a convolution or pooling: floor((n + 2p - d(k - 1) - 1) / s) + 1."""
    span = n + int(2 * padding) - dilation * (kernel - 1) - 1
    out = (-(-span // stride) if ceil else span // stride) + 1
    if ceil and (out - 1) * stride >= n + padding:
        out -= 1  # torch: a window that starts in the padding behind the image is dropped
    return out


def formula(n: int, kernel: int, stride: int = 1, padding: float = 0, dilation: int = 1, ceil: bool = False) -> str:
    """The formula with its numbers: `floor((28 + 2·2 - 5) / 1) + 1 = 28`, and how many pixels a stride leaves over."""
    span = n + int(2 * padding) - dilation * (kernel - 1) - 1
    window = f"{kernel}" if dilation == 1 else f"({dilation}·({kernel} - 1) + 1)"
    out = output_size(n, kernel, stride, padding, dilation, ceil)
    dropped = ceil and out < -(-span // stride) + 1
    text = f"{'ceil' if ceil else 'floor'}(({n} + 2·{padding:g} - {window}) / {stride}) + 1{' - 1' * dropped} = {out}"
    if dropped:
        text += "  (the last window would start behind the image)"
    elif span >= 0 and span % stride and not ceil:
        text += f"  ({span % stride} px left over)"
    return text


def windows(layer: Windowed) -> tuple[Window, Window]:
    """The window of a convolution or pooling layer along the height and along the width."""

    def pair(value: Any) -> tuple[Any, Any]:
        high, wide = value if isinstance(value, tuple | list) else (value, value)
        return high, wide

    kernel, dilation = pair(layer.kernel_size), pair(getattr(layer, "dilation", 1))
    if layer.padding == "same":  # torch pads by d(k - 1) in all
        padding = pair([d * (k - 1) / 2 for d, k in zip(dilation, kernel, strict=True)])
    else:
        padding = pair(0 if layer.padding == "valid" else layer.padding)
    ceil = bool(getattr(layer, "ceil_mode", False))
    high, wide = zip(kernel, pair(layer.stride), padding, dilation, pair(ceil), strict=True)
    return Window(*high), Window(*wide)


def in_cells(slide: tuple[Window, Window] | None) -> list[str]:
    """Kernel, stride, padding and dilation in words: `3`, or `5x3` where height and width differ; empty without one."""
    if slide is None:
        return [""] * 4
    return [f"{high:g}" if high == wide else f"{high:g}x{wide:g}" for high, wide in [*zip(*slide, strict=True)][:4]]


def check_fits(layer: Windowed, name: str, size: tuple[int, int]) -> tuple[int, int]:
    """The (height, width) that `layer` makes of `size`.

    Raises:
        TooSmallError: a side would be smaller than one pixel; the sentence has the layer and the formula.
    """
    out = []
    for n, window in zip(size, windows(layer), strict=True):
        out.append(output_size(n, *window))
        if out[-1] < 1:
            raise TooSmallError(
                f"layer {name} ({type(layer).__name__}, kernel {window.kernel}) does not fit an image that is "
                f"{size[0]} x {size[1]} there: {formula(n, *window)}"
            )
    return out[0], out[1]


def size_after(layers: nn.Sequential, size: tuple[int, int], name: str = "features") -> tuple[int, int]:
    """(height, width) after all convolutions and poolings of a plain stack. Raises TooSmallError where one does not."""
    for index, layer in layers.named_children():
        if isinstance(layer, WINDOWED):
            size = check_fits(layer, f"{name}.{index}", size)
    return size
