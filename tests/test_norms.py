"""Batch norm's statistics measured on whole images, held against torch's own update_bn on one network at a time."""

from __future__ import annotations

import copy
import threading
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from convlens import Data, InputSpec, Split, build, train
from convlens.data import draw
from convlens.norms import measure_norms
from convlens.recipe import AugmentConfig, OptimConfig, Recipe
from interruptions import stop_after

PLAIN = Recipe(
    epochs=3,
    batch_size=8,
    seed=3,
    precision="fp32",
    optim=OptimConfig("sgd", 0.05, momentum=0.9),
    augment=AugmentConfig(flip=True, shift=1, reduce=0.75),
)
MEASURED = replace(PLAIN, optim=replace(PLAIN.optim, norm_images=20))


def make_data(count: int = 46) -> Data:
    images = torch.randint(0, 256, (count, 1, 12, 12), generator=torch.Generator().manual_seed(11), dtype=torch.uint8)
    split = Split(images, torch.arange(count) % 3, torch.arange(count))
    return Data("noise", ("a", "b", "c"), InputSpec((12, 12), 1), (0.3,), (0.3,), True, "", split, None, split)


def make_model(**args: object) -> nn.Module:
    return build(
        "vgg",
        channels=1,
        classes=3,
        size=(12, 12),
        mean=(0.3,),
        std=(0.3,),
        args={"widths": [4, 6], "convs": 1, **args},
    )


def statistics(model: nn.Module) -> list[Tensor]:
    return [value.clone() for name, value in model.named_buffers() if "running" in name]


def parameters(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) > 0 and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def chosen(recipe: Recipe, data: Data) -> Tensor:
    """The images that are measured: the first of the last epoch's order."""
    return data.train.at(draw(data.train, recipe.seed, recipe.epochs)[: recipe.optim.norm_images])


def test_the_last_epoch_has_the_statistics_of_the_images_themselves() -> None:
    data, model, plain = make_data(), make_model(), make_model()
    steps = [(parameters(plain), statistics(plain)) for _ in train(plain, data, PLAIN)]
    found = [(parameters(model), statistics(model)) for _ in train(model, data, MEASURED)]
    assert all(same(a[0], b[0]) for a, b in zip(found, steps, strict=True))  # training itself is what it was
    assert same(found[0][1], steps[0][1])
    assert same(found[1][1], steps[1][1])
    update_bn([chosen(MEASURED, data)], plain)
    torch.testing.assert_close(statistics(model), statistics(plain))
    assert not any(torch.allclose(a, b, rtol=1e-3) for a, b in zip(found[2][1], steps[2][1], strict=True))
    assert {norm.momentum for norm in model.modules() if isinstance(norm, nn.BatchNorm2d)} == {0.1}


def test_batches_count_alike_and_nothing_else_is_in_training_mode() -> None:
    """300 images are three batches of 100. A dropout of 0.9 would change what the second norm meets."""
    data = make_data(300)
    model, reference = make_model(dropout=0.9).train(), make_model().train()
    modes = [layer.training for layer in model.modules()]
    measure_norms(model, data.train, torch.arange(300))
    update_bn(data.train.images.split(100), reference)
    torch.testing.assert_close(statistics(model), statistics(reference))
    assert [layer.training for layer in model.modules()] == modes
    counts = [int(value) for name, value in model.named_buffers() if name.endswith("num_batches_tracked")]
    assert counts == [3, 3]


def test_every_member_meets_every_image_and_its_mirror_image() -> None:
    data, model = make_data(), make_model(members=2, mirror=True).train()
    images = data.train.images
    members = [copy.deepcopy(nn.Sequential(model.normalize, member)) for member in model.network.members]
    measure_norms(model, data.train, torch.arange(len(images)))
    for member in members:
        update_bn([torch.cat([images, images.flip(3)])], member)
    expected = [value for member in members for value in statistics(member)]
    torch.testing.assert_close(statistics(model), expected)


def test_they_are_the_statistics_of_the_averaged_weights() -> None:
    data, model, reference = make_data(), make_model(), make_model()
    averaged = replace(MEASURED, optim=replace(MEASURED.optim, ema=0.8))
    list(train(model, data, averaged))
    list(train(reference, data, replace(averaged, optim=replace(averaged.optim, norm_images=0))))
    assert same(parameters(model), parameters(reference))
    assert not same(statistics(model), statistics(reference))
    update_bn([chosen(averaged, data)], reference)
    torch.testing.assert_close(statistics(model), statistics(reference))


def test_norms_that_did_not_learn_keep_theirs() -> None:
    """Those of a network of which the last layer alone was trained."""
    data, model = make_data(), make_model()
    before = statistics(model)
    list(train(model, data, replace(MEASURED, optim=replace(MEASURED.optim, head_epochs=3))))
    assert same(statistics(model), before)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(2, track_running_stats=False), nn.GroupNorm(1, 2), nn.Identity()])
def test_a_network_without_running_statistics_is_trained_as_before(norm: nn.Module) -> None:
    def network() -> nn.Module:
        torch.manual_seed(0)
        floats = nn.Sequential(nn.Conv2d(1, 2, 3), copy.deepcopy(norm), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return nn.Sequential(_Float(), floats, nn.Linear(2, 3))

    data, model, plain = make_data(), network(), network()
    list(train(model, data, MEASURED))
    list(train(plain, data, PLAIN))
    assert same(parameters(model), parameters(plain))


class _Float(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float() / 255


def test_a_training_that_is_stopped_is_left_with_its_running_averages() -> None:
    """Also in the last epoch: a resumed run finishes that one, and measures then (test_checkpoint)."""
    data, found = make_data(), []
    for recipe in (MEASURED, PLAIN):
        model, stop = make_model(), threading.Event()
        (*_, last) = train(model, data, recipe, stop=stop, watch=stop_after(stop, 2 * 6 + 3))
        assert (last.index, last.complete) == (3, False)
        found.append(statistics(model))
    assert same(*found)


def test_a_network_that_fails_is_left_as_a_training_needs_it() -> None:
    model = make_model()
    model.train()
    wrong = replace(make_data().train, store=torch.zeros(46, 2, 12, 12, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"images must be \(N, 1, H, W\)"):
        measure_norms(model, wrong, torch.arange(46))
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert [(norm.momentum, norm.training) for norm in norms] == [(0.1, True)] * 2
