"""One contract for every data set and every network: files as torchvision leaves them, to a trained, measured, saved,
reloaded and explained model."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from convlens import DATASETS, MODELS, DatasetSpec, Recipe, evaluate, feature_maps, load
from convlens.fitting import advance, finish
from convlens.modelfile import golden_difference
from convlens.recipe import AugmentConfig, ModelConfig, OptimConfig
from convlens.run import start


def write(spec: DatasetSpec, root: Path) -> DatasetSpec:
    """A small data set of noise in the files of `spec`; the spec that says so."""
    k = len(spec.classes)
    counts = (4 * k, k) if k < 20 else (2 * k, k)
    small = replace(spec, counts=counts)
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (n, spec.channels, *spec.size), np.uint8) for n in counts]
    labels = [np.arange(n) % k for n in counts]
    folder = root / spec.folder
    folder.mkdir(parents=True)
    if spec.kind == "idx":
        arrays = [images[0][:, 0], labels[0], images[1][:, 0], labels[1]]
        for (name, _), array in zip(spec.downloads, arrays, strict=True):
            header = (0x0800 | array.ndim).to_bytes(4, "big") + b"".join(n.to_bytes(4, "big") for n in array.shape)
            (folder / name.removesuffix(".gz")).write_bytes(header + array.astype(np.uint8).tobytes())
        return small
    ten = spec.name == "cifar10"
    (folder / ("batches.meta" if ten else "meta")).write_bytes(b"")
    pieces = [f"data_batch_{i}" for i in range(1, 6)] if ten else ["train"]
    for name, x, y in [
        *zip(pieces, np.array_split(images[0], len(pieces)), np.array_split(labels[0], len(pieces)), strict=True),
        ("test_batch" if ten else "test", images[1], labels[1]),
    ]:
        batch = {b"data": x.reshape(len(x), -1), b"labels" if ten else b"fine_labels": y.tolist()}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    return small


PAIRS = [
    *((name, "lenet5", 1) for name in DATASETS),
    *(
        pytest.param("cifar10", model, 1, marks=pytest.mark.slow if model == "resnet18" else ())  # 11 million weights
        for model in MODELS
        if model != "lenet5"
    ),
    ("cifar10", "lenet5", 2),
]


@pytest.mark.parametrize(("name", "model", "members"), PAIRS)
def test_from_files_to_an_explained_model(name: str, model: str, members: int, tmp_path: Path) -> None:
    spec = DATASETS[name]
    recipe = Recipe(
        epochs=1,
        batch_size=16,
        device="cpu",
        model=ModelConfig(model, args={"members": members}),
        optim=OptimConfig("adam", 1e-3),
        augment=AugmentConfig(flip=True, shift=1, cutout=3),
    ).override({"data.val": 0.25})
    if spec.kind == "sample":
        data = load(name, recipe, limit=200)
    else:
        data = load(write(spec, tmp_path / "data"), recipe, tmp_path / "data")
    assert data.train.images.dtype == torch.uint8
    assert data.train.images.shape[1:] == (spec.channels, *spec.size) == (data.input.channels, *data.input.size)
    assert set(data.train.labels.tolist()) == set(data.test.labels.tolist()) == set(range(len(spec.classes)))

    run = start(recipe, data, tmp_path / "runs")
    (row,) = advance(run, data)
    assert row["train_loss"] > 0
    metrics = finish(run, data, plots=False, report=False)
    assert len(metrics.classes) == len(spec.classes)

    file = run.model_file()
    assert golden_difference(file) < 1e-5
    assert evaluate(file.model, data.test, file.manifest.classes).confusion == metrics.confusion
    maps = feature_maps(file.model, data.test.images[0])
    assert maps
    assert all(feature.maps.isfinite().all() and " = " in feature.formula for feature in maps)
