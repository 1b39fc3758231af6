"""What several test files share: where real data lies, and whether the slow tests run."""

from __future__ import annotations

import functools
import importlib
import io
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from chromium import CHROMIUM
from convlens.cli import main

Convlens = Callable[..., subprocess.CompletedProcess[str]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    root = os.environ.get("CONVLENS_DATA")
    there = root and (Path(root) / "MNIST/raw").is_dir() and (Path(root) / "cifar-10-batches-py").is_dir()
    for item in items:
        if item.get_closest_marker("data") and not there:
            item.add_marker(pytest.mark.skip(reason="CONVLENS_DATA names no folder with MNIST and CIFAR-10"))
        if item.get_closest_marker("slow") and os.environ.get("CONVLENS_SLOW") != "1":
            item.add_marker(pytest.mark.skip(reason="takes long; set CONVLENS_SLOW=1"))


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The real data sets, for tests that are marked with `data`."""
    return Path(os.environ["CONVLENS_DATA"])


@pytest.fixture(scope="session")
def convlens() -> Convlens:
    """Runs the program's main() in this process, which has torch already; its arguments, and the folder it is run in.
    What ends main() ends a process, too: an exit code, or a traceback and 1."""

    def run(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        command = ["convlens", *map(str, arguments)]
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.setattr(sys, "argv", command)
            patch.setattr(sys, "path", sys.path.copy())
            patch.chdir(cwd or Path.cwd())
            code = 0
            try:
                main()
            except SystemExit as end:
                code = int(end.code or 0)
            except Exception:
                traceback.print_exc()
                code = 1
        return subprocess.CompletedProcess(command, code, _written(out), _written(err))

    return run


def _written(stream: io.TextIOWrapper) -> str:
    stream.seek(0)
    return stream.read()


@pytest.fixture(scope="session")
def process() -> Convlens:
    """Runs the real program in a process of its own, where that is what is tested, or what could differ; its arguments,
    then subprocess.run's own keywords."""

    def run(*arguments: object, **settings: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "error", "-m", "convlens", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, **settings)  # type: ignore[call-overload] # keywords passed on

    return run


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A chromium without a window."""
    playwright = importlib.import_module("playwright.sync_api")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def operators_read_once() -> Iterator[None]:
    """torch's exporter reads the sources of its 500 ONNX operators for every network anew, half of an export's time;
    they do not change."""
    registry = importlib.import_module("torch.onnx._internal.exporter._registration").ONNXRegistry
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "from_torchlib", staticmethod(functools.cache(registry.from_torchlib)))
        yield
