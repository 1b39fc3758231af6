"""MNIST's idx files and CIFAR-10's batches as numpy arrays of bytes, for every peer to start from the same files."""

from __future__ import annotations

import gzip
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Arrays(NamedTuple):
    """Images are uint8, (N, 28, 28) for MNIST and (N, 32, 32, 3) for CIFAR-10; labels are int64 (N,)."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def load(data_dir: Path, data: str, limit: int | None = None) -> Arrays:
    """The data set `data` (mnist or cifar10) in `data_dir`, with its first `limit` training images if that is given."""
    try:
        arrays = _mnist(data_dir / "MNIST" / "raw") if data == "mnist" else _cifar10(data_dir / "cifar-10-batches-py")
    except FileNotFoundError as error:
        sys.exit(f"{error.filename} is missing: --data-dir must hold MNIST/raw or cifar-10-batches-py")
    return arrays._replace(train_images=arrays.train_images[:limit], train_labels=arrays.train_labels[:limit])


def _mnist(folder: Path) -> Arrays:
    def images(part: str) -> np.ndarray:
        return _idx(folder / f"{part}-images-idx3-ubyte", offset=16).reshape(-1, 28, 28)

    def labels(part: str) -> np.ndarray:
        return _idx(folder / f"{part}-labels-idx1-ubyte", offset=8).astype(np.int64)

    return Arrays(images("train"), labels("train"), images("t10k"), labels("t10k"))


def _idx(path: Path, offset: int) -> np.ndarray:
    data = path.read_bytes() if path.exists() else gzip.decompress(Path(f"{path}.gz").read_bytes())
    return np.frombuffer(data, np.uint8, offset=offset)


def _cifar10(folder: Path) -> Arrays:
    def read(name: str) -> tuple[np.ndarray, np.ndarray]:
        with (folder / name).open("rb") as file:
            batch = _BatchUnpickler(file, encoding="bytes").load()
        images = batch[b"data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return np.ascontiguousarray(images), np.asarray(batch[b"labels"], dtype=np.int64)

    parts = [read(f"data_batch_{i}") for i in range(1, 6)]
    train_images, train_labels = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Arrays(train_images, train_labels, *read("test_batch"))


class _BatchUnpickler(pickle.Unpickler):
    """Admits the names by which a CIFAR batch rebuilds its one array, and refuses any other."""

    def find_class(self, module: str, name: str) -> Any:
        reconstruct = np.empty(0).__reduce__()[0]  # numpy 2 has moved it
        admitted: dict[str, Callable[..., Any]] = {
            "numpy.core.multiarray._reconstruct": reconstruct,
            "numpy._core.multiarray._reconstruct": reconstruct,
            "numpy.ndarray": np.ndarray,
            "numpy.dtype": np.dtype,
            "_codecs.encode": str.encode,
        }
        if f"{module}.{name}" not in admitted:
            raise pickle.UnpicklingError(f"the file asks for {module}.{name}, which no CIFAR batch needs")
        return admitted[f"{module}.{name}"]
