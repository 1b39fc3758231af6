"""What every peer shares besides the data: the command line, the clock and the lines of JSON. Standard library only.

A script imports this before its framework, for the clock of `seconds.import` starts here.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import sys
import time
from importlib.metadata import version
from pathlib import Path

_STARTED = time.perf_counter()


class Peer:
    """One run of a peer: its options, and its report. From here on, whatever else prints, prints to standard error."""

    def __init__(self, name: str, description: str | None) -> None:
        self.name = name
        self.seconds = {"import": time.perf_counter() - _STARTED, "data": 0.0, "compile": 0.0}
        self.train_seconds = self.evaluate_seconds = self.accuracy = 0.0
        self.epochs = self.images = self.workers_bytes = 0
        parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--data-dir", type=Path, required=True, help="holds MNIST/raw or cifar-10-batches-py")
        parser.add_argument("--data", choices=("mnist", "cifar10"), required=True)
        parser.add_argument("--seed", type=int, default=0)
        parser.add_argument("--epochs", type=int, required=True)
        parser.add_argument("--to-accuracy", type=float, help="stop after the first epoch with this test accuracy")
        parser.add_argument("--threads", type=int, help="threads to compute with; if absent, the framework's choice")
        parser.add_argument("--limit", type=int, help=argparse.SUPPRESS)  # the first N training images, to try things
        self.options = parser.parse_args()
        self._lines = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def epoch(self, train_seconds: float, evaluate_seconds: float, accuracy: float, images: int) -> bool:
        """Report an epoch over `images` training images. Returns whether the asked accuracy is reached."""
        self.epochs += 1
        self.images += images
        self.train_seconds += train_seconds
        self.evaluate_seconds += evaluate_seconds
        self.accuracy = accuracy
        line = {"epoch": self.epochs, "train_seconds": train_seconds, "evaluate_seconds": evaluate_seconds}
        print(json.dumps({**line, "test_accuracy": accuracy}), file=self._lines)
        return self.options.to_accuracy is not None and accuracy >= self.options.to_accuracy

    def weigh_workers(self) -> None:
        """Note the memory of the worker processes now alive: what they do not share with this one (Linux)."""
        total = 0
        for child in multiprocessing.active_children():
            rollup = Path(f"/proc/{child.pid}/smaps_rollup")
            if rollup.exists():
                private = [line for line in rollup.read_text().splitlines() if line.startswith("Private_")]
                total += sum(int(line.split()[1]) * 1024 for line in private)
        self.workers_bytes = max(self.workers_bytes, total)

    def end(self, threads: int, *packages: str) -> None:
        """Report the run."""
        spent = {**self.seconds, "train": self.train_seconds, "evaluate": self.evaluate_seconds}
        own_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        report = {
            "peer": self.name,
            "seconds": spent,
            "images_per_second": self.images / self.train_seconds,
            "accuracy": self.accuracy,
            "peak_memory_bytes": own_bytes + self.workers_bytes,
            "threads": threads,
            "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        }
        print(json.dumps(report), file=self._lines)
