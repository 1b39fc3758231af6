"""Files are written whole or not at all: to a temporary name beside the target, then renamed."""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from .errors import FAILED, UserError


def write_whole(path: Path, data: bytes | str) -> None:
    """Write `data` to `path` such that a reader, a kill or a full disk never meets half a file.

    Raises:
        UserError: the disk is full or the folder cannot be written to; an older file at `path` is left as it was.
    """
    with writing_whole(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


@contextlib.contextmanager
def writing_whole(path: Path) -> Iterator[BinaryIO]:
    """The same bit by bit: what is written to the file inside the `with` stands at `path` when that ends, and is gone
    where it ends with an exception. Raises UserError as `write_whole` does."""
    part = path.with_name(f".{path.name}.part")  # one writer a run folder, so one name; a killed writer's is reused
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):  # where the folder is none, there is nothing to take away either
            part.unlink()
        if isinstance(error, OSError):
            raise disk_error(error, path) from error
        raise


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(path, text.encode(errors="backslashreplace"))  # a name that is not UTF-8 becomes JSON's own escape


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Lines of a CSV, as everything here writes them. Where file names stand in it, encode with `surrogateescape`: that
    gives back the very bytes of those that are not UTF-8."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def sha256_of(path: Path) -> str:
    """Of a file's bytes, in hexadecimal. Raises OSError where it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_folder(folder: Path) -> None:
    """Make `folder` and those above it, where they are not there. Raises UserError where the disk refuses."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, folder) from error


def disk_error(error: OSError, path: Path) -> UserError:
    """The sentence for a write that the operating system refused."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return UserError(
            f"no room left to write {path} ({error.strerror}); what was saved before is whole: free some space, "
            "or give another folder, then go on",
            FAILED,
        )
    if isinstance(error, (PermissionError, NotADirectoryError, FileExistsError)) or error.errno == errno.EROFS:
        return UserError(
            f"cannot write to {path} ({error.strerror or error}); give another folder or change its permissions"
        )
    return UserError(f"cannot write {path}: {error.strerror or error}", FAILED)
