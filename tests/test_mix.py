"""Mixup and cutmix: pixels and labels by hand, objectives of shares, and training on them."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor, nn

from convlens import Data, InputSpec, Split, build, train
from convlens.augment import beta, cutmix, mix, mixup
from convlens.data import batches
from convlens.optim import objective
from convlens.recipe import AugmentConfig, LossConfig, OptimConfig, Recipe
from convlens.steps import answers

SHAPES = [(13, 3, 6, 9), (8, 1, 7, 5), (1, 3, 4, 4), (2, 3, 1, 1)]
LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
CONFIGS = {
    "mixup": AugmentConfig(mixup=0.4),
    "cutmix": AugmentConfig(cutmix=1.0),
    "both": AugmentConfig(mixup=0.2, cutmix=1.0),
}


def pictures(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


@settings(deadline=None, max_examples=30)
@given(alpha=st.floats(0.02, 10), seed=st.integers(0, 2**32 - 1))
def test_shares_are_in_their_range(alpha: float, seed: int) -> None:
    share = beta(500, alpha, seeded(seed))
    assert share.min() >= 0  # not so where it is not a number
    assert share.max() <= 1


@pytest.mark.parametrize("alpha", [1e-300, 0.1, 0.2, 0.5, 1.0, 2.0, 10.0])
def test_shares_are_from_the_beta_distribution(alpha: float) -> None:
    share = beta(20_000, alpha, seeded()).double().numpy()
    if alpha < 1e-9:  # all of the one or all of the other
        assert set(share) == {0, 1}
        assert 0.48 < share.mean() < 0.52
    else:
        at = np.linspace(1e-4, 1 - 1e-4, 1000)  # nearer to 1 single precision knows few numbers
        apart = np.searchsorted(np.sort(share), at) / len(share) - scipy.stats.beta(alpha, alpha).cdf(at)
        assert np.abs(apart).max() < 0.01  # 1.4 / sqrt(20,000): one in twenty draws is further apart
        assert share.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_mixup_by_hand(shape: tuple[int, ...], layout: str) -> None:
    images, others = (pictures(shape, seed).contiguous(memory_format=LAYOUTS[layout]) for seed in (0, 1))
    got, share = mixup(images, others, 0.5, seeded())
    assert torch.equal(share, beta(len(images), 0.5, seeded()))
    assert got.dtype == torch.uint8
    assert got.is_contiguous(memory_format=LAYOUTS[layout])
    for image, other, part, result in zip(images, others, share.tolist(), got, strict=True):
        exact = part * image.double() + (1 - part) * other.double()
        assert (result.double() - exact).abs().max() < 0.5 + 1e-4


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cutmix_by_hand(shape: tuple[int, ...], layout: str) -> None:
    n, channels, height, width = shape
    images, others = (pictures(shape, seed).contiguous(memory_format=LAYOUTS[layout]) for seed in (0, 1))
    before = images.clone()
    for seed in range(5):
        generator = seeded(seed)
        got, share = cutmix(images, others, 1.0, generator)
        theirs = seeded(seed)
        sides = (1 - beta(n, 1.0, theirs)).sqrt().tolist()
        centres = torch.rand(2, n, generator=theirs).T.tolist()
        assert torch.equal(generator.get_state(), theirs.get_state())
        assert got.dtype == torch.uint8
        assert got.is_contiguous(memory_format=LAYOUTS[layout])
        for i, (side, (down, right)) in enumerate(zip(sides, centres, strict=True)):
            wanted, replaced = images[i].clone(), 0
            top, bottom = round(height * (down - side / 2)), round(height * (down + side / 2))
            left, end = round(width * (right - side / 2)), round(width * (right + side / 2))
            for y, x in itertools.product(
                range(max(top, 0), min(bottom, height)), range(max(left, 0), min(end, width))
            ):
                wanted[:, y, x] = others[i, :, y, x]
                replaced += 1
            assert torch.equal(got[i], wanted)
            assert share[i].item() == pytest.approx(1 - replaced / (height * width), abs=1e-6)
    assert torch.equal(images, before)
    assert channels == got.shape[1]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_images_and_labels_are_mixed_alike(name: str, shape: tuple[int, ...], layout: str) -> None:
    """Each image is of one value, so that a mixed one's mean tells the shares of the two, as its row of labels must."""
    n = shape[0]
    values = torch.linspace(0, 255, n).round().to(torch.uint8)
    images = values[:, None, None, None].expand(shape).contiguous(memory_format=LAYOUTS[layout])
    before = images.clone()
    got, rows = mix(images, torch.arange(n), n, CONFIGS[name], seeded(3))
    assert got.dtype == torch.uint8
    assert got.shape == shape
    assert got.is_contiguous(memory_format=LAYOUTS[layout])
    assert rows.dtype == torch.float32
    assert rows.min() >= 0
    torch.testing.assert_close(rows.sum(1), torch.ones(n))
    assert (rows > 0).sum(1).max() <= 2
    torch.testing.assert_close(got.double().mean((1, 2, 3)), rows.double() @ values.double(), atol=0.51, rtol=0)
    partner = torch.randperm(n, generator=seeded(3))
    for i in range(n):
        assert set(rows[i].nonzero().flatten().tolist()) <= {i, partner[i].item()}
    again = mix(images, torch.arange(n), n, CONFIGS[name], seeded(3))
    assert torch.equal(got, again[0])
    assert torch.equal(rows, again[1])
    assert torch.equal(images, before)


