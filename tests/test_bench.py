"""bench: the real command and real processes on 5,000 real digits, and a peer that does nothing but report."""

from __future__ import annotations

import json
import stat
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from convlens.bench import Contest, bench, data_of, result, summary
from convlens.recipe import Recipe
from convlens.recipes import RECIPES
from refusals import refused

PEER = """
import json, sys
seed = int(sys.argv[sys.argv.index("--seed") + 1])
print("chatter")
print(json.dumps({"epoch": 1, "train_seconds": 10.0 + seed, "evaluate_seconds": 1.0, "test_accuracy": 0.9}))
spent = {"import": 1.0, "data": 0.5, "compile": 0.0, "train": 10.0 + seed, "evaluate": 1.0}
print(json.dumps({"peer": "keras", "seconds": spent, "images_per_second": 100.0, "accuracy": 0.9,
                  "peak_memory_bytes": 10**9, "threads": 1, "versions": {}, "args": sys.argv[1:]}))
"""


@pytest.fixture
def peers(tmp_path: Path) -> Path:
    """A folder of peers with one, keras, whose interpreter is this one."""
    folder = tmp_path / "peers"
    python = folder / ".env" / "keras" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(python.stat().st_mode | stat.S_IEXEC)
    (folder / "with_keras.py").write_text(PEER)
    return folder


def report(accuracy: float, train: float, peer: str = "convlens", **more: Any) -> dict[str, Any]:
    seconds = {"import": 1.0, "data": 0.5, "compile": 0.0, "train": train, "evaluate": 0.25}
    fixed = {"precision": "fp32", "threads": 1, "device": "cpu", "versions": {}, "peak_memory_bytes": 1000}
    return {"peer": peer, "seconds": seconds, "accuracy": accuracy, "images_per_second": 100 / train, **fixed, **more}


def test_a_summary_is_of_all_runs() -> None:
    found = summary([report(0.9, 2.0), report(0.92, 4.0), report(0.97, 3.0)], to_accuracy=0.92)
    assert found["n"] == 3
    assert found["accuracy"]["mean"] == pytest.approx(0.93)
    assert found["accuracy"]["std"] == pytest.approx(statistics.stdev([0.9, 0.92, 0.97]))
    assert found["seconds"]["train"] == {"median": 3.0, "min": 2.0, "max": 4.0}
    assert found["images_per_second"] == pytest.approx(100 / 3)
    assert found["reached"] == 2
    assert found["flops"] is None


def test_ratios_are_of_neighbouring_runs() -> None:
    """The median of the pairs' ratios, not the ratio of the medians: the machine's speed drifts."""
    recipe = RECIPES["speed-mnist"]
    pairs = [(1.0, 10.0), (2.0, 14.0), (1.0, 4.0)]
    reports = []
    for ours, theirs in pairs:
        reports += [report(0.99, ours), report(0.99, theirs, "keras")]
    found = result(Contest(recipe, "mnist", peer="keras"), reports)
    assert found["peer"]["ratio"]["train_seconds"] == {"median": 7.0, "min": 4.0, "max": 10.0}
    assert found["peer"]["seconds"]["train"]["median"] == 10.0


def test_the_data_set_is_in_the_recipes_name() -> None:
    assert data_of(RECIPES["speed-cifar10-70"]) == "cifar10"
    assert data_of(RECIPES["lenet5-mnist"]) == "mnist"
    refused(lambda: data_of(RECIPES["quick"]), "quick", "--data")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the peer's interpreter is a shell script")
def test_the_command_runs_both_in_turn_and_tells_all(peers: Path, tmp_path: Path) -> None:
    plot = tmp_path / "plot.png"
    small = ["--set", "epochs=1", "--set", "data.val=0.9", "--set", "model.args={widths=[2],convs=1}"]
    command = [sys.executable, "-m", "convlens", "bench", "quick", "--data", "mnist-5k", "--runs", "2", *small]
    command += ["--vs", "keras", "--peers", str(peers), "--data-dir", str(tmp_path), "--plot", str(plot), "--json"]
    done = subprocess.run([*command, "--threads", "1"], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["n"] == 2
    for key in ("mean", "std"):
        assert 0 <= found["accuracy"][key] <= 1
    assert set(found["seconds"]) == {"import", "data", "compile", "train", "evaluate"}
    assert found["seconds"]["train"]["median"] > 0
    for key in ("images_per_second", "peak_memory_bytes", "flops", "flops_per_second", "peak_flops_per_second"):
        assert found[key] > 0
    assert found["threads"] == 1
    assert found["peer"]["seconds"]["train"] == {"median": 10.5, "min": 10.0, "max": 11.0}
    assert found["peer"]["ratio"]["train_seconds"]["median"] > 1
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert [line.split()[0] for line in done.stderr.splitlines()] == ["convlens", "keras", "convlens", "keras"]


def contest(**changes: Any) -> Contest:
    return Contest(**{"recipe": RECIPES["speed-mnist"], "data": "mnist", "data_dir": "nowhere", **changes})


def test_peers_that_cannot_run_are_refused(peers: Path) -> None:
    refused(lambda: list(bench(contest(peer="kera", peers=peers))), "kera", "did you mean 'keras'?")
    refused(lambda: list(bench(contest(peer="fastai", peers=peers))), "with_fastai.py", "--peers")
    (peers / "with_fastai.py").write_text("")
    refused(lambda: list(bench(contest(peer="fastai", peers=peers))), "no environment", "README.md")
    refused(lambda: list(bench(contest(peer="keras", peers=peers, data_dir=None))), "--data-dir")


def test_a_run_that_fails_says_why() -> None:
    recipe = Recipe(name="quick", epochs=0)
    said = refused(
        lambda: list(bench(contest(recipe=recipe, data="mnist-5k", data_dir=None))), "exit code 2", exit_code=1
    )
    assert "0 epochs" in said
