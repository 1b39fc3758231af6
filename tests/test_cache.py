"""Decoded once: the cache holds the pixels that `preprocess` makes, whoever is killed or comes second."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convlens import InputSpec, UserError, cache, images
from convlens.images import preprocess

SPEC = InputSpec((20, 24), 3)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("CONVLENS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pictures"


def photos(root: Path, count: int, side: int = 48) -> list[str]:
    """JPEGs of smooth noise, each another."""
    root.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for i in range(count):
        small = Image.fromarray(random.integers(0, 256, (6, 6, 3), np.uint8))
        small.resize((side, side + i % 5)).save(root / f"{i:04}.jpg", quality=80)
    return sorted(path.name for path in root.glob("*.jpg"))


def test_rows_are_what_preprocess_makes(tmp_path) -> None:
    names = photos(tmp_path / "p", 200)
    (tmp_path / "p" / "0007.jpg").write_bytes(b"no picture")
    (tmp_path / "p" / "0150.jpg").unlink()
    told: list[int] = []
    found = cache.decode(tmp_path / "p", names, SPEC, lambda done, _: told.append(done))
    assert told == sorted(told)
    assert told[-1] == 200
    assert found.problems == {
        7: "the file is not a picture that can be read (JPEG, PNG, WebP, GIF, TIFF or BMP)",
        150: "cannot read the file: No such file or directory",
    }
    for i, name in enumerate(names):
        expected = 0 if i in found.problems else preprocess(tmp_path / "p" / name, SPEC).transpose(1, 2, 0)
        np.testing.assert_array_equal(found.pixels[i], expected)
    assert found.facts[3] is not None
    assert (found.facts[3].size, found.facts[3].format, found.facts[7]) == ((51, 48), "JPEG", None)
    digests = {found.digests[i].tobytes() for i in range(200)}
    assert len(digests) == 199  # the two black ones have the same


def test_a_second_call_decodes_nothing(tmp_path) -> None:
    names = photos(tmp_path / "p", 30)
    first = cache.decode(tmp_path / "p", names, SPEC)
    told: list[int] = []
    again = cache.decode(tmp_path / "p", names, SPEC, lambda done, _: told.append(done))
    assert not told
    np.testing.assert_array_equal(first.pixels, again.pixels)
    assert again.facts == first.facts
    assert len(cache.entries()) == 1


@pytest.mark.parametrize("change", ["a file", "the list", "the size", "gray", "the policy"])
def test_what_the_key_depends_on(tmp_path, change) -> None:
    names = photos(tmp_path / "p", 10)
    cache.decode(tmp_path / "p", names, SPEC)
    spec = {
        "the size": InputSpec((20, 25), 3),
        "gray": InputSpec((20, 24), 1),
        "the policy": InputSpec((20, 24), 3, "fit"),
    }
    if change == "a file":
        Image.new("RGB", (50, 50), "red").save(tmp_path / "p" / names[4])
    found = cache.decode(tmp_path / "p", names[: 9 if change == "the list" else 10], spec.get(change, SPEC))
    assert len(cache.entries()) == 2
    if change == "a file":
        assert found.pixels[4, 10, 10].tolist() == [254, 0, 0]


def test_the_pixels_cannot_be_written_to(tmp_path) -> None:
    found = cache.decode(tmp_path / "p", photos(tmp_path / "p", 3), SPEC)
    with pytest.raises(ValueError, match="read-only"):
        found.pixels[:] = 0


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux how much memory there is")
def test_more_pixels_than_memory_and_swap_together(tmp_path) -> None:
    """Linux refuses to map them where they might be written to; the file is full of holes and takes no room."""
    said = Path("/proc/meminfo").read_text().splitlines()
    memory = sum(int(line.split()[1]) for line in said if line.startswith(("MemTotal", "SwapTotal"))) * 1024
    spec = InputSpec((4096, 4096), 3)
    count = memory // (4096 * 4096 * 3) + 10
    with (tmp_path / "pixels.u8").open("wb") as file:
        file.truncate(count * 4096 * 4096 * 3)
    (tmp_path / "digests.u8").write_bytes(bytes(16 * count))
    (tmp_path / "about.json").write_text(json.dumps({"facts": [None] * count, "problems": {}}))
    found = cache._open(tmp_path, count, spec)
    assert found.pixels.nbytes > memory
    assert found.pixels[-1, -1].sum() == 0


def test_the_bound_evicts_what_was_not_used_for_longest(tmp_path, monkeypatch) -> None:
    for i, name in enumerate("abc"):
        cache.decode(tmp_path / name, photos(tmp_path / name, 20), SPEC)
        entry = max(cache.entries(), key=lambda entry: entry.used).path
        os.utime(entry, (i, i))
    cache.decode(tmp_path / "a", photos(tmp_path / "a", 0) or sorted(p.name for p in (tmp_path / "a").iterdir()), SPEC)
    monkeypatch.setenv("CONVLENS_CACHE_GB", str(3.5 * cache.entries()[0].bytes / 1e9))
    cache.decode(tmp_path / "d", photos(tmp_path / "d", 20), SPEC)
    assert {Path(entry.source).name for entry in cache.entries()} == {"a", "c", "d"}


def test_more_than_the_bound_is_refused(tmp_path, monkeypatch) -> None:
    names = photos(tmp_path / "p", 20)
    monkeypatch.setenv("CONVLENS_CACHE_GB", "0.00002")
    with pytest.raises(UserError, match=r"20 pictures of 20 x 24 take 0.0 GB; the cache holds at most 2e-05"):
        cache.decode(tmp_path / "p", names, SPEC)
    monkeypatch.setenv("CONVLENS_CACHE_GB", "much")
    with pytest.raises(UserError, match="a number of gigabytes above 0, not 'much'"):
        cache.decode(tmp_path / "p", names, SPEC)


def test_a_cache_that_cannot_be_written_to(tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("CONVLENS_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="cannot write to"):
        cache.decode(tmp_path / "p", photos(tmp_path / "p", 2), SPEC)


DECODE = """
import sys, time
from pathlib import Path
from convlens import InputSpec, cache, images, images
root = Path(sys.argv[1])
names = sorted(path.name for path in root.glob("*.jpg"))
def told(done, _):
    print(done, flush=True)
