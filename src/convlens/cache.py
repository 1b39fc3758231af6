"""Pictures decoded once: a memory-mapped file of uint8 pixels in the cache folder, for every later run to start from.

An entry is a folder named by what it was made of; it appears complete or not at all. Entries that were not used for
the longest time go when the cache would grow beyond its bound.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, closing, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import PIL

from . import images
from .download import cache_folder
from .errors import FAILED, UserError
from .files import disk_error, write_json
from .images import QUIET, Facts, InputSpec, read_picture

FORMAT = 1  # of an entry; also to be raised when `images` makes other pixels of the same file
BOUND = 20.0  # GB of all entries together, unless CONVLENS_CACHE_GB says otherwise
CHUNK = 64, 1 << 20  # pictures, and their pixels and channels, that a worker decodes at a time at most
DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG, <linux/prctl.h>

Progress = Callable[[int, int], None]
Row = tuple[bytes, Facts | None, str]  # of one picture: its digest, what it says of itself, what is wrong with it


@dataclass(frozen=True)
class Decoded:
    """`pixels` uint8 (N, H, W, C), memory-mapped and read-only, a row a file; black where `problems` has the file's
    place, with the reason. `digests` uint8 (N, 16): equal where the pixels are. `facts` of each file, None where it is
    no picture."""

    pixels: np.ndarray
    digests: np.ndarray
    facts: list[Facts | None]
    problems: dict[int, str]


@dataclass(frozen=True)
class CacheEntry:
    """One decoded set of pictures on this disk. `used` is a time in seconds since 1970."""

    path: Path
    source: str
    pictures: int
    spec: dict[str, Any]
    bytes: int
    used: float


def decode(root: Path, paths: Sequence[str], spec: InputSpec, progress: Progress | None = None) -> Decoded:
    """The pixels of the files `paths` below `root`, from the cache or decoded now, by all processors.

    `progress` is called with the number of pictures done and of all, now and then. Only the cache folder is written to.

    Raises:
        UserError: the cache folder cannot be written to, is full, or its bound is smaller than these pictures.
    """
    size = len(paths) * spec.size[0] * spec.size[1] * spec.channels
    if size > bound():
        raise UserError(
            f"{len(paths):,} pictures of {spec.size[0]} x {spec.size[1]} take {size / 1e9:.1f} GB; the cache holds "
            f"at most {bound() / 1e9:g}: choose a smaller --size, or raise CONVLENS_CACHE_GB"
        )
    folder = cache_folder() / "pictures"
    entry = folder / _key(root, paths, spec)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{entry}.lock"):  # a second process waits here, then reads what the first one made
            if not entry.is_dir():
                _make(entry, root, paths, spec, progress)
                _evict(folder, entry)
        os.utime(entry)
        return _open(entry, len(paths), spec)
    except OSError as error:
        raise disk_error(error, Path(error.filename or folder)) from error
    except BrokenProcessPool as error:
        raise UserError("a process that decoded pictures was killed; did the memory run out?", FAILED) from error


def entries() -> list[CacheEntry]:
    """What the cache holds, the last used first."""
    found = []
    for about in (cache_folder() / "pictures").glob("*/about.json"):
        if about.parent.suffix:  # half made, or half gone
            continue
        with suppress(OSError, ValueError, KeyError):  # another process may be taking it away
            said = json.loads(about.read_text(encoding="utf-8"))
            used = sum(file.stat().st_size for file in about.parent.iterdir())
            when = about.parent.stat().st_mtime
            found.append(CacheEntry(about.parent, said["source"], said["pictures"], said["spec"], used, when))
    return sorted(found, key=lambda entry: -entry.used)


def clear() -> None:
    """Take away all decoded pictures; a run that uses some keeps what it has mapped. Raises UserError where refused."""
    for entry in entries():
        _remove(entry.path)


def bound() -> float:
    """How many bytes of decoded pictures are kept: `CONVLENS_CACHE_GB`, else BOUND."""
    given = os.environ.get("CONVLENS_CACHE_GB") or BOUND
    try:
        number = float(given)
    except ValueError:
        number = -1.0
    if not 0 < number < float("inf"):
        raise UserError(f"CONVLENS_CACHE_GB is a number of gigabytes above 0, not {given!r}")
    return number * 1e9


def digest(image: np.ndarray) -> bytes:
    """16 bytes of an image, uint8 (H, W, C) in that order in memory: equal where the pixels are."""
    return hashlib.blake2b(image.data, digest_size=16).digest()


def _key(root: Path, paths: Sequence[str], spec: InputSpec) -> str:
    """What the pixels depend on: the files' names, sizes and times, the InputSpec, and what decodes them."""
    key = hashlib.sha256(json.dumps([FORMAT, PIL.__version__, asdict(spec), os.fsdecode(root.resolve())]).encode())
    for path in paths:
        try:
            seen = (root / path).stat()
            key.update(os.fsencode(f"{path}\0{seen.st_size}\0{seen.st_mtime_ns}\0"))
        except OSError as error:  # it went away since it was listed, which decoding will tell
            key.update(os.fsencode(f"{path}\0{error.errno}\0"))
    return key.hexdigest()[:32]


