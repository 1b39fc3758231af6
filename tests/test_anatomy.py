"""The walk through a network: every number's arithmetic against what the layer computed, channels switched off."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from convlens import MODELS, build
from convlens.anatomy import Anatomy, Step, dissect
from convlens.arithmetic import arithmetic, softmax
from convlens.errors import UserError
from refusals import refused


def some_image(channels: int, size: int = 28, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (channels, size, size), dtype=torch.uint8, generator=generator)


def trained(name: str, channels: int = 3) -> nn.Module:
    """A network whose batch norms have met images."""
    model = build(name, channels=channels, classes=7, size=(28, 28), mean=(0.4,) * channels, std=(0.3,) * channels)
    with torch.no_grad():
        model.train()(torch.stack([some_image(channels, seed=seed) for seed in range(8)]))
    return model.eval()


@pytest.mark.parametrize("name", MODELS)
def test_the_arithmetic_of_every_kind_of_layer_is_what_it_computed(name: str) -> None:
    model = trained(name)
    found = dissect(model, some_image(3))
    with torch.no_grad():
        torch.testing.assert_close(found.logits, model(some_image(3)[None])[0])
    generator = torch.Generator().manual_seed(1)
    assert found.steps[0].kind == "Normalize"
    for step in found.steps:
        for _ in range(5):
            at = [int(torch.randint(n, (), generator=generator)) for n in step.output.shape]
            how = arithmetic(step, *at)
            expected = step.output[tuple(at)].item()
            assert how.value == pytest.approx(expected, rel=1e-4, abs=1e-4), (step.name, at)
            if how.weights is not None:
                assert how.shares.sum().item() + how.bias == pytest.approx(expected, rel=1e-4, abs=1e-4), step.name
    if name != "resnet9":  # which scales them, in no layer
        torch.testing.assert_close(found.steps[-1].output, found.logits)
    assert {step.kind for step in found.steps} >= {"Normalize", "Conv2d", "Linear"}


def alone(layer: nn.Module, image: Tensor) -> Step:
    with torch.no_grad():
        return Step("it", layer, image, layer(image[None])[0])


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # torch says once that it copies
@given(
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    padding=st.one_of(st.integers(0, 2), st.just("same")),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2]),
    mode=st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_convolutions_of_every_shape(kernel, stride, padding, dilation, groups, mode, data) -> None:
    stride = 1 if padding == "same" else stride
    generator = torch.Generator().manual_seed(kernel)
    layer = nn.Conv2d(4, 6, (kernel, 3), stride, padding, dilation, groups, padding_mode=mode)
    step = alone(layer, torch.randn(4, 9, 11, generator=generator))
    at = [data.draw(st.integers(0, n - 1)) for n in step.output.shape]
    how = arithmetic(step, *at)
    assert how.value == pytest.approx(step.output[tuple(at)].item(), abs=1e-5)
    assert how.inputs.shape == how.weights.shape == (4 // groups, kernel, 3)
    top, left = how.corner
    if dilation == 1 and 0 <= top <= 9 - kernel and 0 <= left <= 8:
        seen = step.input[how.first : how.first + 4 // groups, top : top + kernel, left : left + 3]
        torch.testing.assert_close(how.inputs.float(), seen)


def learned(layer: nn.Module) -> nn.Module:
    """With a weight and a bias of its own at every place."""
    for parameter in layer.parameters():
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(len(parameter)))
    return layer


@pytest.mark.parametrize(
    "layer",
    [
        nn.MaxPool2d(2),
        nn.MaxPool2d(3, 2, 1),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.MaxPool2d(3, 1, 1, dilation=2),
        nn.AvgPool2d(3, 2, 1),
        nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        nn.AvgPool2d(2, 2, ceil_mode=True),
        nn.AvgPool2d(3, 2, 1, ceil_mode=True),
        nn.AvgPool2d(2, divisor_override=3),
        nn.AdaptiveAvgPool2d(3),
        nn.AdaptiveMaxPool2d((2, 5)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.GELU(),
        nn.BatchNorm2d(2, affine=False).eval(),
        nn.BatchNorm2d(2, track_running_stats=False).eval(),
        nn.InstanceNorm2d(2),
        nn.InstanceNorm2d(2, affine=True, track_running_stats=True).eval(),
        nn.GroupNorm(1, 2),
        nn.GroupNorm(2, 2, affine=False),
        nn.LayerNorm(8, elementwise_affine=False),
        learned(nn.LayerNorm((7, 8))),
    ],
    ids=str,
)
def test_poolings_and_the_rest_everywhere(layer: nn.Module) -> None:
    step = alone(layer, torch.randn(2, 7, 8, generator=torch.Generator().manual_seed(0)))
    for at in torch.cartesian_prod(*map(torch.arange, step.output.shape)).reshape(-1, step.output.ndim).tolist():
        how = arithmetic(step, *at)
        expected = step.output[tuple(at)].item()
        assert how.value == pytest.approx(expected, abs=1e-6)
        if how.kind == "mean":
            assert how.shares.sum().item() == pytest.approx(expected, abs=1e-6)
        if how.kind == "move":
            assert step.input[how.first, *how.corner].item() == expected


def test_softmax_is_torchs() -> None:
    logits = torch.tensor([1.0, -2.0, 500.0, 499.0])
    scaled, powers, shares = softmax(logits, 2.0).T
    torch.testing.assert_close(shares, F.softmax(logits.double() / 2, 0))
    torch.testing.assert_close(powers / powers.sum(), shares)
    torch.testing.assert_close(scaled, logits.double() / 2)


def test_a_channel_switched_off_is_a_network_with_its_filter_zeroed() -> None:
    model, image = trained("cnn-mnist", 1), some_image(1)
    before = dissect(model, image)
    found = dissect(model, image, {"features.0": [3, 5]})
    assert not torch.equal(before.logits, found.logits)
    with torch.no_grad():
        for parameter in (model.network.features[0].weight, model.network.features[0].bias):
            parameter[[3, 5]] = 0
        torch.testing.assert_close(found.logits, model(image[None])[0])
    assert not found.step("features.0").output[[3, 5]].any()
    torch.testing.assert_close(dissect(model, image).logits, found.logits)  # no hook was left


def test_linear_units_can_be_switched_off_too() -> None:
    model, image = trained("cnn-mnist", 1), some_image(1)
    found = dissect(model, image, {"classifier.3": [2]})
    assert found.logits[2] == 0
    assert found.logits[3] == dissect(model, image).logits[3]


class Twice(nn.Module):
    """One layer that runs twice, a ReLU in place, and a layer that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.idle = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(inplace=True), nn.Linear(2, 2)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.conv(x))
        return self.head(self.act(self.conv(x)).mean((2, 3)))


