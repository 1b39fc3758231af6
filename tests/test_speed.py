"""The speed networks: what whitening promises, what is trained, and that a run's file gives the same logits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convlens import InputSpec, Recipe, Split, build, load, run
from convlens.data import Data
from convlens.evaluation import logits_of
from convlens.fitting import kept_model
from convlens.modelfile import golden_difference
from convlens.models import fit_whitening
from convlens.models.ensemble import members_of
from convlens.models.normalize import Normalize
from convlens.models.speed import EPS, Whiten
from convlens.recipe import AugmentConfig, ModelConfig, OptimConfig
from convlens.recipes import PHOTOS
from convlens.run import make_model
from runs import fit_undrawn

SMALL = {"widths": [8, 12], "convs": 1}


def smooth_images(count: int = 60, channels: int = 3, side: int = 12) -> Tensor:
    """Float images whose neighbouring pixels and channels are alike, as those of photographs are."""
    noise = torch.randn(count, channels, side + 2, side + 2, generator=torch.Generator().manual_seed(0))
    return F.avg_pool2d(noise, 3, stride=1) + noise[:, :, 1:-1, 1:-1].mean(1, keepdim=True)


def whitened(images: Tensor, kernel: int, stride: int = 1) -> Whiten:
    layer = Whiten(images.shape[1], kernel, stride)
    layer.fit(images)
    return layer


@pytest.mark.parametrize(("channels", "kernel"), [(3, 2), (1, 2), (3, 3), (1, 5)])
def test_outputs_on_the_fitting_patches_are_uncorrelated_and_of_variance_1(channels: int, kernel: int) -> None:
    images = smooth_images(channels=channels)
    layer = whitened(images, kernel)
    assert layer.weight.shape == (2 * channels * kernel**2, channels, kernel, kernel)
    outputs = layer(images)[:, :, ::2, ::2].detach()  # every second patch is fitted to
    outputs = outputs.transpose(0, 1).flatten(1)
    half = channels * kernel**2
    torch.testing.assert_close(outputs[half:], -outputs[:half])

    patches = np.stack(  # the slow way: every second patch, cut out by hand
        [
            image[:, y : y + kernel, x : x + kernel].ravel()
            for image in images.double().numpy()
            for y in range(0, 12 - kernel + 1, 2)
            for x in range(0, 12 - kernel + 1, 2)
        ]
    )
    variances = np.linalg.eigvalsh(patches.T @ patches / len(patches))
    covariance = (outputs[:half] @ outputs[:half].T / outputs.shape[1]).double().numpy()
    np.testing.assert_allclose(covariance, np.diag(variances / (variances + EPS)), atol=2e-3)
    large = variances > 200 * EPS
    assert large.sum() >= half // 2
    np.testing.assert_allclose(np.diag(covariance)[large], 1, atol=0.01)


def test_directions_without_variance_are_not_blown_up() -> None:
    """An image of one colour has one component; the others are divided by no less than the root of EPS."""
    images = torch.full((20, 3, 8, 8), 0.5) * torch.randn(20, 1, 1, 1, generator=torch.Generator().manual_seed(1))
    layer = whitened(images, 2)
    assert layer.weight.isfinite().all()
    assert layer.weight.flatten(1).norm(dim=1).max() <= EPS**-0.5 * 1.001
    assert layer(images).abs().max() < 10


def test_a_stride_fits_to_the_patches_that_are_looked_at() -> None:
    images = smooth_images()
    outputs = whitened(images, 3, stride=3)(images).detach().transpose(0, 1).flatten(1)[:27]
    covariance = outputs @ outputs.T / outputs.shape[1]
    assert (covariance - covariance.diag().diag()).abs().max() < 2e-3
    assert covariance.diag().max() < 1.001


def test_fitting_goes_through_the_normalisation_and_spares_other_networks() -> None:
    images = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    shape: dict[str, Any] = {"channels": 3, "classes": 4, "size": (8, 8), "mean": (0.4,) * 3, "std": (0.2,) * 3}
    model = build("speednet", **shape, args=SMALL)
    with torch.no_grad():
        model.network.features[0].bias.fill_(3.0)
    fit_whitening(model, images)
    by_hand = whitened(Normalize((0.4,) * 3, (0.2,) * 3)(images), 2)
    torch.testing.assert_close(model.network.features[0].weight, by_hand.weight)
    assert not model.network.features[0].bias.any()
    plain = build("vgg", **shape, args=SMALL)
    before = {key: value.clone() for key, value in plain.state_dict().items()}
    fit_whitening(plain, images)
    assert all(torch.equal(value, before[key]) for key, value in plain.state_dict().items())


@pytest.mark.parametrize(("side", "fitted"), [(64, 5000), (128, 1250)])
def test_large_images_are_whitened_by_fewer(side: int, fitted: int, recipe: Recipe, monkeypatch) -> None:
    """64 x 64 and less: by the first 5,000."""
    seen: list[int] = []
    monkeypatch.setattr(run, "fit_whitening", lambda _, images: seen.append(len(images)))
    images = torch.zeros(1, 3, side, side, dtype=torch.uint8).expand(5200, -1, -1, -1)
    split = Split(images, torch.zeros(5200), torch.arange(5200))
    data = Data("x", ("a", "b"), InputSpec((side, side), 3), (0.5,) * 3, (0.2,) * 3, True, "", split, None, split)
    make_model(replace(recipe, model=ModelConfig("resnet20")), data)
    assert seen == [fitted]


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return Recipe(
        epochs=1,
        batch_size=50,
        device="cpu",
        model=ModelConfig("speednet", args=SMALL),
        optim=OptimConfig("muon", 0.05, linear_lr=0.01, bias_lr=0.5, momentum=0.6, schedule="one-cycle"),
        augment=AugmentConfig(shift=2, fill="reflect"),
    )


@pytest.fixture(scope="module")
def data(recipe: Recipe) -> Data:
    return load("mnist-5k", recipe, limit=300)


def test_every_model_of_a_recipe_begins_with_the_same_weights(recipe: Recipe, data: Data) -> None:
    first, again = make_model(recipe, data), make_model(recipe, load("mnist-5k", recipe, limit=300))
    for (key, a), b in zip(first.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), key
    outputs = first.network.features[0](first[0](data.train.images))[:, :, ::2, ::2].detach()
    variance = outputs.square().mean((0, 2, 3))
    assert (variance - 1).abs().max() < 0.05  # it is fitted to the training images


def test_whitening_and_the_scales_of_the_norms_are_not_trained(recipe: Recipe, data: Data, tmp_path: Any) -> None:
    run = fit_undrawn(recipe, data, tmp_path)
    before, (after, _) = make_model(recipe, data), kept_model(run, data)
    fixed = {key for key, p in before.named_parameters() if not p.requires_grad}
    norms = [m for m in before.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {norm.momentum for norm in norms} == {0.4}
    assert fixed == {"network.features.0.weight"} | {
        f"{key}.weight" for key, m in before.named_modules() if isinstance(m, nn.BatchNorm2d)
    }
    moved = {
        key for (key, a), b in zip(before.named_parameters(), after.parameters(), strict=True) if not torch.equal(a, b)
    }
    assert moved == {key for key, _ in before.named_parameters()} - fixed

    file = run.model_file()  # the file holds the fitted filters: nobody fits them again
    assert golden_difference(file) == 0
    assert torch.equal(logits_of(file.model, data.test), logits_of(after, data.test))
    assert torch.equal(file.model.network.features[0].weight, before.network.features[0].weight)


@pytest.mark.parametrize(("side", "halvings"), [(64, 4), (18, 4), (17, 3), (8, 2), (3, 0)])
def test_sides_of_one_pixel_are_not_halved(side: int, halvings: int) -> None:
    """So the recipe that your own pictures get takes tiny ones, too; its first layer is 3 pixels wide."""
    images = torch.zeros(2, 3, side, 2 * side, dtype=torch.uint8)
    for args in (PHOTOS.model.args, {**PHOTOS.model.args, "pool": "max"}):
        model = build("speednet", channels=3, classes=4, size=(side, 2 * side), args=args)
        assert model(images).shape == (2, 4)
    for member in members_of(model):  # those that halve by max pooling alone
        assert [type(layer) for layer in member.modules()].count(nn.MaxPool2d) == halvings


def test_the_arguments_reach_the_network() -> None:
    shape: dict[str, Any] = {"channels": 3, "classes": 4, "size": (16, 16)}

    def kinds(**args: Any) -> list[type]:
        return [type(m) for m in build("speednet", **shape, args={**SMALL, **args}).modules()]

    assert Whiten in kinds()
    assert Whiten not in kinds(whiten=0)
    assert kinds().count(nn.GELU) == 3
    assert kinds(activation="silu").count(nn.SiLU) == 3
    assert kinds().count(nn.MaxPool2d) == 2
    assert nn.MaxPool2d not in kinds(pool="stride")
    wider = {"widths": [8, 8, 8, 8], "convs": 1}
    for pool, strides in (
        (["max"], [1, 1, 1, 1]),
        (["max", "stride"], [1, 2, 2, 2]),  # the last of a list goes for all further widths
        (["stride", "max", "max", "stride"], [2, 1, 1, 2]),
        (["max", "stride", "max", "max", "stride"], [1, 2, 1, 1]),  # more than there are widths
    ):
        layers = build("speednet", **shape, args={**SMALL, **wider, "pool": pool}).network.features.modules()
        assert [m.stride[0] for m in layers if type(m) is nn.Conv2d] == strides
    wide = build("speednet", **shape, args={**SMALL, "whiten": 3, "whiten_stride": 2})
    layer = wide.network.features[0]
    assert (layer.out_channels, layer.kernel_size, layer.stride) == (54, (3, 3), (2, 2))
    assert nn.AdaptiveAvgPool2d in kinds(head="average")
    for head, padding, inputs in (("max", 1, 12), ("flat", 1, 12 * 3 * 3), ("flat", 0, 12 * 2 * 2)):
        model = build("speednet", **shape, args={**SMALL, "head": head, "padding": padding})
        assert model.network.classifier[-1].in_features == inputs  # 16 - 1, then halved twice
        assert model(torch.zeros(2, 3, 16, 16, dtype=torch.uint8)).shape == (2, 4)
