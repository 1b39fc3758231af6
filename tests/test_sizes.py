"""The size formula, held against what torch's own layers give."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from convlens.errors import UserError
from convlens.models.sizes import Window, check_fits, formula, output_size, size_after, windows

small = st.integers(1, 6)


def real_size(layer: nn.Module, size: tuple[int, int]) -> tuple[int, int] | None:
    """(height, width) that torch gives, or None where torch refuses the image as too small."""
    try:
        with torch.no_grad():
            return tuple(layer(torch.zeros(1, 1, *size)).shape[2:])
    except RuntimeError as error:
        if re.search("(?i)output size is too small|kernel size can't be greater", str(error)):
            return None
        raise


def expect(layer: nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d, size: tuple[int, int]) -> None:
    real = real_size(layer, size)
    if real is None:
        with pytest.raises(UserError, match=rf"layer some\.name \({type(layer).__name__}, kernel \d+\) does not fit"):
            check_fits(layer, "some.name", size)
    else:
        assert check_fits(layer, "some.name", size) == real
        assert tuple(output_size(n, *w) for n, w in zip(size, windows(layer), strict=True)) == real


@settings(max_examples=200, deadline=None)
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    kernel=st.tuples(small, small),
    stride=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    padding=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
)
def test_convolution_as_torch(
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> None:
    expect(nn.Conv2d(1, 1, kernel, stride, padding, dilation), size)


@settings(max_examples=200, deadline=None)
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    kernel=small,
    stride=st.integers(1, 8),
    padding=st.integers(0, 3),
    dilation=st.integers(1, 3),
    ceil=st.booleans(),
    average=st.booleans(),
)
def test_pooling_as_torch(
    size: tuple[int, int], kernel: int, stride: int, padding: int, dilation: int, ceil: bool, average: bool
) -> None:
    padding = min(padding, kernel // 2)  # torch takes no more
    if average:
        expect(nn.AvgPool2d(kernel, stride, padding, ceil_mode=ceil), size)
    else:
        expect(nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=ceil), size)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 30), kernel=small, dilation=st.integers(1, 3))
def test_same_and_valid_padding_as_torch(n: int, kernel: int, dilation: int) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Using padding='same' with even kernel lengths")
        same = nn.Conv2d(1, 1, kernel, padding="same", dilation=dilation)
        assert real_size(same, (n, n)) == (n, n)
        expect(same, (n, n))
    assert formula(n, *windows(same)[0]).endswith(f" = {n}")
    expect(nn.Conv2d(1, 1, kernel, padding="valid", dilation=dilation), (n, n))


def test_pooling_steps_by_its_kernel_unless_told() -> None:
    assert windows(nn.MaxPool2d(3)) == (Window(3, 3), Window(3, 3))
    assert windows(nn.AvgPool2d((2, 3), padding=(1, 0))) == (Window(2, 2, 1), Window(3, 3, 0))
    assert windows(nn.MaxPool2d(2, ceil_mode=True))[0].ceil


@settings(max_examples=200, deadline=None)
@given(
    n=st.integers(1, 300),
    kernel=st.integers(1, 11),
    stride=st.integers(1, 5),
    padding=st.integers(0, 5),
    dilation=st.integers(1, 3),
    ceil=st.booleans(),
)
def test_formula_is_true(n: int, kernel: int, stride: int, padding: int, dilation: int, ceil: bool) -> None:
    """The left side of the text, calculated, is its right side; and the pixels left over those that no window met."""
    text = formula(n, kernel, stride, padding, dilation, ceil)
    left, right = text.split("  ")[0].split(" = ")
    assert int(right) == output_size(n, kernel, stride, padding, dilation, ceil)
    names = {"floor": lambda x: x // 1, "ceil": lambda x: -(-x // 1)}
    assert eval(left.replace("·", "*"), names) == int(right)
    for number in (n, padding, kernel, stride):
        assert re.search(rf"\b{number}\b", left)
    over = re.search(r"\((\d+) px left over\)", text)
    if int(right) >= 1 and not ceil:
        met = (int(right) - 1) * stride + dilation * (kernel - 1) + 1
        assert (int(over[1]) if over else 0) == n + 2 * padding - met
    else:
        assert over is None


def test_formula_texts() -> None:
    assert formula(28, 5, 1, 2, 1) == "floor((28 + 2·2 - 5) / 1) + 1 = 28"
    assert formula(32, 3, 2, 0, 1) == "floor((32 + 2·0 - 3) / 2) + 1 = 15  (1 px left over)"
    assert formula(32, 3, 1, 0, 2) == "floor((32 + 2·0 - (2·(3 - 1) + 1)) / 1) + 1 = 28"
    assert formula(32, 3, 2, 0, 1, ceil=True) == "ceil((32 + 2·0 - 3) / 2) + 1 = 16"
    assert "start behind the image" in formula(3, 1, 3, 0, 1, ceil=True)


def test_size_after_a_stack_and_the_layer_that_does_not_fit() -> None:
    stack = nn.Sequential(
        nn.Conv2d(1, 2, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(2, 3, 5), nn.AvgPool2d(2)
    )
    for size in ((28, 28), (32, 48), (17, 12)):
        with torch.no_grad():
            assert size_after(stack, size) == tuple(stack(torch.zeros(1, 1, *size)).shape[2:])
    with pytest.raises(UserError) as caught:
        size_after(stack, (28, 9))
    message = str(caught.value)
    assert "layer features.3 (Conv2d, kernel 5)" in message
    assert "14 x 4 there" in message
    assert "floor((4 + 2·0 - 5) / 1) + 1 = 0" in message