def _make(entry: Path, root: Path, paths: Sequence[str], spec: InputSpec, progress: Progress | None) -> None:
    part = entry.with_suffix(".part")  # under the entry's lock, so one that lies there was left by a killed process
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        facts: list[Facts | None] = []
        problems: dict[int, str] = {}
        (part / "pixels.u8").touch()  # also of no pictures
        # QUIET once for all: to silence the warnings of each picture by itself takes a tenth of its decoding
        decoding = closing(_decoded(part / "pixels.u8", root, paths, spec))  # its processes end before their files go
        with (part / "digests.u8").open("wb") as digests, QUIET, decoding as chunks:
            for rows in chunks:
                for seen, found, problem in rows:
                    if problem:
                        problems[len(facts)] = problem
                    facts.append(found)
                    digests.write(seen)
                if progress:
                    progress(len(facts), len(paths))
        with (part / "pixels.u8").open("rb+") as pixels:
            os.fsync(pixels.fileno())
        about = {
            "source": os.fsdecode(root.resolve()),
            "pictures": len(paths),
            "spec": asdict(spec),
            "facts": [fact and list(vars(fact).values()) for fact in facts],
            "problems": problems,
        }
        write_json(part / "about.json", about)
        part.rename(entry)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _decoded(pixels: Path, root: Path, paths: Sequence[str], spec: InputSpec) -> Generator[list[Row], None, None]:
    """Fill the file `pixels`, chunk by chunk, and say of each picture what is to be known."""
    size = min(CHUNK[0], max(CHUNK[1] // (spec.size[0] * spec.size[1] * spec.channels), 1))
    firsts = range(0, len(paths), size)
    names = (paths[first : first + size] for first in firsts)
    processors = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    pool = _workers(min(processors, max(len(firsts), 1)))
    try:
        yield from pool.map(partial(_chunk, pixels, root, spec), firsts, names)
    finally:
        pool.shutdown(cancel_futures=True)


def _chunk(pixels: Path, root: Path, spec: InputSpec, first: int, names: Sequence[str]) -> list[Row]:
    block = np.zeros((len(names), *spec.size, spec.channels), np.uint8)
    rows: list[Row] = []
    for image, name in zip(block, names, strict=True):
        path, found, problem = os.path.join(root, name), None, ""  # noqa: PTH118 - a Path for each takes time
        try:
            image[:], found = read_picture(path, spec)
        except UserError as error:
            problem = str(error).replace(path, "the file")
        rows.append((digest(image), found, problem))
    with pixels.open("rb+") as file:  # each worker writes where its pictures belong: they need not go through a pipe
        file.seek(first * block[0].nbytes)
        file.write(block.data)
    return rows


def _workers(count: int) -> Executor:
    """Processes, on Linux, where one is made in an instant: a small picture is mostly Python's work, for which threads
    wait in turn, so that two took longer than one. Elsewhere threads: a process there starts by importing everything
    anew, the user's script with it. For a single worker a thread, and where a process may have no children."""
    if count == 1 or sys.platform != "linux" or multiprocessing.current_process().daemon:
        return ThreadPoolExecutor(count, "decode")
    context = multiprocessing.get_context("fork")
    return ProcessPoolExecutor(count, context, _begin, (os.getpid(), context.Lock()))


def _begin(parent: int, one_large: AbstractContextManager[object]) -> None:
    """In a process of its own: what the keyboard says is for the main one, without which there is nothing to do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:  # it died before it was watched
        os._exit(1)
    images.ONE_LARGE, images.QUIET.lock = one_large, threading.Lock()  # another thread may have held it just now


def _open(entry: Path, count: int, spec: InputSpec) -> Decoded:
    about = json.loads((entry / "about.json").read_text(encoding="utf-8"))
    shape = (count, *spec.size, spec.channels)
    return Decoded(
        # Read-only: of a mapping that may be written to, Linux wants the whole to fit into its memory
        pixels=np.memmap(entry / "pixels.u8", np.uint8, "r", shape=shape),
        digests=np.fromfile(entry / "digests.u8", np.uint8).reshape(count, 16),
        facts=[fact and Facts((fact[0][0], fact[0][1]), *fact[1:]) for fact in about["facts"]],
        problems={int(place): problem for place, problem in about["problems"].items()},
    )


def _evict(folder: Path, newest: Path) -> None:
    """Bring the cache below its bound, the entries that were not used for the longest time first."""
    total = 0
    for entry in entries():
        total += entry.bytes
        if total > bound() and entry.path != newest:
            with suppress(UserError):  # in use, where the system does not let go of files in use
                _remove(entry.path)
    for part in folder.glob("*.part"):  # of processes that were killed; a living one holds its lock
        lock = filelock.FileLock(part.with_suffix(".lock"))
        with suppress(filelock.Timeout), lock.acquire(timeout=0):
            shutil.rmtree(part, ignore_errors=True)


def _remove(entry: Path) -> None:
    """Under another name first: whoever looks for it must not find half of it."""
    gone = entry.with_suffix(".gone")
    try:
        shutil.rmtree(gone, ignore_errors=True)
        entry.rename(gone)
        shutil.rmtree(gone)
    except OSError as error:
        raise disk_error(error, entry) from error