found = cache.decode(root, names, InputSpec((20, 24), 3), told)
print("digest", found.digests.tobytes().hex()[:64])
"""


def decoding(root: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-W", "error", "-c", DECODE, str(root)], stdout=subprocess.PIPE, text=True)


def test_killed_half_way_leaves_no_half(tmp_path, own_cache) -> None:
    names = photos(tmp_path / "p", 1500, 200)
    with decoding(tmp_path / "p") as process:
        assert process.stdout is not None
        while int(process.stdout.readline()) < 500:
            pass
        workers = children(process.pid)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    until = time.monotonic() + 20
    while alive := [pid for pid in workers if Path(f"/proc/{pid}/cwd").exists()]:  # a zombie has none
        assert time.monotonic() < until, f"{alive} outlived what they decoded for"
        time.sleep(0.01)
    assert not cache.entries()
    assert list(own_cache.glob("*.part")), "it was not killed half way"
    found = cache.decode(tmp_path / "p", names, SPEC)
    np.testing.assert_array_equal(found.pixels[1499], preprocess(tmp_path / "p" / names[1499], SPEC).transpose(1, 2, 0))
    assert not list(own_cache.glob("*.part"))


def children(pid: int) -> list[str]:
    """Of a process on Linux; elsewhere there are none, for there threads decode."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    found = [child for task in tasks for child in task.read_text().split()]
    assert found or sys.platform != "linux" or os.cpu_count() == 1
    return found


@pytest.mark.skipif(sys.platform != "linux" or os.cpu_count() == 1, reason="threads decode here")
def test_a_worker_that_dies_is_told(tmp_path, own_cache, monkeypatch) -> None:
    names, main = photos(tmp_path / "p", 200), os.getpid()

    def dies(path: str, spec: InputSpec) -> object:
        if path.endswith(names[100]) and os.getpid() != main:
            os.kill(os.getpid(), signal.SIGKILL)
        return images.read_picture(path, spec)

    monkeypatch.setattr(cache, "read_picture", dies)
    with pytest.raises(UserError, match="a process that decoded pictures was killed; did the memory run out") as told:
        cache.decode(tmp_path / "p", names, SPEC)
    assert told.value.exit_code == 1
    assert not cache.entries()
    assert not list(own_cache.glob("*.part"))


def test_two_processes_at_once_decode_once(tmp_path) -> None:
    photos(tmp_path / "p", 600, 200)
    with decoding(tmp_path / "p") as one, decoding(tmp_path / "p") as other:
        said = [process.communicate()[0].splitlines() for process in (one, other)]
    assert one.returncode == other.returncode == 0
    assert said[0][-1] == said[1][-1]
    assert sorted(len(lines) > 1 for lines in said) == [False, True], "both decoded, or none"


def test_the_command(tmp_path, convlens) -> None:
    cache.decode(tmp_path / "p", photos(tmp_path / "p", 20), SPEC)
    found = json.loads(convlens("cache", "--json").stdout)
    assert [(entry["source"], entry["pictures"]) for entry in found] == [(str(tmp_path / "p"), 20)]
    assert found[0]["bytes"] > 20 * 20 * 24 * 3
    assert time.time() - found[0]["used"] < 3600
    assert str(tmp_path / "p") in convlens("cache").stdout
    assert "sets of decoded pictures taken away: 1, " in convlens("cache", "--clear").stderr
    assert json.loads(convlens("cache", "--json").stdout) == []
