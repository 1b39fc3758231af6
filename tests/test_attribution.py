"""Attributions: captum's own values, a model that is left as it was, and heat where the reason is."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import captum.attr
import pytest
import torch
from torch import Tensor, nn

from convlens import attribute, build
from convlens.attribution import METHODS, _at_once, baseline_of, class_index
from convlens.errors import UserError
from convlens.explain import grad_cam_layer
from convlens.models.normalize import Normalize
from planted import network, planted, trained_network
from refusals import refused

SIZE = (28, 20)  # not square: a height taken for a width would be seen


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return build(
        "cnn-mnist", channels=3, classes=5, size=SIZE, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), seed=3
    ).eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randint(0, 256, (2, 3, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def knowing() -> nn.Module:
    return trained_network()


class Difference(nn.Module):
    """A plain network whose only output is the difference of two logits of another."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits = self.model(images)
        return (logits[:, 2] - logits[:, 4])[:, None]


def grad_cam_at(model: nn.Module) -> int:
    """The place of the activation behind the last convolution."""
    features = model.network.features
    return [i for i, layer in enumerate(features) if isinstance(layer, nn.Conv2d)][-1] + 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("against", [None, 4])
def test_values_are_captums_own(method: str, against: int | None, model: nn.Module, images: Tensor) -> None:
    model = copy.deepcopy(model).double()  # fp32 rounds otherwise with other numbers of images in a pass
    whole, target = (model, 2) if against is None else (Difference(model), 0)
    pixels = images.float().requires_grad_()
    gray = torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1).mul(255).expand(1, 3, *SIZE)
    layer = model.network.features[grad_cam_at(model)]
    for i, found in enumerate(attribute(model, images, method, 2, against, baseline=gray[0])):
        one = pixels[i : i + 1]
        expected = (
            {
                "saliency": lambda x: captum.attr.Saliency(whole).attribute(x, target=target),
                "input-x-gradient": lambda x: captum.attr.InputXGradient(whole).attribute(x, target=target),
                "integrated-gradients": lambda x: captum.attr.IntegratedGradients(whole).attribute(
                    x, gray, target=target
                ),
                "grad-cam": lambda x: captum.attr.LayerGradCam(whole, layer).attribute(
                    x, target=target, relu_attributions=against is None
                ),
                "occlusion": lambda x: captum.attr.Occlusion(whole).attribute(
                    x, (3, 3, 3), strides=(3, 1, 1), baselines=gray, target=target, perturbations_per_eval=50
                ),
            }[method](one)[0]
            .detach()
            .float()
        )
        assert expected.abs().max() > 0
        torch.testing.assert_close(found.values, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
        assert found.heat.shape == SIZE
        assert found.values.dtype == found.heat.dtype == torch.float32
        assert (found.method, found.target, found.against) == (method, 2, against)
        with torch.no_grad():
            assert found.probability == pytest.approx(model(images)[i].softmax(0)[2].item(), rel=1e-5)
        assert found.signed == (method != "saliency" and (method != "grad-cam" or against is not None))
        assert found.signed or found.heat.min() >= 0


def test_heat_is_one_number_a_pixel(model: nn.Module, images: Tensor) -> None:
    def of(method: str) -> tuple[Tensor, Tensor]:
        found = attribute(model, images[:1], method)[0]
        return found.values, found.heat

    values, heat = of("saliency")
    assert torch.equal(heat, values.amax(0))
    for method in ("input-x-gradient", "integrated-gradients"):
        values, heat = of(method)
        assert torch.equal(heat, values[0] + values[1] + values[2])
    values, heat = of("occlusion")
    assert torch.equal(values, heat.expand(3, *SIZE))
    values, heat = of("grad-cam")
    assert values.shape == (1, 14, 10)  # the last convolution's maps
    assert heat.max() <= values.max()
    assert heat.mean().item() == pytest.approx(values.mean().item(), rel=0.2)


def test_integrated_gradients_sum_to_the_change_of_the_logit(model: nn.Module, images: Tensor) -> None:
    for colour, pixel in (("mean", (102.0, 127.5, 153.0)), ("black", (0.0,) * 3), ("white", (255.0,) * 3)):
        found = attribute(model, images[:1], "integrated-gradients", 1, baseline=colour, steps=100)[0]
        empty = torch.tensor(pixel).view(1, 3, 1, 1).expand(1, 3, *SIZE)
        assert torch.allclose(baseline_of(model, images[:1].float(), colour).expand_as(empty), empty, atol=1e-3)
        with torch.no_grad():
            change = (model(images[:1]) - model(empty))[0, 1].item()
        assert found.heat.sum().item() - found.settings["gap"] == pytest.approx(change, abs=1e-4)
        assert abs(found.settings["gap"]) < 0.05 * abs(change) + 0.01
    own = torch.rand(3, *SIZE) * 255
    found = attribute(model, images[:1], "integrated-gradients", 1, baseline=own)[0]
    with torch.no_grad():
        change = (model(images[:1]) - model(own[None]))[0, 1].item()
    assert found.heat.sum().item() - found.settings["gap"] == pytest.approx(change, abs=1e-4)


def test_an_occluded_pixel_has_the_fall_of_the_logit(model: nn.Module, images: Tensor) -> None:
    found = attribute(model, images[:1], "occlusion", 1, baseline="black", window=1)[0]
    covered = images[:1].float()
    covered[:, :, 9, 4] = 0
    with torch.no_grad():
        fall = (model(images[:1]) - model(covered))[0, 1].item()
    assert found.heat[9, 4].item() == pytest.approx(fall, abs=1e-5)


def test_the_default_is_the_class_that_the_image_is_taken_for(model: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        taken = model(images).argmax(1).tolist()
    names = ("a", "b", "c", "d", "2")
    assert [found.target for found in attribute(model, images, "saliency")] == taken
    assert attribute(model, images, "saliency", "d", classes=names)[0].target == 3
    assert class_index("2", 5, names) == 4  # a name wins over a number
    assert class_index("1", 5, names) == 1
    softer = attribute(model, images, "saliency", temperature=2.0)[0].probability
    with torch.no_grad():
        assert softer == pytest.approx((model(images)[0] / 2).softmax(0).max().item(), rel=1e-5)


def state_of(model: nn.Module) -> list[object]:
    """What attributing might change: hooks, modes, flags, gradients, weights."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    found: list[object] = [(name, m.training, [len(getattr(m, k)) for k in kinds]) for name, m in model.named_modules()]
    found += [(p.requires_grad, None if p.grad is None else p.grad.tolist()) for p in model.parameters()]
    return [*found, *[value.tolist() for value in model.state_dict().values()]]


def marked() -> nn.Module:
    """A network with frozen weights, gradients of its own, and layers of different modes."""
    model = network().train()
    model[1].requires_grad_(False)
    model[3].eval()
    model[3].weight.grad = torch.full_like(model[3].weight, 7.0)
    return model


@pytest.mark.parametrize("method", METHODS)
def test_the_model_is_left_as_it_was(method: str) -> None:
    model, images = marked(), planted(2, seed=3)[0]
    before, pixels = state_of(model), images.float()
    attribute(model, images, method)
    attribute(model, pixels, method)
    assert state_of(model) == before
    assert torch.equal(pixels, images.float())
    assert not pixels.requires_grad
    assert pixels.grad is None


class Failing(nn.Module):
    """Lets so many batches through."""

    def __init__(self, passes: int) -> None:
        super().__init__()
        self.left = passes

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("no more")
        return x


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("passes", [0, 1, 2])
def test_the_model_is_left_as_it_was_after_an_error(method: str, passes: int) -> None:
    model, images = marked(), planted(3, seed=3)[0]
    model.append(Failing(passes))
    before = state_of(model)
    with pytest.raises(RuntimeError, match="no more"):
        attribute(model, images, method)
    assert state_of(model) == before


@pytest.fixture
def callers_context(request: pytest.FixtureRequest) -> Iterator[None]:
    with request.param():
        yield


@pytest.mark.parametrize(
    "callers_context",
    [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", dtype=torch.bfloat16)],
    indirect=True,
    ids=["no_grad", "inference_mode", "autocast"],
)
@pytest.mark.usefixtures("callers_context")
@pytest.mark.parametrize("method", METHODS)
def test_the_callers_context_changes_nothing(method: str, model: nn.Module, images: Tensor) -> None:
    inside = attribute(model, images[:1].float() * 1.0, method, 2)[0]  # a tensor that was made in there
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
        outside = attribute(model, images[:1], method, 2)[0]
    assert torch.equal(inside.values, outside.values)


def test_a_compiled_model_gives_the_same(images: Tensor, model: nn.Module) -> None:
    compiled = torch.compile(model, backend="eager")
    compiled(images)
    for method in METHODS:
        expected, found = (attribute(m, images[:1], method)[0] for m in (model, compiled))
        assert torch.equal(found.values, expected.values)
        assert found.layer == expected.layer
    torch.compiler.reset()


def test_grad_cam_chooses_the_last_layer_with_maps_as_fine_as_the_last_convolutions(
    model: nn.Module, images: Tensor
) -> None:
    assert attribute(model, images[:1])[0].layer == f"network.features.{grad_cam_at(model)}"
    assert isinstance(model.network.features[grad_cam_at(model)], nn.ReLU)
    residual = build("resnet20", channels=3, classes=2, size=(32, 32))
    assert grad_cam_layer(residual, torch.zeros(1, 3, 32, 32)) == "network.blocks"  # its last block's output
    wide = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 6), nn.Flatten())
    assert grad_cam_layer(wide, torch.zeros(1, 1, 8, 8)) == "2"
    one = nn.Sequential(Normalize((0.0,), (1.0,)), nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 4), nn.Flatten())
    unused = nn.Module()
    unused.add_module("later", nn.Conv2d(1, 1, 1))
    one[0].add_module("never", unused)
    image = torch.zeros(1, 1, 6, 6)
    assert grad_cam_layer(one, image) == "1"  # the second one's maps have one pixel
    refused(lambda: grad_cam_layer(one, image, "2"), "'2' has no maps", "(1, 4, 1, 1)", "take '1'")
    refused(lambda: grad_cam_layer(one, image, "3"), "(1, 4)")
    refused(lambda: grad_cam_layer(one, image, "0.never.later"), "takes no part")
    flat = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    refused(lambda: grad_cam_layer(flat, image), "no convolution")


def test_grad_cam_of_any_layer_with_maps(model: nn.Module, images: Tensor) -> None:
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d | nn.ReLU | nn.MaxPool2d) and "features" in name:
            found = attribute(model, images[:1], "grad-cam", 2, layer=name)[0]
            expected = captum.attr.LayerGradCam(model, layer).attribute(
                images[:1].float().requires_grad_(), target=2, relu_attributions=True
            )
            torch.testing.assert_close(found.values, expected[0].detach())
            assert found.layer == name


def test_a_layer_may_be_named_as_tables_do(model: nn.Module, images: Tensor) -> None:
    short, full = (attribute(model, images[:1], layer=name)[0] for name in ("features.2", "network.features.2"))
    assert short.layer == "network.features.2"
    assert torch.equal(short.values, full.values)


@pytest.mark.parametrize("method", METHODS)
def test_where_no_gradient_reaches_the_pixels_that_is_said(method: str) -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                maps = self.body(x).relu()
            return self.head(maps.mean((2, 3)))

    model, images = Cut(), planted(1, seed=0)[0]
    if method == "occlusion":
        assert attribute(model, images, method)[0].heat.abs().max() > 0
    else:
        with pytest.raises(UserError, match=r"no gradient reaches the pixels .* ask by occlusion"):
            attribute(model, images, method)


@pytest.mark.parametrize("method", ["integrated-gradients", "occlusion"])
def test_large_images_are_passed_fewer_at_a_time(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = network(), planted(1, seed=3)[0]
    largest: list[int] = []
    handle = model.register_forward_pre_hook(lambda _, x: largest.append(len(x[0])))
    whole = attribute(model, images, method, 0)[0]
    assert max(largest) == 32
    monkeypatch.setattr("convlens.attribution.AT_ONCE", (32, 5 * 24 * 24))
    largest.clear()
    parts = attribute(model, images, method, 0)[0]
    handle.remove()
    assert max(largest) == 5
    torch.testing.assert_close(parts.values, whole.values, rtol=1e-4, atol=1e-5)
    monkeypatch.undo()
    assert [_at_once(torch.empty(1, 3, n, n)) for n in (32, 224, 1000)] == [32, 6, 1]


def test_refusals(model: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("rose", "tulip", "daisy", "iris", "lily")
    refused(lambda: attribute(model, images, "gradcam"), "unknown method 'gradcam'; did you mean 'grad-cam'?")
    refused(lambda: attribute(model, images, target="roze", classes=names), "did you mean 'rose'?")
    refused(lambda: attribute(model, images, target=5), "no class 5", "knows 5")
    refused(lambda: attribute(model, images, target=-1), "no class -1")
    refused(lambda: attribute(model, images, target="x"), "there are: 0, 1, 2, 3, 4")
    refused(lambda: attribute(model, images, target=1, against="tulip", classes=names), "tulip cannot be held against")
    refused(lambda: attribute(model, images, "saliency", layer="network"), "only grad-cam takes a layer")
    refused(lambda: attribute(model, images, layer="network.feature.0"), "did you mean 'network.features.0'?")
    refused(lambda: attribute(model, images, baseline="grey"), "unknown baseline 'grey'", "mean, black, white")
    refused(lambda: attribute(model, images, baseline=torch.zeros(3)), "(3, 28, 20)", "(3,)")
    refused(lambda: attribute(model, images[0]), "(N, C, H, W)")
    refused(lambda: attribute(model, images, "occlusion", window=21), "1 to 20 pixels")
    refused(lambda: attribute(model, images, "integrated-gradients", steps=1), "2 or more")
    broken = network()
    nn.init.constant_(broken[-1].bias, float("nan"))
    refused(lambda: attribute(broken, planted(1, 0)[0]), "not finite")
    monkeypatch.setitem(__import__("sys").modules, "captum.attr", None)
    refused(lambda: attribute(model, images), "pip install 'convlens[explain]'")


# What must hold of explanations that explain


@pytest.mark.parametrize(("method", "times"), [(m, 3 if m == "saliency" else 5) for m in METHODS])
def test_heat_lies_on_the_planted_object(method: str, times: float, knowing: nn.Module) -> None:
    """`times` as much of it as the object's share of the area would be. Gradients alone are the weakest sign of it: the
    network looks everywhere."""
    images, labels, boxes = planted(16, seed=2)
    shares = []
    for found, label, box in zip(attribute(knowing, images, method), labels, boxes, strict=True):
        assert found.target == label
        heat = found.heat.abs()
        shares.append((heat[box].sum() / heat.sum()).item())
    area = boxes[0].float().mean().item()
    assert sum(shares) / len(shares) > times * area
    assert min(shares) > area


@pytest.mark.parametrize("method", METHODS)
def test_random_weights_destroy_the_map(method: str, knowing: nn.Module) -> None:
    """Adebayo et al., arXiv:1810.03292: a map that stays the same without what was learned explains nothing."""
    images = planted(8, seed=4)[0]
    learned, again, random = (attribute(m, images, method, 0, 1) for m in (knowing, knowing, network(seed=9)))
    assert all(rank_correlation(a.heat, b.heat) > 0.999 for a, b in zip(learned, again, strict=True))
    mean = sum(abs(rank_correlation(a.heat, b.heat)) for a, b in zip(learned, random, strict=True)) / len(images)
    assert mean < 0.4


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's."""
    ranks = torch.stack([x.flatten().argsort().argsort().double() for x in (a, b)])
    return torch.corrcoef(ranks)[0, 1].item()
