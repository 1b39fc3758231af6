"""The strings that an .onnx or a .pt2 holds beside its graph: manifest, golden batch and seal. NumPy alone.

A file may come from anywhere: what is read of it has bounds before anything is made of it.
"""

from __future__ import annotations

import base64
import io
import json
import math
import stat
from pathlib import Path

import numpy as np

from .errors import UserError, one_line
from .manifest import FORMAT, Golden, Manifest, require_format

LARGEST = 2**31 - 1  # bytes of a file; protobuf knows no larger message
DESCRIBED = 4 * 2**20  # bytes of the config, and of the classes: as many as a model file's header has
BLANK = "0" * 64  # what stands in the place of the seal while the file is hashed
PRECISIONS = "fp32", "int8"
METADATA = "format", "version", "precision", "config", "classes", "golden.images", "golden.logits", "sha256"


def read(path: str | Path) -> bytes:
    """All of a file, which is then looked at, hashed and opened as these very bytes. Raises UserError where there is
    none, it is none (a pipe would be waited for), or it has more than LARGEST bytes."""
    path = Path(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"cannot read {path}: it is no file")
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except (OSError, ValueError) as error:  # ValueError: a name with a zero in it
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', '') or error}") from error
    if len(data) > LARGEST:
        raise UserError(f"{path} is larger than the 2 GB that an exported file can have")
    return data


def pack(manifest: Manifest, golden: Golden, precision: str = "fp32") -> dict[str, str]:
    """Everything but the graph, the seal blank. `classes` is there once more, for who reads it without ConvLens."""
    return {
        "format": "convlens",
        "version": str(FORMAT),
        "precision": precision,
        "config": manifest.to_json(),
        # a class may have a folder's name that is not UTF-8
        "classes": json.dumps(manifest.classes, ensure_ascii=False).encode(errors="backslashreplace").decode(),
        "golden.images": _text(golden.images),
        "golden.logits": _text(golden.logits),
        "sha256": BLANK,
    }


def unpack(metadata: dict[str, str], name: object) -> tuple[Manifest, Golden, str]:
    """The way back: the manifest, the golden batch and the precision. `name` is what the file is called.

    Raises:
        UserError: none of ConvLens', of a newer format, or damaged.
    """
    if metadata.get("format") != "convlens":
        raise UserError(f"{name} is not a file that ConvLens exported: its metadata does not say so")
    try:
        require_format(metadata, name)
        if other := sorted(metadata.keys() - set(METADATA)):
            raise ValueError(f"its metadata has {other[0][:60]!r}")
        for key in ("config", "classes"):
            if len(metadata[key].encode(errors="surrogatepass")) > DESCRIBED:
                raise ValueError(f"of its {key} there are more than {DESCRIBED >> 20} MiB")
        manifest = Manifest.from_json(metadata["config"])
        if json.loads(metadata["classes"]) != list(manifest.classes):
            raise ValueError("its classes are there twice, and differ")
        if metadata["precision"] not in PRECISIONS:
            raise ValueError(f"its precision is none of {', '.join(PRECISIONS)}")
        spec, classes = manifest.input, len(manifest.classes)
        golden = Golden(
            _array(metadata["golden.images"], np.dtype("|u1"), (spec.channels, *spec.size)),
            _array(metadata["golden.logits"], np.dtype("<f4"), (classes,)),
        )
        golden.check(manifest)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{name} is damaged: {one_line(error)}") from error
    return manifest, golden, metadata["precision"]


def require_answers(logits: object, probabilities: object, shape: tuple[int, int]) -> None:
    """Raises UserError where what a graph gave are not float32 arrays (N, K) of `shape`."""
    for name, given in (("logits", logits), ("probabilities", probabilities)):
        if not isinstance(given, np.ndarray) or given.dtype != np.float32 or given.shape != shape:
            said = f"{given.dtype} {given.shape}" if isinstance(given, np.ndarray) else type(given).__name__
            raise UserError(f"the network's {name} are {said}, not float32 {shape}")


def _text(array: np.ndarray) -> str:
    """The bytes of a .npy file, as base64."""
    file = io.BytesIO()
    np.save(file, array)
    return base64.b64encode(file.getvalue()).decode("ascii")


def _array(text: str, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """Back again: so many rows of `shape` as the bytes hold. What stands before them must be, to the byte, what np.save
    writes before that many: it is Python, and nobody need read it."""
    data = base64.b64decode(text, validate=True)
    start = int.from_bytes(data[8:10], "little") + 10
    rows, rest = divmod(len(data) - start, math.prod(shape) * dtype.itemsize)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": dtype.str, "fortran_order": False, "shape": (max(rows, 0), *shape)}
    )
    if rest or data[:start] != header.getvalue():
        raise ValueError(f"its golden batch is no array of {dtype} {('N', *shape)}")
    return np.frombuffer(data, dtype, offset=start).reshape(rows, *shape).copy()