def test_half_of_them_by_each() -> None:
    images = torch.tensor([0, 255], dtype=torch.uint8).repeat(100)[:, None, None, None].expand(-1, 1, 8, 8)
    got, _ = mix(images, torch.arange(200) % 2, 2, AugmentConfig(mixup=1.0, cutmix=1.0), seeded())
    even = (got == got[:, :, :1, :1]).flatten(1).all(1)
    assert even[:100].all()
    assert not even[100:].all()
    assert ((got == 0) | (got == 255))[100:].all()
    assert not ((got == 0) | (got == 255))[:100].all()


# Objectives -----------------------------------------------------------------------------------------------------


@pytest.fixture
def mixed() -> tuple[Tensor, Tensor]:
    generator = seeded(2)
    logits = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    return logits, torch.rand(5, 4, generator=generator, dtype=torch.float64).softmax(1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_cross_entropy_of_shares(mixed: tuple[Tensor, Tensor], smoothing: float) -> None:
    logits, rows = mixed
    loss = objective(nn.Identity(), LossConfig(label_smoothing=smoothing))(logits, rows)
    by_hand = -((smoothing / 4 + (1 - smoothing) * rows) * logits.log_softmax(1)).sum(1).mean()
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-12)
    assert loss.item() == F.cross_entropy(logits, rows, label_smoothing=smoothing).item()


def test_squared_error_of_shares(mixed: tuple[Tensor, Tensor]) -> None:
    logits, rows = mixed
    loss = objective(nn.Identity(), LossConfig("mse"))(logits, rows)
    assert loss.item() == pytest.approx(((logits.softmax(1) - rows) ** 2).mean().item(), rel=1e-12)


@pytest.mark.parametrize("loss", [LossConfig(), LossConfig(label_smoothing=0.2), LossConfig("mse")], ids=str)
def test_whole_shares_are_plain_labels(mixed: tuple[Tensor, Tensor], loss: LossConfig) -> None:
    logits, labels = mixed[0], torch.tensor([0, 3, 1, 1, 2])
    of = objective(nn.Identity(), loss)
    assert of(logits, F.one_hot(labels, 4).double()).item() == pytest.approx(of(logits, labels).item(), rel=1e-12)


def test_the_answer_is_the_class_with_the_greatest_share() -> None:
    labels = torch.tensor([2, 0, 1])
    assert answers(labels) is labels
    assert answers(torch.tensor([[0.2, 0.8, 0.0], [0.4, 0.0, 0.6]])).tolist() == [1, 2]


# In training ----------------------------------------------------------------------------------------------------


def make_data(count: int = 46) -> Data:
    images = pictures((count, 1, 12, 12))
    split = Split(images, torch.arange(count) % 3, torch.arange(count))
    return Data("noise", tuple("abc"), InputSpec((12, 12), 1), (0.5,), (0.3,), True, "", split, None, split)


def make_model() -> nn.Module:
    return build("vgg", channels=1, classes=3, size=(12, 12), args={"widths": [4, 6], "convs": 1}, seed=0)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("loss", [LossConfig(label_smoothing=0.1), LossConfig("mse")], ids=["cross-entropy", "mse"])
def test_against_a_loop_by_hand(name: str, loss: LossConfig) -> None:
    data, model, reference = make_data(), make_model(), make_model()
    config = replace(CONFIGS[name], flip=True)
    recipe = Recipe(
        epochs=2, batch_size=8, seed=3, precision="fp32", optim=OptimConfig("sgd", 0.05, 0.0), loss=loss, augment=config
    )
    epochs = list(train(model, data, recipe))
    optimizer = torch.optim.SGD(reference.parameters(), 0.05)
    for epoch in epochs:
        loss_sum, right = 0.0, 0
        for images, rows in batches(data.train, 8, config, 3, epoch.index, classes=3):
            logits = reference(images)
            if loss.name == "mse":
                value = ((logits.softmax(1) - rows) ** 2).mean()
            else:
                value = F.cross_entropy(logits, rows, label_smoothing=0.1)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            loss_sum += value.item() * len(rows)
            right += sum(int(np.argmax(a) == np.argmax(b)) for a, b in zip(logits.tolist(), rows.tolist(), strict=True))
        assert epoch.loss == pytest.approx(loss_sum / 46, rel=1e-5)
        assert epoch.accuracy == pytest.approx(right / 46)
    for a, b in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


def test_of_plain_batches_the_labels_stay_plain() -> None:
    split = make_data().train
    config = AugmentConfig(flip=True, scale=0.5, warp=0.2, colour=0.3, tone=0.2)
    for images, labels in batches(split, 8, config, 0, 1):
        assert labels.dtype == torch.int64
        assert images.dtype == torch.uint8
    orders = [
        torch.cat([labels for _, labels in batches(split, 8, changes, 0, 1)]) for changes in (config, AugmentConfig())
    ]
    assert torch.equal(*orders)
