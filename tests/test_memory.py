"""A set larger than memory: decoded, trained on, measured and loaded again with fewer bytes than its pixels have."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

COUNT, SIDE = 800, 512  # oneDNN ends a process where the limit meets one of its kernels: 600 left too little room
BYTES = COUNT * SIDE * SIDE * 3

# What is imported late is imported before the limit is drawn: it takes the same of a set of any size.
TRAIN = f"""
import os, resource, sys
from pathlib import Path
import matplotlib.pyplot, torch._dynamo
from convlens import Recipe, fit, load

os.cpu_count = lambda: 2  # the stack of every thread that decodes would count
recipe = Recipe.from_dict({{
    "epochs": 1,
    "batch_size": 4,
    "data": {{"size": [{SIDE}, {SIDE}]}},
    "model": {{"name": "speednet", "args": {{"widths": [4, 4], "convs": 1, "whiten": 0, "pool": "stride"}}}},
    "augment": {{"flip": True, "scale": 0.5}},
}})
held = int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (held + {BYTES},) * 2)
data = load(sys.argv[1], recipe)
run = fit(recipe, data, sys.argv[2])
again = run.load_data()
assert [len(split) for split in (again.train, again.val, again.test)] == [611, 69, 120]
assert again.sha256 == data.sha256
try:
    kept = [split.images for split in (data.train, data.val, data.test)]
except RuntimeError as error:
    print("a copy", "can't allocate memory" in str(error))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's own memory, mapped files aside")
def test_training_takes_less_memory_than_the_pixels(tmp_path) -> None:
    random = np.random.default_rng(0)
    for i in range(COUNT):  # small files, large pictures
        folder = tmp_path / "set" / "abc"[i % 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / f"{i:03}.png")
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", TRAIN, str(tmp_path / "set"), str(tmp_path / "runs")],
        env={**os.environ, "CONVLENS_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "a copy True\n"
    pixels = next((tmp_path / "cache").rglob("pixels.u8"))
    assert pixels.stat().st_size == BYTES
