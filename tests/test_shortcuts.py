"""Shortcuts: the same numbers as the model gives by itself, forward and backward, and only where they fit."""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convlens import build
from convlens.shortcuts import WIDEST, Wide, apart, fits, shortcut, side_by_side, wide_convolutions

CPU = torch.device("cpu")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("count", [1, 7, 8, 9, 20])
@pytest.mark.parametrize("gap", [0, 1, 2])
def test_laying_out_and_taking_apart(count: int, gap: int) -> None:
    images = draw(count, 3, 4, 5)
    wide = side_by_side(images, gap)
    assert wide.shape == (-(-count // 8), 3, 4, 8 * (5 + gap))
    assert wide.is_contiguous(memory_format=torch.channels_last)
    for i, image in enumerate(images):  # by hand, image after image
        row, left = i // 8, i % 8 * (5 + gap)
        assert torch.equal(wide[row, :, :, left : left + 5], image)
        assert not wide[row, :, :, left + 5 : left + 5 + gap].any()
    assert wide.count_nonzero() == images.numel()
    assert torch.equal(apart(wide, count, 5), images)


@pytest.mark.parametrize("kernel", [(3, 3), (5, 5), (1, 3), (3, 1)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("count", [2, 8, 19])
def test_outputs_and_gradients_are_those_of_torch(kernel: tuple[int, int], bias: bool, count: int) -> None:
    """Whole numbers, whose sums are exact in any order: what is left is one rounding to bf16."""
    images, weight = draw(count, 4, 5, 7).mul(2).round(), draw(6, 4, *kernel, seed=1).round()
    offset = draw(6, seed=2).round() if bias else None
    upstream = (draw(count, 6, 5, 7, seed=3) > 1.5).float()
    padding = tuple(side // 2 for side in kernel)

    def gradients(context: contextlib.AbstractContextManager[object]) -> list[Tensor]:
        leaves = [t.clone().requires_grad_() for t in (images, weight, offset) if t is not None]
        with torch.autocast("cpu", torch.bfloat16), context:
            outputs = F.conv2d(leaves[0], leaves[1], leaves[2] if bias else None, 1, padding)
        outputs.float().backward(upstream)
        return [outputs.detach().float(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]

    plain, wide = gradients(contextlib.nullcontext()), gradients(Wide())
    assert len(plain) == len(wide) == (4 if bias else 3)
    for expected, found in zip(plain, wide, strict=True):
        assert expected.dtype == found.dtype
        torch.testing.assert_close(found, expected, rtol=2**-7, atol=0)


def test_what_needs_no_gradient_gets_none() -> None:
    images, weight = draw(8, 4, 5, 5), draw(6, 4, 3, 3).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16), Wide():
        F.conv2d(images, weight, None, 1, 1).float().sum().backward()
    assert images.grad is None
    assert weight.grad is not None


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (nn.Conv2d(3, 4, 3, padding=1), (2, 3, 4, WIDEST), True),
        (nn.Conv2d(3, 4, 3, padding="same"), (2, 3, 4, 4), False),  # rare, and it may pad one side more
        (nn.Conv2d(3, 4, 3, padding=1), (2, 3, 4, WIDEST + 1), False),
        (nn.Conv2d(3, 4, 3, padding=1), (1, 3, 4, 4), False),
        (nn.Conv2d(3, 4, 3, padding=1), (3, 4, 4), False),
        (nn.Conv2d(3, 4, 3), (2, 3, 4, 4), False),
        (nn.Conv2d(3, 4, 1), (2, 3, 4, 4), False),
        (nn.Conv2d(3, 4, 2, padding=1), (2, 3, 4, 4), False),
        (nn.Conv2d(3, 4, 3, padding=1, stride=2), (2, 3, 4, 4), False),
        (nn.Conv2d(3, 4, 3, padding=1, dilation=2), (2, 3, 4, 4), False),
        (nn.Conv2d(3, 3, 3, padding=1, groups=3), (2, 3, 4, 4), False),
    ],
)
def test_only_convolutions_of_small_maps_that_keep_their_size(
    layer: nn.Conv2d, shape: tuple[int, ...], expected: bool
) -> None:
    images = draw(*shape)
    args = (layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    assert fits(images, *args) is expected
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        plain = layer(images)
        with Wide():
            torch.testing.assert_close(layer(images), plain, rtol=2**-7, atol=2**-7)


def test_double_precision_stays_double() -> None:
    layer = nn.Conv2d(3, 4, 3, padding=1).double()
    with torch.autocast("cpu", torch.bfloat16), Wide():
        assert layer(draw(8, 3, 4, 4).double()).dtype == torch.float64


def test_a_whole_network_learns_the_same() -> None:
    torch.manual_seed(0)
    model = build("resnet20", channels=3, classes=10, size=(32, 32))
    images, labels = draw(16, 3, 32, 32).mul(50).add(128).clamp(0, 255).to(torch.uint8), torch.arange(16) % 10

    def gradients(context: contextlib.AbstractContextManager[object]) -> Tensor:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16), context:
            logits = model(images)
        F.cross_entropy(logits.float(), labels).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    plain, wide = gradients(contextlib.nullcontext()), gradients(Wide())
    assert ((wide - plain).norm() / plain.norm()).item() < 0.02


def test_where_it_is_used() -> None:
    assert not isinstance(wide_convolutions(CPU, "fp32"), Wide)
    assert not isinstance(wide_convolutions(torch.device("cuda"), "bf16"), Wide)
    assert isinstance(wide_convolutions(CPU, "bf16"), Wide) is torch.cpu._is_amx_tile_supported()


def outputs_and_gradients(forward: nn.Module, model: nn.Module, images: Tensor) -> list[Tensor]:
    torch.manual_seed(5)  # dropout
    model.zero_grad()
    outputs = forward(images)
    outputs.square().sum().backward()
    return [outputs.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("name", ["lenet5", "cnn-mnist", "deepcnn-mnist", "cnn-cifar10", "vgg", "speednet"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_reordered_networks_give_the_same_bits(name: str, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    model = build(name, channels=3, classes=10, size=(32, 32)).to(memory_format=layout)
    images = (draw(6, 3, 32, 32) * 60 + 128).clamp(0, 255).to(torch.uint8).contiguous(memory_format=layout)
    plain = outputs_and_gradients(model, model, images)
    short = outputs_and_gradients(shortcut(model), model, images)
    assert len(plain) > 4
    for expected, found in zip(plain, short, strict=True):
        assert torch.equal(found, expected)


def test_equal_values_in_a_window_and_windows_below_zero() -> None:
    """Where a window holds its largest value twice, or nothing above zero, both orders choose alike."""
    model = nn.Sequential(nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1))
    images = draw(40, 4, 9, 9).round()  # whole numbers: equal values everywhere
    gradients = []
    for forward in (model, shortcut(model)):
        leaf = images.clone().requires_grad_()
        (forward(leaf) * draw(40, 4, 5, 5, seed=1)).sum().backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_largest_of_a_whole_map_also_where_it_stands_twice(layout: torch.memory_format) -> None:
    model = nn.Sequential(nn.AdaptiveMaxPool2d(1))
    images = draw(40, 4, 3, 5).round().contiguous(memory_format=layout)
    outputs, gradients = [], []
    for forward in (model, shortcut(model)):
        leaf = images.clone().requires_grad_()
        outputs.append(forward(leaf))
        (outputs[-1] * draw(40, 4, 1, 1, seed=1)).sum().backward()
        gradients.append(leaf.grad)
    assert type(shortcut(model)[0]) is not nn.AdaptiveMaxPool2d
    assert torch.equal(*outputs)
    assert torch.equal(*gradients)


def test_relu_meets_pooled_maps_and_hooks_keep_their_place() -> None:
    def shapes(model: nn.Sequential) -> tuple[int, ...]:
        seen: list[tuple[int, ...]] = []
        relu = model[0]
        plain = relu.forward
        relu.forward = lambda x: (seen.append(tuple(x.shape)), plain(x))[1]
        shortcut(model)(draw(1, 2, 8, 8))
        return seen[0]

    layers = [nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    assert shapes(nn.Sequential(*layers)) == (1, 2, 4, 4)
    layers[0].register_forward_hook(lambda *_: None)
    assert shapes(nn.Sequential(*layers)) == (1, 2, 8, 8)
    assert shapes(nn.Sequential(nn.ReLU(), nn.AvgPool2d(2))) == (1, 2, 8, 8)


def test_the_model_itself_is_left_alone() -> None:
    model = build("cnn-mnist", channels=1, classes=10, size=(28, 28))
    before = str(model)
    view = shortcut(model)
    assert view is not model
    assert str(model) == before
    assert {id(p) for p in view.parameters()} == {id(p) for p in model.parameters()}
    custom = build("resnet20", channels=3, classes=10, size=(32, 32))
    assert outputs_and_gradients(shortcut(custom), custom, draw(2, 3, 32, 32))
