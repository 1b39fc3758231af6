"""How long a recipe takes and what it reaches: several seeds, each in a process of its own, and a peer's in turn."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .datasets import DATASETS
from .errors import FAILED, UserError, unknown
from .recipe import Recipe

PEERS = ("article", "keras", "lightning", "fastai")
MOST_EPOCHS = 40  # of a peer that does not reach the accuracy it is to reach
STAGES = ("import", "data", "compile", "train", "evaluate")


@dataclass(frozen=True)
class Contest:
    """What is run: `recipe` on `data`, `runs` times with the seeds from 0 on, each followed by `peer` with the same
    seed. With `to_accuracy` both look at the test set after every epoch and stop where they have reached it; without,
    ours trains as its recipe says and looks once, the peer for `peer_epochs`. `peers`: the folder of their scripts."""

    recipe: Recipe
    data: str
    data_dir: str | None = None
    runs: int = 5
    peer: str | None = None
    to_accuracy: float | None = None
    peer_epochs: int = 1
    peers: Path = Path("benchmarks/peers")
    threads: int | None = None


def data_of(recipe: Recipe) -> str:
    """The data set that a recipe is named after. Raises UserError where it is named after none."""
    found = [name for name in DATASETS if name in recipe.name.split("-")]
    if not found:
        raise UserError(f"the recipe {recipe.name} does not say which data set it is for: name one with --data")
    return found[0]


def bench(contest: Contest) -> Iterator[dict[str, Any]]:
    """Run everything, yielding each run's report as it ends, ours and the peer's in turn.

    Raises:
        UserError: an unknown peer, one that is not installed, or a run that failed (exit code 1).
    """
    peer = [] if contest.peer is None else _peer_command(contest)
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "recipe.toml"
        recipe.write_text(contest.recipe.to_toml(), encoding="utf-8")
        ours = [sys.executable, "-m", "convlens.trial", str(recipe), contest.data]
        for seed in range(contest.runs):
            yield _run([*ours, *_options(contest, seed)], "convlens")
            if peer:
                yield _run([*peer, *_options(contest, seed)], str(contest.peer))


def _options(contest: Contest, seed: int) -> list[str]:
    given = {
        "--data-dir": contest.data_dir,
        "--seed": seed,
        "--to-accuracy": contest.to_accuracy,
        "--threads": contest.threads,
    }
    return [text for flag, value in given.items() if value is not None for text in (flag, str(value))]


def _peer_command(contest: Contest) -> list[str]:
    name = str(contest.peer)
    if name not in PEERS:
        raise unknown("peer", name, PEERS)
    script = contest.peers / f"with_{name}.py"
    environment = contest.peers / ".env" / name
    python = environment / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if not script.exists():
        raise UserError(f"there is no {script}: the peers' scripts are in ConvLens' repository, --peers says where")
    if not python.exists():
        raise UserError(f"the peer {name} has no environment {environment}; {contest.peers / 'README.md'} says how")
    if contest.data_dir is None:
        raise UserError(f"the peer {name} reads the data set's own files: say where they lie with --data-dir")
    epochs = MOST_EPOCHS if contest.to_accuracy is not None else contest.peer_epochs
    return [str(python), str(script), "--data", contest.data, "--epochs", str(epochs)]


def _run(command: Sequence[str], name: str) -> dict[str, Any]:
    """One process to its end: its last line, with the lines of its epochs beside it."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own command
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode != 0 or not lines:
        said = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
        raise UserError(f"a run of {name} ended with exit code {done.returncode}: {said}", FAILED)
    *epochs, report = [json.loads(line) for line in lines]
    return {**report, "epochs": epochs}


def summary(reports: Sequence[dict[str, Any]], to_accuracy: float | None = None) -> dict[str, Any]:
    """The runs of one side as one object: means, medians, spreads."""
    accuracies = [report["accuracy"] for report in reports]
    found: dict[str, Any] = {
        "n": len(reports),
        "accuracy": {
            "mean": statistics.mean(accuracies),
            "std": statistics.stdev(accuracies) if len(reports) > 1 else 0.0,
            "min": min(accuracies),
            "max": max(accuracies),
        },
        "seconds": {stage: _spread([report["seconds"][stage] for report in reports]) for stage in STAGES},
        "images_per_second": statistics.median(report["images_per_second"] for report in reports),
        "peak_memory_bytes": max(report["peak_memory_bytes"] or 0 for report in reports) or None,
    }
    for name in ("flops", "flops_per_second", "peak_flops_per_second", "tta_accuracy"):
        values = [report[name] for report in reports if report.get(name) is not None]
        found[name] = statistics.median(values) if values else None
    if to_accuracy is not None:
        found["reached"] = sum(accuracy >= to_accuracy for accuracy in accuracies)
    return found


def result(contest: Contest, reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Everything that `bench` yielded as one object; `peer` is None, or the peer's own summary and the ratios, each the
    median over the pairs of neighbouring runs: above 1 we are faster."""
    ours = [report for report in reports if report["peer"] == "convlens"]
    theirs = [report for report in reports if report["peer"] != "convlens"]
    found = {
        "recipe": contest.recipe.name,
        "data": contest.data,
        "to_accuracy": contest.to_accuracy,
        **summary(ours, contest.to_accuracy),
        "precision": ours[0]["precision"],
        "threads": ours[0]["threads"],
        "device": ours[0]["device"],
        "peer": None,
    }
    if theirs:
        pairs = list(zip(ours, theirs, strict=True))
        found["peer"] = {
            "name": contest.peer,
            **summary(theirs, contest.to_accuracy),
            "versions": theirs[0]["versions"],
            "ratio": {
                "images_per_second": _spread([a["images_per_second"] / b["images_per_second"] for a, b in pairs]),
                "train_seconds": _spread([b["seconds"]["train"] / a["seconds"]["train"] for a, b in pairs]),
            },
        }
    return found


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}
