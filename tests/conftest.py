"""What several test files share: where real data lies, and whether the slow tests run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Convlens = Callable[..., subprocess.CompletedProcess[str]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    root = os.environ.get("CONVLENS_DATA")
    there = root and (Path(root) / "MNIST/raw").is_dir() and (Path(root) / "cifar-10-batches-py").is_dir()
    for item in items:
        if item.get_closest_marker("data") and not there:
            item.add_marker(pytest.mark.skip(reason="CONVLENS_DATA names no folder with MNIST and CIFAR-10"))
        if item.get_closest_marker("slow") and os.environ.get("CONVLENS_SLOW") != "1":
            item.add_marker(pytest.mark.skip(reason="takes minutes; set CONVLENS_SLOW=1"))


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The real data sets, for tests that are marked with `data`."""
    return Path(os.environ["CONVLENS_DATA"])


@pytest.fixture(scope="session")
def convlens() -> Convlens:
    """Runs the real program; its arguments, then subprocess.run's own keywords."""

    def run(*arguments: object, **settings: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "error", "-m", "convlens", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=250, check=False, **settings)  # type: ignore[call-overload] # keywords passed on

    return run