def test_a_layer_that_runs_twice_is_there_twice_and_in_place_changes_nothing() -> None:
    model = Twice()
    found = dissect(model, some_image(3, 6).float() / 255)
    assert [step.name for step in found.steps] == ["conv", "act", "conv#2", "act#2", "F.mean", "head"]
    for first, second in zip(found.steps, found.steps[1:-1], strict=False):
        torch.testing.assert_close(first.output, second.input)
    assert found.step("act").input.min() < 0
    assert arithmetic(found.step("act"), 0, 0, 0).inputs.item() == found.step("conv").output[0, 0, 0].item()
    for step in found.steps:
        how = arithmetic(step, *([1, 2, 2][: step.output.ndim]))
        assert how.value == pytest.approx(step.output[(1, 2, 2)[: step.output.ndim]].item(), abs=1e-5)


def test_what_is_not_there_is_named() -> None:
    model, image = trained("lenet5", 1), some_image(1)
    found = dissect(model, image)
    assert isinstance(found, Anatomy)
    first = next(step for step in found.steps if step.kind == "Conv2d")
    refused(lambda: dissect(model, image, {"features.99": [0]}), "unknown layer 'features.99'")
    refused(lambda: dissect(model, image, {first.name: [99]}), f"{first.name} has no channel 99", "0 to 5")
    refused(lambda: found.step("convx"), "unknown layer 'convx'")
    refused(lambda: arithmetic(first, 0, 99, 0), "has no number at 0 x 99 x 0")
    with pytest.raises(UserError, match="not known"):
        arithmetic(alone(nn.PixelShuffle(2), torch.zeros(4, 2, 2)), 0)


