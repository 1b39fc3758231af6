"""Functions of a network's own code as layers: against the same network made of modules, and against torch's."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convlens.anatomy import dissect
from convlens.arithmetic import arithmetic
from convlens.errors import UserError
from convlens.functions import Functions, as_layer
from convlens.images import InputSpec
from convlens.joining import joins
from convlens.walking import layers


class Tutorial(nn.Module):
    """As tutorials write it: only what has weights is a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 6, 5, padding=2), nn.Conv2d(6, 8, 3)
        self.three, self.four = nn.Linear(8 * 3 * 3, 20), nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.one(x)), 2, stride=2)
        x = F.avg_pool2d(self.two(x).relu_(), (2, 2), None, 0, False, True)
        x = F.relu(self.three(x.view(-1, 8 * 3 * 3)), inplace=True)
        return self.four(F.dropout(x, training=self.training))


class Modules(nn.Module):
    def __init__(self, of: Tutorial) -> None:
        super().__init__()
        own = copy.deepcopy(of)
        first = own.one, nn.ReLU(), nn.MaxPool2d(2), own.two, nn.ReLU(), nn.AvgPool2d(2), nn.Flatten()
        self.all = nn.Sequential(*first, own.three, nn.ReLU(), own.four)

    def forward(self, x: Tensor) -> Tensor:
        return self.all(x)


NAMES = ["one", "F.relu", "F.max_pool2d", "two", "F.relu_1", "F.avg_pool2d", "F.view", "three", "F.relu_2", "four"]


def a_pair() -> tuple[Tutorial, Modules, Tensor]:
    torch.manual_seed(0)
    model = Tutorial().train()
    return model, Modules(model), torch.rand(1, 16, 16)


def test_a_network_of_functions_is_taken_apart_as_one_of_modules_is() -> None:
    model, modules, image = a_pair()
    found, expected = dissect(model, image, effects=True), dissect(modules, image, effects=True)
    assert [step.name for step in found.steps] == NAMES
    before = "input"
    for step, same in zip(found.steps, expected.steps, strict=True):
        assert (step.kind, step.formula, step.sources) == (same.kind, same.formula, (before,))
        for mine, theirs in ((step.input, same.input), (step.output, same.output), (step.effects, same.effects)):
            torch.testing.assert_close(mine, theirs)
        at = (3, 1, 2)[: step.output.ndim]
        how = arithmetic(step, *at)
        assert how.kind == arithmetic(same, *at).kind
        assert how.value == pytest.approx(step.output[at].item(), abs=1e-5)
        before = step.name
    assert model.training
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in model.modules())
    assert joins(model, image) == {}


@pytest.mark.parametrize(("name", "place"), [("F.relu_1", 4), ("F.max_pool2d", 2), ("F.relu_2", 8)])
def test_a_channel_of_a_function_is_switched_off(name: str, place: int) -> None:
    model, modules, image = a_pair()
    channel = int(dissect(model, image, effects=True).step(name).effects.abs().argmax())
    one = dissect(model, image, {name: [channel]})
    other = dissect(modules, image, {f"all.{place}": [channel]})
    assert one.step(name).output[channel].abs().sum() == 0
    torch.testing.assert_close(one.logits, other.logits)
    assert not torch.equal(one.logits, dissect(model, image).logits)


def test_a_function_that_is_not_called_is_named() -> None:
    model, _, image = a_pair()
    with pytest.raises(UserError, match=r"unknown layer 'F.relu_9'; did you mean 'F.relu"):
        dissect(model, image, {"F.relu_9": [0]})
    with pytest.raises(UserError, match=r"the layer F.relu has no channel 6: they are numbered from 0 to 5"):
        dissect(model, image, {"F.relu": [6]})


def test_the_page_is_told_of_functions_what_it_is_told_of_layers() -> None:
    model, modules, _ = a_pair()
    told, expected = (layers(each.eval(), InputSpec((16, 16), 1)) for each in (model, modules))
    for mine, theirs in zip(told, expected, strict=True):
        for key in ("kind", "input", "output", "channels", "formula", "formula_width", "kernel", "stride", "padding",
                    "dilation", "groups", "activation", "parameters", "macs"):  # fmt: skip # keys of one sort
            assert mine[key] == theirs[key], (mine["name"], key)


CALLS = {
    "max_pool2d": lambda x: F.max_pool2d(x, 3, 2, 1),
    "max_pool2d dilated": lambda x: torch.max_pool2d(x, (2, 3), stride=(1, 2), dilation=2),
    "max_pool2d ceil": lambda x: F.max_pool2d(x, kernel_size=4, ceil_mode=True),
    "max_pool2d and places": lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
    "avg_pool2d": lambda x: F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False),
    "avg_pool2d divisor": lambda x: F.avg_pool2d(x, 2, 2, 0, False, True, 3),
    "adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, (3, 2)),
    "adaptive_max_pool2d": lambda x: F.adaptive_max_pool2d(x, output_size=2),
    "mean": lambda x: x.mean((2, 3)),
    "mean kept": lambda x: torch.mean(x, dim=(-2, -1), keepdim=True),
    "amax": lambda x: x.amax((2, 3)),
    "flatten": lambda x: torch.flatten(x, 1),
    "reshape": lambda x: x.reshape(len(x), -1),
    "gelu": F.gelu,
    "tanh": Tensor.tanh,
    "sigmoid": torch.sigmoid,
    "hardswish": F.hardswish,
}


@pytest.mark.parametrize("call", CALLS)
def test_what_stands_for_a_function_computes_what_it_computes(call: str) -> None:
    image, seen = torch.randn(1, 5, 12, 10, generator=torch.Generator().manual_seed(1)), []

    def called(name, layer, given, compute):
        seen.append((name, layer))
        assert given is image
        return compute()

    with Functions([], called):
        out = CALLS[call](image)
    ((name, layer),) = seen
    assert name == f"F.{call.split()[0]}"
    torch.testing.assert_close(layer(image).reshape(out.shape), out)


@pytest.mark.parametrize("call", [lambda x: x + 1, lambda x: x.mean(1), lambda x: x.view(5, -1), lambda x: x.mean()])
def test_what_is_no_layer_is_none(call) -> None:
    seen = []
    with Functions([], lambda name, _layer, _given, compute: seen.append(name) or compute()):
        call(torch.zeros(1, 5, 4, 4))
    assert seen == []
    assert as_layer(F.conv2d, (), {}) is None


def test_what_a_layer_calls_within_is_its_own_affair() -> None:
    seen = []
    inner = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    with Functions([*inner], lambda name, _layer, _given, compute: seen.append(name) or compute()):
        inner(torch.rand(1, 2, 4, 4)).relu()
    assert seen == ["F.relu"]
