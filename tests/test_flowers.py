"""convlens check on real photographs with forty planted faults: what it finds, and what else it says."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from convlens.checking import check

FORTY = {
    "identical": 2,
    "compressed anew (quality 40)": 4,
    "half the size": 4,
    "wrong labels": 10,
    "empty": 3,
    "cut off in the middle": 4,
    "no picture": 3,
    "one colour": 3,
    "one colour with noise": 3,
    "an eighth as bright": 4,
}


def planting() -> ModuleType:
    path = Path(__file__).parent.parent / "benchmarks" / "planted.py"
    spec = importlib.util.spec_from_file_location("planted", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["planted"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_forty_faults_in_the_flowers(data_root, tmp_path, monkeypatch, capsys) -> None:
    if not (data_root / "flowers").is_dir():
        pytest.skip("CONVLENS_DATA has no folder with the flowers")
    monkeypatch.setenv("CONVLENS_CACHE", str(tmp_path / "cache"))
    planted = planting()
    faults = planted.plant(data_root / "flowers", tmp_path / "flowers", FORTY, seed=1)
    report = check(tmp_path / "flowers")
    found = planted.named(report)
    missed = [
        name
        for kind, names in faults.values()
        for name in names
        if name not in found[kind] and not (kind == "dark" and name in found["blank"])
    ]
    total = sum(len(names) for _, names in faults.values())
    assert total == 40
    alarms = planted.other_alarms(report, faults)
    with capsys.disabled():
        print(f"\n{total - len(missed)} of {total} planted faults found; other alarms: {json.dumps(alarms)}")
        print(f"missed: {missed}")
    assert total - len(missed) >= 36
    assert all("wrong" in name for name in missed), "all but wrong labels can be told for sure"
