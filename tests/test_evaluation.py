"""Metrics, held against scikit-learn; and logits that depend on the images alone."""

from __future__ import annotations

import json

import numpy as np
import pytest
import sklearn.metrics as sk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from convlens import Split, build, evaluate
from convlens.evaluation import logits_of, metrics_of, views


def random_answers(n: int, k: int, seed: int, absent: set[int], never: set[int]) -> tuple[Tensor, Tensor]:
    """Logits and labels; classes in `absent` have no image, those in `never` are never predicted."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, k, generator=generator)
    present = torch.tensor([c for c in range(k) if c not in absent])
    labels = present[torch.randint(len(present), (n,), generator=generator)]
    logits[torch.arange(n), labels] += 1.5
    for c in never:
        logits[:, c] -= 20
    return logits, labels


CASES = [
    (200, 10, set(), set()),
    (200, 10, {3}, set()),
    (200, 10, set(), {5}),
    (200, 10, {0, 9}, {0, 4}),  # 0 is neither met nor said: scikit-learn does not know of it
    (7, 12, {1, 2, 3, 4, 5}, {1, 2}),
    (50, 2, set(), {1}),
    (1, 3, set(), set()),
    (300, 100, {17}, {17, 60}),
]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("n", "k", "absent", "never"), CASES)
def test_metrics_against_scikit_learn(n: int, k: int, absent: set[int], never: set[int], seed: int) -> None:
    logits, labels = random_answers(n, k, seed, absent, never)
    names = tuple(f"class {c}" for c in range(k))
    got = metrics_of(logits, labels, names)
    everything = list(range(k))
    predicted = logits.argmax(1).numpy()
    assert got.images == n
    assert got.accuracy == pytest.approx(sk.accuracy_score(labels, predicted), abs=1e-12)
    probabilities = logits.double().softmax(1).numpy()
    assert got.loss == pytest.approx(sk.log_loss(labels, probabilities, labels=everything), rel=1e-9)
    if k > 5:
        top5 = sk.top_k_accuracy_score(labels, logits.numpy(), k=5, labels=everything)
        assert got.top5 == pytest.approx(top5, abs=1e-12)
    else:
        assert got.top5 == 1
    precision, recall, f1, support = sk.precision_recall_fscore_support(
        labels, predicted, labels=everything, zero_division=0
    )
    assert [c.name for c in got.classes] == list(names)
    np.testing.assert_allclose([c.precision for c in got.classes], precision, atol=1e-12)
    np.testing.assert_allclose([c.recall for c in got.classes], recall, atol=1e-12)
    np.testing.assert_allclose([c.f1 for c in got.classes], f1, atol=1e-12)
    assert [c.support for c in got.classes] == support.tolist()
    assert got.macro_f1 == pytest.approx(sk.f1_score(labels, predicted, average="macro", zero_division=0), abs=1e-12)
    assert np.array_equal(np.array(got.confusion), sk.confusion_matrix(labels, predicted, labels=everything))
    json.dumps(got.to_dict(), allow_nan=False)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
def test_counts_against_a_slow_loop(pairs: list[tuple[int, int]]) -> None:
    labels, said = (torch.tensor(values) for values in zip(*pairs, strict=True))
    got = metrics_of(nn.functional.one_hot(said, 4).float(), labels)
    assert [c.name for c in got.classes] == ["0", "1", "2", "3"]
    for i in range(4):
        for j in range(4):
            assert got.confusion[i][j] == sum(pair == (i, j) for pair in pairs)
    assert got.accuracy == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))


def test_loss_of_very_sure_answers_is_finite() -> None:
    logits = torch.tensor([[1000.0, 0.0], [0.0, 1000.0]])
    assert metrics_of(logits, torch.tensor([0, 1])).loss == 0
    assert metrics_of(logits, torch.tensor([1, 1])).loss == 500


@pytest.fixture(scope="module")
def split() -> Split:
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (37, 1, 28, 28), dtype=torch.uint8, generator=generator)
    return Split(images, torch.randint(10, (37,), generator=generator), torch.arange(37))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["deepcnn-mnist", "vgg"])
def test_logits_of_a_split(name: str, training: bool, split: Split) -> None:
    """Dropout is off, batch norm does not learn, and the batches do not matter."""
    model = build(name, channels=1, classes=10, size=(28, 28)).train(training)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    whole = logits_of(model, split)
    assert whole.shape == (37, 10)
    assert (whole.dtype, whole.device.type, whole.requires_grad) == (torch.float32, "cpu", False)
    assert all(layer.training is training for layer in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    for batch_size in (10, 36, 1000):
        torch.testing.assert_close(logits_of(model, split, batch_size), whole, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        by_hand = torch.stack([model.eval()(image[None])[0] for image in split.images])
    torch.testing.assert_close(whole, by_hand, atol=1e-5, rtol=1e-5)


def test_batches_of_large_images_are_smaller() -> None:
    sizes: list[int] = []

    class Pixel(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            sizes.append(len(images))
            return images[:, :, 0, 0].float()

    for side, expected in ((64, [1000, 100]), (128, [250] * 4 + [100]), (4096, [1] * 2)):
        images = torch.zeros(1, 3, side, side, dtype=torch.uint8).expand(sum(expected), -1, -1, -1)
        split = Split(images, torch.zeros(len(images)), torch.arange(len(images)))
        assert len(logits_of(nn.Sequential(Pixel(), nn.Linear(3, 2)), split)) == len(images)
        assert sizes == expected
        sizes.clear()


def test_the_mode_is_put_back_after_an_error(split: Split) -> None:
    model = build("lenet5", channels=3, classes=10, size=(28, 28)).train()
    with pytest.raises(ValueError, match="images must be"):
        logits_of(model, split)
    assert model.training


def test_evaluate_is_the_metrics_of_the_logits(split: Split) -> None:
    model = build("lenet5", channels=1, classes=10, size=(28, 28))
    names = tuple("abcdefghij")
    assert evaluate(model, split, names) == metrics_of(logits_of(model, split), split.labels, names)


# Views of an image ----------------------------------------------------------------------------------------------


def slow_views(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """The logits of one image (C, H, W), averaged by hand over the views that each name stands for."""
    pixels = image.numpy().astype(np.float32)
    padded = np.pad(pixels, ((0, 0), (1, 1), (1, 1)), mode="reflect")
    _, height, width = pixels.shape
    up_left, down_right = padded[:, :height, :width], padded[:, 2:, 2:]

    def answer(picture: np.ndarray) -> Tensor:
        with torch.no_grad():
            return model(torch.from_numpy(picture.copy())[None])[0]

    def pair(picture: np.ndarray) -> Tensor:
        return (answer(picture) + answer(picture[:, :, ::-1])) / 2

    mirror = pair(pixels)
    return {"mirror": mirror, "mirror-shift": mirror / 2 + (pair(up_left) + pair(down_right)) / 4}


@pytest.mark.parametrize("tta", ["mirror", "mirror-shift"])
def test_logits_averaged_over_views(tta: str, split: Split) -> None:
    model = build("vgg", channels=1, classes=10, size=(28, 28), args={"widths": [4, 6], "convs": 1})
    got = logits_of(model, split, tta=tta)
    by_hand = torch.stack([slow_views(model.eval(), image)[tta] for image in split.images])
    torch.testing.assert_close(got, by_hand, atol=1e-5, rtol=1e-5)
    assert (got - logits_of(model, split)).abs().max() > 1e-3
    torch.testing.assert_close(logits_of(model, split, batch_size=10, tta=tta), got, atol=1e-5, rtol=1e-5)


def test_weights_of_views_add_up_to_one(split: Split) -> None:
    images = split.images[:3]
    for tta, count in (("none", 1), ("mirror", 2), ("mirror-shift", 6)):
        weighted = views(tta)
        assert sum(weight for weight, _ in weighted) == 1
        seen = [view(images) for _, view in weighted]
        assert len(seen) == count
        assert all(view.shape == images.shape for view in seen)
        assert not any(torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i])


def test_without_views_the_logits_are_the_plain_ones(split: Split) -> None:
    model = build("lenet5", channels=1, classes=10, size=(28, 28)).eval()
    with torch.no_grad():
        assert torch.equal(logits_of(model, split, tta="none"), model(split.images))
    assert evaluate(model, split, tta="none") == evaluate(model, split)
    assert evaluate(model, split, tta="mirror") == metrics_of(logits_of(model, split, tta="mirror"), split.labels)