@pytest.mark.parametrize("name", ["cnn-mnist", "resnet9", "lenet5"])
def test_effects_are_what_a_channel_less_takes_from_the_logit_to_first_order(name: str) -> None:
    """Against the finite difference: the channel made a thousandth smaller, in float64."""
    model, image = trained(name, 1).double(), some_image(1)
    found = dissect(model, image, effects=True)
    plain = dissect(model, image)
    best = int(found.logits.argmax())
    torch.testing.assert_close(found.logits, plain.logits)
    assert [step.name for step in found.steps] == [step.name for step in plain.steps]
    assert all(step.effects is None for step in plain.steps)
    modules = dict(model.named_modules())
    for step in found.steps:
        assert step.effects.shape == step.output.shape[:1]
        if step.name.startswith("F."):  # tests/test_functions.py: as of the layer that does the same
            continue
        channel = int(step.effects.abs().argmax())

        def smaller(_layer, _inputs, output, channel=channel):
            scale = torch.ones_like(output)
            scale[:, channel] = 1 - 1e-6
            return output * scale

        handle = modules[f"network.{step.name}" if step.name != "normalize" else step.name].register_forward_hook(
            smaller
        )
        with torch.no_grad():
            less = model(image[None].double())[0, best]
            handle.remove()
            whole = model(image[None].double())[0, best]
        assert (whole - less).item() / 1e-6 == pytest.approx(step.effects[channel].item(), rel=1e-3, abs=1e-4), (
            step.name
        )


def test_effects_need_no_weights_that_learn_and_know_who_ran_twice() -> None:
    model, image = Twice(), some_image(3, 6).float() / 255
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    steps = dissect(model, image, effects=True).steps
    assert [step.name for step in steps] == ["conv", "act", "conv#2", "act#2", "F.mean", "head"]
    # what a ReLU lets through has the effect that came in there
    torch.testing.assert_close(steps[2].effects, steps[3].effects, atol=1e-5, rtol=1e-4)
    assert steps[-1].effects.count_nonzero() == 1
    assert model.conv.weight.grad is None


class Branching(nn.Module):
    """A shortcut, a join, functions between the layers, layers in place, a functional flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.act = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True)
        self.block, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.after, self.drop = nn.ReLU(), nn.Dropout()
        self.left, self.right = nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, 1)
        self.joined, self.bent = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 2, 1)
        self.head = nn.Linear(2 * 36, 5)
        nn.init.zeros_(self.norm.weight)  # its block adds nothing: equal numbers, and yet a sum

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.stem(x))
        x = self.drop(self.after(self.norm(self.block(x)) + x))
        x = self.joined(torch.cat([self.left(x), self.right(x)], 1))
        return self.head(self.bent(x.relu()).flatten(1))


def test_what_went_in_is_an_earlier_steps_output_or_nobodys() -> None:
    model, image = Branching().eval(), torch.randint(0, 256, (3, 6, 6), dtype=torch.uint8)
    for effects in (False, True):
        steps = dissect(model, image, effects=effects).steps
        assert {step.name: step.sources for step in steps} == {
            "stem": ("input",),
            "act": ("stem",),
            "block": ("act",),
            "norm": ("block",),
            "after": (),
            "left": ("after",),
            "right": ("after",),
            "joined": (),
            "F.relu": ("joined",),
            "bent": ("F.relu",),
            "F.flatten": ("bent",),
            "head": ("F.flatten",),
        }
