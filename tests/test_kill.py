"""kill -9 at any moment loses nothing: the run taken up ends with the bits of an unbroken one."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from convlens import Run

# Dropout, momentum, batch norm, shifts and a schedule: everything that has a state of its own.
EPOCHS = 10
FLAGS = (
    "mnist-5k",
    "--limit",
    "600",
    "--epochs",
    str(EPOCHS),
    "--set",
    "model.args.dropout=0.2",
    "-b",
    "32",
    "--no-plots",
    "--no-report",
)


@pytest.fixture(scope="module")
def unbroken(convlens, tmp_path_factory) -> Run:
    """A run that nobody disturbed."""
    out = tmp_path_factory.mktemp("unbroken")
    result = convlens("train", *FLAGS, "--out", out, "--name", "run")
    assert result.returncode == 0, result.stderr
    return Run.open(out / "run")


def state(run: Run) -> dict[str, torch.Tensor]:
    """Every tensor that the run saved: last and best checkpoint, and the model file."""
    found = {}
    for path in (run.last, run.best, run.path / "model.safetensors"):
        found |= {f"{path.name} {k}": v for k, v in safetensors.torch.load(path.read_bytes()).items()}
    return found


def assert_same(run: Run, other: Run) -> None:
    mine, theirs = state(run), state(other)
    assert mine.keys() == theirs.keys()
    different = [name for name in mine if not torch.equal(mine[name], theirs[name])]
    assert not different
    for row, other_row in zip(run.history, other.history, strict=True):
        assert {**row, "seconds": 0, "images_per_second": 0} == {**other_row, "seconds": 0, "images_per_second": 0}
    assert (run.path / "predictions.csv").read_bytes() == (other.path / "predictions.csv").read_bytes()


def kill_and_resume(convlens, out: Path, epochs: int, delay: float) -> Run:
    """Train, SIGKILL `delay` seconds after `epochs` were done, resume to the end. The epochs are counted in the run,
    because the machine may be twice as fast now as when the unbroken run was timed."""
    history = out / "run" / "history.jsonl"
    command = [sys.executable, "-m", "convlens", "train", *FLAGS, "--out", str(out), "--name", "run"]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        process.stderr.readline()  # "... training images ... -> run": the folder is there, training begins
        while epochs and (not history.exists() or history.read_bytes().count(b"\n") < epochs):
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.002)
        time.sleep(delay)
        process.kill()
    assert process.returncode == -signal.SIGKILL, "it ended before it was killed"
    done = len(Run.open(out / "run").history)
    assert done < EPOCHS
    resumed = convlens("train", "--resume", out / "run", "--no-plots", "--no-report")
    assert resumed.returncode == 0, resumed.stderr
    print(f"killed {delay:.2f} s after epoch {epochs}, when {done} were done")
    return Run.open(out / "run")


def trials(convlens, unbroken: Run, tmp_path: Path, count: int, seed: int) -> None:
    moments, epoch = random.Random(seed), unbroken.metrics["train_seconds"] / EPOCHS
    for i in range(count):  # at most epoch 7 and then one more epoch's time, which leaves two for a faster machine
        killed = kill_and_resume(convlens, tmp_path / str(i), moments.randint(0, EPOCHS - 3), moments.uniform(0, epoch))
        assert_same(killed, unbroken)


def test_killed_at_a_moment(convlens, unbroken, tmp_path) -> None:
    trials(convlens, unbroken, tmp_path, count=1, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_at_twenty_moments(convlens, unbroken, tmp_path) -> None:
    trials(convlens, unbroken, tmp_path, count=20, seed=2)


# Killed in the middle of writing: before the n-th rename (the temporary file lies there), or right after it.
KILLER = """
import os, signal, sys
import convlens.files as files
real, left = files.write_whole, int(sys.argv.pop(1))
when = sys.argv.pop(1)
def write_whole(path, data):
    global left
    if path.name in ("last.safetensors", "best.safetensors", "history.jsonl", "metrics.json"):
        left -= 1
        if left == 0 and when == "half":
            whole = data if isinstance(data, bytes) else data.encode()
            path.with_name(f".{path.name}.part").write_bytes(whole[: len(whole) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        real(path, data)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    else:
        real(path, data)
files.write_whole = write_whole
from convlens.cli import main
main()
"""


@pytest.mark.parametrize(
    ("write", "when"),
    [
        (2, "half"),
        pytest.param(5, "half", marks=pytest.mark.slow),
        pytest.param(6, "after", marks=pytest.mark.slow),
        pytest.param(9, "after", marks=pytest.mark.slow),
    ],
)
def test_killed_while_saving(convlens, unbroken, tmp_path, write, when) -> None:
    out = tmp_path / "run"
    arguments = [str(write), when, "train", *FLAGS, "--out", str(tmp_path), "--name", "run"]
    killed = subprocess.run([sys.executable, "-c", KILLER, *arguments], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    resumed = convlens("train", "--resume", out, "--no-plots", "--no-report")
    assert resumed.returncode == 0, resumed.stderr
    assert_same(Run.open(out), unbroken)
    assert not list(out.rglob(".*.part"))
    assert json.loads((out / "metrics.json").read_text())["epochs"] == EPOCHS
