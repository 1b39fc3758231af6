"""Named tensors and the JSON beside them, in one safetensors file: what checkpoints and model files are made of.

A file may come from anywhere: its header is bounded before anybody reads it.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn

from .files import write_whole, writing_whole
from .packing import BLANK

# Bytes. 10,000 classes whose names are as long as a file's can be, 255 bytes, and 10,000 tensors need no more.
HEADER = 4 * 2**20
SEAL = "sha256"  # the metadata's key
CHUNK = 2**20  # bytes that are read at a time to take it

# What reading a file that is none of ours, or damaged, raises; RuntimeError: torch's, and of JSON nested too deeply
DAMAGE = (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError)


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write all of them, whole or not at all. Raises UserError where the disk refuses; an older file stays whole."""
    write_whole(path, _serialised(tensors, metadata))


def write_sealed(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """The same, with the SHA-256 of the whole file, in hexadecimal, in its metadata under the key `sha256`: taken while
    64 zeros stand there. `seal_holds` is the way back.

    Raises:
        ValueError: the header would be larger than HEADER, so that nobody could read it.
    """
    data = memoryview(_serialised(tensors, {**metadata, SEAL: BLANK}))
    header = bytes(data[: 8 + int.from_bytes(data[:8], "little")])
    if len(header) > 8 + HEADER:
        raise ValueError(f"its header has {len(header) - 8:,} bytes; {HEADER:,} are allowed")
    # the only such place: in the strings of the header's JSON every quote has a backslash before it
    at = header.index(f'"{SEAL}":"{BLANK}"'.encode()) + len(f'"{SEAL}":"')
    with writing_whole(path) as file:
        for part in (data[:at], hashlib.sha256(data).hexdigest().encode(), data[at + len(BLANK) :]):
            file.write(part)


def seal_holds(path: str | Path) -> bool | None:
    """Whether a file is, byte for byte, what `write_sealed` wrote; None where its metadata has no seal.

    Raises:
        safetensors.SafetensorError, OSError, ValueError: it is no such file.
    """
    value = read_metadata(path).get(SEAL)
    if value is None:
        return None
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        header = file.read(8)
        header += file.read(int.from_bytes(header, "little"))
        place = f'"{value}"'.encode(errors="surrogatepass")
        if len(value) != len(BLANK) or header.count(place) != 1:
            return False
        digest.update(header.replace(place, f'"{BLANK}"'.encode()))
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest() == value


@contextmanager
def reading(path: str | Path, header: int = HEADER) -> Iterator[Any]:
    """The file as safetensors opens it: nothing but its header is read, and that only where it has at most `header`
    bytes. safetensors itself checks that names, shapes and places fit each other and the file. Its tensors lie in the
    mapped file: copy what is to outlive the `with`.

    Raises:
        safetensors.SafetensorError, OSError, ValueError: it is no such file.
    """
    if not stat.S_ISREG(Path(path).stat().st_mode):
        raise ValueError("it is no file")  # a pipe would be waited for
    with Path(path).open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > header:
        raise ValueError(f"its header claims {length:,} bytes; {header:,} are allowed")
    with safetensors.safe_open(path, framework="pt") as opened:
        yield opened


def read_metadata(path: str | Path) -> dict[str, str]:
    """The strings beside the tensors. Raises as `reading` does."""
    with reading(path) as file:
        return file.metadata() or {}


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """A model's state dict under the names that it has in a file."""
    return {f"model.{name}": value for name, value in model.state_dict().items()}


def state_dict(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The way back: the model's state dict among a file's tensors."""
    return {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}


def _serialised(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    # contiguous: safetensors knows one layout; clone: a model may hold one tensor under two names
    flat = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    return safetensors.torch.save(flat, metadata=metadata)
