"""A few seconds of benchmarks/fuzz.py, always the same inputs; and that it finds what it looks for."""

from __future__ import annotations

import importlib.util
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from convlens.errors import UserError

PATH = Path(__file__).parent.parent / "benchmarks" / "fuzz.py"


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz", PATH)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    make_seeds, *others = module.KINDS["shipped"]
    seeds = make_seeds(tmp_path_factory.mktemp("seeds"))  # seconds of exporting
    module.KINDS["shipped"] = (lambda _: seeds, *others)
    return module


pytestmark = pytest.mark.usefixtures("operators_read_once")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow says much about damaged files
        yield


@pytest.mark.parametrize(
    ("kind", "inputs", "good"),
    [
        ("models", 400, "loaded"),
        ("shipped", 100, "loaded"),
        pytest.param("shipped", 400, "loaded", marks=pytest.mark.slow),
        ("pictures", 400, "read"),
    ],
)
def test_a_short_run_finds_nothing(kind: str, inputs: int, good: str, fuzzer: ModuleType, tmp_path: Path) -> None:
    counted = fuzzer.fuzz(kind, tmp_path, seed=7, inputs=inputs)
    assert counted["failed"] == 0, list(tmp_path.iterdir())
    assert counted["inputs"] > 0.97 * inputs  # a few are like the file they were made of
    assert counted["refused"] > inputs / 2
    assert counted[good] > 5
    assert not list(tmp_path.glob(f"{kind}-*"))


def test_what_goes_wrong_is_kept(fuzzer: ModuleType, tmp_path: Path, monkeypatch, capsys) -> None:
    held = []

    def attempt(data: bytes, _: object, path: Path) -> str:
        assert path.read_bytes() == data
        match len(held):
            case 0:
                held.append(1)
                raise KeyError("a crash")
            case 1:
                held.append(2)
                time.sleep(0.2)
            case 2:
                held.append(3)  # from here on `peak` says more
            case 3:
                held.append(4)
                raise UserError("a sentence\nand another")
        return "loaded"

    make_seeds, make, _ = fuzzer.KINDS["pictures"]
    monkeypatch.setitem(fuzzer.KINDS, "pictures", (make_seeds, make, attempt))
    monkeypatch.setattr(fuzzer, "SECONDS", 0.15)
    monkeypatch.setitem(fuzzer.BOUND, "pictures", 1)
    monkeypatch.setattr(fuzzer, "peak", lambda: 200.0 if len(held) > 2 else 100.0)
    counted = fuzzer.fuzz("pictures", tmp_path, seed=1, inputs=20)
    said = capsys.readouterr().err
    for words in ("KeyError: 'a crash'", "s\n", "MiB", "several lines"):
        assert words in said
    assert counted["failed"] == 4
    assert len(list(tmp_path.glob("pictures-1-*"))) == 4


def test_inputs_come_from_the_seed_and_their_number(fuzzer: ModuleType, tmp_path: Path) -> None:
    import numpy as np

    for kind, (make_seeds, make, _) in fuzzer.KINDS.items():
        seeds = make_seeds(tmp_path)
        first, again = ([make(seeds, np.random.default_rng((3, i))) for i in range(30)] for _ in range(2))
        assert first == again, kind
        assert len(set(first)) > 20
