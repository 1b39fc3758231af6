"""What a network wants to see, and whether the pixels that a heat map names are those that matter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from convlens import attribute, class_means, deletion, insertion, maximise
from convlens.attribution import METHODS
from convlens.faithfulness import gaussian_blur
from convlens.splits import Split
from planted import network, planted, trained_network
from refusals import refused
from test_attribution import state_of

SIZE = (1, 24, 24)


@pytest.fixture(scope="module")
def knowing() -> nn.Module:
    return trained_network()


@pytest.mark.parametrize("curve", [deletion, insertion])
def test_curves_against_a_loop(curve, knowing: nn.Module) -> None:
    images, targets, _ = planted(3, seed=5)
    heats = torch.rand(3, 24, 24, generator=torch.Generator().manual_seed(0))
    found = curve(knowing, images, heats, targets, steps=4)
    mean = 0.15 * 255
    assert found.shares.tolist() == [0, 0.25, 0.5, 0.75, 1]
    for i, image in enumerate(images.float()):
        start = image.clone() if curve is deletion else gaussian_blur(image[None], 3.0)[0]
        end = torch.full_like(image, mean) if curve is deletion else image
        probabilities = []
        for count in (0, 144, 288, 432, 576):
            changed = start.clone()
            for place in heats[i].flatten().argsort(descending=True)[:count].tolist():
                changed[0, place // 24, place % 24] = end[0, place // 24, place % 24]
            with torch.no_grad():
                probabilities.append(knowing(changed[None]).softmax(1)[0, targets[i]].item())
        assert found.probabilities[i].tolist() == pytest.approx(probabilities, abs=1e-5)
        inner = sum(probabilities) - (probabilities[0] + probabilities[-1]) / 2
        assert found.areas[i].item() == pytest.approx(inner / 4, abs=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_hottest_first_beats_a_random_order(method: str, knowing: nn.Module) -> None:
    images, targets, _ = planted(16, seed=6)
    heats = torch.stack([found.heat for found in attribute(knowing, images, method)])
    g = torch.Generator().manual_seed(7)
    at_random = [torch.rand(heats.shape, generator=g) for _ in range(3)]
    deleted, inserted = (curve(knowing, images, heats, targets).areas.mean() for curve in (deletion, insertion))
    for heat in at_random:
        assert deleted < deletion(knowing, images, heat, targets).areas.mean() - 0.05
        assert inserted > insertion(knowing, images, heat, targets).areas.mean() + 0.05


def test_curves_refuse_what_does_not_belong_together(knowing: nn.Module) -> None:
    images, targets, _ = planted(3, seed=5)
    heats = torch.rand(3, 24, 24)
    refused(lambda: deletion(knowing, images, heats[:2], targets), "3 images", "(2, 24, 24)")
    refused(lambda: insertion(knowing, images, heats, targets[:1]), "(1,)")
    refused(lambda: insertion(knowing, images, heats, targets, steps=0), "a step or more")


def test_blur_against_the_definition() -> None:
    point = torch.zeros(1, 2, 15, 17)
    point[:, 1, 7, 8] = 1
    blurred = gaussian_blur(point, 1.5)
    y, x = torch.meshgrid(torch.arange(15) - 7.0, torch.arange(17) - 8.0, indexing="ij")
    expected = torch.exp(-(y**2 + x**2) / (2 * 1.5**2)) * (y.abs() <= 5) * (x.abs() <= 5)
    torch.testing.assert_close(blurred[0, 1], expected / expected.sum(), atol=1e-6, rtol=1e-5)
    assert blurred[0, 0].abs().max() == 0
    flat = torch.full((1, 1, 4, 5), 7.0)
    torch.testing.assert_close(gaussian_blur(flat, 3.0), flat)
    assert gaussian_blur(point, 0) is point


def test_class_means_against_numpys() -> None:
    g = torch.Generator().manual_seed(1)
    store = torch.randint(0, 256, (40, 3, 5, 4), dtype=torch.uint8, generator=g)
    labels = torch.randint(0, 3, (40,), generator=g)
    split = Split(store, labels, torch.arange(40)).take(torch.arange(5, 40))
    means = class_means(split, 4)
    for label in range(3):
        expected = store[5:][labels[5:] == label].numpy().mean(0)
        assert abs(means[label].numpy() - expected).max() < 1e-4
    assert means[3].isnan().all()


def test_a_maximised_class_is_one_that_the_network_is_sure_of(knowing: nn.Module) -> None:
    found = maximise(knowing, SIZE, [0, 1], steps=40, blur=0.3)  # stripes a pixel wide are lost in more
    assert found.images.dtype == torch.uint8
    assert found.images.shape == (2, *SIZE)
    with torch.no_grad():
        logits = knowing(found.images)
    torch.testing.assert_close(found.activations, logits.diag())
    assert (found.activations > found.before + 1).all()
    assert (logits.softmax(1).diag() > 0.9).all()
    assert found.settings == {"steps": 40, "rate": 0.1, "jitter": 1, "blur": 0.3, "seed": 0}
    # the stripes of class 0 stand upright: it changes more from left to right
    across = [
        (image.float().diff(dim=-1).abs().mean() / image.float().diff(dim=-2).abs().mean()) for image in found.images
    ]
    assert across[0] > 2
    assert across[1] < 1 / 2


def test_each_is_maximised_as_it_would_be_alone(knowing: nn.Module) -> None:
    both, again, alone, other = (
        maximise(knowing, SIZE, targets, steps=5, seed=seed).images
        for targets, seed in (([0, 1], 3), ([0, 1], 3), ([1], 3), ([1], 4))
    )
    assert torch.equal(both, again)
    assert (both[1].int() - alone[0].int()).abs().max() <= 1  # fp32 rounds otherwise with other numbers of images
    assert not torch.equal(alone, other)


def test_many_are_climbed_in_parts_to_the_same(knowing: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    handle = knowing.register_forward_pre_hook(lambda _, x: sizes.append(len(x[0])))
    whole = maximise(knowing, SIZE, range(5), layer="3", steps=5)
    assert max(sizes) == 5
    sizes.clear()
    monkeypatch.setattr("convlens.wishes.AT_ONCE", 2 * 24 * 24)
    parts = maximise(knowing, SIZE, range(5), layer="3", steps=5)
    handle.remove()
    assert max(sizes) == 2
    assert parts.targets == (0, 1, 2, 3, 4)
    assert (parts.images.int() - whole.images.int()).abs().max() <= 1  # fp32 rounds otherwise
    for found, expected in ((parts.before, whole.before), (parts.activations, whole.activations)):
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)


def test_a_plain_network_is_climbed() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    found = maximise(model, SIZE, [1], steps=3)
    with torch.no_grad():
        torch.testing.assert_close(found.activations, model(found.images.float())[:, 1])


def test_a_channel_is_maximised(knowing: nn.Module) -> None:
    found = maximise(knowing, SIZE, [2, 5, 2], layer="3", steps=20)
    with torch.no_grad():
        maps = knowing[:4](found.images)
    expected = torch.stack([maps[0, 2], maps[1, 5], maps[2, 2]]).mean((1, 2))
    torch.testing.assert_close(found.activations, expected)
    assert (found.activations > found.before).all()
    assert found.layer == "3"


def test_maximising_leaves_the_model_as_it_was() -> None:
    model = network().train()
    model[3].eval().requires_grad_(False)
    before = state_of(model)
    maximise(model, SIZE, [0, 1], steps=2)
    maximise(model, SIZE, [0], layer="3", steps=2)
    deletion(model, *_three())
    refused(lambda: maximise(model, SIZE, [0, 2], steps=2), "classes go from 0 to 1", "[0, 2]")
    refused(lambda: maximise(model, SIZE, [16], layer="3", steps=2), "channels of 3 go from 0 to 15")
    refused(lambda: maximise(model, SIZE, [0], layer="33", steps=2), "unknown layer")
    refused(lambda: maximise(model, SIZE, [], steps=2), "a target named")
    refused(lambda: maximise(model, SIZE, [0], steps=0), "1 or more")
    assert state_of(model) == before


def _three() -> tuple[Tensor, Tensor, Tensor]:
    images, targets, _ = planted(3, seed=5)
    return images, torch.rand(3, 24, 24), targets
