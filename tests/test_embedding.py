"""Embeddings against scikit-learn, and against the loops that their papers write."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn

from convlens import Split, build
from convlens.embedding import embed, features_of, nearest, pca, typical, umap
from convlens.errors import UserError


def images_of(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8, generator=generator)


def split_of(images: Tensor) -> Split:
    return Split(images, torch.arange(len(images)) % 10, torch.arange(len(images)))


@pytest.mark.parametrize("name", ["lenet5", "resnet20", "resnet9", "speednet", "cnn-mnist"])
def test_the_last_linear_layer_makes_the_logits_of_the_features(name: str) -> None:
    model = build(name, channels=1, classes=10, size=(28, 28)).train()
    features, logits = embed(model, images_of(5))
    assert model.training
    last = [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1]
    scale = 0.125 if name == "resnet9" else 1.0
    with torch.no_grad():
        torch.testing.assert_close(scale * last(features), logits, atol=1e-5, rtol=1e-4)
    assert features.shape == (5, last.in_features)
    assert not any(layer._forward_pre_hooks for layer in model.modules())


def test_a_network_without_linear_layers_gives_what_its_last_convolution_meets() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = images_of(3).float() / 255
    features, _ = embed(model, images)
    torch.testing.assert_close(features, model[1](model[0](images)).mean((2, 3)))
    with pytest.raises(UserError, match="no linear layer and no convolution"):
        embed(nn.Sequential(nn.Flatten(), nn.LayerNorm(784)), images)


def test_a_plain_network_takes_bytes_and_a_compiled_one_is_met() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 676, 3))
    images = images_of(3)
    with torch.no_grad():
        expected = model[:3](images.float())
    torch.testing.assert_close(embed(model, images)[0], expected)
    torch.testing.assert_close(embed(model.double(), images)[0], expected, rtol=1e-5, atol=1e-3)
    model = model.float()
    model.compile(backend="eager")
    model(images.float())  # now there is compiled code, which knows no hooks
    torch.testing.assert_close(features_of(model, split_of(images))[0], expected)
    torch.compiler.reset()


def test_tokens_are_averaged() -> None:
    model = nn.Sequential(nn.Flatten(2), nn.Linear(784, 5))  # (N, 1, 784): one token
    features, _ = embed(model, images_of(2).float())
    assert torch.equal(features, images_of(2).float().flatten(1))


def test_a_split_is_embedded_as_its_images_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convlens.embedding.LARGEST", 784 * 2)  # batches of two
    model, images = build("lenet5", channels=1, classes=10, size=(28, 28)), images_of(30)
    places = torch.tensor([3, 29, 0])
    features, logits = features_of(model, split_of(images), places)
    expected = embed(model, images[places])
    torch.testing.assert_close(features, expected[0])
    torch.testing.assert_close(logits, expected[1])


def test_nearest_against_scikit_learn() -> None:
    model = build("lenet5", channels=1, classes=10, size=(28, 28))
    known, asked = (embed(model, images_of(count, seed=count))[0] for count in (60, 4))
    found = nearest(asked, known, count=5)
    reference = NearestNeighbors(n_neighbors=5, metric="cosine").fit(known.double().numpy())
    distances, places = reference.kneighbors(asked.double().numpy())
    assert found.places.tolist() == places.tolist()
    np.testing.assert_allclose(found.distances.numpy(), distances, atol=1e-6)
    assert nearest(known[7:8], known, 1).places.tolist() == [[7]]


def test_of_equally_near_ones_the_first_and_no_distance_is_below_zero() -> None:
    found = nearest(torch.full((2, 3), 0.1), torch.full((4, 3), 77.0), 3)
    assert found.places.tolist() == [[0, 1, 2]] * 2
    assert all(0 <= d < 1e-6 for d in found.distances.flatten().tolist())


@pytest.mark.parametrize("shape", [(50, 8), (8, 50)])
def test_pca_against_scikit_learn(shape: tuple[int, int]) -> None:
    features = torch.randn(shape, generator=torch.Generator().manual_seed(2)) * torch.linspace(1, 3, shape[1])
    coordinates, shares = pca(features)
    reference = PCA(2, svd_solver="full")
    expected = reference.fit_transform(features.double().numpy())
    signs = np.sign(reference.components_[[0, 1], np.abs(reference.components_).argmax(1)])
    np.testing.assert_allclose(coordinates.numpy(), expected * signs, atol=1e-4)
    np.testing.assert_allclose(shares.numpy(), reference.explained_variance_ratio_, atol=1e-6)
    assert torch.equal(coordinates, pca(features)[0])
    again, _ = pca(torch.cat([features, features]))  # a sign that depends on the images would turn with them
    torch.testing.assert_close(again[: shape[0]], coordinates, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", [(1, 5), (6, 1), (1, 1)])
def test_a_map_of_little_has_two_coordinates_yet(shape: tuple[int, int]) -> None:
    features = torch.arange(float(shape[0] * shape[1])).view(shape)
    coordinates, shares = pca(features)
    assert coordinates.shape == (shape[0], 2)
    assert coordinates[:, 1].tolist() == [0] * shape[0]
    torch.testing.assert_close(coordinates[:, 0], features.sum(1) - features.sum(1).mean())
    assert shares.tolist() == [float(shape[0] > 1), 0]


def gaussian(features: Tensor) -> Tensor:
    unit = F.normalize(features.double())
    squared = torch.cdist(unit, unit) ** 2
    return torch.exp(-squared / squared.median())


def test_prototypes_and_criticisms_against_the_paper_written_as_loops() -> None:
    features = torch.randn(25, 6, generator=torch.Generator().manual_seed(4))
    kernel, n = gaussian(features).tolist(), 25

    def discrepancy(chosen: list[int]) -> float:  # J_b of the paper, which is to be large
        means = sum(kernel[i][j] for i in range(n) for j in chosen) * 2 / (n * len(chosen))
        return means - sum(kernel[i][j] for i in chosen for j in chosen) / len(chosen) ** 2

    prototypes: list[int] = []
    for _ in range(4):
        prototypes.append(
            max((i for i in range(n) if i not in prototypes), key=lambda i: discrepancy([*prototypes, i]))
        )
    witness = [abs(sum(row) / n - sum(row[j] for j in prototypes) / 4) for row in kernel]

    def criticism(chosen: list[int]) -> float:
        return sum(witness[i] for i in chosen) + np.linalg.slogdet(np.array(kernel)[np.ix_(chosen, chosen)])[1]

    against: list[int] = []
    for _ in range(4):
        free = [i for i in range(n) if i not in prototypes + against]
        against.append(max(free, key=lambda i: criticism([*against, i])))
    assert typical(features) == (prototypes, against)


def test_prototypes_stand_for_every_cluster_and_criticisms_for_what_they_leave_out() -> None:
    generator = torch.Generator().manual_seed(5)
    centres = torch.eye(3, 8).repeat_interleave(20, 0)
    features = centres + 0.05 * torch.randn(60, 8, generator=generator)
    prototypes, _ = typical(features, 3, 1)
    assert sorted(place // 20 for place in prototypes) == [0, 1, 2]
    two, criticisms = typical(features, 2, 1)
    assert {place // 20 for place in [*two, *criticisms]} == {0, 1, 2}
    assert typical(features[:2]) in (([0, 1], []), ([1, 0], []))  # no more than there are


def test_umap_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    features = torch.randn(6, 3)
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(UserError, match=r"needs umap-learn: pip install 'convlens\[map\]'"):
        umap(features)

    class Reducer:
        def __init__(self, **settings: object) -> None:
            assert settings == {"metric": "cosine", "random_state": 3, "n_jobs": 1}

        def fit_transform(self, numbers: np.ndarray) -> np.ndarray:
            return numbers[:, :2] * 2

    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=Reducer))
    torch.testing.assert_close(umap(features, seed=3), features[:, :2] * 2)
