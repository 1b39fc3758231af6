"""Looking inside a network: what is recorded, in which order, and that nothing is left behind."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from convlens import build, capture, feature_maps
from convlens.errors import UserError
from convlens.explain import first_filters, logits_of_image


@pytest.fixture(scope="module")
def lenet() -> nn.Module:
    return build("lenet5", channels=1, classes=10, size=(28, 28), seed=4)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randint(0, 256, (2, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def hooks(model: nn.Module) -> int:
    return sum(len(layer._forward_hooks) + len(layer._forward_pre_hooks) for layer in model.modules())


@pytest.mark.parametrize("name", ["lenet5", "resnet20", "resnet9"])
def test_capture_records_what_a_hook_of_ones_own_does(name: str, images: Tensor) -> None:
    model = build(name, channels=1, classes=10, size=(28, 28)).eval()
    by_hand: dict[str, Tensor] = {}
    handles = [
        layer.register_forward_hook(lambda _m, _x, out, n=key: by_hand.__setitem__(n, out))
        for key, layer in model.named_modules()
        if key
    ]
    with torch.no_grad():
        expected_logits = model(images)
    for handle in handles:
        handle.remove()

    layers = list(by_hand)
    with capture(model, reversed(layers)) as outputs, torch.no_grad():
        assert outputs == {}
        logits = model(images)
        assert hooks(model) == len(layers)
    assert torch.equal(logits, expected_logits)
    assert set(outputs) == set(by_hand)
    assert all(torch.equal(outputs[key], by_hand[key]) for key in by_hand)
    assert torch.equal(outputs["network"], logits)
    assert hooks(model) == 0


def test_captured_layers_stand_in_the_order_in_which_they_ran(lenet: nn.Module, images: Tensor) -> None:
    with capture(lenet, ["network.classifier.5", "network.features.3", "network.features.0"]) as outputs:
        lenet(images)
        lenet(images[:1])  # a second pass replaces the first
    assert list(outputs) == ["network.features.0", "network.features.3", "network.classifier.5"]
    assert len(outputs["network.features.0"]) == 1


def test_a_layer_that_runs_twice_keeps_its_last_output() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Linear(1, 1, bias=False)
            self.between = nn.Identity()
            nn.init.constant_(self.scale.weight, 2.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.scale(self.between(self.scale(x)) + 1)

    model = Twice()
    with capture(model, ["scale", "between"]) as outputs:
        model(torch.ones(1, 1))
    assert {key: value.item() for key, value in outputs.items()} == {"between": 2.0, "scale": 6.0}
    assert list(outputs) == ["between", "scale"]


def test_gradients_flow_through_what_is_captured(lenet: nn.Module, images: Tensor) -> None:
    with capture(lenet, ["network.features.3"]) as outputs:
        logits = lenet(images)
    (grad,) = torch.autograd.grad(logits[:, 0].sum(), outputs["network.features.3"])
    assert grad.abs().sum() > 0


def test_gradients_are_those_of_autograd(lenet: nn.Module, images: Tensor) -> None:
    names = ["network.features.0", "network.features.3", "network.classifier.5"]
    with capture(lenet, names) as plain:
        expected = torch.autograd.grad(lenet(images)[:, 3].sum(), [plain[name] for name in names])
    with capture(lenet, names, gradients=True) as outputs:
        lenet(images)[:, 3].sum().backward()
    lenet.zero_grad()
    for name, gradient in zip(names, expected, strict=True):
        assert gradient.abs().sum() > 0
        assert torch.equal(outputs[name].grad, gradient)
    with capture(lenet, names, gradients=True) as outputs:
        torch.autograd.grad(lenet(images)[:, 3].sum(), [outputs[name] for name in names])
    assert all(p.grad is None for p in lenet.parameters())


def test_frozen_weights_and_an_identity_have_gradients_too(images: Tensor) -> None:
    model = nn.Sequential(nn.Identity(), nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(1352, 3))
    model.requires_grad_(False)
    pixels = images.float() / 255
    with capture(model, ["0", "1"], gradients=True) as outputs:
        model(pixels)[:, 1].sum().backward()
    assert not pixels.requires_grad  # the identity hands on the caller's own tensor
    assert torch.equal(outputs["0"], pixels)
    leaf = pixels.clone().requires_grad_()
    model(leaf)[:, 1].sum().backward()
    torch.testing.assert_close(outputs["0"].grad, leaf.grad)
    assert outputs["1"].grad.abs().sum() > 0
    assert not any(p.requires_grad for p in model.parameters())
    with (
        pytest.raises(UserError, match="outside"),
        capture(model, ["1"], gradients=True),
        torch.no_grad(),
    ):
        model(pixels)
    assert hooks(model) == 0


def test_what_a_layer_behind_changes_in_place_is_recorded_before_it() -> None:
    torch.manual_seed(2)
    convolution = nn.Conv2d(1, 4, 3)
    image = torch.randn(1, 1, 6, 6)
    expected = convolution(image)
    assert expected.min() < 0
    model = nn.Sequential(convolution, nn.ReLU(inplace=True))
    with capture(model, ["0", "1"], gradients=True) as outputs:
        model(image).sum().backward()
    assert torch.equal(outputs["0"], expected)
    assert torch.equal(outputs["1"], expected.relu())
    assert torch.equal(outputs["0"].grad, (expected > 0).float())


def test_layers_with_several_outputs() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            return 2 * x, {"index": x.argmax()[None], "third": 3 * x}

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.two = Two()

        def forward(self, x: Tensor) -> Tensor:
            double, rest = self.two(x)
            return (double * 5 + rest["third"] * 7).sum()

    with capture(model := Both(), ["two"], gradients=True) as outputs:
        model(torch.ones(3)).backward()
    double, rest = outputs["two"]
    assert double.grad.tolist() == [5.0] * 3
    assert rest["third"].grad.tolist() == [7.0] * 3
    assert not rest["index"].requires_grad


def test_a_layer_that_runs_twice_keeps_its_last_gradient() -> None:
    scale = nn.Linear(1, 1, bias=False)
    nn.init.constant_(scale.weight, 2.0)
    model = nn.Sequential(scale, scale)
    with capture(model, ["0"], gradients=True) as outputs:
        (5 * model(torch.ones(1, 1))).sum().backward()
    assert outputs["0"].item() == 4.0
    assert outputs["0"].grad.item() == 5.0  # and not 10, that of the first


def test_capturing_under_autocast(lenet: nn.Module, images: Tensor) -> None:
    names = ["network.features.0", "network.features.3"]
    with capture(lenet, names) as exact:
        exact_grads = torch.autograd.grad(lenet(images)[:, 3].sum(), [exact[n] for n in names])
    with capture(lenet, names, gradients=True) as outputs, torch.autocast("cpu", dtype=torch.bfloat16):
        lenet(images)[:, 3].sum().backward()
    lenet.zero_grad()
    for name, gradient in zip(names, exact_grads, strict=True):
        assert outputs[name].dtype == outputs[name].grad.dtype == torch.bfloat16
        torch.testing.assert_close(outputs[name].float(), exact[name], atol=0.05, rtol=0.05)
        difference = (outputs[name].grad.float() - gradient).norm() / gradient.norm()
        assert difference < 0.2
    assert hooks(lenet) == 0


@pytest.mark.parametrize("way", ["model", "in place", "a function", "a part"])
def test_capturing_what_was_compiled(way: str, images: Tensor) -> None:
    model = build("lenet5", channels=1, classes=10, size=(28, 28), seed=4)
    forward = model
    with torch.no_grad():
        expected = model.network.features[:4](model.normalize(images))
    if way == "model":
        model = forward = torch.compile(model, backend="eager")
    elif way == "in place":
        model.compile(backend="eager")
    elif way == "a function":
        forward = torch.compile(lambda x, network=model: network(x), backend="eager")
    else:
        model.network.features = torch.compile(model.network.features, backend="eager")
    forward(images)  # now there is compiled code, which knows no hooks
    with capture(model, ["network.features.3"], gradients=True) as outputs:
        forward(images)[:, 3].sum().backward()
    torch.testing.assert_close(outputs["network.features.3"], expected)
    assert outputs["network.features.3"].grad.abs().sum() > 0
    forward(images)
    assert len(outputs) == 1
    torch.compiler.reset()


def test_no_hook_stays_after_an_error(lenet: nn.Module, images: Tensor) -> None:
    with pytest.raises(ValueError, match="images must be"), capture(lenet, ["network.features.0"]):
        lenet(images[0])
    assert hooks(lenet) == 0
    with (
        pytest.raises(UserError, match=r"unknown layer 'network\.feature\.3'; did you mean 'network\.features\.3'\?"),
        capture(lenet, ["network.features.0", "network.feature.3"]),
    ):
        pytest.fail("the block ran")
    assert hooks(lenet) == 0


@pytest.mark.parametrize("name", ["lenet5", "deepcnn-mnist", "vgg", "resnet20"])
@pytest.mark.parametrize("convolutions_only", [False, True])
def test_feature_maps_against_a_walk_through_the_layers(name: str, convolutions_only: bool, images: Tensor) -> None:
    model = build(name, channels=1, classes=10, size=(28, 28)).train()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    found = feature_maps(model, images[0], convolutions_only)
    assert model.training
    assert hooks(model) == 0
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())

    wanted = (nn.Conv2d,) if convolutions_only else (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
    walked: list[tuple[str, nn.Module, Tensor, Tensor]] = []
    handles = [
        layer.register_forward_hook(lambda m, x, out, n=key: walked.append((n, m, x[0], out)))
        for key, layer in model.named_modules()
        if isinstance(layer, wanted)
    ]
    with torch.no_grad():
        model.eval()(images[:1])
    for handle in handles:
        handle.remove()
    assert [f.name for f in found] == [key for key, *_ in walked]
    for feature, (_, layer, before, after) in zip(found, walked, strict=True):
        assert feature.kind == type(layer).__name__
        assert torch.equal(feature.maps, after[0])
        assert feature.formula.split("  ")[0].endswith(f" = {after.shape[2]}")
        assert feature.formula.startswith(f"floor(({before.shape[2]} + 2·")


def test_formula_of_a_feature_map_is_along_the_height() -> None:
    model = build("lenet5", channels=3, classes=2, size=(21, 30))
    found = feature_maps(model, torch.zeros(3, 21, 30, dtype=torch.uint8))
    assert [tuple(f.maps.shape) for f in found] == [(6, 21, 30), (6, 10, 15), (16, 6, 11), (16, 3, 5)]
    assert found[1].formula == "floor((21 + 2·0 - 2) / 2) + 1 = 10  (1 px left over)"


def test_maps_of_a_pooling_that_gives_places_and_of_a_plain_network(images: Tensor) -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.pool = nn.Conv2d(1, 3, 3), nn.MaxPool2d(2, return_indices=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.pool(self.conv(x))[0].mean((2, 3))

    model = Plain()
    conv, pool = feature_maps(model, images[0])
    with torch.no_grad():
        torch.testing.assert_close(conv.maps, model.conv(images[:1].float())[0])
        torch.testing.assert_close(pool.maps, model.pool(model.conv(images[:1].float()))[0][0])


def test_logits_of_one_image(images: Tensor) -> None:
    model = build("deepcnn-mnist", channels=1, classes=10, size=(28, 28)).train()
    one = logits_of_image(model, images[1])
    assert model.training
    assert not one.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(one, model.eval()(images)[1], atol=1e-5, rtol=1e-5)
    assert torch.equal(one, logits_of_image(model, images[1]))  # dropout is off
    assert not model.training


def test_the_mode_is_put_back_after_an_error(lenet: nn.Module) -> None:
    lenet.train()
    with pytest.raises(ValueError, match="images must be"):
        feature_maps(lenet, torch.zeros(3, 28, 28, dtype=torch.uint8))
    assert lenet.training
    assert hooks(lenet) == 0


def test_filters_of_the_first_convolution() -> None:
    for name, shape in {"lenet5": (6, 3, 5, 5), "resnet18": (64, 3, 3, 3)}.items():
        model = build(name, channels=3, classes=10, size=(32, 32))
        layer, weights = first_filters(model)
        assert weights.shape == shape
        assert torch.equal(weights, dict(model.named_parameters())[f"{layer}.weight"].detach())
        assert not weights.requires_grad
    with pytest.raises(UserError, match="this network has no convolution"):
        first_filters(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))
